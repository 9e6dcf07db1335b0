package ledger

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

func rawItem(t *testing.T, l *Ledger) item {
	t.Helper()
	out, err := l.client.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: &l.table, Key: key.item()})
	if err != nil {
		t.Fatal(err)
	}
	return out.Item
}

func beginUpload(t *testing.T, l *Ledger, to ...string) *Record {
	t.Helper()
	id, beside, err := l.NewUpload(t.Context(), key, noon)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.BeginUpload(t.Context(), key, Upload{ExecutionID: id, UploadID: "upload", Size: 7, Destinations: to, StartTime: noon}, beside)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An upload that breaks off leaves the item as it was, or no item.
func TestUploadThatBreaksOff(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		ctx := t.Context()
		l = l.As(key.SourceBucket)
		u := beginUpload(t, l, "aaa", "bbb")
		if _, err := l.SetLanding(ctx, key, u.ExecutionID, "aaa", Landing{Agent: "agent", UploadID: "landing", ExecutionID: u.ExecutionID}); err != nil {
			t.Fatal(err)
		}
		r, err := l.Get(ctx, key)
		if err != nil || r.ExecutionID != "" || r.Of(u.ExecutionID) == nil || r.Of(u.ExecutionID).Landings["aaa"].UploadID != "landing" {
			t.Fatalf("%+v, %v", r, err)
		}
		var records, uploads int
		if err := l.Scan(ctx, Scan{Record: func(*Record) { records++ }, Upload: func(*Record) { uploads++ }}); err != nil || records != 0 || uploads != 1 {
			t.Errorf("a scan finds %d executions and %d uploads: %v", records, uploads, err)
		}
		for range 2 {
			if err := l.EndUpload(ctx, key, u.ExecutionID); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Get(ctx, key); !errors.Is(err, ErrNotFound) {
			t.Fatalf("after the end: %v", err)
		}

		old := begin(t, l, start("etag-1", "aaa", "ccc")).Record
		if _, err := l.SetLanding(ctx, key, old.ExecutionID, "aaa", Landing{Agent: "agent", UploadID: "old landing", ExecutionID: old.ExecutionID}); err != nil {
			t.Fatal(err)
		}
		before := rawItem(t, l)
		u = beginUpload(t, l, "bbb", "ccc")
		if u.ExecutionID <= old.ExecutionID {
			t.Errorf("its id %s is not greater than %s", u.ExecutionID, old.ExecutionID)
		}
		if _, err := l.SetLanding(ctx, key, u.ExecutionID, "bbb", Landing{Agent: "agent", UploadID: "landing", ExecutionID: u.ExecutionID}); err != nil {
			t.Fatal(err)
		}
		// The running execution goes on meanwhile.
		if _, err := l.SetLanding(ctx, key, old.ExecutionID, "ccc", Landing{Agent: "agent", UploadID: "other", ExecutionID: old.ExecutionID}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Arrive(ctx, &Record{Key: key, ExecutionID: u.ExecutionID}, "bbb", Result{Timestamp: noon}); !errors.Is(err, ErrSuperseded) {
			t.Errorf("an arrival before the end of the upload: %v", err)
		}
		if _, err := l.Retry(ctx, key, old.ExecutionID); err != nil {
			t.Fatal(err)
		}
		if r, err := l.Get(ctx, key); err != nil || r.Upload == nil || r.Upload.Landings["bbb"].UploadID != "landing" || r.Landings["ccc"].UploadID != "other" {
			t.Errorf("beside each other: %+v, %v", r, err)
		}
		if err := l.EndUpload(ctx, key, u.ExecutionID); err != nil {
			t.Fatal(err)
		}
		after := rawItem(t, l)
		if a, b := unchangedBy(t, after), unchangedBy(t, before); !reflect.DeepEqual(a, b) || len(after) != len(before) {
			t.Errorf("before %v\nafter %v", b, a)
		}
		if _, err := l.SetLanding(ctx, key, u.ExecutionID, "bbb", Landing{Agent: "agent", UploadID: "late", ExecutionID: u.ExecutionID}); !errors.Is(err, ErrSuperseded) {
			t.Errorf("a landing after the end: %v", err)
		}
	})
}

// unchangedBy is an item but for what the running execution has changed.
func unchangedBy(t *testing.T, i item) *Record {
	t.Helper()
	r, err := decode(i, noon)
	if err != nil {
		t.Fatal(err)
	}
	r.Version, r.Landings, r.item = 0, nil, nil
	return r
}

// At the end of its upload an execution takes the key, with what was to be reached still.
func TestUploadTakesTheKey(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		ctx := t.Context()
		old := begin(t, l, start("etag-1", "aaa", "bbb")).Record
		u := beginUpload(t, l, "aaa", "ccc")
		if _, err := l.SetLanding(ctx, key, u.ExecutionID, "aaa", Landing{Agent: "agent", UploadID: "landing", ExecutionID: u.ExecutionID}); err != nil {
			t.Fatal(err)
		}
		seal := start("etag-2", "aaa", "ccc")
		seal.Upload, seal.Sealing = u.ExecutionID, true
		b := begin(t, l, seal)
		r, err := l.Get(ctx, key)
		if err != nil || !b.Adopted || r.ExecutionID != u.ExecutionID || r.Upload != nil || r.SourceETag != "etag-2" || r.Status != InProgress {
			t.Fatalf("%+v: %+v, %v", b, r, err)
		}
		if b.Superseded != old.ExecutionID || !slices.Equal(b.Inherited, []string{"bbb"}) || !slices.Equal(r.Destinations, []string{"aaa", "bbb", "ccc"}) {
			t.Errorf("superseded %s, inherited %v, destinations %v", b.Superseded, b.Inherited, r.Destinations)
		}
		if r.Landings["aaa"].UploadID != "landing" {
			t.Errorf("landings %+v", r.Landings)
		}
		// The answer to the write may get lost.
		if b := begin(t, l, seal); !b.Joined || b.Record.ExecutionID != u.ExecutionID {
			t.Errorf("once more: %+v", b)
		}
		// Another object of the key, or the same one again, is another execution.
		seal.Sealing, seal.Destinations = false, []string{"ddd"}
		if b := begin(t, l, seal); b.Joined || b.Adopted || b.Superseded != u.ExecutionID {
			t.Errorf("published again: %+v", b)
		}
	})
}

