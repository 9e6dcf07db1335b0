package clustertest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/landing"
)

// refusing answers in S3's place where refuse says with which status and code.
func refusing(refuse func(r *http.Request) (status int, code string)) *aws.Config {
	cfg := cloud.AWS.Copy()
	next := cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		status, code := refuse(r)
		if status == 0 {
			return next.RoundTrip(r)
		}
		if r.Body != nil {
			io.Copy(io.Discard, r.Body) //nolint:errcheck // as S3 does
			r.Body.Close()
		}
		body := fmt.Sprintf("<Error><Code>%s</Code><Message>no</Message></Error>", code)
		if r.Method == http.MethodHead {
			body = ""
		}
		return &http.Response{
			StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Content-Type": {"application/xml"}}, Body: io.NopCloser(strings.NewReader(body)),
			ContentLength: int64(len(body)), Request: r,
		}, nil
	})}
	return &cfg
}

// What S3 refuses for good fails at once, with its reason and what to do; other builds
// land, and so does this one when it is sent again after it was mended.
func TestRefusedForGood(t *testing.T) {
	var mended, tries atomic.Int64
	for name, c := range map[string]struct {
		method, query, code string
		status              int
		next                string
	}{
		"headers are too large":     {http.MethodPost, "uploads", "MetadataTooLarge", 400, "less user metadata"},
		"no conditional completion": {http.MethodPost, "uploadId", "NotImplemented", 501, "seeder check --write"},
		"a code of another store":   {http.MethodPost, "uploads", "Whatever", 405, "seeder check --write"},
		"the source is archived":    {http.MethodGet, "x-id", "InvalidObjectState", 403, "restore the object"},
		"encrypted with own keys":   {http.MethodHead, "", "InvalidRequest", 400, "SSE-C"},
	} {
		t.Run(name, func(t *testing.T) {
			mended.Store(0)
			tries.Store(0)
			cfg := refusing(func(r *http.Request) (int, string) {
				if !strings.HasSuffix(r.URL.Path, "/refused.tar") || mended.Load() > 0 {
					return 0, ""
				}
				if c.method == http.MethodHead { // and the GET that asks for the reason; the first HEAD is that of the deploy
					if r.Method == http.MethodHead && tries.Add(1) == 1 || r.Method != http.MethodHead && r.Method != http.MethodGet {
						return 0, ""
					}
					return c.status, c.code
				}
				if r.Method != c.method || !r.URL.Query().Has(c.query) {
					return 0, ""
				}
				tries.Add(1)
				return c.status, c.code
			})
			cluster := Start(t, cloud, Options{Regions: 1, AWS: cfg})
			store(t, cluster, "refused.tar", bytes.Repeat([]byte("build"), 1000), bucket.Headers{})
			id := cluster.Deploy("refused.tar").ExecutionID
			e := cluster.Await(id, "FAILED")
			if got := e.Destinations[0].Error; !strings.Contains(got, c.code) || !strings.Contains(got, c.next) {
				t.Errorf("failed with %q, want %s and %q", got, c.code, c.next)
			}
			store(t, cluster, "fine.tar", []byte("fine"), bucket.Headers{})
			cluster.Await(cluster.Deploy("fine.tar").ExecutionID, "COMPLETED")
			before := tries.Load()
			if c.method == http.MethodPost && before != 1 {
				t.Errorf("%d tries", before)
			}
			mended.Store(1)
			if _, err := cluster.Seeder.Retry(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			cluster.Await(id, "COMPLETED")
		})
	}
}

// User metadata that leaves no room for Landfall's own can land nowhere.
func TestMetadataThatDoesNotFit(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	const most = 2<<10 - landing.AddedMetadata // of S3's limit
	h := bucket.Headers{Metadata: map[string]string{"a": strings.Repeat("x", most-5)}}
	store(t, c, "fits.zip", []byte("fits"), h)
	c.Until("it arrives", func() bool { return has(t, c, 0, "fits.zip", h) })
	h.Metadata["a"] = strings.Repeat("x", 2040)
	for key, size := range map[string]int{"some.tar": 10, "empty.tar": 0} {
		store(t, c, key, make([]byte, size), h)
		e := c.Await(c.Deploy(key).ExecutionID, "FAILED")
		if got := e.Destinations[0].Error; !strings.Contains(got, "user metadata") || !strings.Contains(got, fmt.Sprintf("at most %d", most)) {
			t.Errorf("%s failed with %q", key, got)
		}
	}
}
