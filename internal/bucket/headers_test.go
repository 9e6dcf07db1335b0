package bucket_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
)

var headers = bucket.Headers{
	ContentType: "application/x-build", CacheControl: "no-cache", ContentEncoding: "gzip, br",
	ContentDisposition: `attachment; filename="a b.zip"`, ContentLanguage: "de, en", Expires: "Tue, 01 Jan 2030 00:00:00 GMT",
	Metadata: map[string]string{"team": "infra", "empty": ""},
}

func TestHeadersAreKept(t *testing.T) {
	b := open(t)
	undated := headers
	undated.Expires = "next week" // S3 keeps what is no date
	for name, h := range map[string]bucket.Headers{"none": {}, "all": headers, "no date": undated} {
		for size, r := range map[int64]string{1: "x", 0: ""} {
			key := fmt.Sprintf("%s-%d", name, size)
			if _, err := b.Upload(t.Context(), key, strings.NewReader(r), size, h); err != nil {
				t.Fatal(err)
			}
			o, err := b.Head(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if names := h.Differ(o.Headers); len(names) > 0 {
				t.Errorf("%s: %v differ: got %+v, want %+v", key, names, o.Headers, h)
			}
		}
		id, err := b.CreateUpload(t.Context(), name, h)
		if err != nil {
			t.Fatal(err)
		}
		body := strings.NewReader("part")
		digest := sha256.Sum256([]byte("part"))
		sum := digest[:]
		etag, err := b.UploadPart(t.Context(), name, id, 0, body, 4, sum)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.CompleteUpload(t.Context(), name, id, []bucket.Part{{ETag: etag, SHA256: sum}}, bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
		o, err := b.Head(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if names := h.Differ(o.Headers); len(names) > 0 {
			t.Errorf("%s in parts: %v differ: got %+v, want %+v", name, names, o.Headers, h)
		}
	}
}

func TestHeadersMap(t *testing.T) {
	m := headers.Map()
	if len(m) != 8 {
		t.Errorf("%d headers: %v", len(m), m)
	}
	if back := bucket.ParseHeaders(m); !maps.Equal(back.Map(), m) {
		t.Errorf("came back as %v, was %v", back.Map(), m)
	}
	if m := (bucket.Headers{}).Map(); m == nil || len(m) != 0 {
		t.Errorf("nothing is %v", m)
	}
	unknown := bucket.ParseHeaders(map[string]string{"x-amz-storage-class": "GLACIER"})
	if m := unknown.Map(); len(m) != 0 {
		t.Errorf("what is not known became %v", m)
	}
}

func TestHeadersDiffer(t *testing.T) {
	for name, c := range map[string]struct {
		want, got map[string]string
		differ    []string
	}{
		"nothing":             {nil, nil, nil},
		"a made up type":      {nil, map[string]string{"content-type": "binary/octet-stream"}, nil},
		"another type":        {map[string]string{"content-type": "a/b"}, map[string]string{"content-type": "a/c"}, []string{"content-type"}},
		"one is missing":      {map[string]string{"expires": "0"}, nil, []string{"expires"}},
		"one is too many":     {nil, map[string]string{"cache-control": "x"}, []string{"cache-control"}},
		"metadata":            {map[string]string{"x-amz-meta-a": "1"}, map[string]string{"x-amz-meta-a": "2"}, []string{"x-amz-meta-a"}},
		"landfall's":          {map[string]string{"x-amz-meta-landfall-x": "1"}, map[string]string{"x-amz-meta-landfall-y": "2"}, nil},
		"white space":         {map[string]string{"x-amz-meta-a": " 1 "}, map[string]string{"x-amz-meta-a": "1"}, nil},
		"upper-case metadata": {map[string]string{"x-amz-meta-A": "1"}, map[string]string{"x-amz-meta-a": "1"}, nil},
	} {
		if got := bucket.ParseHeaders(c.want).Differ(bucket.ParseHeaders(c.got)); !slices.Equal(got, c.differ) {
			t.Errorf("%s: %v differ, want %v", name, got, c.differ)
		}
	}
}

func TestHeadersCheck(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for name, c := range map[string]struct {
		h  bucket.Headers
		ok bool
	}{
		"metadata that just fits": {bucket.Headers{Metadata: map[string]string{"a": strings.Repeat("x", bucket.MaxMetadata-101)}}, true},
		"a byte more":             {bucket.Headers{Metadata: map[string]string{"a": strings.Repeat("x", bucket.MaxMetadata-100)}}, false},
		"landfall's own":          {bucket.Headers{Metadata: map[string]string{"landfall-sha256": strings.Repeat("x", bucket.MaxMetadata)}}, true},
		"content headers":         {bucket.Headers{ContentDisposition: long}, true},
		"too many of them":        {bucket.Headers{ContentDisposition: long, CacheControl: long}, false},
	} {
		err := c.h.Check(100)
		if c.ok != (err == nil) || err != nil && !errors.Is(err, bucket.ErrHeaders) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Some servers keep what an SDK says of its own request.
func TestChunksAreNoEncoding(t *testing.T) {
	for stored, want := range map[string]string{"aws-chunked": "", "gzip,aws-chunked": "gzip", "gzip,br": "gzip,br"} {
		cfg := stub(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Encoding", stored) })
		b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if o, err := b.Head(t.Context(), "a"); err != nil || o.ContentEncoding != want {
			t.Errorf("%q was read as %q, %v", stored, o.ContentEncoding, err)
		}
	}
}
