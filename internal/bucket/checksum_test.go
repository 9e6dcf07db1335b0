package bucket_test

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// The check values of the catalogue of CRC algorithms (CRC-64/NVME, CRC-32/ISCSI,
// CRC-32/ISO-HDLC), of FIPS 180 and of RFC 1321, as S3 writes them.
func TestAlgorithms(t *testing.T) {
	for a, want := range map[bucket.Algorithm]string{
		bucket.CRC64NVME: "rosUhgp5mIg=", // AE8B14860A799888
		bucket.CRC32C:    "4waSgw==",     // E3069283
		bucket.CRC32:     "y/Q5Jg==",     // CBF43926
		bucket.SHA1:      "98O8HYCOBHMq32eZZczDTKeuNEE=",
		bucket.SHA256:    "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
		bucket.ETagMD5:   "25f9e794323b453885f5181f1b624d0b",
	} {
		h := a.New()
		if _, err := io.WriteString(h, "123456789"); err != nil {
			t.Fatal(err)
		}
		if got := a.Format(h.Sum(nil)); got != want {
			t.Errorf("%s is %s, want %s", a, got, want)
		}
	}
}

func dropChecksums(r *http.Request, w *http.Response) {
	for name := range w.Header {
		if r.Method == http.MethodHead && strings.HasPrefix(name, "X-Amz-Checksum-") {
			w.Header.Del(name)
		}
	}
}

func TestCheckSums(t *testing.T) {
	small, large := []byte("x"), bytes.Repeat([]byte("x"), 2<<20)
	for name, c := range map[string]struct {
		store   weaken
		objects map[string][]byte
		want    []bucket.Algorithm
		without int
		md5     bool
		says    string
	}{
		"empty":    {says: "no objects yet"},
		"as it is": {objects: map[string][]byte{"a": small}, want: []bucket.Algorithm{bucket.CRC64NVME}, md5: true, says: "compared with CRC64NVME"},
		"MD5s": {
			store: weaken{after: dropChecksums}, objects: map[string][]byte{"a": large, "b": small},
			want: []bucket.Algorithm{bucket.ETagMD5}, md5: true, says: "ETag (MD5)",
		},
		"MD5s that are seen on what `check` has left": {
			store: weaken{after: dropChecksums}, objects: map[string][]byte{"a": large, bucket.OwnPrefix + "check": small},
			want: []bucket.Algorithm{bucket.ETagMD5}, md5: true, says: "ETag (MD5)",
		},
		"nothing small": {store: weaken{after: dropChecksums}, objects: map[string][]byte{"a": large}, without: 1, says: "cannot be compared"},
		"ETags of another kind": {
			store: weaken{after: func(r *http.Request, w *http.Response) {
				dropChecksums(r, w)
				if r.Method == http.MethodHead && w.Header.Get("ETag") != "" {
					w.Header.Set("ETag", `"0123456789abcdef0123456789abcdef"`)
				}
			}, before: func(r *http.Request) *http.Response {
				if r.Header.Get("If-Match") == "" {
					return nil
				}
				ok := answer(r, http.StatusPartialContent, "")
				ok.Body, ok.ContentLength = io.NopCloser(bytes.NewReader(small)), 1
				ok.Header.Set("Content-Length", "1")
				ok.Header.Set("Content-Range", "bytes 0-0/1")
				return ok
			}},
			objects: map[string][]byte{"a": small}, without: 1, says: "cannot be compared",
		},
		"some may not be read": {
			store: weaken{before: func(r *http.Request) *http.Response {
				if strings.HasSuffix(r.URL.Path, "/a") {
					return answer(r, http.StatusForbidden, "AccessDenied")
				}
				return nil
			}},
			objects: map[string][]byte{"a": small, "b": small}, want: []bucket.Algorithm{bucket.CRC64NVME}, md5: true, says: "CRC64NVME",
		},
		"HEAD knows no checksums": {
			store: weaken{before: func(r *http.Request) *http.Response {
				if r.Header.Get("X-Amz-Checksum-Mode") != "" {
					return answer(r, http.StatusNotImplemented, "NotImplemented")
				}
				return nil
			}, after: dropChecksums},
			objects: map[string][]byte{"a": small}, want: []bucket.Algorithm{bucket.ETagMD5}, md5: true, says: "ETag (MD5)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			weak, strong := behind(t, c.store)
			for key, body := range c.objects {
				if _, err := cloud.S3.PutObject(t.Context(), &s3.PutObjectInput{
					Bucket: aws.String(strong.Name()), Key: &key, Body: bytes.NewReader(body), ChecksumAlgorithm: types.ChecksumAlgorithmCrc64nvme,
				}); err != nil {
					t.Fatal(err)
				}
			}
			got, err := weak.CheckSums(t.Context(), "")
			if err != nil || !slices.Equal(got.Algorithms, c.want) || got.Without != c.without || !strings.Contains(got.String(), c.says) {
				t.Errorf("found %+v (%s), %v; want %v, %d without", got, got, err, c.want, c.without)
			}
			if md5, err := weak.HasMD5ETags(t.Context(), "none"); err != nil || md5 != c.md5 {
				t.Errorf("ETags are MD5s: %v, %v", md5, err)
			}
		})
	}
}
