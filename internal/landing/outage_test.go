package landing

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// away is a table that can be out of reach.
type away struct {
	Ledger
	out func(call string) bool
}

var errAway = errors.New("no route to the table")

func (a away) Get(ctx context.Context, k ledger.Key) (*ledger.Record, error) {
	if a.out("get") {
		return nil, errAway
	}
	return a.Ledger.Get(ctx, k)
}

func (a away) SetLanding(ctx context.Context, k ledger.Key, id, bucket string, l ledger.Landing) (*ledger.Record, error) {
	if a.out("landing") {
		return nil, errAway
	}
	return a.Ledger.SetLanding(ctx, k, id, bucket, l)
}

func (a away) Arrive(ctx context.Context, last *ledger.Record, bucket string, r ledger.Result) (*ledger.Record, error) {
	if a.out("arrive") {
		return nil, errAway
	}
	return a.Ledger.Arrive(ctx, last, bucket, r)
}

// Whatever call of the table fails, for longer than one Run tries, the next Run
// goes on: no part goes up twice, nothing is left over.
func TestTableIsAway(t *testing.T) {
	for _, call := range []string{"first get", "landing", "get before complete", "arrive"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, several)
			execution := s.begin(t, "etag")
			j := s.job(execution, true)
			var back atomic.Bool
			j.Ledger = away{s.ledger, func(c string) bool {
				switch {
				case back.Load():
					return false
				case call == "first get":
					return c == "get"
				case call == "get before complete":
					return c == "get" && s.wire.count("PUT part") == s.m.NumParts()
				}
				return c == call
			}}
			if _, err := j.Run(t.Context()); !errors.Is(err, errAway) {
				t.Fatalf("Run ended with %v", err)
			}
			back.Store(true)
			result, err := j.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.assertLanded(t, execution, result)
			s.assertUploads(t)
			if n := s.wire.count("PUT part"); n != s.m.NumParts() {
				t.Errorf("%d parts were sent, %d is all", n, s.m.NumParts())
			}
			if n := s.wire.count("POST create"); n != 1 {
				t.Errorf("%d uploads were begun", n)
			}
		})
	}
}

// A bucket that refuses parts for longer than one Run tries keeps what it has.
func TestBucketIsAway(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	j := s.job(execution, true)
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if call(r) == "PUT part 2" {
			return refuse(r, http.StatusForbidden, "AccessDenied")
		}
		return nil, nil
	}
	if _, err := j.Run(t.Context()); err == nil {
		t.Fatal("landed without a part")
	}
	s.assertUploads(t, s.begunUpload(t))
	have, err := s.bucket.ListParts(t.Context(), s.key.FileKey, s.begunUpload(t))
	if err != nil {
		t.Fatal(err)
	}
	s.wire.before, s.wire.calls = nil, nil
	result, err := j.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.assertLanded(t, execution, result)
	if n := s.wire.count("PUT part"); n != s.m.NumParts()-len(have) {
		t.Errorf("%d parts were sent, %d of %d were there", n, len(have), s.m.NumParts())
	}
}

func TestDiscard(t *testing.T) {
	s := newSite(t, several)
	j := s.job(s.begin(t, "etag"), true)
	j.Ledger = away{s.ledger, func(c string) bool { return c == "landing" }}
	if _, err := j.Run(t.Context()); !errors.Is(err, errAway) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is given up is removed all the same
	if err := j.Discard(ctx); err != nil {
		t.Fatal(err)
	}
	s.assertUploads(t)
	if err := j.Discard(ctx); err != nil {
		t.Errorf("again: %v", err)
	}
}

// A part that S3 refuses because the disk has changed it waits for its pieces to
// come again, and is not sent before.
func TestDamagedPart(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	j := s.job(execution, true)
	damaged := bytes.Clone(s.content)
	first, end := s.m.PartPieces(1)
	offset, _ := s.m.PieceRange(first + 1)
	damaged[offset] ^= 1
	j.Content = bytes.NewReader(damaged)
	var asked [][2]int
	j.Verify = func(first, end int) (int, error) {
		asked = append(asked, [2]int{first, end})
		j.Tracker.Invalid(first + 1)
		damaged[offset] ^= 1 // comes again
		j.Tracker.Verified(first + 1)
		return 1, nil
	}
	result, err := j.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.assertLanded(t, execution, result)
	if !slices.Equal(asked, [][2]int{{first, end}}) {
		t.Errorf("asked for pieces %v", asked)
	}
	if n := s.wire.count("PUT part 1"); n != 2 {
		t.Errorf("the part was sent %d times", n)
	}
}

// A disk that damages a part each time ends the landing.
func TestPartIsDamagedAgainAndAgain(t *testing.T) {
	s := newSite(t, several)
	j := s.job(s.begin(t, "etag"), true)
	lie := bytes.Clone(s.content)
	lie[partLength+5] ^= 1
	j.Content = bytes.NewReader(lie)
	j.Verify = func(int, int) (int, error) { return 1, nil }
	if _, err := j.Run(t.Context()); !errors.Is(err, bucket.ErrDigest) {
		t.Errorf("ended with %v", err)
	}
	if n := s.wire.count("PUT part 1"); n != maxDamaged+1 {
		t.Errorf("the part was sent %d times", n)
	}
}

// Credentials that S3 does not take any more, until their provider has new ones, are
// an outage as any other.
func TestCredentialsExpire(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	var generation atomic.Int32
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: s.wire}
	cfg.Credentials = aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{
			AccessKeyID: "test", SecretAccessKey: "test", // all that the embedded S3 takes
			CanExpire: true, Expires: time.Now().Add(time.Duration(generation.Add(1)) * time.Second),
		}, nil
	}))
	b, err := bucket.Open(t.Context(), cfg, s.bucket.Name(), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	j := s.job(execution, true)
	j.Bucket = b
	var refused atomic.Int32
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if generation.Load() == 1 && s.wire.count("PUT part") > 1 {
			refused.Add(1)
			return refuse(r, http.StatusBadRequest, "ExpiredToken")
		}
		return nil, nil
	}
	for { // as an agent does
		result, err := j.Run(t.Context())
		if err == nil {
			s.assertLanded(t, execution, result)
			break
		}
		if !strings.Contains(err.Error(), "ExpiredToken") {
			t.Fatal(err)
		}
	}
	if refused.Load() == 0 || s.wire.count("POST create") != 1 {
		t.Errorf("%d calls were refused, %d uploads begun", refused.Load(), s.wire.count("POST create"))
	}
}

// What was cancelled is not landed, even where nobody has said so but the table.
func TestCancelled(t *testing.T) {
	s := newSite(t, several)
	execution := s.begin(t, "etag")
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if call(r) == "PUT part 2" { // in the midst of it
			result := ledger.Result{Error: ledger.CancelledError}
			if _, err := s.ledger.Fail(t.Context(), s.key, execution, s.bucket.Name(), result); err != nil {
				t.Error(err)
			}
		}
		return nil, nil
	}
	if _, err := s.job(execution, true).Run(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("ended with %v", err)
	}
	s.assertNoObject(t)
	s.assertUploads(t)
}
