// Package landing brings a build into the regional bucket: a multipart upload in
// step with the download, part by part as their pieces are verified, that ends
// in a whole and verified object or in none. It then records the arrival.
//
// Which agent lands, and when to begin again after an error, is left to the
// caller; so is everything about the swarm, of which it knows only pieces.
//
// Equal bytes have equal ETags, so S3's conditions alone do not tell one
// execution from another. What keeps an execution that is over from writing is
// the order of steps in Run: it reads the table before it creates and before it
// completes the upload, completes only over the object that it has looked at,
// and removes all other uploads of the key before it records. A process may stand
// still for a minute between any two steps: so what it removes it has listed before
// it has read that the key is still its execution's, and an upload that another
// process goes on with it leaves alone.
package landing

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/turns"
)

// ExecutionMetadata is the user metadata of a landed object that names the execution that
// landed it; in the source bucket, the one that was begun for its upload.
const ExecutionMetadata = "landfall-execution"

const (
	// These are the user metadata of a landed object, beside the build's own and
	// ExecutionMetadata: the SHA-256 of the whole in hexadecimal, where it was known when
	// the landing began, and the source object's ETag.
	digestMetadata = "landfall-sha256"
	sourceMetadata = "landfall-source-etag"

	// AddedMetadata is what a landing adds to the user metadata at most, in bytes.
	AddedMetadata = len(digestMetadata) + 2*sha256.Size + len(ExecutionMetadata) + ulid.EncodedSize + len(sourceMetadata) + maxSourceETag
	// maxSourceETag bounds the ETag that comes along, in bytes; S3's have up to 40.
	maxSourceETag = 64

	// maxRounds bounds how often one Run decides again: each round means that
	// somebody else wrote to the key, or removed the upload, in the meantime.
	maxRounds = 5
	// maxConflicts is the number of new uploads after a 409 of S3.
	maxConflicts = 1
	// settleTimeout bounds the steps that are finished although ctx is over: a
	// process that is told to end has 10 s for everything.
	settleTimeout = 4 * time.Second
)

var (
	// ErrSuperseded says that the execution is not the key's current one any
	// more: stop, there is nothing to retry. It is ledger.ErrSuperseded.
	ErrSuperseded = ledger.ErrSuperseded
	// ErrHeld says that another process lands the build: look again later. It is
	// ledger.ErrHeld.
	ErrHeld = ledger.ErrHeld
	// ErrEnded says that the execution was cancelled: stop. It is also for callers
	// that end an execution from outside: a context ended with a cause that wraps
	// it or ErrSuperseded makes Run remove its upload, where after any other end a
	// successor may continue it.
	ErrEnded = errors.New("execution was ended")
	// errReplaced says that the key has no object, or another one.
	errReplaced = errors.New("the bucket does not hold this build")
)

// Ledger is what a landing needs of the table; *ledger.Ledger has it.
type Ledger interface {
	Get(ctx context.Context, key ledger.Key) (*ledger.Record, error)
	SetLanding(ctx context.Context, key ledger.Key, executionID, bucket string, l ledger.Landing) (*ledger.Record, error)
	Arrive(ctx context.Context, last *ledger.Record, bucket string, r ledger.Result) (*ledger.Record, error)
}

