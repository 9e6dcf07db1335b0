package landing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/tracing"
)

const (
	// maxTries and firstBackoff bound the tries of one step, on top of the SDK's
	// own: some seconds, for the caller goes on with the upload when it calls
	// Run again. A wait is drawn from zero to the backoff (full jitter), which
	// doubles.
	maxTries     = 4
	firstBackoff = 500 * time.Millisecond
	// A try of a part may take partGrace and one second for each slowestRate
	// bytes; what takes longer hangs on a dead connection.
	partGrace   = time.Minute
	slowestRate = 64 << 10
	// maxDamaged bounds how often one part is found damaged on disk: a disk that
	// damages it each time is not to be filled for ever.
	maxDamaged = 3
	// maxPartSpans bounds the parts of a landing that have a span each: the first
	// show how long a part takes, 10,000 in each region nobody can look at. One that
	// fails has a span all the same.
	maxPartSpans = 100
)

// send uploads the parts that the upload does not have yet, each when it is
// whole, and returns all of them in order. Nothing is under way when it returns.
func (l *landing) send(ctx context.Context, have []bucket.Part) ([]bucket.Part, error) {
	parts := make([]bucket.Part, l.Build.NumParts())
	l.Tracker.reset()
	var notes map[int]note
	if l.Notes != nil && len(have) > 0 {
		notes = l.Notes.of(l.uploadID)
	}
	there := make(map[int]bucket.Part)
	for _, p := range have {
		if len(p.SHA256) == 0 {
			p.SHA256 = noted(notes, p)
		}
		if l.agrees(p) {
			parts[p.Number] = p
			l.Tracker.Skip(p.Number)
		} else {
			there[p.Number] = p // of a segment, perhaps, that is not known yet
		}
	}
	var mu sync.Mutex // of Progress
	progress := func() {
		if l.Progress != nil {
			mu.Lock()
			defer mu.Unlock()
			l.Progress(l.Tracker.LandedBytes())
		}
	}
	progress()
	group, ctx := errgroup.WithContext(ctx)
	for range min(l.Slots.Size(), len(parts)) {
		group.Go(func() error {
			for {
				part, err := l.Tracker.Next(ctx)
				if err == io.EOF {
					return nil
				}
				if err != nil {
					return err
				}
				if p, ok := there[part]; ok && l.agrees(p) {
					parts[part] = p
					l.Tracker.Landed(part)
					progress()
					continue
				}
				parts[part], err = l.sendPart(ctx, part)
				if errors.Is(err, bucket.ErrDigest) && l.damaged(part) {
					continue
				}
				if err != nil {
					// Not given back: another worker would take it before the
					// group is told. What comes after begins with a reset.
					return fmt.Errorf("part %d: %w", part, err)
				}
				l.noteSent(parts[part])
				l.Tracker.Landed(part)
				progress()
			}
		})
	}
	return parts, group.Wait()
}

// noted is the digest that a part was sent with, whose ETag the store still names; nil
// where that is not known.
func noted(notes map[int]note, p bucket.Part) []byte {
	if n, ok := notes[p.Number]; ok && n.ETag == p.ETag {
		return n.SHA256
	}
	return nil
}

// noteSent remembers a part that the store has taken.
func (l *landing) noteSent(p bucket.Part) {
	if l.Notes == nil {
		return
	}
	if err := l.Notes.sent(l.uploadID, p.Number, p.ETag, p.SHA256); err != nil {
		l.logger().Warn("part not noted, after a restart it is sent again", "key", l.Key.FileKey,
			"executionId", l.ExecutionID, "bucket", l.Bucket.Name(), "part", p.Number, "error", err)
	}
}

