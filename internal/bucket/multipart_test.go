package bucket_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// parts of a small build: two of S3's least size and a short last one.
func buildParts() [][]byte {
	return [][]byte{
		bytes.Repeat([]byte("a"), 5<<20),
		bytes.Repeat([]byte("b"), 5<<20),
		[]byte("c"),
	}
}

func send(t *testing.T, b *bucket.Bucket, key, id string, number int, part []byte) bucket.Part {
	t.Helper()
	sum := sha256.Sum256(part)
	etag, err := b.UploadPart(t.Context(), key, id, number, bytes.NewReader(part), int64(len(part)), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return bucket.Part{Number: number, ETag: etag, SHA256: sum[:], Size: int64(len(part))}
}

func create(t *testing.T, b *bucket.Bucket, key string) string {
	t.Helper()
	id, err := b.CreateUpload(t.Context(), key, bucket.Headers{ContentType: "application/zip", Metadata: map[string]string{"k": "v w"}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestMultipart(t *testing.T) {
	const key = "dir/a b+c.zip"
	b, content := open(t), buildParts()
	id := create(t, b, key)
	other := create(t, b, key+".sig")
	want := make([]bucket.Part, len(content))
	for _, number := range []int{2, 0, 1} {
		want[number] = send(t, b, key, id, number, content[number])
	}
	got, err := b.ListParts(t.Context(), key, id)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("parts %v, want %v", got, want)
	}
	if ids, err := b.Uploads(t.Context(), key); err != nil || !slices.Equal(ids, []string{id}) {
		t.Errorf("uploads %q, %v; want %q alone, not %q", ids, err, id, other)
	}
	etag, err := b.CompleteUpload(t.Context(), key, id, want, bucket.Condition{IfNoneMatch: true})
	if err != nil {
		t.Fatal(err)
	}
	o, err := b.Head(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if o.ETag != etag || o.Size != 10<<20+1 || o.ContentType != "application/zip" || !maps.Equal(o.Metadata, map[string]string{"k": "v w"}) {
		t.Errorf("got %+v, ETag %s", o, etag)
	}
	head, err := cloud.S3.HeadObject(t.Context(), &s3.HeadObjectInput{
		Bucket: new(b.Name()), Key: new(key), ChecksumMode: types.ChecksumModeEnabled,
	})
	if err != nil {
		t.Fatal(err)
	}
	composite := sha256.New()
	for _, p := range want {
		composite.Write(p.SHA256)
	}
	if sum := base64.StdEncoding.EncodeToString(composite.Sum(nil)) + "-3"; aws.ToString(head.ChecksumSHA256) != sum {
		t.Errorf("composite SHA-256 %q, want %q", aws.ToString(head.ChecksumSHA256), sum)
	}
}

func TestUploadPartDigest(t *testing.T) {
	b := open(t)
	id := create(t, b, "a")
	sum := sha256.Sum256([]byte("right"))
	if _, err := b.UploadPart(t.Context(), "a", id, 0, strings.NewReader("wrong"), 5, sum[:]); !errors.Is(err, bucket.ErrDigest) {
		t.Errorf("got %v", err)
	}
	if parts, err := b.ListParts(t.Context(), "a", id); err != nil || len(parts) != 0 {
		t.Errorf("parts %v, %v", parts, err)
	}
}

func TestNoUpload(t *testing.T) {
	b := open(t)
	id := create(t, b, "a")
	part := send(t, b, "a", id, 0, []byte("x"))
	for range 2 { // gone already is no error
		if err := b.AbortUpload(t.Context(), "a", id); err != nil {
			t.Error(err)
		}
	}
	_, listed := b.ListParts(t.Context(), "a", id)
	_, sent := b.UploadPart(t.Context(), "a", id, 0, strings.NewReader("x"), 1, part.SHA256)
	_, completed := b.CompleteUpload(t.Context(), "a", id, []bucket.Part{part}, bucket.Condition{})
	for doing, err := range map[string]error{"list": listed, "send": sent, "complete": completed} {
		if !errors.Is(err, bucket.ErrNoUpload) {
			t.Errorf("%s: %v", doing, err)
		}
	}
	assertNothing(t, b, "a")
}

func TestConditions(t *testing.T) {
	b := open(t)
	store := func(key string, c bucket.Condition) error {
		id := create(t, b, key)
		_, err := b.CompleteUpload(t.Context(), key, id, []bucket.Part{send(t, b, key, id, 0, []byte(key))}, c)
		return err
	}
	empty := func(key string, c bucket.Condition) error {
		id := create(t, b, key)
		_, err := b.CompleteUpload(t.Context(), key, id, []bucket.Part{send(t, b, key, id, 0, nil)}, c)
		return err
	}
	for name, write := range map[string]func(string, bucket.Condition) error{"multipart": store, "empty": empty} {
		t.Run(name, func(t *testing.T) {
			there := put(t, b, name+"/there", "old")
			for _, test := range []struct {
				key  string
				c    bucket.Condition
				want []error // any of them; none means success
			}{
				{name + "/new", bucket.Condition{IfNoneMatch: true}, nil},
				{there.Key, bucket.Condition{IfNoneMatch: true}, []error{bucket.ErrExists}},
				{there.Key, bucket.Condition{IfMatch: `"0123456789abcdef0123456789abcdef"`}, []error{bucket.ErrExists}},
				{name + "/none", bucket.Condition{IfMatch: there.ETag}, []error{bucket.ErrExists, bucket.ErrNotFound}},
				{there.Key, bucket.Condition{IfMatch: there.ETag}, nil},
				{there.Key, bucket.Condition{}, nil},
			} {
				err := write(test.key, test.c)
				if !(err == nil && test.want == nil) && !slices.ContainsFunc(test.want, func(want error) bool { return errors.Is(err, want) }) {
					t.Errorf("%s with %+v: %v", test.key, test.c, err)
				}
			}
		})
	}
}

func TestCompleteAfterRefusal(t *testing.T) {
	b := open(t)
	id := create(t, b, "a")
	parts := []bucket.Part{send(t, b, "a", id, 0, []byte("new"))}
	there := put(t, b, "a", "old")
	if _, err := b.CompleteUpload(t.Context(), "a", id, parts, bucket.Condition{IfNoneMatch: true}); !errors.Is(err, bucket.ErrExists) {
		t.Fatalf("got %v", err)
	}
	if _, err := b.CompleteUpload(t.Context(), "a", id, parts, bucket.Condition{IfMatch: there.ETag}); err != nil {
		t.Errorf("the upload did not survive the refusal: %v", err)
	}
}

func TestCompleteWithOtherPart(t *testing.T) {
	b := open(t)
	id := create(t, b, "a")
	part := send(t, b, "a", id, 0, []byte("one"))
	send(t, b, "a", id, 0, []byte("two"))
	if _, err := b.CompleteUpload(t.Context(), "a", id, []bucket.Part{part}, bucket.Condition{}); !errors.Is(err, bucket.ErrPart) {
		t.Errorf("got %v", err)
	}
}

// An upload of one part of 0 bytes makes an object of 0 bytes.
func TestEmptyUpload(t *testing.T) {
	b := open(t)
	id, err := b.CreateUpload(t.Context(), "a", bucket.Headers{ContentType: "text/plain", Metadata: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	etag, err := b.CompleteUpload(t.Context(), "a", id, []bucket.Part{send(t, b, "a", id, 0, nil)}, bucket.Condition{IfNoneMatch: true})
	if err != nil {
		t.Fatal(err)
	}
	o, err := b.Head(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if o.Size != 0 || o.ETag != etag || o.ContentType != "text/plain" || o.Metadata["k"] != "v" {
		t.Errorf("got %+v", o)
	}
}

// counting counts what is read of a body.
type counting struct {
	io.ReadSeeker
	read int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.ReadSeeker.Read(p)
	c.read += n
	return n, err
}

// The SDK would read a body once more to sign it.
func TestUploadPartReadsOnce(t *testing.T) {
	b := open(t)
	id := create(t, b, "a")
	content := buildParts()[0]
	sum := sha256.Sum256(content)
	body := &counting{ReadSeeker: bytes.NewReader(content)}
	if _, err := b.UploadPart(t.Context(), "a", id, 0, body, int64(len(content)), sum[:]); err != nil {
		t.Fatal(err)
	}
	if body.read != len(content) {
		t.Errorf("%d bytes were read of a body of %d", body.read, len(content))
	}
}