// Whatever else begins of the key meanwhile has nothing to do with the upload. One that is
// overtaken by an execution that is newer does not take the key from it.
func TestUploadThatIsOvertaken(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		begin(t, l, start("etag-1", "aaa"))
		u := beginUpload(t, l, "aaa", "ccc")
		other := start("etag-2", "aaa")
		other.Now = noon.Add(1e9)
		x := begin(t, l, other)
		if x.Adopted || x.Broken != nil || x.Record.Upload == nil || x.Record.ExecutionID <= u.ExecutionID {
			t.Fatalf("%+v", x)
		}
		late := start("etag-3", "aaa", "ccc")
		late.Upload, late.Sealing, late.Now = u.ExecutionID, true, noon.Add(2e9)
		b := begin(t, l, late)
		if b.Adopted || b.Broken == nil || b.Broken.ExecutionID != u.ExecutionID || b.Superseded != x.Record.ExecutionID || b.Record.ExecutionID <= x.Record.ExecutionID {
			t.Errorf("%+v", b)
		}
		if r, err := l.Get(t.Context(), key); err != nil || r.Upload != nil {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// A seeder that may not delete items leaves an empty one, which counts for none.
func TestUploadThatMayNotBeDeleted(t *testing.T) {
	l := New(dynamodb.NewFromConfig(cloud.AWS, func(o *dynamodb.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("MayNotDelete",
				func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
					if _, ok := in.Parameters.(*dynamodb.DeleteItemInput); ok {
						return middleware.InitializeOutput{}, middleware.Metadata{}, &smithy.GenericAPIError{Code: "AccessDeniedException"}
					}
					return next.HandleInitialize(ctx, in)
				}), middleware.After)
		})
	}), cloud.Table(t)).As(key.SourceBucket)
	u := beginUpload(t, l, "aaa")
	if err := l.EndUpload(t.Context(), key, u.ExecutionID); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Get(t.Context(), key); err != nil || r.ExecutionID != "" || r.Upload != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := l.Scan(t.Context(), Scan{Record: func(r *Record) { t.Errorf("found %+v", r) }, Unreadable: func(u *Unreadable) { t.Error(u) }}); err != nil {
		t.Error(err)
	}
	beginUpload(t, l, "aaa")
	if b := begin(t, l, start("etag-1", "aaa")); b.Superseded != "" || b.Replaced != nil || b.Record.Upload == nil {
		t.Errorf("%+v", b)
	}
}

// Two that begin at once do not both stand beside the item.
func TestUploadBesideAnotherItem(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		id, beside, err := l.NewUpload(t.Context(), key, noon)
		if err != nil {
			t.Fatal(err)
		}
		begin(t, l, start("etag-1", "aaa"))
		u := Upload{ExecutionID: id, UploadID: "upload", Size: 7, Destinations: []string{"aaa"}, StartTime: noon}
		if _, err := l.BeginUpload(t.Context(), key, u, beside); !errors.Is(err, ErrOvertaken) {
			t.Errorf("beside no item: %v", err)
		}
		_, beside, err = l.NewUpload(t.Context(), key, noon)
		if err != nil {
			t.Fatal(err)
		}
		beginUpload(t, l, "bbb")
		if _, err := l.BeginUpload(t.Context(), key, u, beside); !errors.Is(err, ErrOvertaken) {
			t.Errorf("beside another: %v", err)
		}
	})
}
