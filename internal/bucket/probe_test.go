package bucket_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// weaken is a client's way to the embedded S3 that makes another store of it: before may
// change or answer a request, after an answer's body.
type weaken struct {
	next   http.RoundTripper
	before func(r *http.Request) *http.Response
	after  func(r *http.Request, w *http.Response)
}

func (w weaken) RoundTrip(r *http.Request) (*http.Response, error) {
	if w.before != nil {
		if answer := w.before(r); answer != nil {
			return answer, nil
		}
	}
	answer, err := w.next.RoundTrip(r)
	if err == nil && w.after != nil {
		w.after(r, answer)
	}
	return answer, err
}

func answer(r *http.Request, status int, code string) *http.Response {
	body := fmt.Sprintf("<Error><Code>%s</Code><Message>no</Message></Error>", code)
	if status < 300 {
		body = ""
	}
	return &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"application/xml"}},
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}

func isComplete(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
}

// weakened are stores that lack one thing, each with what Probe and CheckWrites are to
// find.
var weakened = map[string]struct {
	store         weaken
	probe, writes []bucket.Weakness
}{
	"as it is": {},
	"wrong digests are stored": {
		store: weaken{before: func(r *http.Request) *http.Response {
			if !r.URL.Query().Has("partNumber") || r.Header.Get("X-Amz-Checksum-Sha256") != "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" {
				return nil // not that of nothing, which Probe sends with other bytes
			}
			ok := answer(r, http.StatusOK, "")
			ok.Header.Set("ETag", `"e"`)
			return ok
		}},
		probe:  []bucket.Weakness{bucket.WrongDigest},
		writes: []bucket.Weakness{bucket.WrongDigest},
	},
	"ListParts without sums": {
		store: weaken{after: func(r *http.Request, w *http.Response) {
			if r.Method == http.MethodGet && r.URL.Query().Has("uploadId") {
				cut(w, "ChecksumSHA256")
			}
		}},
		probe:  []bucket.Weakness{bucket.NoPartSums},
		writes: []bucket.Weakness{bucket.NoPartSums},
	},
	"no conditions": {
		store: weaken{before: func(r *http.Request) *http.Response {
			if isComplete(r) && (r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "") {
				return answer(r, http.StatusNotImplemented, "NotImplemented")
			}
			return nil
		}},
		probe:  []bucket.Weakness{bucket.NoConditions},
		writes: []bucket.Weakness{bucket.NoConditions},
	},
	"HEAD without a sum": {
		store:  weaken{after: func(_ *http.Request, w *http.Response) { w.Header.Del("X-Amz-Checksum-Sha256") }},
		writes: []bucket.Weakness{bucket.NoComposite, bucket.NoWholeSum},
	},
	"metadata is lost": {
		store: weaken{after: func(r *http.Request, w *http.Response) {
			if r.Method == http.MethodHead {
				w.Header.Del("X-Amz-Meta-Check")
			}
		}},
		writes: []bucket.Weakness{bucket.NoHeaders},
	},
	"304 in place of 412": {
		store: weaken{after: func(r *http.Request, w *http.Response) {
			if isComplete(r) && w.StatusCode == http.StatusPreconditionFailed {
				w.StatusCode = http.StatusNotModified
			}
		}},
	},
}

// cut takes elements out of an XML answer.
func cut(w *http.Response, element string) {
	b, err := io.ReadAll(w.Body)
	w.Body.Close()
	for err == nil {
		begin := bytes.Index(b, []byte("<"+element+">"))
		end := bytes.Index(b, []byte("</"+element+">"))
		if begin < 0 || end < 0 {
			break
		}
		b = slices.Delete(b, begin, end+len(element)+3)
	}
	w.Body, w.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	w.Header.Del("Content-Length")
}

// behind opens a new bucket through a weakened way; strong is the same without.
func behind(t *testing.T, store weaken) (weak, strong *bucket.Bucket) {
	t.Helper()
	strong = open(t)
	cfg := cloud.AWS.Copy()
	store.next = cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: store}
	cfg.RetryMaxAttempts = 1
	weak, err := bucket.Open(t.Context(), cfg, strong.Name(), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return weak, strong
}

// assertEmpty checks that nothing is left: neither an object, nor an upload.
func assertEmpty(t *testing.T, b *bucket.Bucket) {
	t.Helper()
	if err := b.List(t.Context(), "", func(o bucket.Object) error { return fmt.Errorf("object %s is left", o.Key) }); err != nil {
		t.Error(err)
	}
	assertNoUploads(t, b)
}

func assertNoUploads(t *testing.T, b *bucket.Bucket) {
	t.Helper()
	name := b.Name()
	out, err := cloud.S3.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &name})
	if err != nil || len(out.Uploads) > 0 {
		t.Errorf("%d uploads are left, %v", len(out.Uploads), err)
	}
}