// damaged looks at the pieces of a part that S3 has refused. When some are not
// what they were the part waits until they have come again.
func (l *landing) damaged(part int) bool {
	if l.Verify == nil || !l.Tracker.refused(part) {
		return false
	}
	n, err := l.Verify(l.Build.PartPieces(part))
	if n > 0 {
		l.logger().Warn("part was damaged on disk and is fetched again", "key", l.Key.FileKey,
			"executionId", l.ExecutionID, "bucket", l.Bucket.Name(), "part", part, "pieces", n)
		l.Tracker.Requeue(part)
	}
	return n > 0 && err == nil
}

// agrees reports whether a part that S3 has is known to be the build's: nothing is while
// its segment is not known, or where the store does not say its SHA-256.
func (l *landing) agrees(p bucket.Part) bool {
	if p.Number < 0 || p.Number >= l.Build.NumParts() {
		return false
	}
	_, length := l.Build.PartRange(p.Number)
	return p.Size == length && len(p.SHA256) > 0 && bytes.Equal(p.SHA256, l.Build.PartSHA256(p.Number))
}

// sendPart uploads one part from the content, without holding it in memory. It
// keeps a slot while it sends, not while it waits to try again.
func (l *landing) sendPart(ctx context.Context, part int) (sent bucket.Part, err error) {
	offset, length := l.Build.PartRange(part)
	sent = bucket.Part{Number: part, SHA256: l.Build.PartSHA256(part), Size: length}
	began := time.Now()
	var span *tracing.Span
	draw := func() (context.Context, *tracing.Span) {
		return tracing.StartAt(ctx, began, "part", attribute.Int("landfall.part", part), attribute.Int64("landfall.bytes", length))
	}
	if l.drawn.Add(1) <= maxPartSpans {
		ctx, span = draw()
	}
	defer func() {
		if err != nil && span == nil {
			_, span = draw()
		}
		span.End(err)
	}()
	tries := 0
	err = l.retry(ctx, "part", func() (err error) {
		if err := l.Slots.Take(ctx, l.High); err != nil {
			return err
		}
		defer l.Slots.Give()
		within := partGrace + time.Duration(length/slowestRate)*time.Second
		try, cancel := limits.WithTimeout(ctx, within)
		defer cancel()
		body := l.Limit.ReadSeeker(try, io.NewSectionReader(l.Content, offset, length))
		begun := time.Now()
		sent.ETag, err = l.Bucket.UploadPart(try, l.Key.FileKey, l.uploadID, part, body, length, sent.SHA256)
		if err != nil && ctx.Err() == nil && try.Err() != nil {
			err = fmt.Errorf("it took more than %s: %w", within, context.Cause(try))
		}
		if tries++; ctx.Err() == nil { // else nobody waits for it any more
			l.Metrics.sent(time.Since(begun), length, tries > 1, err)
		}
		return err
	})
	return sent, err
}

// retry calls op until it succeeds, or fails in a way that another try does not
// change, or ctx is over.
func (j *Job) retry(ctx context.Context, step string, op func() error) error {
	return retry.Policy{
		First: firstBackoff, Max: firstBackoff << maxTries, Tries: maxTries, Settled: settled,
		Failed: func(try int, err error) {
			tracing.Failed(ctx, "retry", err, attribute.String("landfall.step", step), attribute.Int("landfall.try", try))
		},
		Logger: j.logger().With("key", j.Key.FileKey, "executionId", j.ExecutionID, "bucket", j.Bucket.Name(), "step", step),
		Level:  slog.LevelWarn, Message: "landing tries again",
	}.Do(ctx, op)
}

// settled reports whether an error is an answer rather than a failure to get
// one.
func settled(err error) bool {
	for _, target := range []error{
		ErrSuperseded, ErrEnded, ErrHeld, ledger.ErrNotFound, ledger.ErrNoTable,
		bucket.ErrNoBucket, bucket.ErrNotFound, bucket.ErrExists, bucket.ErrNoUpload,
		bucket.ErrConflict, bucket.ErrDigest, bucket.ErrPart,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return bucket.Permanent(err)
}
