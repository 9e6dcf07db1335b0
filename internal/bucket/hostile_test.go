package bucket_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// hostileAnswers are what no store should say, as the body of any answer with the root that
// belongs there. Answers that are too long, never end, or come a byte at a time, are package
// answers' to test.
var hostileAnswers = map[string]func(root string) string{
	"deep": func(root string) string {
		return "<" + root + ">" + strings.Repeat("<Contents>", 100_000)
	},
	"deep and closed": func(root string) string {
		return "<" + root + ">" + strings.Repeat("<a>", 50_000) + strings.Repeat("</a>", 50_000) + "</" + root + ">"
	},
	"entities that grow": func(root string) string {
		var b strings.Builder
		b.WriteString(`<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">`)
		for i := range 20 {
			fmt.Fprintf(&b, `<!ENTITY a%d "%s">`, i+1, strings.Repeat(fmt.Sprintf("&a%d;", i), 10))
		}
		return b.String() + "]><" + root + "><Contents><Key>&a20;</Key></Contents><UploadId>&a20;</UploadId><ETag>&a20;</ETag></" + root + ">"
	},
	"an entity of a file": func(root string) string {
		return `<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><` + root + "><Contents><Key>&f;</Key></Contents><UploadId>&f;</UploadId></" + root + ">"
	},
	"numbers of another kind": func(root string) string {
		return "<" + root + "><IsTruncated>perhaps</IsTruncated><Contents><Key>k</Key><Size>many</Size></Contents><Part><PartNumber>one</PartNumber><Size>x</Size></Part></" + root + ">"
	},
	"numbers out of range": func(root string) string {
		return "<" + root + "><Contents><Key>k</Key><Size>99999999999999999999999</Size></Contents><Part><PartNumber>4294967297</PartNumber><Size>-1</Size></Part></" + root + ">"
	},
	"times of another kind": func(root string) string {
		return "<" + root + "><Contents><Key>k</Key><Size>1</Size><LastModified>yesterday</LastModified></Contents></" + root + ">"
	},
	"too many": func(root string) string {
		return "<" + root + ">" + strings.Repeat("<Contents><Key>k</Key></Contents><Part><PartNumber>1</PartNumber></Part><Upload><Key>k</Key></Upload>", 12_000) + "</" + root + ">"
	},
	"long texts": func(root string) string {
		k := strings.Repeat("k", 256<<10)
		return "<" + root + "><Contents><Key>" + k + "</Key><ETag>" + k + "</ETag></Contents><UploadId>" + k + "</UploadId><ETag>" + k + "</ETag></" + root + ">"
	},
	"keys that are no keys": func(root string) string {
		return "<" + root + "><EncodingType>url</EncodingType><Contents><Key>%zz</Key></Contents><Contents><Key></Key></Contents><Upload><Key>%</Key></Upload></" + root + ">"
	},
	"an error in an error": func(string) string {
		return "<Error>" + strings.Repeat("<Error>", 100_000) + "<Code>NoSuchKey</Code></Error>"
	},
	"no XML":      func(string) string { return "{\"message\":\"no\"}\x00\xff\xfe<" },
	"nothing":     func(string) string { return "" },
	"white space": func(string) string { return strings.Repeat(" ", 1<<20) },
	"a page":      func(string) string { return "<html><body>log in</body></html>" },
	"cut short":   func(root string) string { return "<" + root + "><Contents><Key>k</Ke" },
}

