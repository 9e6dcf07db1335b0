package landing

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/turns"
)

const (
	partLength = manifest.MinPartLength
	several    = 2*partLength + 100_000 // three parts, the last one short
)

func TestRun(t *testing.T) {
	for _, size := range []int{0, 1, piece + 1, partLength, 2 * partLength, several} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newSite(t, size)
			execution := s.begin(t, "etag")
			j := s.job(execution, false)
			var told []int64
			j.Progress = func(landed int64) { told = append(told, landed) }
			var wg sync.WaitGroup
			wg.Go(func() {
				for _, p := range rand.Perm(s.m.NumPieces()) {
					j.Tracker.Verified(p)
				}
			})
			result, err := j.Run(t.Context())
			wg.Wait()
			if err != nil {
				t.Fatal(err)
			}
			s.assertLanded(t, execution, result)
			if n := s.wire.count("PUT part"); n != max(s.m.NumParts(), 1) { // one of 0 bytes makes a build of 0 bytes
				t.Errorf("%d parts were sent, want %d", n, s.m.NumParts())
			}
			for i, n := range told {
				if i > 0 && n < told[i-1] {
					t.Errorf("progress fell back: %d", told)
				}
			}
			if len(told) == 0 || told[len(told)-1] != s.m.Size {
				t.Errorf("progress %d ends before %d", told, s.m.Size)
			}
		})
	}
}

// The first part is in the bucket while the last byte is not on disk yet.
func TestRunInStep(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	j := s.job(execution, false)
	verify(j.Tracker, 1, 0)
	j.Progress = func(landed int64) {
		if landed == partLength { // part 1 alone
			verify(j.Tracker, 2, 0)
			verify(j.Tracker, 0, 0)
		}
	}
	result, err := j.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.assertLanded(t, execution, result)
}

// interrupted lands parts 0 and 2 and is then shut down.
func interrupted(t *testing.T, s *site, execution string, change ...func(*Job)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	j := s.job(execution, false)
	for _, f := range change {
		f(j)
	}
	verify(j.Tracker, 0, 0)
	verify(j.Tracker, 2, 0)
	j.Progress = func(landed int64) {
		if landed == s.m.Size-partLength {
			cancel()
		}
	}
	if _, err := j.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
}

func TestRunContinues(t *testing.T) {
	for _, test := range []struct {
		name    string
		between func(t *testing.T, s *site, upload string)
		sent    []int // parts that the successor sends
	}{
		{"finished parts stay", func(*testing.T, *site, string) {}, []int{1}},
		{"a part that disagrees is sent again", func(t *testing.T, s *site, upload string) {
			wrong := bytes.Repeat([]byte("x"), partLength)
			sum := sha256.Sum256(wrong)
			if _, err := s.bucket.UploadPart(t.Context(), s.key.FileKey, upload, 0, bytes.NewReader(wrong), partLength, sum[:]); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 1}},
		{"a part beyond the last is left out", func(t *testing.T, s *site, upload string) {
			sum := sha256.Sum256([]byte("x"))
			if _, err := s.bucket.UploadPart(t.Context(), s.key.FileKey, upload, 7, strings.NewReader("x"), 1, sum[:]); err != nil {
				t.Fatal(err)
			}
		}, []int{1}},
		{"a vanished upload is begun again", func(t *testing.T, s *site, upload string) {
			if err := s.bucket.AbortUpload(t.Context(), s.key.FileKey, upload); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 1, 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, several)
			execution := s.begin(t, "etag")
			interrupted(t, s, execution)
			upload := s.begunUpload(t)
			s.assertUploads(t, upload) // left for the successor
			test.between(t, s, upload)
			s.wire.calls = nil
			j := s.job(execution, true)
			j.Agent = "agent-2"
			result, err := j.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.assertLanded(t, execution, result)
			for _, part := range test.sent {
				if s.wire.count(fmt.Sprintf("PUT part %d", part)) != 1 {
					t.Errorf("part %d was not sent once: %q", part, s.wire.calls)
				}
			}
			if n := s.wire.count("PUT part"); n != len(test.sent) {
				t.Errorf("%d parts were sent, want %d", n, len(test.sent))
			}
		})
	}
}

