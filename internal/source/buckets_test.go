package source

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// roundTrip is an S3 that answers as the test says.
type roundTrip func(r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// pretend returns the settings of an S3 that answers as f says.
func pretend(f roundTrip) aws.Config {
	return aws.Config{
		Region:       "us-east-1",
		BaseEndpoint: aws.String("http://s3.invalid"),
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:   &http.Client{Transport: f},
	}
}

func ok(r *http.Request) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}
}

// hang answers when nobody waits any more.
func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// A bucket that does not answer keeps nobody from the others.
func TestBucketThatHangs(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := NewBuckets(pretend(func(r *http.Request) (*http.Response, error) {
		if strings.HasPrefix(r.URL.Path, "/hanging") {
			asked <- struct{}{}
			return hang(r)
		}
		return ok(r), nil
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Get(ctx, "hanging")
		ended <- err
	}()
	<-asked
	for range 2 {
		if _, err := s.Get(t.Context(), "answering"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that hangs ended with %v", err)
	}
}

// Any number of buckets can be named, one after the other; a bounded number of them
// is kept, and the one given stays.
func TestMoreBucketsThanAreKept(t *testing.T) {
	var heads atomic.Int64
	cfg := pretend(func(r *http.Request) (*http.Response, error) {
		heads.Add(1)
		return ok(r), nil
	})
	global, err := bucket.Open(t.Context(), cfg, "global-builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := NewBuckets(cfg, global)
	for i := range 2 * maxBuckets {
		name := fmt.Sprintf("bucket-%d", i)
		if b, err := s.Get(t.Context(), name); err != nil || b.Name() != name {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if n := len(s.open); n > maxBuckets {
		t.Errorf("%d buckets are kept, at most %d may be", n, maxBuckets)
	}
	heads.Store(0)
	for _, name := range []string{"global-builds", fmt.Sprintf("bucket-%d", 2*maxBuckets-1)} {
		if _, err := s.Get(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if n := heads.Load(); n != 0 {
		t.Errorf("%d of those that must be open were opened again", n)
	}
	if _, err := s.Get(t.Context(), "bucket-0"); err != nil || heads.Load() != 1 {
		t.Errorf("the first: opened %d times, %v", heads.Load(), err)
	}
}
