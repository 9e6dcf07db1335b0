package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/middleware"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
)

// otherEndpoint names a DynamoDB to run the tests against as well: AWS's own
// DynamoDB Local in CI.
const otherEndpoint = "LANDFALL_TEST_DYNAMODB"

var (
	cloud  *cloudtest.Cloud
	golden = filepath.Join(must(filepath.Abs("testdata")), "item.json")
	write  = flag.Bool("write", false, "write the golden file")
	noon   = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	key    = Key{"releases/build ü+%.zip", "global-builds"}
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

// everywhere runs a test against each DynamoDB there is, with a table of its own.
func everywhere(t *testing.T, test func(t *testing.T, l *Ledger)) {
	t.Run("embedded", func(t *testing.T) { test(t, New(cloud.DynamoDB, cloud.Table(t))) })
	t.Run("dynamodb-local", func(t *testing.T) {
		endpoint := os.Getenv(otherEndpoint)
		if endpoint == "" {
			t.Skipf("%s names no endpoint", otherEndpoint)
		}
		client := dynamodb.NewFromConfig(cloud.AWS, func(o *dynamodb.Options) { o.BaseEndpoint = &endpoint })
		l := New(client, "t"+ulid.Make().String())
		if created, err := l.Create(t.Context()); err != nil || !created {
			t.Fatalf("created %v, %v", created, err)
		}
		t.Cleanup(func() {
			client.DeleteTable(context.Background(), &dynamodb.DeleteTableInput{TableName: aws.String(l.Table())})
		})
		test(t, l)
	})
}

func start(etag string, to ...string) Start {
	return Start{Key: key, SourceETag: etag, Size: 42, Destinations: to, Now: noon}
}

func begin(t *testing.T, l *Ledger, s Start) *Begun {
	t.Helper()
	b, err := l.Begin(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLifeOfAnExecution(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		ctx := t.Context()
		if _, err := l.Get(ctx, key); !errors.Is(err, ErrNotFound) {
			t.Fatalf("before the first execution: %v", err)
		}
		b := begin(t, l, start("etag-1", "bbb", "aaa", "aaa"))
		id := b.Record.ExecutionID
		if b.Joined || b.Superseded != "" || !slices.Equal(b.Record.Destinations, []string{"aaa", "bbb"}) {
			t.Fatalf("begun %+v", b)
		}
		step := func(r *Record, err error) *Record {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			stored, err := l.Get(ctx, key)
			if err != nil || stored.Version != r.Version || stored.Status != r.Status {
				t.Fatalf("table has %+v, %v; told %+v", stored, err, r)
			}
			return stored
		}
		r := step(l.SetContent(ctx, key, id, "ih", "sum"))
		if r.InfoHash != "ih" || r.SHA256 != "sum" {
			t.Errorf("content %+v", r)
		}
		r = step(l.SetLanding(ctx, key, id, "aaa", Landing{Agent: "agent-1", UploadID: "upload", ExecutionID: id}))
		if r.Landings["aaa"].UploadID != "upload" {
			t.Errorf("landings %+v", r.Landings)
		}
		result := Result{Timestamp: noon, ETag: "e", Bytes: 42, Seconds: 1.5, Region: "r", Agent: "agent-1", SHA256: "sum"}
		r = step(l.Arrive(ctx, &Record{Key: key, ExecutionID: id}, "aaa", result))
		if r.Status != InProgress || !r.Results["aaa"].Success || !slices.Equal(r.Pending(), []string{"bbb"}) {
			t.Errorf("after the first arrival %+v", r)
		}
		version := r.Version
		if r = step(l.Arrive(ctx, &Record{Key: key, ExecutionID: id}, "aaa", result)); r.Version != version {
			t.Error("a repeated arrival changed the item")
		}
		r = step(l.Fail(ctx, key, id, "bbb", Result{Timestamp: noon, Error: strings.Repeat("ü", maxErrorLength)}))
		if r.Status != Failed || r.CompletedAt.IsZero() || len(r.Results["bbb"].Error) > maxErrorLength {
			t.Errorf("after the failure %+v", r)
		}
		r = step(l.Retry(ctx, key, id))
		if r.Status != InProgress || !r.CompletedAt.IsZero() || len(r.Failed) != 0 {
			t.Errorf("after the retry %+v", r)
		}
		step(l.Fail(ctx, key, id, "bbb", Result{Timestamp: noon, Error: "late"}))
		r = step(l.Arrive(ctx, &Record{Key: key, ExecutionID: id}, "bbb", result))
		if r.Status != Completed || len(r.Failed) != 0 || r.CompletedAt.IsZero() {
			t.Errorf("a late arrival leaves %+v", r)
		}
		if r = step(l.Fail(ctx, key, id, "bbb", Result{Timestamp: noon, Error: "too late"})); r.Status != Completed {
			t.Error("a failure overrode a success")
		}
		if _, err := l.Arrive(ctx, &Record{Key: key, ExecutionID: id}, "elsewhere", result); err == nil {
			t.Error("an arrival where nobody sent it")
		}
		if _, err := l.Arrive(ctx, &Record{Key: key, ExecutionID: ulid.Make().String()}, "bbb", result); !errors.Is(err, ErrSuperseded) {
			t.Errorf("another execution's arrival: %v", err)
		}
		n := 0
		if err := l.Scan(ctx, Scan{Record: func(*Record) { n++ }}); err != nil || n != 1 {
			t.Errorf("scan saw %d items, %v", n, err)
		}
	})
}

func TestBegin(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		first := begin(t, l, start("xxx", "aaa", "bbb", "ccc")).Record
		if b := begin(t, l, start("xxx", "bbb")); !b.Joined || b.Record.ExecutionID != first.ExecutionID {
			t.Errorf("covered by what runs: %+v", b)
		}
		if _, err := l.Arrive(t.Context(), &Record{Key: key, ExecutionID: first.ExecutionID}, "aaa", Result{Timestamp: noon}); err != nil {
			t.Fatal(err)
		}
		second := begin(t, l, start("yyy", "ccc", "ddd"))
		if second.Superseded != first.ExecutionID || !slices.Equal(second.Inherited, []string{"bbb"}) ||
			!slices.Equal(second.Record.Destinations, []string{"bbb", "ccc", "ddd"}) {
			t.Errorf("superseding %+v", second)
		}
		if _, err := l.Arrive(t.Context(), &Record{Key: key, ExecutionID: first.ExecutionID}, "bbb", Result{}); !errors.Is(err, ErrSuperseded) {
			t.Errorf("the old execution's arrival: %v", err)
		}
		back := start("xxx", "bbb", "ccc", "ddd")
		back.Now = noon.Add(-time.Hour) // the clock was set back
		third := begin(t, l, back)
		if third.Record.ExecutionID <= second.Record.ExecutionID || third.Record.Version <= second.Record.Version {
			t.Errorf("%s does not come after %s", third.Record.ExecutionID, second.Record.ExecutionID)
		}
		for _, b := range []string{"bbb", "ccc", "ddd"} {
			if _, err := l.Fail(t.Context(), key, third.Record.ExecutionID, b, Result{Timestamp: noon, Error: "xxx"}); err != nil {
				t.Fatal(err)
			}
		}
		if b := begin(t, l, start("z", "e")); len(b.Inherited) != 0 || b.Superseded != third.Record.ExecutionID {
			t.Errorf("nothing is inherited from what had ended: %+v", b)
		}
	})
}

