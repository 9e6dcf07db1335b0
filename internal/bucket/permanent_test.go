package bucket_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/bucket"
)

func TestPermanent(t *testing.T) {
	for _, c := range []struct {
		status        int
		code, message string
		permanent     bool
		next          string
	}{
		{400, "MetadataTooLarge", "no", true, "less user metadata"},
		{400, "KeyTooLongError", "no", true, "shorter key"},
		{403, "InvalidObjectState", "no", true, "restore-object"},
		{400, "InvalidRequest", "stored using a form of Server Side Encryption", true, "SSE-C"},
		{400, "EntityTooLarge", "no", true, "size"},
		{501, "NotImplemented", "no", true, "store lacks"},
		{405, "SomethingOfItsOwn", "no", true, "store lacks"},
		{403, "AccessDenied", "no", false, "permissions"},
		{403, "AccessDenied", "The bucket is a Requester Pays bucket", true, "requester pays"},
		{400, "ExpiredToken", "no", false, "expired"},
		{400, "RequestTimeout", "no", false, ""},
		{403, "RequestTimeTooSkewed", "no", false, ""},
		{404, "NoSuchKey", "no", false, ""},
		{503, "SlowDown", "no", false, ""},
	} {
		t.Run(c.code, func(t *testing.T) {
			cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/builds" || r.URL.Path == "/builds/" {
					return
				}
				w.WriteHeader(c.status)
				if r.Method != http.MethodHead {
					fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", c.code, c.message)
				}
			})
			cfg.RetryMaxAttempts = 1
			b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.CreateUpload(t.Context(), "a", bucket.Headers{})
			if err == nil || bucket.Permanent(err) != c.permanent || !strings.Contains(err.Error(), c.next) {
				t.Errorf("permanent %v: %v", bucket.Permanent(err), err)
			}
			if c.status != http.StatusBadRequest && c.status != http.StatusForbidden {
				return
			}
			// HEAD has no body: a GET says why.
			_, err = b.Head(t.Context(), "a")
			if err == nil || bucket.Permanent(err) != c.permanent || !strings.Contains(err.Error(), c.code) {
				t.Errorf("HEAD: permanent %v: %v", bucket.Permanent(err), err)
			}
		})
	}
	if !bucket.Permanent(fmt.Errorf("storing: %w", bucket.ErrHeaders)) || bucket.Permanent(errors.New("connection refused")) || bucket.Permanent(nil) {
		t.Error("an error of another kind")
	}
}
