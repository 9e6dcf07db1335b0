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

	anywhere bool // another byte at each GET

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
		if w.anywhere {
			b[w.asked] ^= 1
		} else {
			b[len(b)/2] ^= 1
		}
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

// What is pulled is compared with what the store says of its object: damage on the wire is
// read again, and damage that stays is an error that says so.
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
				files, err := cache.Open(t.TempDir(), 1<<40)
				if err != nil {
					t.Fatal(err)
				}
				defer files.Close()
				var log bytes.Buffer
				p := NewPuller(files, slog.New(slog.NewTextHandler(&log, nil)))
				_, entry, err := p.Pull(t.Context(), b, o, "one", func(int64) {})
				allBlocks(t, p)
				said := cmp.Or(string(c.by), "not compared")
				if c.unseen && damage == 0 {
					said = string(bucket.ETagMD5)
				}
				if (c.by == "" || damage != forEver) && !strings.Contains(log.String(), said) {
					t.Errorf("damage %d: the log does not say %q:\n%s", damage, said, &log)
				}
				switch {
				case damage == forEver && c.by != "":
					if !errors.Is(err, bucket.ErrChecksum) || !bucket.Permanent(err) {
						t.Fatalf("ended with %v", err)
					}
					for _, part := range []string{"build.zip", b.Name(), string(c.by), o.Checksum.Sum, "the same bytes", "upload the build again"} {
						if !strings.Contains(err.Error(), part) {
							t.Errorf("%q does not say %q", err, part)
						}
					}
					if files.Size() != 0 {
						t.Error("something was kept of it")
					}
				case err != nil:
					t.Fatalf("damage %d: %v", damage, err)
				default:
					entry.Unpin()
					got := make([]byte, len(want))
					_, err := entry.ReadAt(got, 0)
					if same := bytes.Equal(got, want); err != nil || same != (damage == 0 || c.by != "") {
						t.Errorf("damage %d: is what was stored: %v, %v", damage, same, err)
					}
					if reads := w.asked / 3; c.by != "" && reads != 1+min(damage, 1) || w.asked%3 != 0 {
						t.Errorf("damage %d: %d GETs", damage, w.asked)
					}
				}
			}
		})
	}
}

// Two reads that differ are the fault of what stands between.
func TestDifferentDamageEachTime(t *testing.T) {
	p, b, o := object(t, random(1, blockLength))
	w := &wire{damage: forEver, anywhere: true}
	_, _, err := p.Pull(t.Context(), damaged(t, b.Name(), w), o, "one", func(int64) {})
	if !errors.Is(err, bucket.ErrChecksum) || !strings.Contains(err.Error(), "different bytes") || !strings.Contains(err.Error(), "seeder retry") {
		t.Errorf("ended with %v", err)
	}
}

// What a former process has left is compared, too, and read again if it is the damaged part.
func TestPullThatGoesOnIsCompared(t *testing.T) {
	const blocks = 3 * maxBlocks
	want := random(1, blocks*blockLength)
	for name, damage := range map[string]int{"as it was stored": 0, "damaged": 1} {
		t.Run(name, func(t *testing.T) {
			p, from, o := object(t, want)
			w := &wire{damage: damage}
			b := damaged(t, from.Name(), w)
			ctx, cancel := context.WithCancel(t.Context())
			_, _, err := p.Pull(ctx, b, o, "one", func(n int64) {
				if n >= blocks*blockLength/2 {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("pull ended with %v", err)
			}
			w.asked = 0
			var log bytes.Buffer
			again := NewPuller(p.cache, slog.New(slog.NewTextHandler(&log, nil)))
			_, entry, err := again.Pull(t.Context(), b, o, "one", func(int64) {})
			if err != nil {
				t.Fatal(err)
			}
			defer entry.Unpin()
			got := make([]byte, len(want))
			if _, err := entry.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("not what was stored: %v", err)
			}
			if !strings.Contains(log.String(), "compared with the source's checksum") {
				t.Errorf("not compared:\n%s", &log)
			}
			if once := w.asked < blocks; once != (damage == 0) {
				t.Errorf("%d GETs for %d blocks", w.asked, blocks)
			}
		})
	}
}
