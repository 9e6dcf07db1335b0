package clustertest

import (
	"bytes"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// store puts an object with headers into the global bucket.
func store(t *testing.T, c *Cluster, key string, content []byte, h bucket.Headers) {
	t.Helper()
	var expires *time.Time
	if h.Expires != "" {
		expires = aws.Time(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
	}
	_, err := c.cloud.S3.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &c.Global, Key: &key, Body: bytes.NewReader(content),
		ContentType: &h.ContentType, CacheControl: &h.CacheControl, ContentEncoding: &h.ContentEncoding,
		ContentDisposition: &h.ContentDisposition, ContentLanguage: &h.ContentLanguage,
		Metadata: h.Metadata, Expires: expires,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// has reports whether a region's object has the headers.
func has(t *testing.T, c *Cluster, i int, key string, h bucket.Headers) bool {
	t.Helper()
	b, err := bucket.Open(t.Context(), c.cloud.AWS, c.Bucket(i), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o, err := b.Head(t.Context(), key)
	return err == nil && len(h.Differ(o.Headers)) == 0
}

var someHeaders = bucket.Headers{
	ContentType: "application/x-build", CacheControl: "public, max-age=31536000, immutable", ContentEncoding: "gzip",
	ContentDisposition: `attachment; filename="b.zip"`, ContentLanguage: "de", Expires: "Tue, 01 Jan 2030 00:00:00 GMT",
	Metadata: map[string]string{"team": "infra"},
}

func TestContentHeadersComeAlong(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2})
	for key, size := range map[string]int{"empty.zip": 0, "some.zip": 300_000} {
		store(t, c, key, make([]byte, size), someHeaders)
		for i := range c.Regions {
			c.Until(key+" has arrived with its headers", func() bool { return has(t, c, i, key, someHeaders) })
		}
	}
}

// The same bytes are stored again with other headers: found by the watcher, and by
// hand where it leaves the key alone.
func TestCorrectedHeadersArrive(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	content := bytes.Repeat([]byte("build"), 60_000)
	corrections := []bucket.Headers{someHeaders}
	for _, change := range []func(*bucket.Headers){
		func(h *bucket.Headers) { h.ContentType = "application/zip" },
		func(h *bucket.Headers) { h.Metadata = map[string]string{"team": "infra", "rev": "2"} },
		func(h *bucket.Headers) { h.CacheControl = "no-cache" },
		func(h *bucket.Headers) { h.Metadata = nil },
	} {
		h := corrections[len(corrections)-1]
		change(&h)
		corrections = append(corrections, h)
	}
	for i, h := range corrections {
		store(t, c, "by-itself.zip", content, h)
		c.Until("the watcher's correction has arrived", func() bool { return has(t, c, 0, "by-itself.zip", h) })
		store(t, c, "by-hand.tar", content, h)
		c.Await(c.Deploy("by-hand.tar").ExecutionID, "COMPLETED")
		if !has(t, c, 0, "by-hand.tar", h) {
			t.Errorf("correction %d: said to be landed, and has other headers", i)
		}
	}
}

// What was only written again is no new build, and is looked at once.
func TestObjectWrittenAgain(t *testing.T) {
	var heads atomic.Int64
	cfg := cloud.AWS.Copy()
	next := cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/same.zip") {
			heads.Add(1)
		}
		return next.RoundTrip(r)
	})}
	c := Start(t, cloud, Options{Regions: 1, AWS: &cfg})
	content := []byte("a build")
	store(t, c, "same.zip", content, someHeaders)
	key := ledger.Key{FileKey: "same.zip", SourceBucket: c.Global}
	var first *ledger.Record
	c.Until("it has arrived", func() bool {
		r, err := c.Ledger.Get(t.Context(), key)
		first = r
		return err == nil && r.Status == ledger.Completed
	})
	c.Until("the time at which it was written again is known", func() bool {
		store(t, c, "same.zip", content, someHeaders)
		r, err := c.Ledger.Get(t.Context(), key)
		if err != nil || r.ExecutionID != first.ExecutionID {
			t.Fatalf("%+v, %v", r, err)
		}
		return r.SourceModified.After(first.SourceModified)
	})
	// A build that comes later shows that polls went on.
	known, polls := heads.Load(), 0
	c.Until("polls went on", func() bool {
		key := strings.Repeat("x", polls+1) + ".zip"
		store(t, c, key, nil, bucket.Headers{})
		c.Until("the later one arrives", func() bool { return has(t, c, 0, key, bucket.Headers{}) })
		polls++
		return polls == 5
	})
	// One HEAD for what was stored last, one for it being perhaps of the same second.
	if n := heads.Load() - known; n > 2 {
		t.Errorf("%d more HEADs in %d polls", n, polls)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// An object that may not be read is shown, does not hold up the others, and is taken up
// when it may be read.
func TestUnreadableObject(t *testing.T) {
	var denied atomic.Bool
	denied.Store(true)
	cfg := cloud.AWS.Copy()
	next := cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/denied.zip") && denied.Load() {
			return &http.Response{StatusCode: http.StatusForbidden, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
		}
		return next.RoundTrip(r)
	})}
	c := Start(t, cloud, Options{Regions: 1, AWS: &cfg})
	store(t, c, "denied.zip", []byte("denied"), bucket.Headers{})
	store(t, c, "fine.zip", []byte("fine"), bucket.Headers{})
	c.Until("the other one arrives", func() bool { return has(t, c, 0, "fine.zip", bucket.Headers{}) })
	c.Until("it is counted", func() bool { return metric(t, c, "landfall_unread_objects") == 1 })
	if metric(t, c, "landfall_unread_object_failures_total") == 0 {
		t.Error("its failures are not counted")
	}
	denied.Store(false)
	c.Until("it has arrived", func() bool { return has(t, c, 0, "denied.zip", bucket.Headers{}) })
	c.Until("it is not counted any more", func() bool { return metric(t, c, "landfall_unread_objects") == 0 })
}

func metric(t *testing.T, c *Cluster, name string) float64 {
	t.Helper()
	return scrapeOf(t, c.Seeder).samples[name]
}
