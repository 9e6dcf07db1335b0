package seeder

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// putUpload puts a body as an HTTP client would; header are pairs.
func putUpload(t *testing.T, s *Seeder, key string, body []byte, header ...string) error {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, uploadsPath+key, bytes.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	_, _, err := s.putUpload(r, func() {})
	return err
}

func uploader(t *testing.T) *Seeder {
	t.Helper()
	return fetcher(t, "")
}

// Each digest that S3's PutObject takes is held against the bytes, in one put or in
// parts; with a wrong one nothing is stored.
func TestUploadDigests(t *testing.T) {
	small, large := []byte("123456789"), make([]byte, 17<<20)
	of := func(b []byte) map[string]string {
		encode := base64.StdEncoding.EncodeToString
		m5, s1, s256 := md5.Sum(b), sha1.Sum(b), sha256.Sum256(b)
		four := func(n uint32) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }
		n := crc64.Checksum(b, crc64.MakeTable(crc64NVME))
		return map[string]string{
			"Content-MD5": encode(m5[:]), "x-amz-checksum-sha1": encode(s1[:]), "x-amz-checksum-sha256": encode(s256[:]),
			"x-amz-checksum-crc32":     encode(four(crc32.ChecksumIEEE(b))),
			"x-amz-checksum-crc32c":    encode(four(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))),
			"x-amz-checksum-crc64nvme": encode(append(four(uint32(n>>32)), four(uint32(n))...)),
			"x-amz-content-sha256":     hex.EncodeToString(s256[:]),
		}
	}
	// The check value of the algorithm's definition.
	if got := of(small)["x-amz-checksum-crc64nvme"]; got != base64.StdEncoding.EncodeToString([]byte{0xae, 0x8b, 0x14, 0x86, 0x0a, 0x79, 0x98, 0x88}) {
		t.Errorf("CRC-64/NVME of 123456789 is %s", got)
	}
	s := uploader(t)
	for name, wrong := range of([]byte("other bytes")) {
		if err := putUpload(t, s, "wrong.zip", small, name, wrong); statusOf(err) != http.StatusBadRequest || !errors.Is(err, bucket.ErrDigest) {
			t.Errorf("a wrong %s: %v", name, err)
		}
		for _, malformed := range []string{"", "x", "????", wrong[:len(wrong)-4]} {
			if err := putUpload(t, s, "wrong.zip", small, name, malformed); statusOf(err) != http.StatusBadRequest {
				t.Errorf("%s %q: %v", name, malformed, err)
			}
		}
	}
	if err := putUpload(t, s, "wrong.zip", large, "x-amz-checksum-crc32", of(small)["x-amz-checksum-crc32"]); statusOf(err) != http.StatusBadRequest {
		t.Errorf("a wrong digest of parts: %v", err)
	}
	nothingLeft(t, s)
	for name, right := range of(small) {
		if err := putUpload(t, s, "right.zip", small, name, right); err != nil {
			t.Errorf("a right %s: %v", name, err)
		}
	}
	if err := putUpload(t, s, "right.zip", large, "Content-MD5", of(large)["Content-MD5"]); err != nil {
		t.Errorf("right ones of parts: %v", err)
	}
}

func TestUploadConditions(t *testing.T) {
	s := uploader(t)
	first, second := []byte("first"), make([]byte, 17<<20)
	if err := putUpload(t, s, "build.zip", first, "If-None-Match", "*"); err != nil {
		t.Fatal(err)
	}
	o, err := s.cfg.Bucket.Head(t.Context(), "build.zip")
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range [][]byte{[]byte("second"), second} {
		for name, c := range map[string]struct {
			key    string
			header []string
			code   int
		}{
			"there is one":  {"build.zip", []string{"If-None-Match", "*"}, http.StatusPreconditionFailed},
			"another one":   {"build.zip", []string{"If-Match", `"0123"`}, http.StatusPreconditionFailed},
			"none":          {"none.zip", []string{"If-Match", o.ETag}, http.StatusNotFound},
			"both":          {"build.zip", []string{"If-Match", o.ETag, "If-None-Match", "*"}, http.StatusBadRequest},
			"not S3's":      {"build.zip", []string{"If-None-Match", o.ETag}, http.StatusNotImplemented},
			"not S3's, too": {"build.zip", []string{"If-Match", "*"}, http.StatusNotImplemented},
		} {
			if err := putUpload(t, s, c.key, body, c.header...); statusOf(err) != c.code {
				t.Errorf("%s: status %d, want %d: %v", name, statusOf(err), c.code, err)
			}
		}
	}
	if now, err := s.cfg.Bucket.Head(t.Context(), "build.zip"); err != nil || now.ETag != o.ETag {
		t.Errorf("the object is %+v, %v", now, err)
	}
	if err := putUpload(t, s, "build.zip", second, "If-Match", o.ETag); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

// body calls f before its first byte.
type body struct {
	io.Reader
	f func()
}

func (b *body) Read(p []byte) (int, error) {
	if b.f != nil {
		b.f()
		b.f = nil
	}
	return b.Reader.Read(p)
}

// A condition holds for the moment at which the object is stored, not only for that at
// which its upload began.
func TestUploadConditionAtTheEnd(t *testing.T) {
	s := uploader(t)
	for _, size := range []int{10, 17 << 20} {
		key := strings.Repeat("x", size%100+1)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, uploadsPath+key, &body{bytes.NewReader(make([]byte, size)), func() {
			if _, err := s.cfg.Bucket.Upload(t.Context(), key, strings.NewReader("other"), 5, bucket.Headers{}); err != nil {
				t.Error(err)
			}
		}})
		r.Header.Set("If-None-Match", "*")
		if _, _, err := s.putUpload(r, func() {}); statusOf(err) != http.StatusPreconditionFailed {
			t.Errorf("%d bytes: %v", size, err)
		}
		if o, err := s.cfg.Bucket.Head(t.Context(), key); err != nil || o.Size != 5 {
			t.Errorf("%d bytes: the object is %+v, %v", size, o, err)
		}
	}
}

