package seeder

import (
	"bytes"
	"crypto/md5"  //nolint:gosec // what S3's PutObject takes
	"crypto/sha1" //nolint:gosec // the same
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/web"
)

// crc64NVME is the polynomial of CRC-64/NVME, reversed, as hash/crc64 wants it.
const crc64NVME = 0x9a6c9329ac4bc9b5

// digests are the headers that say what an upload's bytes are, in base64.
var digests = map[string]func() hash.Hash{
	"Content-Md5":              md5.New,
	"X-Amz-Checksum-Sha1":      sha1.New,
	"X-Amz-Checksum-Sha256":    sha256.New,
	"X-Amz-Checksum-Crc32":     func() hash.Hash { return crc32.NewIEEE() },
	"X-Amz-Checksum-Crc32c":    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	"X-Amz-Checksum-Crc64nvme": func() hash.Hash { return crc64.New(crc64.MakeTable(crc64NVME)) },
}

// stored are the headers that S3 keeps with an object and gives out with it, beside
// user metadata.
var stored = []string{"Content-Type", "Cache-Control", "Content-Encoding", "Content-Disposition", "Content-Language", "Expires"}

// ofTheCall are headers of S3 that say nothing of the object: the caller's signature
// and the SDKs' own words.
var ofTheCall = []string{"X-Amz-Date", "X-Amz-Security-Token", "X-Amz-User-Agent"}

const (
	amzPrefix      = "X-Amz-"
	metaPrefix     = "X-Amz-Meta-"
	checksumPrefix = "X-Amz-Checksum-"
	payloadHash    = "X-Amz-Content-Sha256"
	algorithm      = "X-Amz-Sdk-Checksum-Algorithm"
)

// uploadHeaders are what the headers of S3's PutObject ask of an upload.
type uploadHeaders struct {
	stored    bucket.Headers
	condition bucket.Condition
	digests   []digest
}

// digest is a promise about the bytes.
type digest struct {
	header string
	want   []byte
	hash   hash.Hash
}

// parseUploadHeaders honours what it knows. What S3 knows beside that is refused by
// name (501), so that nobody believes it was heeded; what cannot be right is a 400.
func parseUploadHeaders(r *http.Request) (*uploadHeaders, error) {
	h := &uploadHeaders{}
	keep := make(map[string]string)
	for _, name := range stored {
		if value := strings.Join(r.Header.Values(name), ", "); value != "" {
			keep[strings.ToLower(name)] = value
		}
	}
	if strings.Contains(strings.ToLower(keep["content-encoding"]), "aws-chunked") {
		return nil, notHonoured("Content-Encoding: aws-chunked")
	}
	if len(r.Trailer) > 0 {
		return nil, notHonoured("Trailer")
	}
	for name, values := range r.Header {
		value := strings.Join(values, ", ")
		switch {
		case strings.HasPrefix(name, metaPrefix):
			keep[strings.ToLower(name)] = value
		case digests[name] != nil:
			want, err := base64.StdEncoding.DecodeString(value)
			if err := h.promise(name, want, err, digests[name]()); err != nil {
				return nil, err
			}
		case name == payloadHash:
			if value == "UNSIGNED-PAYLOAD" {
				break
			}
			if strings.HasPrefix(value, "STREAMING-") {
				return nil, notHonoured(name + ": " + value)
			}
			want, err := hex.DecodeString(value)
			if err := h.promise(name, want, err, sha256.New()); err != nil {
				return nil, err
			}
		case name == algorithm:
			if r.Header.Get(checksumPrefix+value) == "" || digests[http.CanonicalHeaderKey(checksumPrefix+value)] == nil {
				return nil, web.Errorf(http.StatusBadRequest, "%s is %q, and no %s%s comes with it", strings.ToLower(name), value, strings.ToLower(checksumPrefix), strings.ToLower(value))
			}
		case strings.HasPrefix(name, amzPrefix) && !slices.Contains(ofTheCall, name):
			return nil, notHonoured(name)
		}
	}
	h.stored = bucket.ParseHeaders(keep)
	switch match := r.Header.Values("If-None-Match"); {
	case len(match) == 1 && match[0] == "*":
		h.condition.IfNoneMatch = true
	case len(match) > 0:
		return nil, notHonoured("If-None-Match other than *")
	}
	switch match := r.Header.Values("If-Match"); {
	case len(match) > 1 || len(match) == 1 && (match[0] == "" || match[0] == "*" || strings.Contains(match[0], ",")):
		return nil, notHonoured("If-Match other than one ETag")
	case len(match) == 1 && h.condition.IfNoneMatch:
		return nil, web.Errorf(http.StatusBadRequest, "if-match and if-none-match cannot both hold")
	case len(match) == 1:
		h.condition.IfMatch = match[0]
	}
	return h, nil
}

func notHonoured(header string) error {
	return web.Errorf(http.StatusNotImplemented, "the header %s is not honoured here; leave it out, or put the object into the bucket itself and publish it from there", header)
}

func (h *uploadHeaders) promise(header string, want []byte, err error, hash hash.Hash) error {
	if err != nil || len(want) != hash.Size() {
		return web.Errorf(http.StatusBadRequest, "the header %s is no digest of that kind", header)
	}
	h.digests = append(h.digests, digest{header, want, hash})
	return nil
}

// check returns body with an error in place of its end where the bytes are not those
// of every digest.
func (h *uploadHeaders) check(body io.Reader) io.Reader {
	if len(h.digests) == 0 {
		return body
	}
	return &checked{body, h.digests}
}

type checked struct {
	io.Reader
	digests []digest
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	for _, d := range c.digests {
		d.hash.Write(p[:n]) //nolint:errcheck // a hash never fails
	}
	if err != io.EOF {
		return n, err
	}
	for _, d := range c.digests {
		if sum := d.hash.Sum(nil); !bytes.Equal(sum, d.want) {
			return 0, &web.Error{Code: http.StatusBadRequest, Err: fmt.Errorf("%w: the bytes that came are not those of the header %s", bucket.ErrDigest, d.header)}
		}
	}
	return n, err
}
