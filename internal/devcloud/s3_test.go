package devcloud

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/versity/versitygw/backend/meta"
)

const (
	testBucket = "region-a-builds"
	minPart    = 5 << 20 // S3's limit on every part but the last
)

func startBucket(t *testing.T, dir string) *s3.Client {
	t.Helper()
	c, _ := start(t, dir)
	if _, err := c.s3.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(testBucket)}); err != nil {
		t.Fatal(err)
	}
	return c.s3
}

// status is the HTTP status that err stands for, 200 for none.
func status(err error) int {
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		return resp.HTTPStatusCode()
	}
	if err != nil {
		return 0
	}
	return http.StatusOK
}

func checkStatus(t *testing.T, what string, err error, want int) {
	t.Helper()
	if got := status(err); got != want {
		t.Errorf("%s: status %d (%v), want %d", what, got, err, want)
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// composite is S3's checksum of checksums of a multipart upload.
func composite(parts ...[]byte) string {
	var sums []byte
	for _, p := range parts {
		sum := sha256.Sum256(p)
		sums = append(sums, sum[:]...)
	}
	return fmt.Sprintf("%s-%d", digest(sums), len(parts))
}

// upload is a multipart upload under way.
type upload struct {
	client *s3.Client
	key    *string
	id     *string
	done   []types.CompletedPart
}

func begin(t *testing.T, client *s3.Client, key string, metadata map[string]string) *upload {
	t.Helper()
	out, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: aws.String(testBucket), Key: &key, Metadata: metadata, ContentType: aws.String("application/zip"),
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256, ChecksumType: types.ChecksumTypeComposite,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &upload{client: client, key: &key, id: out.UploadId}
}

func (u *upload) part(t *testing.T, number int32, body []byte, sum string) error {
	out, err := u.client.UploadPart(t.Context(), &s3.UploadPartInput{
		Bucket: aws.String(testBucket), Key: u.key, UploadId: u.id, PartNumber: &number,
		Body: bytes.NewReader(body), ChecksumSHA256: &sum,
	})
	if err == nil {
		u.done = append(u.done, types.CompletedPart{PartNumber: &number, ETag: out.ETag, ChecksumSHA256: &sum})
	}
	return err
}

func (u *upload) complete(t *testing.T, set func(*s3.CompleteMultipartUploadInput)) (*s3.CompleteMultipartUploadOutput, error) {
	slices.SortFunc(u.done, func(a, b types.CompletedPart) int { return int(*a.PartNumber - *b.PartNumber) })
	in := &s3.CompleteMultipartUploadInput{
		Bucket: aws.String(testBucket), Key: u.key, UploadId: u.id,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: u.done},
	}
	if set != nil {
		set(in)
	}
	return u.client.CompleteMultipartUpload(t.Context(), in)
}

func TestMultipart(t *testing.T) {
	t.Run("extended attributes", func(t *testing.T) { testMultipart(t, t.TempDir()) })
	t.Run("sidecar", func(t *testing.T) {
		dir := t.TempDir()
		// What New does where the file system has no extended attributes.
		sidecar := filepath.Join(dir, "s3-attributes")
		if err := os.Mkdir(sidecar, 0o755); err != nil {
			t.Fatal(err)
		}
		testMultipart(t, dir)
		if entries, err := os.ReadDir(sidecar); err != nil || len(entries) == 0 {
			t.Errorf("the sidecar holds %v, %v", entries, err)
		}
	})
}

func testMultipart(t *testing.T, dir string) {
	client := startBucket(t, dir)
	ctx := t.Context()
	first, last := bytes.Repeat([]byte("first"), minPart/5), []byte("last")
	u := begin(t, client, "dir/build 1+ä.zip", map[string]string{"landfall-execution": "01A"})

	checkStatus(t, "part with a wrong digest", u.part(t, 2, last, digest(first)), http.StatusBadRequest)
	// Out of order.
	checkStatus(t, "part 2", u.part(t, 2, last, digest(last)), http.StatusOK)
	checkStatus(t, "part 1", u.part(t, 1, first, digest(first)), http.StatusOK)

	parts := s3.NewListPartsPaginator(client, &s3.ListPartsInput{
		Bucket: aws.String(testBucket), Key: u.key, UploadId: u.id, MaxParts: aws.Int32(1),
	})
	var sums []string
	for parts.HasMorePages() {
		page, err := parts.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.Parts {
			sums = append(sums, aws.ToString(p.ChecksumSHA256))
		}
	}
	if !slices.Equal(sums, []string{digest(first), digest(last)}) {
		t.Errorf("digests of the listed parts: %v", sums)
	}
	if _, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(testBucket), Key: u.key}); status(err) != http.StatusNotFound {
		t.Errorf("the object can be seen before it is complete: %v", err)
	}
	out, err := u.complete(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := composite(first, last)
	if aws.ToString(out.ChecksumSHA256) != want {
		t.Errorf("checksum %s, want %s", aws.ToString(out.ChecksumSHA256), want)
	}
	head, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(testBucket), Key: u.key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		t.Fatal(err)
	}
	if aws.ToString(head.ChecksumSHA256) != want || *head.ContentLength != int64(len(first)+len(last)) ||
		aws.ToString(head.ContentType) != "application/zip" || head.Metadata["landfall-execution"] != "01A" {
		t.Errorf("object: %+v", head)
	}
	part, err := client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: aws.String(testBucket), Key: u.key, IfMatch: head.ETag, Range: aws.String(fmt.Sprintf("bytes=%d-", len(first)-2)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer part.Body.Close()
	if got, err := io.ReadAll(part.Body); err != nil || string(got) != "stlast" {
		t.Errorf("range: %q, %v", got, err)
	}
	_, err = client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(testBucket), Key: u.key, IfMatch: aws.String(`"other"`)})
	checkStatus(t, "get with a wrong If-Match", err, http.StatusPreconditionFailed)
}