func TestUploadHeadersAreStored(t *testing.T) {
	s := uploader(t)
	want := bucket.Headers{
		ContentType: "application/x-build", CacheControl: "no-cache", ContentEncoding: "gzip",
		ContentDisposition: `attachment; filename="a b.zip"`, ContentLanguage: "de, en", Expires: "Tue, 01 Jan 2030 00:00:00 GMT",
		Metadata: map[string]string{"team": "infra", "commit": "abc"},
	}
	for name, size := range map[string]int{"small.zip": 10, "large.zip": 17 << 20} {
		var header []string
		for name, value := range want.Map() {
			header = append(header, name, value)
		}
		header = append(header, "x-amz-date", "20260101T000000Z", "x-amz-content-sha256", "UNSIGNED-PAYLOAD")
		if err := putUpload(t, s, name, make([]byte, size), header...); err != nil {
			t.Fatal(err)
		}
		o, err := s.cfg.Bucket.Head(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if differ := want.Differ(o.Headers); len(differ) > 0 {
			t.Errorf("%s: %v differ: %+v", name, differ, o.Headers)
		}
	}
}

// What S3 knows and is not honoured is refused by its name, before a byte is read.
func TestUploadHeadersRefused(t *testing.T) {
	s := uploader(t)
	for name, value := range map[string]string{
		"x-amz-acl": "public-read", "x-amz-grant-read": "id=1", "x-amz-storage-class": "GLACIER", "x-amz-tagging": "a=b",
		"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "k", "x-amz-server-side-encryption-customer-algorithm": "AES256",
		"x-amz-server-side-encryption-bucket-key-enabled": "true", "x-amz-object-lock-mode": "GOVERNANCE", "x-amz-object-lock-legal-hold": "ON",
		"x-amz-website-redirect-location": "/x", "x-amz-request-payer": "requester", "x-amz-expected-bucket-owner": "1", "x-amz-trailer": "x-amz-checksum-crc32",
		"x-amz-write-offset-bytes": "5", "x-amz-copy-source": "b/k", "x-amz-checksum-type": "FULL_OBJECT", "x-amz-checksum-xxhash": "x", "x-amz-decoded-content-length": "5",
		"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "x-amz-something-new": "x", "content-encoding": "aws-chunked,gzip",
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, uploadsPath+"build.zip", &body{strings.NewReader("x"), func() { t.Errorf("%s: the body was read", name) }})
		r.Header.Set(name, value)
		if _, _, err := s.putUpload(r, func() {}); statusOf(err) != http.StatusNotImplemented || !strings.Contains(strings.ToLower(err.Error()), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := putUpload(t, s, "build.zip", nil, "x-amz-sdk-checksum-algorithm", "CRC32"); statusOf(err) != http.StatusBadRequest {
		t.Errorf("an algorithm without its checksum: %v", err)
	}
	for _, query := range []string{"?acl", "?partNumber=1&uploadId=x", "?b.zip"} {
		if err := putUpload(t, s, "a"+query, nil); statusOf(err) != http.StatusBadRequest {
			t.Errorf("%s: %v", query, err)
		}
	}
	s.cfg.Destinations = []string{"configured"}
	for _, query := range []string{"?destination=nobodys", "?destination=configured&destination=" + s.cfg.Bucket.Name() + "&force=true"} {
		if err := putUpload(t, s, "a.zip"+query, nil); statusOf(err) != http.StatusBadRequest {
			t.Errorf("%s: %v", query, err)
		}
	}
	nothingLeft(t, s)
	for _, query := range []string{"?destination=configured", "?destination=nobodys&force=true", "?x-id=PutObject"} {
		if err := putUpload(t, s, "a.zip"+query, nil); err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
}
