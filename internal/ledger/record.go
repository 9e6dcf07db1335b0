package ledger

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// DefaultTable is the table's usual name.
	DefaultTable = "FileCopyTracking"
	// maxDestinations bounds the buckets of one execution, so that its item
	// stays far below DynamoDB's 400 KB.
	maxDestinations = 64
	// maxKeyLength is S3's limit on a key in bytes.
	maxKeyLength = 1024
	// maxErrorLength bounds the text of an error kept in the item, in bytes.
	maxErrorLength = 1 << 10
	// maxBucketName is the length in bytes of the longest name that S3 ever allowed.
	maxBucketName = 255
)

var (
	// ErrNotFound says that the table has no item of the key.
	ErrNotFound = errors.New("no such execution")
	// ErrSuperseded says that the item belongs to another execution now.
	ErrSuperseded = errors.New("execution superseded")
	// ErrHeld says that another process goes on with a landing.
	ErrHeld = errors.New("another agent lands this build")
	// ErrOwned says that the item belongs to another seeder.
	ErrOwned = errors.New("another seeder's execution")
	// ErrNoTable says that the table does not exist.
	ErrNoTable = errors.New("table does not exist")
	// ErrTooMany says that an execution would have more destinations than one may,
	// with those of the one that it replaces.
	ErrTooMany = errors.New("too many destinations")
	// ErrEndless says that a table sends the same page again and again.
	ErrEndless = errors.New("its pages do not come to an end")
	// errInvalid is wrapped by what a caller must not ask for.
	errInvalid = errors.New("invalid execution")
)

// Status of an execution, derived from the sets of buckets.
type Status string

// The statuses.
const (
	InProgress Status = "IN_PROGRESS"
	Completed  Status = "COMPLETED"
	Failed     Status = "FAILED"
	// Cancelled: every destination that has not arrived was cancelled by request.
	Cancelled Status = "CANCELLED"
)

// statuses are all that there are.
var statuses = []Status{InProgress, Completed, Failed, Cancelled}

// Key is the table's key: an object of a bucket. FileKey is carried byte for
// byte.
type Key struct{ FileKey, SourceBucket string }

// Record is one item: the newest execution of a key.
type Record struct {
	Key
	ExecutionID string // ULID
	Status      Status
	StartTime   time.Time
	CompletedAt time.Time // zero while it runs
	// Destinations, Successful and Failed are sorted, without duplicates, nil
	// when empty.
	Destinations, Successful, Failed []string
	Results                          map[string]Result  // by bucket
	Landings                         map[string]Landing // by bucket
	Size                             int64              // bytes
	SourceETag                       string
	// Headers are those of the source object, content headers and user metadata, by
	// their lower-case names; nil where an older version has written the item.
	Headers map[string]string
	// SourceModified is when the source object was written; zero where an older
	// version has written the item.
	SourceModified   time.Time
	InfoHash, SHA256 string // hexadecimal; empty until the build was pulled
	// Scheme names how the build is cut into segments, for whoever takes the execution up
	// again; empty for the first scheme, where an older version has begun it.
	Scheme string
	// Term is that of the seeder which has begun it; 0 where there is one seeder.
	Term int64
	// High goes before what is not, wherever builds wait for each other.
	High    bool
	Version int64 // grows with every change
	// Retries is how often failed destinations were made pending again: what failed before
	// the last of them says nothing any more.
	Retries int64
	// Owner is the global bucket of the seeder whose execution this is; empty where an
	// older version wrote it.
	Owner string
	// Upload is an execution whose build is still going up, beside this one; nil for none.
	// Where there is nothing but that, or has been, ExecutionID is empty.
	Upload *Upload
	// Uploading: this is that execution, which has not the key.
	Uploading bool
	// Foreign: another system wrote the item, or nobody could carry it on. It is shown
	// and otherwise left alone; its ExecutionID is made up where it has none.
	Foreign bool
	// Odd is the first thing in the item that could not be read and was left out;
	// empty for nothing.
	Odd string

	item       item // as the table has it, with attributes of others
	unreadable *Unreadable
	// mended: an attribute has not the form that encode gives it, so that only a
	// write of the whole item is sure to work.
	mended bool
}

// Result is how a destination ended.
type Result struct {
	Success   bool
	Timestamp time.Time
	ETag      string
	Bytes     int64
	Seconds   float64
	Region    string
	Agent     string
	SHA256    string
	Error     string
	// Final: it failed in a way that another try does not change. Only a retry by
	// request begins again.
	Final bool
}

// Landing is an upload under way, so that a successor can continue it.
type Landing struct {
	Agent, UploadID, ExecutionID string
	// Holder is the process that alone goes on with it; empty in the item, which has none.
	Holder string
}

