package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// present records the arrival of a build that the bucket already holds. Before the seal
// it is not known for certain, and not recorded: the arrival names the SHA-256 of the whole.
func (b *build) present(ctx context.Context, job *landing.Job, record *ledger.Record, f *finished) {
	_, present, err := landing.Present(ctx, job.Bucket, record, "")
	if f.err = err; err != nil || !present {
		return
	}
	if f.alike = record.SHA256 == ""; f.alike {
		return
	}
	if f.result, f.err = job.Record(ctx, record); f.err == nil {
		f.arrived = true
		b.log().Info("bucket holds this build already", "bucket", job.Bucket.Name())
	}
}

// land lands a build.
func (b *build) land(ctx context.Context, job *landing.Job, f *finished) {
	f.result, f.err = job.Run(ctx)
	f.arrived = f.err == nil
}

// newJob records an arrival; landing also lands.
func (b *build) newJob() *landing.Job {
	a, ann, started := b.agent, b.machine.ann, b.machine.started
	return &landing.Job{
		Bucket:      a.cfg.Bucket,
		Ledger:      a.cfg.Ledger,
		Key:         b.key,
		ExecutionID: b.id,
		Agent:       a.cfg.Gossip.ID,
		Region:      a.cfg.Region,
		Slots:       a.slots,
		High:        ann.High,
		Limit:       a.cfg.Limits.Landing,
		Started:     started,
		Headers:     ann.Headers,
		Logger:      a.cfg.Logger,
		Progress:    func(bytes int64) { b.owner.Tell(landedBytes(bytes)) },
		Completed: func() {
			b.owner.Tell(completed{})
			b.log().Info("landed", "bucket", a.cfg.Bucket.Name(), "bytes", ann.Size, "seconds", seconds(time.Since(started)))
		},
		Now:     time.Now,
		Metrics: a.metrics.landing,
	}
}

// landing is the job that lands, to be asked for when the store is known; over several
// attempts it keeps the upload.
func (b *build) landing() *landing.Job {
	if b.job == nil {
		b.job = b.newJob()
		b.job.Notes, b.job.Unconditional = b.agent.store.notes, slices.Contains(b.agent.store.weaknesses, bucket.NoConditions)
	}
	b.job.Started, b.job.High = b.machine.started, b.machine.ann.High
	if m := b.member; m != nil {
		b.job.Build, b.job.Content, b.job.Tracker, b.job.Verify = m.known, m, m.tracker, m.verify
	} else { // of 0 bytes
		b.job.Build = manifest.NewBuild(b.machine.ann.Layout())
		b.job.Build.Seal(b.machine.ann.SHA256)
	}
	return b.job
}

// giveUp records that the build cannot land here, whatever is tried.
func (b *build) giveUp(ctx context.Context, cause error) error {
	a := b.agent
	_, err := a.cfg.Ledger.Fail(ctx, b.key, b.id, a.cfg.Bucket.Name(), ledger.Result{
		Timestamp: time.Now(), Error: cause.Error(), Region: a.cfg.Region, Agent: a.cfg.Gossip.ID, Final: true,
	})
	if err != nil {
		return fmt.Errorf("recording that it cannot land: %w; the reason: %w", err, cause)
	}
	b.log().Error("build cannot land here", "bucket", a.cfg.Bucket.Name(), "error", cause)
	return nil
}

// clear removes the uploads of an execution that failed or was cancelled, those too that
// an agent left that was away then: nobody else would. What is sent again meanwhile
// begins a new upload. Of an execution whose own upload was broken off, which stood beside
// the key's, they go unless the table knows whose they are; this process has discarded
// those that it began.
func (b *build) clear(ctx context.Context, discarded bool) (err error) {
	store, name, removed := b.agent.cfg.Bucket, b.agent.cfg.Bucket.Name(), 0
	defer func() {
		if removed > 0 {
			b.log().Info("uploads of an execution that is over were removed", "bucket", name, "uploads", removed)
		}
		if err != nil && ctx.Err() == nil {
			b.log().Warn("uploads of an execution that is over are still there", "error", err)
		}
	}()
	record, err := b.agent.cfg.Ledger.Get(ctx, b.key)
	brokenOff := err == nil && record.ExecutionID < b.id || errors.Is(err, ledger.ErrNotFound)
	switch {
	case brokenOff && discarded:
		return nil
	case brokenOff:
	case err != nil:
		return err
	case record.ExecutionID != b.id, record.Status != ledger.Failed && record.Status != ledger.Cancelled, !slices.Contains(record.Failed, name):
		return nil
	}
	uploads, err := store.Uploads(ctx, b.key.FileKey)
	if err != nil {
		return err
	}
	known := make(map[string]bool) // uploads that are others'
	if brokenOff {                 // read after the list: what has begun since is not in that
		record, err := b.agent.cfg.Ledger.Get(ctx, b.key)
		switch {
		case errors.Is(err, ledger.ErrNotFound):
		case err != nil:
			return err
		default:
			known[record.Landings[name].UploadID] = true
			if record.Upload != nil && record.Upload.ExecutionID != b.id {
				known[record.Upload.Landings[name].UploadID] = true
			}
		}
	}
	for _, id := range uploads {
		if known[id] {
			continue
		}
		if err := store.AbortUpload(ctx, b.key.FileKey, id); err != nil {
			return fmt.Errorf("removing an upload: %w", err)
		}
		removed++
	}
	return nil
}
