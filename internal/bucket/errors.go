package bucket

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/landfall-dist/landfall/internal/awserr"
)

// What callers decide by. Every error of this package that has one of these
// meanings wraps it, with the SDK's own error beside it.
var (
	// ErrNoBucket says that the bucket does not exist.
	ErrNoBucket = errors.New("no such bucket")
	// ErrNotFound says that there is no object of that key.
	ErrNotFound = errors.New("no such object")
	// ErrChanged says that the object no longer has the ETag asked for.
	ErrChanged = errors.New("object has changed")
	// ErrExists says that a conditional write was refused (412): the key's
	// object is not the one, or the none, that the condition named.
	ErrExists = errors.New("another object is at the key")
	// ErrNoUpload says that the multipart upload was aborted or completed.
	ErrNoUpload = errors.New("no such upload")
	// ErrConflict says that another write of the key came between (409): S3
	// wants a new upload.
	ErrConflict = errors.New("conflicting write")
	// ErrDigest says that S3 got other bytes than the SHA-256 promised.
	ErrDigest = errors.New("bytes are not those of the digest")
	// ErrPart says that an upload's part has another ETag or digest by now than
	// the one given to complete it: ask ListParts.
	ErrPart = errors.New("part has changed")
	// ErrBusy says that the streams under way hold all of maxUploadMemory: the same
	// upload can succeed a little later.
	ErrBusy = errors.New("too many uploads are under way; try again later")
	// ErrTooLarge says that a stream is longer than MaxUpload.
	ErrTooLarge = errors.New("too large to be uploaded")
)

// wrap says what was being done to which key, and what err means. precondition
// is the meaning of a 412 there.
func (b *Bucket) wrap(doing, key string, err, precondition error) error {
	var kind error
	switch awserr.Code(err) {
	case "NoSuchBucket":
		kind = fmt.Errorf("%w: %s (`seeder init` makes missing buckets)", ErrNoBucket, b.name)
	case "NoSuchUpload":
		kind = ErrNoUpload
	case "NoSuchKey", "NotFound":
		kind = ErrNotFound
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch":
		kind = ErrDigest
	case "InvalidPart":
		kind = ErrPart
	case "PreconditionFailed":
		kind = precondition
	case "ConditionalRequestConflict", "OperationAborted":
		kind = ErrConflict
	default:
		// A server other than AWS may have other codes; the status is as telling.
		switch awserr.Status(err) {
		case http.StatusNotFound:
			kind = ErrNotFound
		case http.StatusPreconditionFailed, http.StatusNotModified: // 304: Adobe S3Mock
			kind = precondition
		case http.StatusConflict:
			kind = ErrConflict
		}
	}
	what := doing + " " + b.name
	if key != "" {
		what = doing + " " + key + " in " + b.name
	}
	if kind == nil {
		next := nextStep(err)
		if key == "" && awserr.Code(err) == "BadRequest" { // to a HEAD, which has no reason
			next = "; it may be in another AWS region: give that with --bucket-region (seeder: --source-region)"
		}
		return fmt.Errorf("%s: %w%s", what, awserr.Explain(err, "bucket "+b.name), next)
	}
	return fmt.Errorf("%s: %w", what, awserr.As(kind, err))
}