// Unfinished returns the destinations that have not arrived, failed ones too.
func (r *Record) Unfinished() []string { return without(r.Destinations, r.Successful) }

// Pending returns the destinations that have neither arrived nor failed.
func (r *Record) Pending() []string { return without(r.Unfinished(), r.Failed) }

// CancelledError begins the error of a destination that was cancelled by request.
const CancelledError = "cancelled by request"

// Cancelled reports whether a destination was failed by request, so that nobody
// lands it or starts it again.
func (r *Record) Cancelled(bucket string) bool {
	return slices.Contains(r.Failed, bucket) && strings.HasPrefix(r.Results[bucket].Error, CancelledError)
}

// unsuccessful is the status of an execution that is over and has not arrived
// everywhere.
func (r *Record) unsuccessful() Status {
	if slices.ContainsFunc(r.Unfinished(), func(bucket string) bool { return !r.Cancelled(bucket) }) {
		return Failed
	}
	return Cancelled
}

// Hopeless reports whether a destination has failed in a way that another try does not
// change, so that nobody tries before a request to.
func (r *Record) Hopeless(bucket string) bool {
	return slices.Contains(r.Failed, bucket) && r.Results[bucket].Final
}

// Clone returns a copy that shares nothing that is changed in place.
func (r *Record) Clone() *Record {
	c := *r
	c.Destinations = slices.Clone(r.Destinations)
	c.Successful = slices.Clone(r.Successful)
	c.Failed = slices.Clone(r.Failed)
	c.Results = maps.Clone(r.Results)
	c.Landings = maps.Clone(r.Landings)
	c.Headers = maps.Clone(r.Headers)
	c.item = maps.Clone(r.item)
	return &c
}

// arrive notes a success; false when it was known.
func (r *Record) arrive(bucket string, result Result) (changed bool, err error) {
	if err := r.isDestination(bucket); err != nil {
		return false, err
	}
	if slices.Contains(r.Successful, bucket) {
		return false, nil
	}
	result.Success, result.Error = true, ""
	r.Successful = sorted(append(r.Successful, bucket))
	r.Failed = without(r.Failed, []string{bucket})
	r.Results[bucket] = result
	delete(r.Landings, bucket)
	return true, nil
}

// fail notes a failure, which never overrides a success.
func (r *Record) fail(bucket string, result Result) (changed bool, err error) {
	if err := r.isDestination(bucket); err != nil {
		return false, err
	}
	result.Success = false
	result.Error = cutText(result.Error)
	known := slices.Contains(r.Failed, bucket)
	if slices.Contains(r.Successful, bucket) || known && r.Results[bucket].Error == result.Error {
		return false, nil
	}
	r.Failed = sorted(append(r.Failed, bucket))
	r.Results[bucket] = result
	return true, nil
}

// retry makes failed destinations pending again.
func (r *Record) retry() (changed bool, err error) {
	if len(r.Failed) == 0 {
		return false, nil
	}
	for _, b := range r.Failed {
		delete(r.Results, b)
	}
	r.Failed = nil
	r.Retries++
	return true, nil
}

// settle derives the status from the sets. now becomes CompletedAt when the
// execution has just ended.
func (r *Record) settle(now time.Time) {
	switch {
	case len(r.Unfinished()) == 0:
		r.Status = Completed
	case len(r.Pending()) == 0:
		r.Status = r.unsuccessful()
	default:
		r.Status = InProgress
	}
	switch {
	case r.Status == InProgress:
		r.CompletedAt = time.Time{}
	case r.CompletedAt.IsZero() || r.Status == Completed:
		r.CompletedAt = now.UTC()
	}
}

func (r *Record) isDestination(bucket string) error {
	if !slices.Contains(r.Destinations, bucket) {
		return fmt.Errorf("%w: %s is no destination of %s", errInvalid, bucket, r.ExecutionID)
	}
	return nil
}

func (k Key) check() error {
	switch {
	case k.FileKey == "" || len(k.FileKey) > maxKeyLength:
		return fmt.Errorf("%w: key of %d bytes, expected 1 to %d", errInvalid, len(k.FileKey), maxKeyLength)
	case !utf8.ValidString(k.FileKey):
		return fmt.Errorf("%w: key %q is not UTF-8", errInvalid, k.FileKey)
	case k.SourceBucket == "":
		return fmt.Errorf("%w: no source bucket", errInvalid)
	}
	return nil
}

// sorted returns a set: in order, without duplicates, nil when empty.
func sorted(s []string) []string {
	if len(s) == 0 {
		return nil
	}
	return slices.Compact(slices.Sorted(slices.Values(s)))
}

func without(s, gone []string) []string {
	var out []string
	for _, v := range s {
		if !slices.Contains(gone, v) {
			out = append(out, v)
		}
	}
	return out
}