func TestBeginRefuses(t *testing.T) {
	l := New(cloud.DynamoDB, cloud.Table(t))
	many := make([]string, maxDestinations+1)
	for i := range many {
		many[i] = fmt.Sprint("bucket-", i)
	}
	for name, s := range map[string]Start{
		"no destination":        start("xxx"),
		"too many destinations": start("xxx", many...),
		"empty key":             {Key: Key{"", "bbb"}, Destinations: []string{"aaa"}},
		"long key":              {Key: Key{strings.Repeat("k", maxKeyLength+1), "bbb"}, Destinations: []string{"aaa"}},
		"key is not UTF-8":      {Key: Key{"\xff", "bbb"}, Destinations: []string{"aaa"}},
		"negative size":         {Key: key, Size: -1, Destinations: []string{"aaa"}},
	} {
		if _, err := l.Begin(t.Context(), s); !errors.Is(err, errInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRaces(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		const n = 32
		var wg sync.WaitGroup
		ids := make([]string, n)
		for i := range n {
			wg.Go(func() {
				b, err := l.Begin(t.Context(), start(fmt.Sprint("etag-", i), "aaa"))
				if err != nil {
					t.Error(err)
					return
				}
				ids[i] = b.Record.ExecutionID
			})
		}
		wg.Wait()
		if slices.Sort(ids); len(slices.Compact(ids)) != n {
			t.Error("two executions share an id")
		}
		r, err := l.Get(t.Context(), key)
		if err != nil || r.ExecutionID != ids[n-1] || r.Version != n {
			t.Errorf("the table has %+v, %v; the greatest id is %s", r, err, ids[n-1])
		}
		var buckets []string
		for i := range n {
			buckets = append(buckets, fmt.Sprintf("bucket-%02d", i))
		}
		id := begin(t, l, start("all", buckets...)).Record.ExecutionID
		for _, b := range buckets {
			wg.Go(func() {
				if _, err := l.Arrive(t.Context(), &Record{Key: key, ExecutionID: id}, b, Result{Timestamp: noon}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if r, err := l.Get(t.Context(), key); err != nil || len(r.Successful) != n || !slices.Equal(r.Pending(), []string{"aaa"}) {
			t.Errorf("after %d arrivals at once: %+v, %v", n, r, err)
		}
	})
}

// Many regions begin at the same moment: each with one write, which nobody refuses.
func TestLandingsAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		var buckets []string
		for i := range maxDestinations {
			buckets = append(buckets, fmt.Sprintf("bucket-%02d", i))
		}
		r := begin(t, l, start("etag", buckets...)).Record
		var calls atomic.Int64
		counted := New(dynamodb.New(l.client.Options(), func(o *dynamodb.Options) {
			o.APIOptions = append(slices.Clone(o.APIOptions), func(*middleware.Stack) error {
				calls.Add(1)
				return nil
			})
		}), l.table)
		var wg sync.WaitGroup
		for _, b := range buckets {
			wg.Go(func() {
				now, err := counted.SetLanding(t.Context(), key, r.ExecutionID, b, Landing{Agent: "agent", UploadID: "upload of " + b, ExecutionID: r.ExecutionID})
				if err != nil || now.Landings[b].UploadID != "upload of "+b {
					t.Errorf("%s: %+v, %v", b, now, err)
				}
			})
		}
		wg.Wait()
		last, err := l.Get(t.Context(), key)
		if err != nil || len(last.Landings) != len(buckets) || last.mended || last.Version != r.Version+int64(len(buckets)) {
			t.Errorf("the table has %+v, %v", last, err)
		}
		if n := calls.Load(); n != int64(len(buckets)) || counted.conflicts.Load() != 0 {
			t.Errorf("%d landings took %d calls, %d refused", len(buckets), n, counted.conflicts.Load())
		}
		if _, err := l.SetLanding(t.Context(), key, r.ExecutionID, "elsewhere", Landing{}); !errors.Is(err, errInvalid) {
			t.Errorf("where nobody sent it: %v", err)
		}
		// What was to be reached is to be reached by the next one, too.
		if _, err := l.Begin(t.Context(), start("other", "aaa")); !errors.Is(err, ErrTooMany) {
			t.Errorf("one destination more: %v", err)
		}
		begin(t, l, start("other", "bucket-00"))
		if _, err := l.SetLanding(t.Context(), key, r.ExecutionID, "bucket-01", Landing{}); !errors.Is(err, ErrSuperseded) {
			t.Errorf("superseded: %v", err)
		}
		if _, err := l.SetLanding(t.Context(), Key{"nothing", "xxx"}, r.ExecutionID, "bucket-01", Landing{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("without an item: %v", err)
		}
	})
}

// Over long distances every call counts: an arrival is one write however old the
// record is that it goes by, and the last one is one write more, for the conflict
// shows the item.
func TestArrivalCalls(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		old := begin(t, l, start("etag", "aaa", "bbb", "ccc")).Record
		old, err := l.SetLanding(t.Context(), key, old.ExecutionID, "aaa", Landing{Agent: "agent", UploadID: "upload", ExecutionID: old.ExecutionID})
		if err != nil {
			t.Fatal(err)
		}
		var calls []string
		counted := New(dynamodb.New(l.client.Options(), func(o *dynamodb.Options) {
			o.APIOptions = append(slices.Clone(o.APIOptions), func(s *middleware.Stack) error {
				calls = append(calls, s.ID())
				return nil
			})
		}), l.table)
		for _, c := range []struct {
			bucket string
			want   []string
		}{
			{"aaa", []string{"UpdateItem"}},
			{"bbb", []string{"UpdateItem"}},
			{"ccc", []string{"UpdateItem", "PutItem"}},
		} {
			calls = nil
			if _, err := counted.Arrive(t.Context(), old, c.bucket, Result{Timestamp: noon}); err != nil || !slices.Equal(calls, c.want) {
				t.Errorf("%s arrives with %q, %v; want %q", c.bucket, calls, err, c.want)
			}
		}
		r, err := l.Get(t.Context(), key)
		if err != nil || r.Status != Completed || r.CompletedAt.IsZero() || r.Version != old.Version+3 ||
			!slices.Equal(r.Successful, []string{"aaa", "bbb", "ccc"}) || len(r.Results) != 3 || len(r.Landings) != 0 {
			t.Fatalf("the table has %+v, %v", r, err)
		}
		if e, c := counted.errors.Load(), counted.conflicts.Load(); e != 0 || c != 1 {
			t.Errorf("%d errors and %d conflicts were counted", e, c)
		}
		if copies := (&reader{item: r.item}).number("successfulCopies", 0, 9); copies != 3 {
			t.Errorf("successfulCopies is %d", copies)
		}
		if same, err := l.Arrive(t.Context(), r, "aaa", Result{Timestamp: noon}); err != nil || same.Version != r.Version {
			t.Errorf("arriving again: %+v, %v", same, err)
		}
		begin(t, l, start("other", "aaa"))
		for name, last := range map[string]*Record{"running": old, "arrived": r} {
			if _, err := l.Arrive(t.Context(), last, "aaa", Result{Timestamp: noon}); !errors.Is(err, ErrSuperseded) {
				t.Errorf("%s, superseded: %v", name, err)
			}
		}
	})
}

// An arrival that goes by a record of before a failure, or of before another
// arrival of the same bucket, changes nothing that has to stay.
func TestArrivalByAnOldRecord(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		old := begin(t, l, start("etag", "aaa", "bbb", "ccc")).Record
		if _, err := l.Fail(t.Context(), key, old.ExecutionID, "bbb", Result{Timestamp: noon, Error: "denied"}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			bucket string
			status Status
			failed []string
		}{{"aaa", InProgress, []string{"bbb"}}, {"aaa", InProgress, []string{"bbb"}}, {"ccc", Failed, []string{"bbb"}}, {"bbb", Completed, nil}} {
			told, err := l.Arrive(t.Context(), old, c.bucket, Result{Timestamp: noon})
			if err != nil {
				t.Fatal(err)
			}
			stored, err := l.Get(t.Context(), key)
			if err != nil || stored.Status != c.status || !slices.Equal(stored.Failed, c.failed) || stored.Version != told.Version {
				t.Errorf("after %s the table has %+v, %v; told %+v", c.bucket, stored, err, told)
			}
		}
	})
}