// Job is one landing: a build, of one execution, into one bucket. Its fields are
// not changed while Run runs. After a failure Run can be called again, with a new
// Tracker too; Discard ends a Job that is given up.
type Job struct {
	Bucket      *bucket.Bucket
	Ledger      Ledger
	Key         ledger.Key
	ExecutionID string

	// Build is what is known of the build so far; only Record does without. Parts are
	// sent as their segments become known, and the upload is completed after the seal.
	Build *manifest.Build
	// Composite is that of the build (manifest.Build), for a Record that does without
	// Build; empty where it is not known.
	Composite string
	// Headers are the source object's as they were announced, for where the table does not
	// name them.
	Headers map[string]string
	// Content has the bytes of every piece that the Tracker was told of. Both
	// are nil for a build of 0 bytes. Run begins by forgetting which parts the
	// Tracker handed out before; no other Run may use it at the same time.
	Content io.ReaderAt
	Tracker *Tracker
	// Verify hashes the content's pieces from first up to but without end once
	// more, when S3 says that a part is not the seeder's; the Tracker must have
	// been told of those that are damaged, by Invalid, when it returns their
	// number. Nil where content cannot change.
	Verify func(first, end int) (damaged int, err error)

	// Agent and Region are told in the result; Agent also in the table while
	// the landing is under way.
	Agent, Region string
	// Holder is this process, as the table names who lands; empty where it names nobody.
	Holder string
	// Slots bounds the parts that all landings of the agent send at once; its size is
	// also the most parts of this build at a time. Nil only for a build of 0 bytes.
	Slots *turns.Slots
	// High: its parts go before those of others that wait for a slot.
	High bool
	// Limit is how fast all parts together may go up; nil for no limit.
	Limit *limits.Limiter
	// Started is when the work on the build began; zero leaves the result
	// without seconds.
	Started time.Time
	// Logger may be nil. Every line names key, execution and bucket by itself.
	Logger *slog.Logger
	// Progress, which may be nil, hears the bytes that are in the upload after
	// each part, one call at a time. It falls back when an upload was lost.
	Progress func(landedBytes int64)
	// Completed, which may be nil, hears that the object is complete in the bucket,
	// before it is recorded.
	Completed func()
	// Now is the clock of the result; nil means time.Now.
	Now func() time.Time
	// Metrics, which may be nil, counts what the landings of a process do.
	Metrics *Metrics

	// Notes, which may be nil, are for a store that does not say its parts' SHA-256.
	Notes *Notes
	// Unconditional: the store cannot complete an upload under a condition, and is used
	// all the same.
	Unconditional bool

	// uploadID is the upload that is this landing's to complete or to remove;
	// empty while there is none.
	uploadID string
	// begun is when Run was first called; zero before.
	begun time.Time
	// drawn counts the parts begun, over all Runs, for maxPartSpans.
	drawn atomic.Int64
}

// Run lands the build, waiting for its pieces, and records the arrival. It
// returns the result as the table has it.
//
// It continues the upload that the table names for this execution. When a store
// cannot be reached, or ctx ends, the upload is left for the next Run or for a
// successor. What cannot succeed any more, and a ctx whose cause is ErrSuperseded
// or ErrEnded, removes it.
func (j *Job) Run(ctx context.Context) (ledger.Result, error) {
	if j.begun.IsZero() {
		j.begun = time.Now()
	}
	l := &landing{Job: j}
	ctx, span := tracing.Start(ctx, "landing",
		attribute.String("landfall.bucket", j.Bucket.Name()), attribute.Int("landfall.parts", j.Build.NumParts()))
	result, err := l.run(ctx)
	span.End(err)
	if err != nil {
		return ledger.Result{}, fmt.Errorf("landing %s in %s: %w", j.Key.FileKey, j.Bucket.Name(), err)
	}
	return result, nil
}

// composite is the build's, as far as it is known.
func (j *Job) composite() string {
	if j.Build == nil {
		return j.Composite
	}
	return j.Build.Composite()
}

func (j *Job) now() time.Time {
	if j.Now == nil {
		return time.Now()
	}
	return j.Now()
}

func (j *Job) logger() *slog.Logger {
	if j.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return j.Logger
}

// landing is one Run of a Job.
type landing struct {
	*Job
	// last is the item as the newest fence has read it.
	last *ledger.Record
}

func (l *landing) run(ctx context.Context) (result ledger.Result, err error) {
	defer func() {
		switch {
		case errors.Is(err, ErrHeld):
			l.uploadID = "" // is another's
		case err != nil && !l.left(ctx, err):
			err = errors.Join(err, l.abandon(ctx, err))
		}
	}()
	conflicts := 0
	for range maxRounds {
		result, err = l.round(ctx)
		switch {
		case errors.Is(err, bucket.ErrNoUpload):
			l.uploadID = ""
		case errors.Is(err, bucket.ErrConflict):
			if conflicts++; conflicts > maxConflicts {
				return ledger.Result{}, err
			}
			if err := l.abandon(ctx, err); err != nil {
				return ledger.Result{}, err
			}
		case errors.Is(err, bucket.ErrExists), errors.Is(err, bucket.ErrNotFound),
			errors.Is(err, bucket.ErrPart), errors.Is(err, errReplaced):
		default:
			return result, err
		}
		tracing.Failed(ctx, "landing decides again", err)
		l.logger().Info("landing decides again", "key", l.Key.FileKey, "executionId", l.ExecutionID,
			"bucket", l.Bucket.Name(), "reason", err)
	}
	return ledger.Result{}, fmt.Errorf("given up after %d rounds: %w", maxRounds, err)
}

