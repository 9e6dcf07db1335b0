package source

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
)

// wire is a client's way to the embedded S3 that changes a byte of what it reads of
// build.zip, and what HEAD says.
type wire struct {
	next http.RoundTripper
	head func(h http.Header)

	mu     sync.Mutex
	damage int // so many of the GETs to come
	asked  int // GETs of build.zip
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := w.next.RoundTrip(r)
	if err != nil {
		return answer, err
	}
	if r.Method == http.MethodHead && w.head != nil {
		w.head(answer.Header)
	}
	if r.Method != http.MethodGet || path.Base(r.URL.Path) != "build.zip" {
		return answer, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked++; w.damage > 0 {
		w.damage--
		b, err := io.ReadAll(answer.Body)
		if err != nil {
			return nil, err
		}
		answer.Body.Close()
		b[len(b)/2] ^= 1
		answer.Body = io.NopCloser(bytes.NewReader(b))
	}
	return answer, nil
}

const forEver = 1 << 30

// damaged opens a bucket of the embedded S3 through a wire.
func damaged(t *testing.T, name string, w *wire) *bucket.Bucket {
	t.Helper()
	cfg := cloud.AWS.Copy()
	w.next = cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: w}
	b, err := bucket.Open(t.Context(), cfg, name, bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func withoutChecksums(h http.Header) {
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-Checksum-") {
			h.Del(name)
		}
	}
}

// upload puts the object build.zip, by PutObject or, with parts, by a multipart upload.
func upload(t *testing.T, name string, content []byte, a types.ChecksumAlgorithm, kind types.ChecksumType) {
	t.Helper()
	key := aws.String("build.zip")
	if kind == "" {
		in := &s3.PutObjectInput{Bucket: &name, Key: key, Body: bytes.NewReader(content), ChecksumAlgorithm: a}
		if _, err := cloud.S3.PutObject(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		return
	}
	up, err := cloud.S3.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &name, Key: key, ChecksumAlgorithm: a, ChecksumType: kind})
	if err != nil {
		t.Fatal(err)
	}
	var parts []types.CompletedPart
	for number := int32(1); len(content) > 0; number++ {
		part := content[:min(len(content), 5<<20)]
		content = content[len(part):]
		out, err := cloud.S3.UploadPart(t.Context(), &s3.UploadPartInput{
			Bucket: &name, Key: key, UploadId: up.UploadId, PartNumber: &number, Body: bytes.NewReader(part), ChecksumAlgorithm: a,
		})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{
			PartNumber: &number, ETag: out.ETag,
			ChecksumCRC64NVME: out.ChecksumCRC64NVME, ChecksumCRC32: out.ChecksumCRC32, ChecksumSHA256: out.ChecksumSHA256,
		})
	}
	_, err = cloud.S3.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: &name, Key: key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}, ChecksumType: kind,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What is pulled is compared with what the store says of its object: another one is an