// An upload that a former execution left is not continued, and gone at the end.
func TestRunOfAnotherExecution(t *testing.T) {
	s := newSite(t, several)
	former := s.begin(t, "etag")
	interrupted(t, s, former)
	upload := s.begunUpload(t)
	execution := s.begin(t, "another etag")
	if _, err := s.ledger.SetLanding(t.Context(), s.key, execution, s.bucket.Name(),
		ledger.Landing{Agent: "agent-1", UploadID: upload, ExecutionID: former}); err != nil {
		t.Fatal(err)
	}
	s.wire.calls = nil
	result, err := s.job(execution, true).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.assertLanded(t, execution, result)
	if n := s.wire.count("PUT part"); n != 3 {
		t.Errorf("%d parts were sent, want 3", n)
	}
}

func TestPresent(t *testing.T) {
	for _, size := range []int{0, several} {
		s := newSite(t, size)
		first := s.begin(t, "etag")
		if _, ok, err := Present(t.Context(), s.bucket, s.build(first), ""); ok || err != nil {
			t.Errorf("present before: %v, %v", ok, err)
		}
		if _, err := s.job(first, true).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		object, ok, err := Present(t.Context(), s.bucket, s.build(first), "")
		if !ok || err != nil || object.Size != s.m.Size {
			t.Errorf("present after: %+v, %v, %v", object, ok, err)
		}
	}
}

// An object says in one of several ways that it is the build.
func TestPresentBy(t *testing.T) {
	const execution, former, etag = "01K0000000000000000000000A", "01J0000000000000000000000A", "etag"
	landed := newSite(t, several) // as a landing leaves it whose seal came late
	own := landed.begin(t, etag)
	j := landed.job(own, true)
	j.Build = landed.unsealed()
	landed.know(t, j, 0, 1, 2)
	j.Progress = func(bytes int64) {
		if bytes == several {
			j.Build.Seal(landed.m.SHA256Hex())
		}
	}
	if _, err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	body := strings.Repeat("x", 10)
	for name, c := range map[string]struct {
		metadata  map[string]string // of an object of 10 bytes; nil for the landed one
		record    ledger.Record
		composite string
		want      bool
	}{
		"nothing known":         {record: ledger.Record{ExecutionID: execution, Size: several}},
		"own execution":         {record: ledger.Record{ExecutionID: own, Size: several}, want: true},
		"own, of another size":  {record: ledger.Record{ExecutionID: own, Size: several + 1}},
		"composite":             {record: ledger.Record{ExecutionID: execution, Size: several}, composite: landed.m.Composite(), want: true},
		"composite, other size": {record: ledger.Record{ExecutionID: execution, Size: several + 1}, composite: landed.m.Composite()},
		"another composite":     {record: ledger.Record{ExecutionID: execution, Size: several}, composite: "x" + landed.m.Composite()[1:]},
		"source ETag":           {record: ledger.Record{ExecutionID: execution, SourceETag: etag, Size: several}, want: true},
		"another source ETag":   {record: ledger.Record{ExecutionID: execution, SourceETag: "x", Size: several}},
		"SHA-256 it never knew": {record: ledger.Record{ExecutionID: execution, SHA256: landed.m.SHA256Hex(), Size: several}},
		"SHA-256 of an older version": {map[string]string{digestMetadata: "sum", ExecutionMetadata: former},
			ledger.Record{ExecutionID: execution, SHA256: "sum", SourceETag: etag, Size: 10}, landed.m.Composite(), true},
		"another SHA-256": {map[string]string{digestMetadata: "sum", ExecutionMetadata: former},
			ledger.Record{ExecutionID: execution, SHA256: "x", SourceETag: etag, Size: 10}, landed.m.Composite(), false},
		"source ETag, landed by nobody": {map[string]string{sourceMetadata: etag},
			ledger.Record{ExecutionID: execution, SourceETag: etag, Size: 10}, "", false},
		"no ETag on either side": {map[string]string{ExecutionMetadata: former},
			ledger.Record{ExecutionID: execution, Size: 10}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := landed
			if c.metadata != nil {
				s = newSite(t, 0)
				s.put(t, body, c.metadata)
			}
			c.record.Key = s.key
			if object, ok, err := Present(t.Context(), s.bucket, &c.record, c.composite); ok != c.want || err != nil {
				t.Errorf("present: %v, %v; want %v: %+v", ok, err, c.want, object)
			}
		})
	}
}

