package landing

import (
	"context"
	"errors"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// Present reports whether the bucket already holds the build of an execution, so
// that it can be recorded without moving a byte: the key's object has the size, says
// that it is these bytes, and has the source object's headers. It says so by the SHA-256 of
// the whole; where one of the two is not known, by the composite of its parts' SHA-256; and
// where that is not known either, by the ETag that its source object had. One that this very
// execution has landed, which completes an upload only of what S3 has verified, was sent with
// the headers, and is present whatever the store has kept.
// The object is nil when the key has none.
func Present(ctx context.Context, b *bucket.Bucket, r *ledger.Record, composite string) (*bucket.Object, bool, error) {
	object, err := b.Head(ctx, r.FileKey)
	if errors.Is(err, bucket.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	own := object.Metadata[ExecutionMetadata] == r.ExecutionID
	same := object.Size == r.Size && (own || alike(object, r, composite) && len(lacking(r, object)) == 0)
	return object, same, nil
}

// alike reports whether an object says that it is these bytes.
func alike(o *bucket.Object, r *ledger.Record, composite string) bool {
	digest := o.Metadata[digestMetadata]
	switch {
	case r.SHA256 != "" && digest != "":
		return digest == r.SHA256
	case composite != "" && o.Composite != "":
		return o.Composite == composite
	}
	return r.SourceETag != "" && o.Metadata[sourceMetadata] == r.SourceETag && o.Metadata[ExecutionMetadata] != ""
}

// lacking names the headers in which an object is not like the source's; none where
// the table does not know those.
func lacking(r *ledger.Record, object *bucket.Object) []string {
	if r.Headers == nil {
		return nil
	}
	return bucket.ParseHeaders(r.Headers).Differ(object.Headers)
}
