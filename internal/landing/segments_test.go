package landing

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// unsealed is the site's build while nothing of it is known.
func (s *site) unsealed() *manifest.Build {
	s.sealedLate = true
	return manifest.NewBuild(s.m.Layout)
}

// know makes segments known, and their pieces verified where there is a Tracker to tell.
func (s *site) know(t *testing.T, j *Job, segments ...int) {
	t.Helper()
	for _, i := range segments {
		if err := j.Build.Know(i, s.m.Segment(i)); err != nil {
			t.Error(err)
		}
		first, end := s.m.SegmentPieces(i)
		for p := first; p < end; p++ {
			j.Tracker.Verified(p)
		}
	}
}

// quiet waits until an upload that nothing holds back would have been completed; false
// when one was.
func quiet(completed <-chan struct{}) bool {
	select {
	case <-completed:
		return false
	case <-time.After(200 * time.Millisecond):
		return true
	}
}

// completions tells of each try to complete an upload.
func (s *site) completions() <-chan struct{} {
	completed := make(chan struct{}, 10)
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if call(r) == "POST complete" {
			completed <- struct{}{}
		}
		return nil, nil
	}
	return completed
}

// Parts are sent as their segments become known, in whatever order, and the upload is
// completed after the seal.
func TestSegmentsBecomeKnown(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	j := s.job(execution, false)
	j.Build = s.unsealed()
	if n := j.Build.NumSegments(); n != 3 {
		t.Fatalf("%d segments, the test is for 3", n)
	}
	completed := s.completions()
	var wg sync.WaitGroup
	var landed []int64
	j.Progress = func(bytes int64) {
		landed = append(landed, bytes)
		switch len(landed) {
		case 1:
			s.know(t, j, 1)
		case 2:
			s.know(t, j, 2)
		case 3:
			s.know(t, j, 0)
		case 4:
			wg.Go(func() {
				if !quiet(completed) {
					t.Error("completed before the seal")
				}
				j.Build.Seal(s.m.SHA256Hex())
			})
		}
	}
	result, err := j.Run(t.Context())
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if want := []int64{0, partLength, several - partLength, several, several}; !slices.Equal(landed, want) {
		t.Errorf("landed %d, want %d", landed, want)
	}
	s.assertLanded(t, execution, result)
}

// Where the end comes before the seal, nothing is completed, and the upload stays for a
// successor, who sends no part again.
func TestEndBeforeTheSeal(t *testing.T) {
	for name, test := range map[string]struct {
		cause error
		left  bool
	}{
		"shut down":  {errors.New("signal"), true},
		"superseded": {ErrSuperseded, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, several)
			execution := s.begin(t, "etag")
			j := s.job(execution, false)
			j.Build = s.unsealed()
			s.know(t, j, 0, 1, 2)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			completed := s.completions()
			var wg sync.WaitGroup
			j.Progress = func(bytes int64) {
				if bytes == several {
					wg.Go(func() {
						quiet(completed)
						cancel(test.cause)
					})
				}
			}
			_, err := j.Run(ctx)
			wg.Wait()
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("ended with %v", err)
			}
			if n := s.wire.count("POST complete"); n != 0 {
				t.Errorf("%d tries to complete", n)
			}
			s.assertNoObject(t)
			if !test.left {
				s.assertUploads(t)
				return
			}
			s.assertUploads(t, s.begunUpload(t))
			s.wire.calls = nil
			result, err := s.job(execution, true).Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := s.wire.count("PUT part"); n != 0 {
				t.Errorf("%d parts were sent again", n)
			}
			s.assertLanded(t, execution, result)
		})
	}
}