// A build that is there is recorded without moving a byte: by Run, and by Record
// before any download.
func TestPresentIsRecorded(t *testing.T) {
	for name, record := range map[string]func(*site, *Job, context.Context) (ledger.Result, error){
		"Run": func(_ *site, j *Job, ctx context.Context) (ledger.Result, error) { return j.Run(ctx) },
		"Record": func(s *site, j *Job, ctx context.Context) (ledger.Result, error) {
			j.Build, j.Content, j.Tracker, j.Slots = nil, nil, nil, nil
			return j.Record(ctx, s.build(j.ExecutionID))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, several)
			first := s.begin(t, "etag")
			if _, err := s.job(first, true).Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			stray, err := s.bucket.CreateUpload(t.Context(), s.key.FileKey, bucket.Headers{})
			if err != nil {
				t.Fatal(err)
			}
			neighbour, err := s.bucket.CreateUpload(t.Context(), s.key.FileKey+".sig", bucket.Headers{})
			if err != nil {
				t.Fatal(err)
			}
			s.assertUploads(t, stray)
			second := s.begin(t, "etag")
			s.wire.calls = nil
			j := s.job(second, false)
			result, err := record(s, j, t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := s.wire.count("P"); n != 0 {
				t.Errorf("bytes moved: %q", s.wire.calls)
			}
			s.assertRecorded(t, result)
			s.assertUploads(t)
			if ids, err := s.bucket.Uploads(t.Context(), s.key.FileKey+".sig"); err != nil || len(ids) != 1 || ids[0] != neighbour {
				t.Errorf("another key's upload is gone: %q, %v", ids, err)
			}
		})
	}
}

func TestRecordRefuses(t *testing.T) {
	s := newSite(t, 10)
	j := s.job(s.begin(t, "etag"), false)
	for range 2 { // none, then another object
		_, err := j.Record(t.Context(), s.build(j.ExecutionID))
		if !errors.Is(err, errReplaced) || !strings.Contains(err.Error(), s.key.FileKey+" in "+s.bucket.Name()) {
			t.Errorf("got %v", err)
		}
		s.put(t, "0123456789", nil)
	}
	if record, err := s.ledger.Get(t.Context(), s.key); err != nil || len(record.Successful) > 0 {
		t.Errorf("recorded %+v, %v", record, err)
	}
}

// What was at the key before is replaced unless a newer execution wrote it.
func TestRunOverObject(t *testing.T) {
	const oldest, greatest = "00000000000000000000000000", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
	newest := executionid.New(time.Now().Add(time.Hour), "")
	for _, test := range []struct {
		execution string
		want      error
	}{
		{"", nil},
		{oldest, nil},
		{"zzz", nil}, // no ULID
		{newest, ErrSuperseded},
		{greatest, nil}, // of the future: it would hold the key for ever
		{executionid.New(time.Now().Add(2*executionid.MaxAhead), ""), nil},
	} {
		for _, size := range []int{0, several} {
			t.Run(fmt.Sprintf("%q %d", test.execution, size), func(t *testing.T) {
				s := newSite(t, size)
				before := s.put(t, "before", map[string]string{"landfall-execution": test.execution, "landfall-sha256": "x"})
				execution := s.begin(t, "etag")
				result, err := s.job(execution, true).Run(t.Context())
				if !errors.Is(err, test.want) {
					t.Fatalf("got %v, want %v", err, test.want)
				}
				if err == nil {
					s.assertLanded(t, execution, result)
					return
				}
				if o, err := s.bucket.Head(t.Context(), s.key.FileKey); err != nil || o.ETag != before.ETag {
					t.Errorf("the newer object is gone: %+v, %v", o, err)
				}
				s.assertUploads(t)
			})
		}
	}
}

