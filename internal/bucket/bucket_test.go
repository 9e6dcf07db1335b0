package bucket_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
)

// cloud serves all tests of the process.
var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

func open(t *testing.T) *bucket.Bucket {
	t.Helper()
	b, err := bucket.Open(t.Context(), cloud.AWS, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, b *bucket.Bucket, key, body string) *bucket.Object {
	t.Helper()
	o, err := b.Upload(t.Context(), key, strings.NewReader(body), int64(len(body)), bucket.Headers{ContentType: "text/plain"})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOpen(t *testing.T) {
	name := cloud.Bucket(t)
	for _, test := range []struct {
		name              string
		cfgRegion, option string
		want              string
	}{
		{"configured", "us-east-1", "", "us-east-1"},
		{"nothing configured", "", "", "us-east-1"},
		{"option", "eu-west-1", "us-east-1", "us-east-1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := cloud.AWS.Copy()
			cfg.Region = test.cfgRegion
			b, err := bucket.Open(t.Context(), cfg, name, bucket.Options{Region: test.option})
			if err != nil {
				t.Fatal(err)
			}
			if b.Name() != name || b.Region() != test.want {
				t.Errorf("got %s in %q, want %s in %q", b.Name(), b.Region(), name, test.want)
			}
			if err := b.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// endpoint is a config source, as config.LoadDefaultConfig makes one of the
// environment.
type endpoint string

func (e endpoint) GetServiceBaseEndpoint(context.Context, string) (string, bool, error) {
	return string(e), true, nil
}

func TestOpenByEnvironment(t *testing.T) {
	t.Setenv("AWS_ENDPOINT_URL_S3", cloud.URL)
	cfg := cloud.AWS.Copy()
	cfg.BaseEndpoint = nil
	cfg.ConfigSources = []any{endpoint(cloud.URL)}
	if _, err := bucket.Open(t.Context(), cfg, cloud.Bucket(t), bucket.Options{}); err != nil {
		t.Error(err)
	}
}

func TestNoBucket(t *testing.T) {
	_, err := bucket.Open(t.Context(), cloud.AWS, "not-there", bucket.Options{})
	if !errors.Is(err, bucket.ErrNoBucket) {
		t.Fatalf("got %v", err)
	}
	for _, word := range []string{"not-there", "seeder init"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
	b := open(t)
	if _, err := cloud.S3.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: new(b.Name())}); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); !errors.Is(err, bucket.ErrNoBucket) {
		t.Errorf("check: %v", err)
	}
	if err := b.List(t.Context(), "", nil); !errors.Is(err, bucket.ErrNoBucket) {
		t.Errorf("list: %v", err)
	}
}

func TestCreate(t *testing.T) {
	name := cloud.Bucket(t) + "-2"
	for _, want := range []bool{true, false} {
		created, err := bucket.Create(t.Context(), cloud.AWS, name, "")
		if err != nil || created != want {
			t.Errorf("got %v, %v; want %v", created, err, want)
		}
	}
}

func TestHead(t *testing.T) {
	b := open(t)
	if _, err := b.Head(t.Context(), "a.zip"); !errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("missing object: %v", err)
	}
	metadata := map[string]string{"Build-Host": "A  b/ü?=\"x\"", "n": "1"}
	stored, err := b.Upload(t.Context(), "a.zip", strings.NewReader("hello"), -1, bucket.Headers{ContentType: "application/zip", Metadata: metadata})
	if err != nil {
		t.Fatal(err)
	}
	o, err := b.Head(t.Context(), "a.zip")
	if err != nil {
		t.Fatal(err)
	}
	if o.Key != "a.zip" || o.Size != 5 || o.ETag != stored.ETag || o.ETag == "" || o.ContentType != "application/zip" || o.LastModified.IsZero() {
		t.Errorf("got %+v", o)
	}
	if want := map[string]string{"build-host": metadata["Build-Host"], "n": "1"}; !maps.Equal(o.Metadata, want) || !maps.Equal(stored.Metadata, want) {
		t.Errorf("metadata %q and %q, want %q", o.Metadata, stored.Metadata, want)
	}
}

func TestList(t *testing.T) {
	b := open(t)
	var want []string
	for i := range 1003 { // two pages
		want = append(want, fmt.Sprintf("many/%04d", i))
	}
	odd := []string{"odd/a b", "odd/a+b", "odd/a%20b", "odd/é", "odd/日本", "odd/q?x=1&y", "odd/&lt;"}
	var puts sync.WaitGroup
	for keys := range slices.Chunk(slices.Concat(want, odd), 200) {
		puts.Go(func() {
			for _, key := range keys {
				if _, err := b.Upload(t.Context(), key, strings.NewReader("x"), 1, bucket.Headers{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	puts.Wait()
	list := func(prefix string) (keys []string) {
		if err := b.List(t.Context(), prefix, func(o bucket.Object) error {
			if o.Size != 1 || o.ETag == "" || o.LastModified.IsZero() {
				t.Errorf("got %+v", o)
			}
			keys = append(keys, o.Key)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return keys
	}
	if got := list("many/"); !slices.Equal(got, want) {
		t.Errorf("got %d keys, want %d", len(got), len(want))
	}
	slices.Sort(odd)
	if got := list("odd/"); !slices.Equal(got, odd) {
		t.Errorf("got %q, want %q", got, odd)
	}
	for _, key := range odd {
		if o, err := b.Head(t.Context(), key); err != nil || o.Key != key {
			t.Errorf("%q: %+v, %v", key, o, err)
		}
	}
	enough := errors.New("enough")
	n := 0
	if err := b.List(t.Context(), "", func(bucket.Object) error { n++; return enough }); err != enough || n != 1 {
		t.Errorf("after %d objects: %v", n, err)
	}
}

func TestGetRange(t *testing.T) {
	b := open(t)
	o := put(t, b, "a", "0123456789")
	for _, test := range []struct {
		offset, length int64
		want           string
	}{{0, 10, "0123456789"}, {0, 1, "0"}, {3, 4, "3456"}, {9, 1, "9"}, {4, 0, ""}} {
		r, err := b.GetRange(t.Context(), "a", o.ETag, test.offset, test.length)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || string(got) != test.want {
			t.Errorf("%d from %d: %q, %v", test.length, test.offset, got, err)
		}
	}
	if _, err := b.GetRange(t.Context(), "a", o.ETag, 8, 4); err == nil {
		t.Error("a range beyond the end is no error")
	}
	if _, err := b.GetRange(t.Context(), "b", o.ETag, 0, 1); !errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("missing object: %v", err)
	}
	put(t, b, "a", "9876543210")
	if _, err := b.GetRange(t.Context(), "a", o.ETag, 0, 10); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("changed object: %v", err)
	}
}