// The item's form is a contract with whoever reads the table.
func TestItemFormat(t *testing.T) {
	r := &Record{
		Key: key, ExecutionID: "01ARZ3NDEKTSV4RRFFQ69G5FAV", StartTime: noon,
		Destinations: []string{"aaa", "bbb"}, Successful: []string{"aaa"}, Failed: []string{"bbb"},
		Results: map[string]Result{
			"aaa": {Success: true, Timestamp: noon, ETag: "e", Bytes: 42, Seconds: 1.5, Region: "r", Agent: "g", SHA256: "s"},
			"bbb": {Timestamp: noon, Error: "denied"},
		},
		Landings: map[string]Landing{"bbb": {Agent: "g", UploadID: "u", ExecutionID: "01ARZ3NDEKTSV4RRFFQ69G5FAV"}},
		Size:     42, SourceETag: "e", InfoHash: "i", SHA256: "s", Version: 7, Owner: "global-builds",
		Scheme: "ramp", Term: 3,
	}
	r.settle(noon.Add(time.Second))
	got, err := json.MarshalIndent(plain(&types.AttributeValueMemberM{Value: r.encode()}), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if *write {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || strings.TrimSpace(string(want)) != string(got) {
		t.Errorf("the item is\n%s\n(%v)", got, err)
	}
	again, err := decode(r.encode(), noon)
	if err != nil || again.Results["aaa"] != r.Results["aaa"] || again.Status != Failed || again.mended || again.Odd != "" || again.Foreign {
		t.Errorf("decoded %+v, %v", again, err)
	}
}

// plain is an attribute in DynamoDB's own JSON.
func plain(v types.AttributeValue) map[string]any {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return map[string]any{"S": v.Value}
	case *types.AttributeValueMemberN:
		return map[string]any{"N": v.Value}
	case *types.AttributeValueMemberBOOL:
		return map[string]any{"BOOL": v.Value}
	case *types.AttributeValueMemberSS:
		return map[string]any{"SS": v.Value}
	case *types.AttributeValueMemberNULL:
		return map[string]any{"NULL": v.Value}
	case *types.AttributeValueMemberL:
		l := []any{}
		for _, inner := range v.Value {
			l = append(l, plain(inner))
		}
		return map[string]any{"L": l}
	case *types.AttributeValueMemberM:
		m := map[string]any{}
		for k, inner := range v.Value {
			m[k] = plain(inner)
		}
		return map[string]any{"M": m}
	}
	return nil
}

func TestAttributesOfOthersStay(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		id := begin(t, l, start("xxx", "aaa")).Record.ExecutionID
		_, err := l.client.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
			TableName: &l.table, Key: key.item(),
			UpdateExpression:          aws.String("SET note = :n"),
			ExpressionAttributeValues: item{":n": text("theirs")},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Arrive(t.Context(), &Record{Key: key, ExecutionID: id}, "aaa", Result{Timestamp: noon}); err != nil {
			t.Fatal(err)
		}
		begin(t, l, start("yyy", "bbb"))
		r, err := l.Get(t.Context(), key)
		if err != nil || (&reader{item: r.item}).text("note") != "theirs" {
			t.Errorf("%v, %v", r.item["note"], err)
		}
		if len(r.Successful) != 0 || r.Status != InProgress {
			t.Errorf("what was the old execution's stayed: %+v", r)
		}
	})
}

func TestMissingTable(t *testing.T) {
	l := New(cloud.DynamoDB, "no-such-table")
	for name, err := range map[string]error{
		"Check": l.Check(t.Context()),
		"Get":   func() error { _, err := l.Get(t.Context(), key); return err }(),
		"Begin": func() error { _, err := l.Begin(t.Context(), start("xxx", "aaa")); return err }(),
	} {
		if !errors.Is(err, ErrNoTable) || !strings.Contains(err.Error(), "no-such-table") || !strings.Contains(err.Error(), "seeder init") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCreate(t *testing.T) {
	l := New(cloud.DynamoDB, "created-"+ulid.Make().String())
	if created, err := l.Create(t.Context()); !created || err != nil {
		t.Fatalf("first: %v, %v", created, err)
	}
	if created, err := l.Create(t.Context()); created || err != nil {
		t.Errorf("second: %v, %v", created, err)
	}
	other := "other-" + ulid.Make().String()
	_, err := cloud.DynamoDB.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: &other, BillingMode: types.BillingModePayPerRequest,
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}},
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := New(cloud.DynamoDB, other).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "--table") {
		t.Errorf("a table of another kind: %v", err)
	}
}