func TestSuperseded(t *testing.T) {
	for _, test := range []struct {
		name string
		stop func(t *testing.T, s *site, j *Job, cancel context.CancelCauseFunc)
		want error
		left bool
	}{
		{"by the table", func(t *testing.T, s *site, j *Job, _ context.CancelCauseFunc) {
			s.begin(t, "another etag")
			verify(j.Tracker, 1, 0)
		}, ErrSuperseded, false},
		{"by the caller", func(_ *testing.T, _ *site, _ *Job, cancel context.CancelCauseFunc) {
			cancel(fmt.Errorf("told so: %w", ErrSuperseded))
		}, context.Canceled, false},
		{"ended", func(_ *testing.T, _ *site, _ *Job, cancel context.CancelCauseFunc) { cancel(ErrEnded) }, context.Canceled, false},
		{"shut down", func(_ *testing.T, _ *site, _ *Job, cancel context.CancelCauseFunc) {
			cancel(errors.New("signal"))
		}, context.Canceled, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, several)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			j := s.job(s.begin(t, "etag"), false)
			verify(j.Tracker, 0, 0)
			var upload string
			j.Progress = func(landed int64) {
				if landed == partLength {
					upload = s.begunUpload(t)
					test.stop(t, s, j, cancel)
					verify(j.Tracker, 2, 0)
				}
			}
			_, err := j.Run(ctx)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if want := "landing " + s.key.FileKey + " in " + s.bucket.Name() + ": "; !strings.HasPrefix(fmt.Sprint(err), want) {
				t.Errorf("%q does not begin with %q", err, want)
			}
			s.assertNoObject(t)
			if test.left {
				s.assertUploads(t, upload)
			} else {
				s.assertUploads(t)
			}
		})
	}
}

// An execution that is not current touches nothing.
func TestSupersededBefore(t *testing.T) {
	for _, size := range []int{0, 1} {
		s := newSite(t, size)
		first := s.begin(t, "etag")
		s.begin(t, "another etag")
		s.wire.calls = nil
		if _, err := s.job(first, true).Run(t.Context()); !errors.Is(err, ErrSuperseded) {
			t.Errorf("got %v", err)
		}
		if len(s.wire.calls) != 0 {
			t.Errorf("requests were sent: %q", s.wire.calls)
		}
	}
}

// S3 refuses bytes that are not the seeder's.
func TestLyingContent(t *testing.T) {
	s := newSite(t, several)
	lie := bytes.Clone(s.content)
	lie[partLength+5] ^= 1
	j := s.job(s.begin(t, "etag"), true)
	j.Content = bytes.NewReader(lie)
	_, err := j.Run(t.Context())
	want := "landing " + s.key.FileKey + " in " + s.bucket.Name() + ": part 1: "
	if !errors.Is(err, bucket.ErrDigest) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s…", err, want)
	}
	if n := s.wire.count("PUT part 1"); n != 1 {
		t.Errorf("the part was sent %d times", n)
	}
	s.assertNoObject(t)
	s.assertUploads(t)
}

// Some failures pass, beyond what the SDK tries itself.
func TestPartIsTriedAgain(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	var failures atomic.Int32
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if call(r) == "PUT part 1" && failures.Add(1) <= 4 {
			return refuse(r, http.StatusServiceUnavailable, "SlowDown")
		}
		return nil, nil
	}
	result, err := s.job(execution, true).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.assertLanded(t, execution, result)
	if n := s.wire.count("PUT part 0"); n != 1 {
		t.Errorf("part 0 was sent %d times", n)
	}
}

// The slots bound what all landings of an agent send at once.
func TestSlots(t *testing.T) {
	s := newSite(t, several)
	s.slots = turns.NewSlots(2)
	execution := s.begin(t, "etag")
	other := s.key
	other.FileKey += ".copy"
	begun, err := s.ledger.Begin(t.Context(), ledger.Start{
		Key: other, SourceETag: "etag", Size: s.m.Size, Destinations: []string{s.bucket.Name()}, Now: s.job(execution, false).Started,
	})
	if err != nil {
		t.Fatal(err)
	}
	second := s.job(begun.Record.ExecutionID, true)
	second.Key = other
	var wg sync.WaitGroup
	for _, j := range []*Job{s.job(execution, true), second} {
		wg.Go(func() {
			if _, err := j.Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s.wire.most > 2 {
		t.Errorf("%d parts were under way at once, with 2 slots", s.wire.most)
	}
	if n := s.slots.Taken(); n != 0 {
		t.Errorf("%d slots were not given back", n)
	}
}