func TestConditionalComplete(t *testing.T) {
	client := startBucket(t, t.TempDir())
	land := func(body string, set func(*s3.CompleteMultipartUploadInput)) (*s3.CompleteMultipartUploadOutput, error) {
		t.Helper()
		u := begin(t, client, "build.zip", nil)
		if err := u.part(t, 1, []byte(body), digest([]byte(body))); err != nil {
			t.Fatal(err)
		}
		return u.complete(t, set)
	}
	ifNew := func(in *s3.CompleteMultipartUploadInput) { in.IfNoneMatch = aws.String("*") }
	first, err := land("first", ifNew)
	checkStatus(t, "If-None-Match on a new key", err, http.StatusOK)
	_, err = land("second", ifNew)
	checkStatus(t, "If-None-Match on an object", err, http.StatusPreconditionFailed)
	_, err = land("second", func(in *s3.CompleteMultipartUploadInput) { in.IfMatch = aws.String(`"other"`) })
	checkStatus(t, "wrong If-Match", err, http.StatusPreconditionFailed)
	_, err = land("second", func(in *s3.CompleteMultipartUploadInput) { in.IfMatch = first.ETag })
	checkStatus(t, "right If-Match", err, http.StatusOK)
}

func TestConditionalPut(t *testing.T) {
	client := startBucket(t, t.TempDir())
	put := func(set func(*s3.PutObjectInput)) (*s3.PutObjectOutput, error) {
		in := &s3.PutObjectInput{Bucket: aws.String(testBucket), Key: aws.String("empty"), Body: bytes.NewReader(nil)}
		set(in)
		return client.PutObject(t.Context(), in)
	}
	ifNew := func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") }
	first, err := put(ifNew)
	checkStatus(t, "new", err, http.StatusOK)
	_, err = put(ifNew)
	checkStatus(t, "again", err, http.StatusPreconditionFailed)
	_, err = put(func(in *s3.PutObjectInput) { in.IfMatch = aws.String(`"other"`) })
	checkStatus(t, "wrong If-Match", err, http.StatusPreconditionFailed)
	_, err = put(func(in *s3.PutObjectInput) { in.IfMatch = first.ETag })
	checkStatus(t, "right If-Match", err, http.StatusOK)
	wrong := digest([]byte("other"))
	_, err = put(func(in *s3.PutObjectInput) { in.ChecksumSHA256 = &wrong })
	checkStatus(t, "wrong checksum", err, http.StatusBadRequest)
}

