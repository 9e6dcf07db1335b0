package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// land lands when this agent leads its bucket, and otherwise waits until the one
// that does has recorded the arrival, or is gone. A store that cannot be reached
// is tried again here, so that the download goes on meanwhile and what has been
// uploaded stays.
func (b *build) land(ctx context.Context, m *manifest.Manifest, content io.ReaderAt, tracker *landing.Tracker) error {
	if err := b.waitForStore(ctx); err != nil {
		return err
	}
	wait := firstRetry
	for {
		changed := b.agent.membersChanged.next()
		done, err := b.landOnce(ctx, m, content, tracker)
		switch {
		case done, ctx.Err() != nil, errors.Is(err, landing.ErrSuperseded), errors.Is(err, errEnded), bucket.Permanent(err):
			return err
		case err == nil:
			wait = firstRetry
			b.waitFor(ctx, changed, standbyInterval)
		default:
			delay := rand.N(wait) + firstRetry/10
			wait = min(2*wait, maxRetry)
			b.complain(err, delay)
			b.waitFor(ctx, nil, delay)
		}
	}
}

// waitForStore returns when it is known what the bucket's store does, and shows
// meanwhile why it is not.
func (b *build) waitForStore(ctx context.Context) error {
	ticker := time.NewTicker(firstRetry)
	defer ticker.Stop()
	for {
		select {
		case <-b.agent.store.known:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			err := b.agent.store.ready()
			b.mu.Lock()
			b.err = err
			b.mu.Unlock()
		}
	}
}

func (b *build) waitFor(ctx context.Context, changed <-chan struct{}, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-timer.C:
	}
}

// landOnce lands, or sees that this has been done, or that it is another agent's
// to do.
func (b *build) landOnce(ctx context.Context, m *manifest.Manifest, content io.ReaderAt, tracker *landing.Tracker) (done bool, err error) {
	record, err := b.record(ctx)
	if err != nil {
		return false, err
	}
	name := b.agent.cfg.Bucket.Name()
	if slices.Contains(record.Successful, name) {
		b.succeed(record.Results[name])
		return true, b.wholeForOthers(ctx)
	}
	if !b.agent.leads(record) {
		return false, nil
	}
	if b.job == nil {
		b.job = b.newJob()
	}
	b.job.Manifest, b.job.Content, b.job.Tracker = m, content, tracker
	if b.download != nil {
		b.job.Verify = b.download.torrent.Verify
	}
	result, err := b.job.Run(ctx)
	if err != nil {
		return false, err
	}
	b.succeed(result)
	return true, nil
}

// wholeForOthers lets a standby's download end, so that it can serve.
func (b *build) wholeForOthers(ctx context.Context) error {
	if b.download == nil {
		return nil
	}
	select {
	case <-b.download.torrent.Whole():
	case <-b.stopped:
	case <-ctx.Done():
	}
	return nil
}

func (b *build) newJob() *landing.Job {
	a := b.agent
	return &landing.Job{
		Bucket:      a.cfg.Bucket,
		Ledger:      a.cfg.Ledger,
		Key:         b.key,
		ExecutionID: b.ann.ExecutionID,
		Agent:       a.cfg.Gossip.ID,
		Region:      a.cfg.Region,
		Slots:       a.slots,
		Started:     b.started,
		Logger:      a.cfg.Logger.With("infohash", b.ann.InfoHash.String()),
		Progress:    b.landedSoFar,
		Completed:   b.completed,
		Now:         time.Now,
		Metrics:     a.metrics.landing,

		Notes:         a.notesOfParts(),
		Unconditional: a.store.has(bucket.NoConditions),
	}
}

// completed hears that the object is complete in the bucket.
func (b *build) completed() {
	b.reach(complete)
	b.logger.Info("landed", "bucket", b.agent.cfg.Bucket.Name(), "bytes", b.ann.Size, "seconds", seconds(time.Since(b.started)))
}

// giveUp records that the build cannot land here, whatever is tried. An error says that
// the table does not know it yet.
func (b *build) giveUp(ctx context.Context, cause error) error {
	a := b.agent
	_, err := a.cfg.Ledger.Fail(ctx, b.key, b.ann.ExecutionID, a.cfg.Bucket.Name(), ledger.Result{
		Timestamp: time.Now(), Error: cause.Error(), Region: a.cfg.Region, Agent: a.cfg.Gossip.ID, Final: true,
	})
	switch {
	case errors.Is(err, ledger.ErrSuperseded):
		b.over(ctx, errSuperseded)
	case err != nil:
		return fmt.Errorf("recording that it cannot land: %w; the reason: %w", err, cause)
	default:
		b.logger.Error("build cannot land here", "bucket", a.cfg.Bucket.Name(), "error", cause)
		b.over(ctx, fmt.Errorf("%w: %w", errEnded, cause))
	}
	return nil
}

// discard removes what a landing that is given up has left in the bucket.
func (b *build) discard(ctx context.Context) {
	if b.job == nil {
		return
	}
	if err := b.job.Discard(ctx); err != nil {
		b.logger.Warn("upload not removed; the next build of this key does it, or a lifecycle rule for unfinished uploads", "error", err)
	}
}