// TestHostileAnswers: whatever a store answers to a call, the call ends, with an error or
// with what is in its bounds, and the process goes on.
func TestHostileAnswers(t *testing.T) {
	calls := []struct {
		name, root string
		call       func(context.Context, *bucket.Bucket) error
	}{
		{"List", "ListBucketResult", func(ctx context.Context, b *bucket.Bucket) error {
			n := 0
			return b.List(ctx, "", func(o bucket.Object) error {
				if n++; n > 12_000 || len(o.Key) > 256<<10 {
					t.Errorf("%d keys, one of %d bytes", n, len(o.Key))
				}
				return nil
			})
		}},
		{"Head", "x", func(ctx context.Context, b *bucket.Bucket) error {
			o, err := b.Head(ctx, "k")
			if err == nil && o.Size < 0 {
				t.Errorf("%d bytes", o.Size)
			}
			return err
		}},
		{"GetRange", "x", func(ctx context.Context, b *bucket.Bucket) error {
			r, err := b.GetRange(ctx, "k", "", 0, 7)
			if err == nil {
				n, _ := io.Copy(io.Discard, r)
				if r.Close(); n > 7 {
					t.Errorf("%d bytes of 7", n)
				}
			}
			return err
		}},
		{"ListParts", "ListPartsResult", func(ctx context.Context, b *bucket.Bucket) error {
			_, err := b.ListParts(ctx, "k", "u") // what of it can be a part is for the landing to see
			return err
		}},
		{"Uploads", "ListMultipartUploadsResult", func(ctx context.Context, b *bucket.Bucket) error {
			_, err := b.Uploads(ctx, "k")
			return err
		}},
		{"ObjectParts", "GetObjectAttributesResponse", func(ctx context.Context, b *bucket.Bucket) error {
			parts, err := b.ObjectParts(ctx, "k", "e")
			if err == nil && len(parts) > manifest.MaxParts {
				t.Errorf("%d parts", len(parts))
			}
			return err
		}},
		{"CreateUpload", "InitiateMultipartUploadResult", func(ctx context.Context, b *bucket.Bucket) error {
			_, err := b.CreateUpload(ctx, "k", bucket.Headers{})
			return err
		}},
		{"UploadPart", "x", func(ctx context.Context, b *bucket.Bucket) error {
			_, err := b.UploadPart(ctx, "k", "u", 0, strings.NewReader("part"), 4, make([]byte, 32))
			return err
		}},
		{"CompleteUpload", "CompleteMultipartUploadResult", func(ctx context.Context, b *bucket.Bucket) error {
			_, err := b.CompleteUpload(ctx, "k", "u", nil, bucket.Condition{})
			return err
		}},
		{"AbortUpload", "x", func(ctx context.Context, b *bucket.Bucket) error { return b.AbortUpload(ctx, "k", "u") }},
		{"AbortDays", "LifecycleConfiguration", func(ctx context.Context, b *bucket.Bucket) error {
			_, err := b.AbortDays(ctx)
			return err
		}},
	}
	for name, answer := range hostileAnswers {
		for _, status := range []int{http.StatusOK, http.StatusPartialContent, http.StatusBadRequest, http.StatusFound} {
			t.Run(fmt.Sprint(name, " ", status), func(t *testing.T) {
				t.Parallel()
				var body string
				open := false
				cfg := stub(t, func(w http.ResponseWriter, r *http.Request) {
					if !open {
						return
					}
					h := w.Header()
					h.Set("Etag", strings.Repeat("e", 10_000))
					h.Set("Last-Modified", "never")
					h.Set("X-Amz-Checksum-Sha256", "not base64-x")
					h.Set("X-Amz-Meta-Landfall-Sha256", strings.Repeat("0", 5000))
					h.Set("X-Amz-Mp-Parts-Count", "-7")
					h.Set("Location", "http://127.0.0.1:1/elsewhere")
					h.Set("Content-Range", "bytes 0-9223372036854775807/-1")
					w.WriteHeader(status)
					_, _ = io.WriteString(w, body) // the client may not want it
				})
				cfg.RetryMaxAttempts = 1 // what is tried again is awserr's to test
				b, err := bucket.Open(t.Context(), cfg, "builds", bucket.Options{})
				if err != nil {
					t.Fatal(err)
				}
				open = true
				for _, c := range calls {
					body = answer(c.root)
					// None waits for anything but the store's own answer.
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					err := c.call(ctx, b)
					if ctx.Err() != nil {
						t.Errorf("%s does not end: %v", c.name, err)
					}
					cancel()
					if err != nil && len(err.Error()) > 8<<10 {
						t.Errorf("%s: an error of %d bytes", c.name, len(err.Error()))
					}
				}
			})
		}
	}
}
