package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// present records the arrival of a build that the bucket already holds. Before the seal
// it is not known for certain, and not recorded: the arrival names the SHA-256 of the whole.
// Until it is, its parts are compared with those that are known.
func (b *build) present(ctx context.Context, job *landing.Job, record *ledger.Record, layout *manifest.Layout, compared *landing.Comparison, f *finished) {
	job.Composite = compared.Composite()
	object, present, err := landing.Present(ctx, job.Bucket, record, job.Composite)
	if f.err = err; err != nil {
		return
	}
	if sealed := record.SHA256 != ""; !sealed || !present {
		f.alike = present
		if present && object.Metadata[landing.ExecutionMetadata] == b.id { // landed already
			return
		}
		c, err := b.comparable(ctx, object, record, layout, compared)
		if f.err = err; c != nil {
			c.Alike = present
			f.got, f.comparable = c, true
		}
		return
	}
	if f.result, f.err = job.Record(ctx, record); f.err == nil {
		f.arrived = true
		b.log().Info("bucket holds this build already", "bucket", job.Bucket.Name())
	}
}

// read reads what the table says of the build, and who lands it here. That the build has
// arrived in its own bucket it believes when it has looked there; of the others', what they
// say.
func (b *build) read(ctx context.Context, ann *announce.Announcement, arrived bool, f *finished) {
	a, name := b.agent, b.agent.cfg.Bucket.Name()
	record, err := a.records.Get(ctx, b.key)
	if f.err = err; err != nil {
		return
	}
	record = cmp.Or(record.Of(b.id), record)
	switch {
	case record.ExecutionID != b.id:
	case arrived:
		record, err = a.records.everywhere(ctx, record)
	case slices.Contains(record.Successful, name):
		var there bool
		if there, err = b.isThere(ctx, record, ann); err == nil && !there {
			b.log().Warn("the table says that the build has arrived, and the bucket does not have it", "bucket", name)
			a.records.untrue(b.key, b.id)
			record = record.Without(name)
		}
	default:
		f.lander, err = a.landerOf(ctx, record)
	}
	if f.err = err; err == nil {
		f.record = record
	}
}

// isThere reports whether the bucket has the build.
func (b *build) isThere(ctx context.Context, record *ledger.Record, ann *announce.Announcement) (bool, error) {
	of := *record
	of.SHA256 = cmp.Or(of.SHA256, ann.SHA256) // which the table may not have yet
	_, there, err := landing.Present(ctx, b.agent.cfg.Bucket, &of, "")
	return there, err
}

// land lands a build.
func (b *build) land(ctx context.Context, job *landing.Job, f *finished) {
	defer b.agent.hold(b.id)()
	f.result, f.err = job.Run(ctx)
	f.arrived = f.err == nil
}

// newJob records an arrival; landing also lands.
func (b *build) newJob() *landing.Job {
	a, ann, started := b.agent, b.machine.ann, b.machine.started
	return &landing.Job{
		Bucket:      a.cfg.Bucket,
		Ledger:      a.records,
		Key:         b.key,
		ExecutionID: b.id,
		Agent:       a.cfg.Gossip.ID,
		Holder:      a.process,
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
	_, err := a.records.Fail(ctx, b.key, b.id, a.cfg.Bucket.Name(), ledger.Result{
		Timestamp: time.Now(), Error: cause.Error(), Region: a.cfg.Region, Agent: a.cfg.Gossip.ID, Final: true,
	})
	if err != nil {
		return fmt.Errorf("recording that it cannot land: %w; the reason: %w", err, cause)
	}
	b.log().Error("build cannot land here", "bucket", a.cfg.Bucket.Name(), "error", cause)
	return nil
}

// notedWithin is how long after its beginning an upload may not be in the table yet: a
// landing gives up writing it down before.
const notedWithin = 5 * time.Second

// clear removes the uploads of an execution that failed or was cancelled, those too that
// an agent left that was away then: nobody else would. What is sent again meanwhile
// begins a new upload. Of an execution whose own upload was broken off, which stood beside
// the key's, they go too; this process has discarded those that it began. The table
// knows which uploads are another execution's, also of one that has just begun: it is asked
// again after so long a time as that takes.
func (b *build) clear(ctx context.Context, discarded bool, notedWithin time.Duration) (err error) {
	store, name, removed := b.agent.cfg.Bucket, b.agent.cfg.Bucket.Name(), 0
	defer func() {
		if removed > 0 {
			b.log().Info("uploads of an execution that is over were removed", "bucket", name, "uploads", removed)
		}
		if err != nil && ctx.Err() == nil {
			b.log().Warn("uploads of an execution that is over are still there", "error", err)
		}
	}()
	over, brokenOff, _, err := b.left(ctx)
	if err != nil || !over || brokenOff && discarded {
		return err
	}
	uploads, err := store.Uploads(ctx, b.key.FileKey)
	if err != nil {
		return err
	}
	for _, wait := range []time.Duration{0, notedWithin} {
		if len(uploads) == 0 {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		over, _, others, err := b.left(ctx) // after the list: what has begun since is not in that
		if err != nil || !over {
			return err
		}
		uploads = slices.DeleteFunc(uploads, func(id string) bool { return slices.Contains(others, id) })
	}
	for _, id := range uploads {
		if err := store.AbortUpload(ctx, b.key.FileKey, id); err != nil {
			return fmt.Errorf("removing an upload: %w", err)
		}
		removed++
	}
	return nil
}

// left reads in the table whether the execution is over here, so that uploads of it may be
// left, and which ones are another's. It was broken off when the key has another execution
// than this later one, or none.
func (b *build) left(ctx context.Context) (over, brokenOff bool, others []string, err error) {
	record, err := b.agent.records.Get(ctx, b.key)
	if errors.Is(err, ledger.ErrNotFound) {
		return true, true, nil, nil
	}
	if err != nil {
		return false, false, nil, err
	}
	name := b.agent.cfg.Bucket.Name()
	landings := map[string]ledger.Landing{record.ExecutionID: record.Landings[name]}
	if record.Upload != nil {
		landings[record.Upload.ExecutionID] = record.Upload.Landings[name]
	}
	for id, l := range landings {
		if id != b.id && l.ExecutionID == id { // else it was superseded
			others = append(others, l.UploadID)
		}
	}
	brokenOff = record.ExecutionID < b.id
	ended := record.ExecutionID == b.id && (record.Status == ledger.Failed || record.Status == ledger.Cancelled) && slices.Contains(record.Failed, name)
	return brokenOff || ended, brokenOff, others, nil
}