// abandon removes the upload after an error. What another process goes on with is left to
// that: ErrHeld; but for an execution that is over nobody does.
func (l *landing) abandon(ctx context.Context, cause error) error {
	over := errors.Is(cause, ErrSuperseded) || errors.Is(cause, ErrEnded) || context.Cause(ctx) != nil
	if l.uploadID != "" && !over {
		record, err := l.Ledger.Get(ctx, l.Key)
		if err == nil && record.Of(l.ExecutionID) != nil {
			err = l.holds(record.Of(l.ExecutionID))
		}
		if errors.Is(err, ErrHeld) {
			l.uploadID = ""
		}
		if err != nil {
			return err
		}
	}
	return l.Discard(ctx)
}

// holds is ErrHeld when another process has taken the landing.
func (l *landing) holds(record *ledger.Record) error {
	now := record.Landings[l.Bucket.Name()]
	if now.ExecutionID == l.ExecutionID && now.Holder != "" && now.Holder != l.Holder {
		return fmt.Errorf("%w: %s has taken it", ErrHeld, now.Agent)
	}
	return nil
}

// left reports whether the upload can be continued after an error, by the next Run
// or a successor.
func (l *landing) left(ctx context.Context, err error) bool {
	if cause := context.Cause(ctx); cause != nil {
		return !errors.Is(cause, ErrSuperseded) && !errors.Is(cause, ErrEnded)
	}
	return !settled(err)
}

// round goes from the item in the table to the arrival. An error about what
// others did to the key or the upload meanwhile is for run to decide on.
func (l *landing) round(ctx context.Context) (ledger.Result, error) {
	record, err := l.fence(ctx)
	if err != nil {
		return ledger.Result{}, err
	}
	have, err := l.resume(ctx, record)
	if err != nil {
		return ledger.Result{}, err
	}
	// Looked at after the upload: one that has vanished may have become this
	// object.
	condition, present, err := l.findReplaced(ctx)
	if err != nil {
		return ledger.Result{}, err
	}
	if present { // as far as is known; an arrival names the SHA-256 of the whole
		if err := l.awaitSeal(ctx); err != nil {
			return ledger.Result{}, err
		}
		if _, err := l.fenceKey(ctx); err != nil { // which may have been long
			return ledger.Result{}, err
		}
		return l.record(ctx, l.last, l.build())
	}
	if l.Build.Size == 0 {
		err = l.putEmpty(ctx, have, condition)
	} else {
		err = l.upload(ctx, have, condition)
	}
	if err != nil {
		return ledger.Result{}, err
	}
	l.forget()
	l.uploadID = "" // is the object now
	if l.Completed != nil {
		l.Completed()
	}
	l.Metrics.landed(time.Since(l.couldLand()))
	return l.record(ctx, l.last, l.build())
}

// couldLand is when the last piece was verified, or the landing began where that
// was later.
func (l *landing) couldLand() time.Time {
	if l.Tracker == nil {
		return l.begun
	}
	if at := l.Tracker.completeAt(); at.After(l.begun) {
		return at
	}
	return l.begun
}

// errUploading says that the execution's upload into the source bucket has not come to
// its end, so that it has not the key.
var errUploading = errors.New("the build is still going up to its source bucket")

// fenceKey is fence for what only the execution that has the key may do.
func (l *landing) fenceKey(ctx context.Context) (*ledger.Record, error) {
	record, err := l.fence(ctx)
	if err == nil && record.Uploading {
		return nil, errUploading
	}
	return record, err
}

