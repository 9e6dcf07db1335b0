package landing

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// Record records the arrival of a build that Present has found; last is the item
// as it was read last. First it removes every upload of exactly that key, so that
// nothing can replace the object later, and looks at the object once more. It
// needs neither Build, Content, Tracker nor Slots.
func (j *Job) Record(ctx context.Context, last *ledger.Record) (ledger.Result, error) {
	result, err := j.record(ctx, last, last)
	if err != nil {
		return ledger.Result{}, fmt.Errorf("recording %s in %s: %w", j.Key.FileKey, j.Bucket.Name(), err)
	}
	return result, nil
}

// record records the arrival of a build; last is the item as it was read.
func (j *Job) record(ctx context.Context, last, build *ledger.Record) (_ ledger.Result, err error) {
	begun := time.Now()
	ctx, span := tracing.Start(ctx, "record", attribute.String("landfall.bucket", j.Bucket.Name()))
	defer func() { span.End(err) }()
	if last, err = j.clear(ctx, last); err != nil {
		return ledger.Result{}, err
	}
	object, ok, err := Present(ctx, j.Bucket, build, j.composite())
	if err != nil {
		return ledger.Result{}, err
	}
	if !ok {
		return ledger.Result{}, errReplaced
	}
	if names := lacking(build, object); len(names) > 0 {
		j.logger().Warn("the store has not kept these headers of the object as they were sent", "key", j.Key.FileKey,
			"executionId", build.ExecutionID, "bucket", j.Bucket.Name(), "headers", names)
	}
	now := j.now()
	result := ledger.Result{
		Success:   true,
		Timestamp: now,
		ETag:      object.ETag,
		Bytes:     build.Size,
		Region:    j.Region,
		Agent:     j.Agent,
		SHA256:    build.SHA256,
	}
	if !j.Started.IsZero() {
		result.Seconds = now.Sub(j.Started).Seconds()
	}
	record, err := j.Ledger.Arrive(ctx, last, j.Bucket.Name(), result)
	if err != nil {
		return ledger.Result{}, err
	}
	j.Metrics.recorded(time.Since(begun))
	if j.Progress != nil {
		j.Progress(build.Size)
	}
	return record.Results[j.Bucket.Name()], nil
}

// clear removes every upload of exactly the key but that of an execution which has not the
// key yet, and returns the item as it was read last. One of a newer execution begins after
// the item is its: where the item, read after the list, is still this execution's, the list
// has none.
func (j *Job) clear(ctx context.Context, last *ledger.Record) (*ledger.Record, error) {
	uploads, err := j.Bucket.Uploads(ctx, j.Key.FileKey)
	if err != nil || len(uploads) == 0 {
		return last, err
	}
	now, err := j.Ledger.Get(ctx, j.Key)
	if err != nil {
		return nil, err
	}
	if now.ExecutionID != last.ExecutionID {
		return nil, fmt.Errorf("%w: %s by %s", ErrSuperseded, last.ExecutionID, now.ExecutionID)
	}
	for _, id := range uploads {
		if newer := now.Upload; newer != nil && newer.Landings[j.Bucket.Name()].UploadID == id {
			continue
		}
		if err := j.Bucket.AbortUpload(ctx, j.Key.FileKey, id); err != nil {
			return nil, err
		}
	}
	return now, nil
}