func TestListMultipartUploads(t *testing.T) {
	client := startBucket(t, t.TempDir())
	ctx := t.Context()
	for _, key := range []string{"build.zip", "build.zip", "build.zip.sig", "other.zip"} {
		begin(t, client, key, nil)
	}
	listed := func(prefix string) []string {
		t.Helper()
		var keys []string
		pages := s3.NewListMultipartUploadsPaginator(client, &s3.ListMultipartUploadsInput{
			Bucket: aws.String(testBucket), Prefix: &prefix, MaxUploads: aws.Int32(1),
		})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range page.Uploads {
				keys = append(keys, *u.Key)
			}
		}
		return keys
	}
	if got := listed("build.zip"); !slices.Equal(got, []string{"build.zip", "build.zip", "build.zip.sig"}) {
		t.Errorf("uploads below build.zip: %v", got)
	}
	u := begin(t, client, "aborted.zip", nil)
	if _, err := client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: aws.String(testBucket), Key: u.key, UploadId: u.id}); err != nil {
		t.Fatal(err)
	}
	if got := listed("aborted"); len(got) != 0 {
		t.Errorf("uploads after abort: %v", got)
	}
	_, err := u.complete(t, nil)
	if status(err) < 400 {
		t.Errorf("completing an aborted upload: %v", err)
	}
	checkStatus(t, "part of an aborted upload", u.part(t, 1, []byte("x"), digest([]byte("x"))), http.StatusNotFound)
}

func TestListObjectsPages(t *testing.T) {
	client := startBucket(t, t.TempDir())
	var want []string
	for i := range 7 {
		key := fmt.Sprintf("build-%d.zip", i)
		want = append(want, key)
		if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(testBucket), Key: &key, Body: bytes.NewReader([]byte(key))}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: aws.String(testBucket), MaxKeys: aws.Int32(3)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			if aws.ToString(o.ETag) == "" || o.LastModified == nil || *o.Size != int64(len(*o.Key)) {
				t.Errorf("listed object: %+v", o)
			}
			got = append(got, *o.Key)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("keys %v, want %v", got, want)
	}
}

func TestCopyObject(t *testing.T) {
	client := startBucket(t, t.TempDir())
	ctx := t.Context()
	if _, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(testBucket), Key: aws.String("a"), Body: bytes.NewReader([]byte("body"))}); err != nil {
		t.Fatal(err)
	}
	_, err := client.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String(testBucket), Key: aws.String("b"), CopySource: aws.String(testBucket + "/a")})
	checkStatus(t, "copy", err, http.StatusOK)
}

func TestSignatures(t *testing.T) {
	c, err := New(Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), AccessKey: "someone", SecretKey: "secret", Region: "eu-west-1"})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, c)
	// A client each: the signer remembers keys it has derived by access key.
	clientOf := func(region, key, secret string) *s3.Client {
		return s3.New(connect(t, c.URL()).s3.Options(), func(o *s3.Options) {
			o.Region, o.Credentials = region, credentials.NewStaticCredentialsProvider(key, secret, "")
			o.HTTPSignerV4 = v4.NewSigner()
		})
	}
	if _, err := clientOf("eu-west-1", "someone", "secret").CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(testBucket)}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		region, key, secret string
		want                int
	}{
		{"eu-west-1", "someone", "secret", http.StatusOK},
		{"eu-west-1", "someone", "wrong", http.StatusForbidden},
		{"eu-west-1", "test", "test", http.StatusForbidden},
		{"us-east-2", "someone", "secret", http.StatusBadRequest},
	} {
		_, err := clientOf(tt.region, tt.key, tt.secret).ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String(testBucket)})
		checkStatus(t, fmt.Sprint(tt), err, tt.want)
	}
}

func TestKeysStayInTheBucket(t *testing.T) {
	client := startBucket(t, t.TempDir())
	for _, key := range []string{"../escape", "a/../../escape", "../" + testBucket + "-other/escape"} {
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(testBucket), Key: &key, Body: bytes.NewReader(nil)})
		if status(err) < 400 {
			t.Errorf("key %q was taken: %v", key, err)
		}
	}
}

// noRoom is a file system whose attributes are full.
type noRoom struct{ meta.MetadataStorer }

func (noRoom) StoreAttribute(*os.File, string, string, string, []byte) error { return syscall.ENOSPC }

func TestManyParts(t *testing.T) {
	p := partless{noRoom{}}
	if err := p.StoreAttribute(nil, "b", "k", "mp-metadata", make([]byte, 5000)); err != nil {
		t.Errorf("an upload of many parts cannot be completed: %v", err)
	}
	if err := p.StoreAttribute(nil, "b", "k", "etag", nil); err == nil {
		t.Error("an attribute that is needed was lost in silence")
	}
}
