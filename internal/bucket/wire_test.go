package bucket_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// stub answers as S3 would, where the embedded one has no such answer.
func stub(t *testing.T, handler http.HandlerFunc) aws.Config {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	cfg := cloud.AWS.Copy()
	cfg.BaseEndpoint = &server.URL
	cfg.HTTPClient = server.Client()
	return cfg
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
}

var oddKeys = []string{
	"a b", "a+b", "a%20b", "100%", "é/日本.zip", "../up", "a/../b", "./a", "/leading", "//two", "a//b", "trailing/", "q?x=1#y", "\x01\x7f",
}

func TestKeysOnTheWire(t *testing.T) {
	var got string
	cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
		got, _, _ = strings.Cut(r.RequestURI, "?")
		w.Header().Set("ETag", `"e"`)
		if r.Method == http.MethodPost {
			fmt.Fprint(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
		}
	})
	b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range oddKeys {
		for doing, do := range map[string]func() error{
			"head":   func() error { _, err := b.Head(t.Context(), key); return err },
			"create": func() error { _, err := b.CreateUpload(t.Context(), key, bucket.Headers{}); return err },
		} {
			got = ""
			if err := do(); err != nil {
				t.Errorf("%s %q: %v", doing, key, err)
			}
			path, err := url.PathUnescape(got)
			if err != nil || path != "/builds/"+key || strings.ContainsAny(got, " +\x01") {
				t.Errorf("%s %q: requested %q, %v", doing, key, got, err)
			}
		}
	}
}

// What the embedded S3 cannot hold is refused with an error that names the key.
func TestKeysRefused(t *testing.T) {
	b := open(t)
	put(t, b, "file", "x")
	for _, key := range []string{"../up", "file/below"} {
		_, err := b.Upload(t.Context(), key, strings.NewReader("x"), 1, bucket.Headers{})
		if err == nil || !strings.Contains(err.Error(), "storing "+key+" in "+b.Name()) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestListDecodesKeys(t *testing.T) {
	page := 0
	cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead:
		case r.URL.Query().Get("encoding-type") != "url":
			refuse(w, http.StatusBadRequest, "InvalidArgument")
		case page == 0:
			page++
			fmt.Fprint(w, `<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>
				<Contents><Key>a+b%2Bc%25/%C3%A9%01</Key><Size>7</Size></Contents></ListBucketResult>`)
		default: // the same page for ever
			fmt.Fprint(w, `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>`)
		}
	})
	b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	err = b.List(t.Context(), "", func(o bucket.Object) error { keys = append(keys, o.Key); return nil })
	if err == nil {
		t.Error("a listing without end is no error")
	}
	if len(keys) != 1 || keys[0] != "a b+c%/é\x01" {
		t.Errorf("got %q", keys)
	}
}

func TestOpenFindsRegion(t *testing.T) {
	for _, status := range []int{http.StatusMovedPermanently, http.StatusBadRequest, http.StatusOK} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
				if !strings.Contains(r.Header.Get("Authorization"), "/eu-central-1/s3/") {
					w.WriteHeader(status)
				}
			})
			b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if b.Region() != "eu-central-1" {
				t.Errorf("region %q", b.Region())
			}
			if err := b.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCreateNamesRegion(t *testing.T) {
	var body string
	cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		b := make([]byte, 1024)
		n, _ := r.Body.Read(b)
		body = string(b[:n])
	})
	created, err := bucket.Create(t.Context(), cfg, "builds", "eu-west-1")
	if err != nil || !created || !strings.Contains(body, "<LocationConstraint>eu-west-1</LocationConstraint>") {
		t.Errorf("got %v, %v; sent %q", created, err, body)
	}
}

func TestErrors(t *testing.T) {
	var status int
	var code string
	cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			return
		}
		refuse(w, status, code)
	})
	b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		status int
		code   string
		want   error
	}{
		{409, "ConditionalRequestConflict", bucket.ErrConflict},
		{409, "SomethingElse", bucket.ErrConflict},
		{412, "PreconditionFailed", bucket.ErrExists},
		{404, "NoSuchUpload", bucket.ErrNoUpload},
		{404, "NoSuchBucket", bucket.ErrNoBucket},
		{404, "NoSuchKey", bucket.ErrNotFound},
		{400, "InvalidPart", bucket.ErrPart},
		{400, "BadDigest", bucket.ErrDigest},
		{200, "ConditionalRequestConflict", bucket.ErrConflict}, // an error in a 200, as S3 may answer
	} {
		status, code = test.status, test.code
		_, err := b.CompleteUpload(t.Context(), "a.zip", "u", nil, bucket.Condition{})
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), "a.zip in builds") {
			t.Errorf("%d %s: %v", test.status, test.code, err)
		}
	}
}

// A server that does not know ranges must not pass for one that does.
func TestGetRangeIgnored(t *testing.T) {
	cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprint(w, "all of it")
		}
	})
	b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.GetRange(t.Context(), "a", `"e"`, 2, 3); err == nil || !strings.Contains(err.Error(), "bytes=2-4") {
		t.Errorf("got %v", err)
	}
}
