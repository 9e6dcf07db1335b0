//go:build linux

package chaos

import (
	"bytes"
	"net/http"
	"slices"
	"strings"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// Call is one request to the stores.
type Call struct {
	// Op is the operation by AWS's name, such as UploadPart or PutItem.
	Op string
	// Bucket, Key, UploadID and Part are S3's; empty where there is none.
	Bucket, Key, UploadID, Part string
	// Body is DynamoDB's; nil for S3.
	Body []byte
}

// OfBuild reports whether the call is about a build, and not about what a member asks
// its store at the start to see what that refuses.
func (c Call) OfBuild() bool { return !strings.HasPrefix(c.Key, bucket.OwnPrefix) }

// S3 reports whether the call is one of S3.
func (c Call) S3() bool { return c.Bucket != "" }

// Writes reports whether the call changes an object, an upload or an item.
func (c Call) Writes() bool {
	return slices.Contains([]string{"PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload",
		"AbortMultipartUpload", "PutItem", "UpdateItem"}, c.Op)
}

// Arrival reports whether the call records an arrival in its row.
func (c Call) Arrival() bool { return c.Op == "PutItem" && bytes.Contains(c.Body, []byte(`"result":`)) }

// parse reads which call a request is. The body of one to DynamoDB is left to the
// caller.
func parse(r *http.Request) Call {
	if _, op, ok := strings.Cut(r.Header.Get("X-Amz-Target"), "."); ok {
		return Call{Op: op}
	}
	name, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := r.URL.Query()
	c := Call{Bucket: name, Key: key, UploadID: q.Get("uploadId"), Part: q.Get("partNumber")}
	switch {
	case key == "" && q.Has("uploads"):
		c.Op = "ListMultipartUploads"
	case key == "" && r.Method == http.MethodGet:
		c.Op = "ListObjectsV2"
	case key == "":
		c.Op = r.Method + " bucket"
	case q.Has("uploads"):
		c.Op = "CreateMultipartUpload"
	case c.Part != "":
		c.Op = "UploadPart"
	case c.UploadID != "":
		c.Op = map[string]string{
			http.MethodGet: "ListParts", http.MethodPost: "CompleteMultipartUpload", http.MethodDelete: "AbortMultipartUpload",
		}[r.Method]
	default:
		c.Op = map[string]string{
			http.MethodGet: "GetObject", http.MethodHead: "HeadObject", http.MethodPut: "PutObject", http.MethodDelete: "DeleteObject",
		}[r.Method]
	}
	return c
}