// fence reads the item consistently and fails when it is another execution's, or
// this bucket's landing was cancelled. An execution whose build is still going up passes.
func (l *landing) fence(ctx context.Context) (record *ledger.Record, err error) {
	err = l.retry(ctx, "fence", func() error {
		record, err = l.Ledger.Get(ctx, l.Key)
		return err
	})
	if err != nil {
		return nil, err
	}
	of := record.Of(l.ExecutionID)
	if of == nil {
		return nil, fmt.Errorf("%w: %s by %s", ErrSuperseded, l.ExecutionID, record.ExecutionID)
	}
	record = of
	if record.Cancelled(l.Bucket.Name()) {
		return nil, fmt.Errorf("%w: it was cancelled", ErrEnded)
	}
	l.last = record
	return record, nil
}

// resume finds the upload to continue, of this run or of a predecessor, and the
// parts that it has.
func (l *landing) resume(ctx context.Context, record *ledger.Record) ([]bucket.Part, error) {
	begun := record.Landings[l.Bucket.Name()]
	if l.uploadID == "" && begun.ExecutionID == l.ExecutionID {
		l.uploadID = begun.UploadID
	}
	if l.uploadID == "" {
		return nil, nil
	}
	have, err := l.Bucket.ListParts(ctx, l.Key.FileKey, l.uploadID)
	if errors.Is(err, bucket.ErrNoUpload) {
		l.uploadID = ""
		return nil, nil
	}
	if err == nil && (begun.UploadID != l.uploadID || begun.Holder != l.Holder) {
		err = l.saveUploadID(ctx) // the table did not take it before, or has another's name
	}
	if err != nil {
		return nil, err
	}
	l.logger().Info("landing continues", "key", l.Key.FileKey, "executionId", l.ExecutionID,
		"bucket", l.Bucket.Name(), "begunBy", begun.Agent, "parts", len(have))
	return have, nil
}

// findReplaced finds what is at the key: this build, or what the upload may replace.
func (l *landing) findReplaced(ctx context.Context) (c bucket.Condition, present bool, err error) {
	object, present, err := Present(ctx, l.Bucket, l.build(), l.composite())
	switch {
	case err != nil || present:
		return bucket.Condition{}, present, err
	case l.Unconditional && object == nil:
		return bucket.Condition{}, false, nil
	case object == nil:
		return bucket.Condition{IfNoneMatch: true}, false, nil
	}
	// Another source bucket's build of the same key is not fenced by the item.
	// Whoever writes nonsense there is not newer than anything.
	other := object.Metadata[ExecutionMetadata]
	err = executionid.Check(other, l.now())
	if errors.Is(err, executionid.ErrAhead) {
		l.logger().Warn("object names an execution from the future, which is ignored", "key", l.Key.FileKey, "executionId", l.ExecutionID,
			"bucket", l.Bucket.Name(), "found", other)
	}
	if err == nil && other > l.ExecutionID {
		return bucket.Condition{}, false, fmt.Errorf("%w: %s by %s, whose object is in the bucket", ErrSuperseded, l.ExecutionID, other)
	}
	if l.Unconditional {
		return bucket.Condition{}, false, nil
	}
	return bucket.Condition{IfMatch: object.ETag}, false, nil
}

// putEmpty lands a build of 0 bytes, as an upload of one part of 0 bytes: whoever records an
// arrival aborts it. A PutObject of a process that wakes late could not be stopped: its
// condition holds again once the bytes that it was to replace have come back.
func (l *landing) putEmpty(ctx context.Context, have []bucket.Part, c bucket.Condition) error {
	if l.uploadID == "" {
		if err := l.begin(ctx); err != nil {
			return err
		}
	}
	if len(have) == 0 {
		sum := sha256.Sum256(nil)
		etag, err := l.Bucket.UploadPart(ctx, l.Key.FileKey, l.uploadID, 0, bytes.NewReader(nil), 0, sum[:])
		if err != nil {
			return err
		}
		have = []bucket.Part{{ETag: etag, SHA256: sum[:]}}
	}
	return l.complete(ctx, have[:1], c)
}

// upload brings the parts into the upload that resume has found, or into a new
// one, and completes it.
func (l *landing) upload(ctx context.Context, have []bucket.Part, c bucket.Condition) error {
	if l.uploadID == "" {
		if err := l.begin(ctx); err != nil {
			return err
		}
	}
	parts, err := l.send(ctx, have)
	if err != nil {
		return err
	}
	if err := l.awaitSeal(ctx); err != nil { // what every part is, is known, but not that these are all
		return err
	}
	return l.complete(ctx, parts, c)
}