// A part that the upload has is not sent again when its segment becomes known only after
// the landing has gone on; one that is not the build's is.
func TestContinuedBeforeSegmentsAreKnown(t *testing.T) {
	for name, test := range map[string]struct {
		between func(t *testing.T, s *site)
		sent    []int
	}{
		"as it was": {func(*testing.T, *site) {}, []int{1}},
		"another part is there": {func(t *testing.T, s *site) {
			part := bytes.Repeat([]byte("x"), partLength)
			sum := sha256.Sum256(part)
			if _, err := s.bucket.UploadPart(t.Context(), s.key.FileKey, s.begunUpload(t), 0, bytes.NewReader(part), partLength, sum[:]); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 1}},
		"the store does not say what is there": {func(_ *testing.T, s *site) {
			s.wire.next = withoutSums{s.wire.next}
		}, []int{0, 1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, several)
			execution := s.begin(t, "etag")
			interrupted(t, s, execution)
			test.between(t, s)
			s.wire.calls = nil
			j := s.job(execution, false)
			j.Build = s.unsealed()
			s.sealedLate = false // the predecessor knew the seal
			var once sync.Once
			var last int64
			j.Progress = func(bytes int64) {
				once.Do(func() {
					if bytes != 0 {
						t.Errorf("%d bytes count while no segment is known", bytes)
					}
					s.know(t, j, 2, 0, 1)
					j.Build.Seal(s.m.SHA256Hex())
				})
				last = bytes
			}
			result, err := j.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range test.sent {
				if s.wire.count(fmt.Sprintf("PUT part %d", part)) != 1 {
					t.Errorf("part %d was not sent once: %q", part, s.wire.calls)
				}
			}
			if n := s.wire.count("PUT part"); n != len(test.sent) {
				t.Errorf("%d parts were sent, want %d", n, len(test.sent))
			}
			if last != several {
				t.Errorf("progress ends at %d bytes", last)
			}
			s.assertLanded(t, execution, result)
		})
	}
}

// An object that says that it is other bytes is not the build, whatever its source's ETag
// was.
func TestContradictingDigests(t *testing.T) {
	s := newSite(t, 0)
	s.put(t, strings.Repeat("x", 10), map[string]string{digestMetadata: "sum", sourceMetadata: "etag", ExecutionMetadata: "01J0000000000000000000000A"})
	r := &ledger.Record{Key: s.key, ExecutionID: "01K0000000000000000000000A", SourceETag: "etag", Size: 10}
	for sha256, want := range map[string]bool{"": true, "sum": true, "other": false} {
		r.SHA256 = sha256
		if _, ok, err := Present(t.Context(), s.bucket, r, ""); ok != want || err != nil {
			t.Errorf("SHA-256 %q: present %v, %v", sha256, ok, err)
		}
	}
	r.SHA256 = "other" // of which the object says nothing
	o := &bucket.Object{Composite: "one-2", Headers: bucket.Headers{Metadata: map[string]string{sourceMetadata: "etag", ExecutionMetadata: "x"}}}
	for composite, want := range map[string]bool{"": true, "one-2": true, "two-2": false} {
		if got := alike(o, r, composite); got != want {
			t.Errorf("composite %q: %v", composite, got)
		}
	}
}

// What has waited for the seal beside an object that is there looks at the table again,
// before it removes the uploads of others.
func TestSupersededWhileItWaitsForTheSeal(t *testing.T) {
	s := newSite(t, several)
	if _, err := s.job(s.begin(t, "etag"), true).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	j := s.job(s.begin(t, "etag"), false)
	j.Build = s.unsealed()
	looked := make(chan struct{}, 10)
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodHead {
			looked <- struct{}{}
		}
		return nil, nil
	}
	done := make(chan error, 1)
	go func() { _, err := j.Run(t.Context()); done <- err }()
	<-looked
	s.begin(t, "etag of other bytes")
	upload, err := s.bucket.CreateUpload(t.Context(), s.key.FileKey, bucket.Headers{})
	if err != nil {
		t.Fatal(err)
	}
	j.Build.Seal(s.m.SHA256Hex())
	if err := <-done; !errors.Is(err, ErrSuperseded) {
		t.Errorf("Run ends with %v", err)
	}
	s.assertUploads(t, upload)
}