func TestProbe(t *testing.T) {
	for name, c := range weakened {
		t.Run(name, func(t *testing.T) {
			weak, strong := behind(t, c.store)
			found, err := weak.Probe(t.Context())
			if err != nil || !slices.Equal(found, c.probe) {
				t.Errorf("found %q, %v; want %q", found, err, c.probe)
			}
			assertEmpty(t, strong)
			refused := strong.Refuse(found, false)
			if grave := slices.ContainsFunc(found, bucket.Weakness.Grave); grave != (refused != nil) || strong.Refuse(found, true) != nil {
				t.Errorf("%q: refused with %v", found, refused)
			}
			for range 2 { // an object is there the second time
				found, err = weak.CheckWrites(t.Context())
				if err != nil || !slices.Equal(found, c.writes) {
					t.Errorf("CheckWrites found %q, %v; want %q", found, err, c.writes)
				}
			}
			assertNoUploads(t, strong)
			if err := strong.List(t.Context(), "", func(o bucket.Object) error {
				if !strings.HasPrefix(o.Key, bucket.OwnPrefix) {
					return fmt.Errorf("object %s is left", o.Key)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A store that ignores conditions makes an object of the probe; it is removed.
func TestProbeOfAStoreThatIgnoresConditions(t *testing.T) {
	deleted := false
	cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case r.Method == http.MethodPost && q.Has("uploads"):
			fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
		case r.Method == http.MethodPut && r.Header.Get("X-Amz-Checksum-Sha256") == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=":
			refuse(w, http.StatusBadRequest, "BadRequest")
		case r.Method == http.MethodPut:
			w.Header().Set("ETag", `"e"`)
		case r.Method == http.MethodGet && q.Has("uploadId"):
			xml.NewEncoder(w).Encode(struct { //nolint:errcheck // the test sees it
				XMLName xml.Name `xml:"ListPartsResult"`
			}{})
		case isComplete(r):
			w.Header().Set("X-Amz-Version-Id", "v1")
			fmt.Fprint(w, `<CompleteMultipartUploadResult><ETag>"e-1"</ETag></CompleteMultipartUploadResult>`)
		case r.Method == http.MethodDelete && q.Has("uploadId"):
			refuse(w, http.StatusNotFound, "NoSuchUpload")
		case r.Method == http.MethodDelete:
			deleted = q.Get("versionId") == "v1"
		}
	})
	b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	found, err := b.Probe(t.Context())
	if want := []bucket.Weakness{bucket.NoPartSums, bucket.NoIfMatch}; err != nil || !slices.Equal(found, want) {
		t.Errorf("found %q, %v; want %q", found, err, want)
	}
	if !deleted {
		t.Error("the object is left, or a delete marker")
	}
}

func TestProbeWithoutAnswers(t *testing.T) {
	for name, before := range map[string]func(*http.Request) *http.Response{
		"nothing may be written": func(r *http.Request) *http.Response {
			if r.Method != http.MethodHead {
				return answer(r, http.StatusForbidden, "AccessDenied")
			}
			return nil
		},
		"fails in the middle": func(r *http.Request) *http.Response {
			if isComplete(r) {
				return answer(r, http.StatusInternalServerError, "InternalError")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			weak, strong := behind(t, weaken{before: before})
			if found, err := weak.Probe(t.Context()); err == nil {
				t.Errorf("found %q", found)
			}
			assertEmpty(t, strong)
		})
	}
}

func TestProbeRead(t *testing.T) {
	for name, c := range map[string]struct {
		store weaken
		keys  []string
		want  []bucket.Weakness
	}{
		"empty":    {weaken{}, nil, nil},
		"as it is": {weaken{}, []string{"a"}, nil},
		"ignores If-Match": {weaken{before: func(r *http.Request) *http.Response {
			if r.Method == http.MethodGet && r.Header.Get("If-Match") != "" {
				ok := answer(r, http.StatusPartialContent, "")
				ok.Body, ok.ContentLength = io.NopCloser(strings.NewReader("x")), 1
				ok.Header.Set("Content-Length", "1")
				ok.Header.Set("Content-Range", "bytes 0-0/1")
				return ok
			}
			return nil
		}}, []string{"a"}, []bucket.Weakness{bucket.NoReadIfMatch}},
		"may not be read": {weaken{before: func(r *http.Request) *http.Response {
			if strings.HasSuffix(r.URL.Path, "/a") {
				return answer(r, http.StatusForbidden, "InvalidObjectState")
			}
			return nil
		}}, []string{"a", "b"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			weak, strong := behind(t, c.store)
			for _, key := range c.keys {
				put(t, strong, key, "x")
			}
			if found, err := weak.ProbeRead(t.Context()); err != nil || !slices.Equal(found, c.want) {
				t.Errorf("found %q, %v; want %q", found, err, c.want)
			}
		})
	}
}

// What a killed process has left of a probe is removed by the next one, and those that
// probe at the same time remove each other's without harm.
func TestProbeRemovesWhatIsLeft(t *testing.T) {
	b := open(t)
	for range 3 {
		if _, err := b.CreateUpload(t.Context(), bucket.OwnPrefix+"probe", bucket.Headers{}); err != nil {
			t.Fatal(err)
		}
	}
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			_, err := b.Probe(t.Context())
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if left, err := b.Uploads(t.Context(), bucket.OwnPrefix+"probe"); err != nil || len(left) > 0 {
		t.Errorf("%d uploads are left, %v", len(left), err)
	}
}
