package landing

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/ledger"
)

func TestTwoLanders(t *testing.T) {
	for _, size := range []int{0, several} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newSite(t, size)
			execution := s.begin(t, "etag")
			var met, done sync.WaitGroup
			met.Add(2)
			results, errs := make([]ledger.Result, 2), make([]error, 2)
			for i := range 2 {
				j := s.job(execution, true)
				j.Agent = fmt.Sprint("agent-", i)
				// Neither sees the other's upload in the table.
				j.Ledger = meeting{s.ledger, &met, new(sync.Once)}
				done.Go(func() { results[i], errs[i] = j.Run(t.Context()) })
			}
			done.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			if results[0].Agent != results[1].Agent || !results[0].Timestamp.Equal(results[1].Timestamp) {
				t.Errorf("two arrivals: %+v and %+v", results[0], results[1])
			}
			s.assertLanded(t, execution, results[0])
		})
	}
}

func TestVanishedInMidLanding(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	j := s.job(execution, false)
	verify(j.Tracker, 0, 0)
	var once sync.Once
	j.Progress = func(landed int64) {
		if landed == partLength {
			once.Do(func() {
				if err := s.bucket.AbortUpload(t.Context(), s.key.FileKey, s.begunUpload(t)); err != nil {
					t.Error(err)
				}
				verify(j.Tracker, 1, 0)
				verify(j.Tracker, 2, 0)
			})
		}
	}
	result, err := j.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.assertLanded(t, execution, result)
	if n := s.wire.count("POST create"); n != 2 {
		t.Errorf("%d uploads were begun, want 2", n)
	}
}

func TestConflict(t *testing.T) {
	for conflicts, want := range map[int32]error{1: nil, 2: bucket.ErrConflict} {
		t.Run(fmt.Sprint(conflicts), func(t *testing.T) {
			s := newSite(t, several)
			execution := s.begin(t, "etag")
			var n atomic.Int32
			s.wire.before = func(r *http.Request) (*http.Response, error) {
				if call(r) == "POST complete" && n.Add(1) <= conflicts {
					return refuse(r, http.StatusConflict, "ConditionalRequestConflict")
				}
				return nil, nil
			}
			result, err := s.job(execution, true).Run(t.Context())
			if !errors.Is(err, want) {
				t.Fatalf("got %v, want %v", err, want)
			}
			if n := s.wire.count("POST create"); n != 2 {
				t.Errorf("%d uploads were begun, want 2", n)
			}
			if err == nil {
				s.assertLanded(t, execution, result)
				return
			}
			s.assertNoObject(t)
			s.assertUploads(t)
		})
	}
}

// Somebody writes the key just before the upload is completed.
func TestObjectComesBetween(t *testing.T) {
	newest := executionid.New(time.Now().Add(time.Hour), "")
	for _, test := range []struct {
		name      string
		before    string // at the key when the landing begins
		execution string // of the object that comes
		want      error
	}{
		{"foreign where none was", "", "", nil},
		{"foreign over foreign", "before", "", nil},
		{"newer where none was", "", newest, ErrSuperseded},
		{"newer over foreign", "before", newest, ErrSuperseded},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, several)
			if test.before != "" {
				s.put(t, test.before, nil)
			}
			own := s.begin(t, "etag")
			var once sync.Once
			s.wire.before = func(r *http.Request) (*http.Response, error) {
				if call(r) == "POST complete" {
					once.Do(func() { s.put(t, "between", map[string]string{"landfall-execution": test.execution}) })
				}
				return nil, nil
			}
			result, err := s.job(own, true).Run(t.Context())
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if n := s.wire.count("PUT part"); n != 3 {
				t.Errorf("%d parts were sent, want 3", n)
			}
			if n := s.wire.count("POST create"); n != 1 {
				t.Errorf("%d uploads were begun, want 1", n)
			}
			if err == nil {
				s.assertLanded(t, own, result)
				return
			}
			if o, err := s.bucket.Head(t.Context(), s.key.FileKey); err != nil || o.Size != int64(len("between")) {
				t.Errorf("the newer object is gone: %+v, %v", o, err)
			}
			s.assertUploads(t)
		})
	}
}

// The answer to a Complete that succeeded is lost.
func TestLostAnswer(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	var once sync.Once
	s.wire.before = func(r *http.Request) (response *http.Response, err error) {
		if call(r) == "POST complete" {
			once.Do(func() {
				if response, err = s.wire.next.RoundTrip(r); err == nil {
					response.Body.Close()
					response, err = nil, errors.New("connection reset by peer")
				}
			})
		}
		return response, err
	}
	result, err := s.job(execution, true).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.assertLanded(t, execution, result)
	if n := s.wire.count("PUT part"); n != 3 {
		t.Errorf("%d parts were sent, want 3", n)
	}
}

// Somebody who keeps changing the key does not keep a landing busy for ever.
func TestRoundsAreBounded(t *testing.T) {
	s := newSite(t, 1)
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if call(r) == "POST complete" {
			return refuse(r, http.StatusPreconditionFailed, "PreconditionFailed")
		}
		return nil, nil
	}
	if _, err := s.job(s.begin(t, "etag"), true).Run(t.Context()); !errors.Is(err, bucket.ErrExists) {
		t.Errorf("got %v", err)
	}
	if n := s.wire.count("POST complete"); n != maxRounds {
		t.Errorf("%d tries to complete, want %d", n, maxRounds)
	}
	s.assertUploads(t)
}
