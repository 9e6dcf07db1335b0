package seeder

import (
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/web"
)

// FuzzUploadHeaders: headers of an upload are honoured or refused with a status, and a
// promise about the bytes is of its hash's length.
func FuzzUploadHeaders(f *testing.F) {
	f.Add("X-Amz-Checksum-Sha256", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "X-Amz-Meta-By", "ann")
	f.Add("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD", "If-None-Match", "*")
	f.Add("X-Amz-Sdk-Checksum-Algorithm", "CRC32", "If-Match", `"e"`)
	f.Add("Content-Encoding", "aws-chunked", "Expires", "0")
	f.Fuzz(func(t *testing.T, name, value, other, another string) {
		r := &http.Request{Header: http.Header{}, URL: &url.URL{}}
		r.Header.Add(name, value)
		r.Header.Add(other, another)
		h, err := parseUploadHeaders(r)
		if err != nil {
			if e := new(web.Error); !errors.As(err, &e) || e.Code < 400 {
				t.Errorf("error has no status: %v", err)
			}
			return
		}
		for _, d := range h.digests {
			if len(d.want) != d.hash.Size() {
				t.Errorf("%s: %d bytes", d.header, len(d.want))
			}
		}
		if again := bucket.ParseHeaders(h.stored.Map()); !reflect.DeepEqual(again, h.stored) {
			t.Errorf("%+v is kept as %+v", h.stored, again)
		}
	})
}