// complete makes the object of the parts, where this execution has the key and this process
// the landing.
func (l *landing) complete(ctx context.Context, parts []bucket.Part, c bucket.Condition) error {
	record, err := l.fenceKey(ctx)
	if err == nil {
		err = l.holds(record)
	}
	if err != nil {
		return err
	}
	return l.retry(ctx, "complete", func() error {
		_, err := l.Bucket.CompleteUpload(ctx, l.Key.FileKey, l.uploadID, parts, c)
		return err
	})
}

// awaitSeal waits until all of the build is known.
func (l *landing) awaitSeal(ctx context.Context) error {
	select {
	case <-l.Build.Sealed():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin creates the upload and tells the table of it.
func (l *landing) begin(ctx context.Context) (err error) {
	h, err := l.headers()
	if err != nil {
		return err
	}
	l.uploadID, err = l.Bucket.CreateUpload(ctx, l.Key.FileKey, h)
	if err != nil {
		return err
	}
	err = l.saveUploadID(ctx)
	if errors.Is(err, ErrHeld) {
		err = errors.Join(err, l.Discard(ctx)) // nobody else knows of it
	}
	return err
}

// saveUploadID writes the upload down, and that this process lands the build. A successor finds it
// only through the table, so a process that stops just now still does. Where the table does
// not take it, the upload stays this Job's. One of a single part is not written down: there
// is nothing to go on with.
func (l *landing) saveUploadID(ctx context.Context) error {
	if l.Build.NumParts() <= 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	_, err := l.Ledger.SetLanding(ctx, l.Key, l.ExecutionID, l.Bucket.Name(), ledger.Landing{
		Agent:       l.Agent,
		UploadID:    l.uploadID,
		ExecutionID: l.ExecutionID,
	})
	return err
}

// forget removes the notes of an upload that is over. A file that stays is removed by a
// later start.
func (j *Job) forget() {
	if j.Notes == nil || j.uploadID == "" {
		return
	}
	if err := j.Notes.forget(j.uploadID); err != nil {
		j.logger().Warn("notes of an upload not removed", "key", j.Key.FileKey, "executionId", j.ExecutionID, "error", err)
	}
}

// Discard removes the upload that a Run has left, even when ctx is over.
func (j *Job) Discard(ctx context.Context) error {
	if j.uploadID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	err := j.Bucket.AbortUpload(ctx, j.Key.FileKey, j.uploadID)
	if err == nil {
		j.forget()
		j.uploadID = ""
	}
	return err
}

// Left reports whether there is an upload to be discarded.
func (j *Job) Left() bool { return j.uploadID != "" }

// build is the item as the newest fence has read it, with what is known of the build: the
// table may not have it yet.
func (l *landing) build() *ledger.Record {
	r := l.last.Clone()
	if sum := l.Build.SHA256Hex(); sum != "" {
		r.SHA256 = sum
	}
	r.Size = l.Build.Size
	return r
}

// headers are the source object's, and the landing's own user metadata, which wins
// over what a build that was landed before brings along. Too many of them are
// bucket.ErrHeaders.
func (l *landing) headers() (bucket.Headers, error) {
	h := bucket.ParseHeaders(l.Headers)
	if l.last.Headers != nil {
		h = bucket.ParseHeaders(l.last.Headers)
	}
	if err := h.Check(AddedMetadata); err != nil {
		return bucket.Headers{}, err
	}
	added := map[string]string{ExecutionMetadata: l.ExecutionID}
	if sum := l.build().SHA256; sum != "" {
		added[digestMetadata] = sum
	}
	if tag := l.last.SourceETag; tag != "" && len(tag) <= maxSourceETag {
		added[sourceMetadata] = tag
	}
	h = h.With(nil)
	for _, name := range []string{digestMetadata, ExecutionMetadata, sourceMetadata} {
		delete(h.Metadata, name) // of what is not added, an earlier landing's must not stay
	}
	return h.With(added), nil
}