// error that says so, and nothing of what was read is there for the next pull.
func TestComparedWithTheSource(t *testing.T) {
	want := random(1, 2*blockLength+17)
	for name, c := range map[string]struct {
		with   types.ChecksumAlgorithm
		parts  types.ChecksumType
		head   func(http.Header)
		other  bool // a small object beside it
		unseen bool // that ETags are MD5s; that one is counts all the same
		by     bucket.Algorithm
	}{
		"CRC64NVME":           {with: types.ChecksumAlgorithmCrc64nvme, by: bucket.CRC64NVME},
		"CRC32":               {with: types.ChecksumAlgorithmCrc32, by: bucket.CRC32},
		"CRC32C":              {with: types.ChecksumAlgorithmCrc32c, by: bucket.CRC32C},
		"SHA-1":               {with: types.ChecksumAlgorithmSha1, by: bucket.SHA1},
		"SHA-256":             {with: types.ChecksumAlgorithmSha256, by: bucket.SHA256},
		"CRC64NVME, in parts": {with: types.ChecksumAlgorithmCrc64nvme, parts: types.ChecksumTypeFullObject, by: bucket.CRC64NVME},
		"CRC32, in parts":     {with: types.ChecksumAlgorithmCrc32, parts: types.ChecksumTypeFullObject, by: bucket.CRC32},
		"the type is not said": {with: types.ChecksumAlgorithmCrc32, by: bucket.CRC32, head: func(h http.Header) {
			h.Del("X-Amz-Checksum-Type")
		}},
		"of the parts alone": {with: types.ChecksumAlgorithmSha256, parts: types.ChecksumTypeComposite},
		"ETag":               {head: withoutChecksums, other: true, by: bucket.ETagMD5},
		"ETag, encrypted by S3": {other: true, by: bucket.ETagMD5, head: func(h http.Header) {
			withoutChecksums(h)
			h.Set("X-Amz-Server-Side-Encryption", "AES256")
		}},
		"ETag of an object encrypted by KMS": {other: true, head: func(h http.Header) {
			withoutChecksums(h)
			h.Set("X-Amz-Server-Side-Encryption", "aws:kms")
		}},
		"ETag that nobody has seen to be an MD5": {head: withoutChecksums, unseen: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, damage := range []int{0, 1, forEver} {
				w := &wire{head: c.head, damage: damage}
				b := damaged(t, cloud.Bucket(t), w)
				upload(t, b.Name(), want, c.with, c.parts)
				if c.other {
					_, err := cloud.S3.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(b.Name()), Key: aws.String("small"), Body: strings.NewReader("x")})
					if err != nil {
						t.Fatal(err)
					}
				}
				o, err := b.Head(t.Context(), "build.zip")
				if err != nil {
					t.Fatal(err)
				}
				files, err := cache.Open(t.TempDir(), 1<<40, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				defer files.Close()
				const ranges = 2*blockLength/leastRange + 1
				for try := 1; try <= 2; try++ {
					wrong := try == 1 && damage > 0 || damage == forEver
					var log bytes.Buffer
					p := NewPuller(files, slog.New(slog.NewTextHandler(&log, nil)))
					of, segments := pullOf(t, b, o, "one")
					_, err = inTurn(t.Context(), p, of)
					allBack(t, p)
					if wrong && c.by != "" {
						if !errors.Is(err, bucket.ErrChecksum) || !bucket.Permanent(err) {
							t.Fatalf("ended with %v", err)
						}
						for _, part := range []string{"build.zip", b.Name(), string(c.by), o.Checksum.Sum, "network", "upload the build again"} {
							if !strings.Contains(err.Error(), part) {
								t.Errorf("%q does not say %q", err, part)
							}
						}
						if w.asked != try*ranges {
							t.Errorf("damage %d: %d GETs after %d pulls", damage, w.asked, try)
						}
						continue
					}
					if err != nil {
						t.Fatalf("damage %d: %v", damage, err)
					}
					said := cmp.Or(string(c.by), "not compared")
					if c.unseen && damage == 0 {
						said = string(bucket.ETagMD5)
					}
					if !strings.Contains(log.String(), said) {
						t.Errorf("damage %d: the log does not say %q:\n%s", damage, said, &log)
					}
					if wrong { // nobody knows
						break
					}
					segments.are(t, want)
					if w.asked != try*ranges {
						t.Errorf("damage %d: %d GETs after %d pulls", damage, w.asked, try)
					}
					break
				}
			}
		})
	}
}

// What a pull that broke off has left is compared, too, and read again if it is the
// damaged part.
func TestPullThatGoesOnIsCompared(t *testing.T) {
	const size = 3 * maxBlocks * blockLength
	want := random(1, size)
	for name, damage := range map[string]int{"as it was stored": 0, "damaged": 1} {
		t.Run(name, func(t *testing.T) {
			p, from, o := object(t, want)
			w := &wire{damage: damage}
			b := damaged(t, from.Name(), w)
			ctx, cancel := context.WithCancel(t.Context())
			of, _ := pullOf(t, b, o, "one")
			of.Progress = func(n int64) {
				if n >= size/2 {
					cancel()
				}
			}
			if _, err := inTurn(ctx, p, of); !errors.Is(err, context.Canceled) {
				t.Fatalf("pull ended with %v", err)
			}
			var log bytes.Buffer
			p = NewPuller(p.cache, slog.New(slog.NewTextHandler(&log, nil)))
			of, segments := pullOf(t, b, o, "one")
			_, err := inTurn(t.Context(), p, of)
			if n := p.BytesRead(); n > size/2 {
				t.Errorf("%d bytes were read", n)
			}
			if damage > 0 {
				if !errors.Is(err, bucket.ErrChecksum) {
					t.Errorf("ended with %v", err)
				}
				p = NewPuller(p.cache, slog.New(slog.NewTextHandler(&log, nil)))
				of, segments = pullOf(t, b, o, "one")
				_, err = inTurn(t.Context(), p, of)
				if n := p.BytesRead(); n != size {
					t.Errorf("%d of %d bytes were read again", n, size)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			segments.are(t, want)
			if !strings.Contains(log.String(), "compared with the source's checksum") {
				t.Errorf("not compared:\n%s", &log)
			}
		})
	}
}
