package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/swarm"
)

const (
	// firstRetry and maxRetry bound the wait before a failed build is tried
	// again; it doubles in between, with full jitter.
	firstRetry, maxRetry = time.Second, 30 * time.Second
	// standbyInterval is how often an agent that does not land looks whether
	// the one that does has recorded the arrival.
	standbyInterval = 5 * time.Second
	// reportAfterEnd is how many more times the end of a build is reported.
	reportAfterEnd = 10
)

var (
	// errSuperseded stops a build whose key has a newer execution.
	errSuperseded = fmt.Errorf("%w by a newer one", landing.ErrSuperseded)
	// errEnded stops a build whose execution was ended from outside.
	errEnded = landing.ErrEnded
	// errCompleted is the end that everyone hopes for.
	errCompleted = fmt.Errorf("%w: every destination has it", landing.ErrEnded)
)

// build is one execution at this agent, from its announcement to its end.
type build struct {
	agent   *Agent
	ann     *announce.Announcement
	key     ledger.Key
	logger  *slog.Logger
	started time.Time
	stopped chan struct{} // closed by stop
	done    chan struct{} // closed when run has returned

	mu       sync.Mutex
	state    string
	err      error // the newest failure, nil once landed
	cause    error // why it was stopped
	landedAt time.Time
	landed   int64 // bytes
	reports  int   // left to send after the end
	download *download
	entry    *cache.Entry
	traffic  swarm.Stats // at the end of the download
}

func newBuild(a *Agent, ann *announce.Announcement, logger *slog.Logger) *build {
	return &build{
		agent:   a,
		ann:     ann,
		key:     ledger.Key{FileKey: ann.Key, SourceBucket: ann.SourceBucket},
		logger:  logger.With("infohash", ann.InfoHash.String()),
		started: time.Now(),
		stopped: make(chan struct{}),
		done:    make(chan struct{}),
		state:   api.StateQueued,
		reports: reportAfterEnd,
	}
}

// run works on the build until it has landed, was stopped, or ctx ends. What
// fails is tried again.
func (b *build) run(ctx context.Context) {
	defer close(b.done)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-b.stopped:
			cancel(b.stopCause())
		case <-ctx.Done():
		}
	}()
	defer b.leaveSwarm()
	wait := firstRetry
	for {
		err := b.attempt(ctx)
		switch {
		case err == nil:
			b.logger.Info("landed", "bucket", b.agent.cfg.Bucket.Name(), "bytes", b.ann.Size, "seconds", time.Since(b.started).Seconds())
			b.seedUntilEnd(ctx)
			return
		case ctx.Err() != nil:
			switch cause := context.Cause(ctx); {
			case errors.Is(cause, errCompleted):
				// Another agent of this bucket has landed it.
				b.succeed(ledger.Result{Timestamp: time.Now()})
			case errors.Is(cause, errSuperseded), errors.Is(cause, errEnded):
				b.fail(cause)
				b.logger.Info("stopped", "reason", cause)
			}
			return
		case errors.Is(err, landing.ErrSuperseded):
			b.fail(errSuperseded)
			b.logger.Info("stopped", "reason", errSuperseded)
			return
		}
		delay := rand.N(wait) + firstRetry/10
		wait = min(2*wait, maxRetry)
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
		b.logger.Warn("build not landed yet", "error", err, "retryIn", delay.Round(time.Millisecond).String())
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// attempt brings the build into the bucket and its arrival into the table.
func (b *build) attempt(ctx context.Context) error {
	a := b.agent
	if b.healthy() {
		b.set(api.StateQueued)
	}
	select {
	case a.active <- struct{}{}:
		defer func() { <-a.active }()
	case <-ctx.Done():
		return ctx.Err()
	}
	verified := &verifiedPieces{changed: newNotice()}
	if b.ann.Size > 0 {
		// The peers are met while the table is asked: over long distances both
		// take several round trips. A download begins in swarm, or goes on here.
		if err := b.joinSwarm(verified.set); err != nil {
			return err
		}
	}
	if arrived, err := b.arrived(ctx); arrived || err != nil {
		b.leaveSwarm()
		if arrived {
			b.joinCached()
		}
		return err
	}
	if b.ann.Size == 0 {
		m, err := manifest.ParseInline(b.ann.Landfall)
		if err != nil {
			return err
		}
		return b.land(ctx, m, nil, nil)
	}
	return b.swarm(ctx, verified)
}

// arrived reports whether the bucket has the build already; where that is not in
// the table yet, it is then.
func (b *build) arrived(ctx context.Context) (bool, error) {
	record, err := b.record(ctx)
	if err != nil {
		return false, err
	}
	name := b.agent.cfg.Bucket.Name()
	if slices.Contains(record.Successful, name) {
		b.succeed(record.Results[name])
		return true, nil
	}
	if record.SHA256 == "" {
		return false, nil
	}
	return b.present(ctx, record)
}

// record reads the item of this execution; another execution's stops the build.
func (b *build) record(ctx context.Context) (*ledger.Record, error) {
	record, err := b.agent.cfg.Ledger.Get(ctx, b.key)
	if err != nil {
		return nil, err
	}
	if record.ExecutionID != b.ann.ExecutionID {
		return nil, fmt.Errorf("%w: the table has %s", landing.ErrSuperseded, record.ExecutionID)
	}
	return record, nil
}

// present records the arrival of a build that the bucket already holds.
func (b *build) present(ctx context.Context, record *ledger.Record) (bool, error) {
	job := b.job(nil, nil, nil)
	_, present, err := landing.Present(ctx, job.Bucket, b.key.FileKey, record.SHA256, record.Size)
	if err != nil || !present {
		return false, err
	}
	result, err := job.Record(ctx, record)
	if err != nil {
		return false, err
	}
	b.logger.Info("bucket holds this build already", "bucket", job.Bucket.Name())
	b.succeed(result)
	return true, nil
}

// joinCached takes part in the swarm with a copy from the cache, for the others'
// sake.
func (b *build) joinCached() {
	b.agent.seedCached(b.ann.InfoHash, b.logger)
}

// verifiedPieces passes on which pieces are verified, from before the manifest is
// known.
type verifiedPieces struct {
	changed *notice

	mu      sync.Mutex
	tracker *landing.Tracker // nil without a manifest
}

// set is called by the engine.
func (v *verifiedPieces) set(piece int, verified bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.tracker == nil:
		return
	case verified:
		v.tracker.Verified(piece)
	default:
		v.tracker.Invalid(piece)
	}
	v.changed.tell()
}

// track makes a tracker of all that the entry holds and what comes from now on.
func (v *verifiedPieces) track(entry *cache.Entry) *landing.Tracker {
	m := entry.Manifest()
	tracker := landing.NewTracker(m)
	v.mu.Lock()
	v.tracker = tracker
	v.mu.Unlock()
	for piece := range m.NumPieces() {
		if entry.Complete(piece) {
			tracker.Verified(piece)
		}
	}
	return tracker
}

// swarm downloads with the others and lands meanwhile.
func (b *build) swarm(ctx context.Context, verified *verifiedPieces) error {
	b.set(api.StateDownloading)
	entry, err := b.download.torrent.Entry(ctx)
	if err != nil {
		if errors.Is(err, cache.ErrNoSpace) {
			b.set(api.StateQueued)
			b.agent.evict(b.ann.Size) // for the next try
		}
		b.leaveSwarm()
		return err
	}
	b.hold(entry)
	tracker := verified.track(entry)
	ctx, cancel := context.WithCancel(ctx)
	steered := make(chan struct{})
	go func() {
		defer close(steered)
		b.steer(ctx, tracker, verified.changed)
	}()
	defer func() { cancel(); <-steered }()
	return b.land(ctx, entry.Manifest(), entry, tracker)
}

// steer keeps the first incomplete parts at high priority.
func (b *build) steer(ctx context.Context, tracker *landing.Tracker, progress *notice) {
	m := b.entry.Manifest()
	for {
		changed := progress.next()
		if tracker.Whole() {
			b.set(api.StateLanding)
			b.logger.Info("downloaded", "bytes", m.Size, "seconds", time.Since(b.started).Seconds(), "landedBytes", b.landedBytes())
			return
		}
		var high [][2]int
		for _, part := range tracker.Window(partsAhead) {
			first, end := m.PartPieces(part)
			high = append(high, [2]int{first, end})
		}
		b.download.torrent.Prioritize(high)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// land lands when this agent leads its bucket, and otherwise waits until the one
// that does has recorded the arrival, or is gone.
func (b *build) land(ctx context.Context, m *manifest.Manifest, content io.ReaderAt, tracker *landing.Tracker) error {
	for {
		changed := b.agent.membersChanged.next()
		record, err := b.record(ctx)
		if err != nil {
			return err
		}
		name := b.agent.cfg.Bucket.Name()
		if slices.Contains(record.Successful, name) {
			b.succeed(record.Results[name])
			return b.wholeForOthers(ctx)
		}
		if b.agent.leads(record) {
			result, err := b.job(m, content, tracker).Run(ctx)
			if err != nil {
				return err
			}
			b.succeed(result)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(standbyInterval):
		}
	}
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

func (b *build) job(m *manifest.Manifest, content io.ReaderAt, tracker *landing.Tracker) *landing.Job {
	a := b.agent
	return &landing.Job{
		Bucket:      a.cfg.Bucket,
		Ledger:      a.cfg.Ledger,
		Key:         b.key,
		ExecutionID: b.ann.ExecutionID,
		Manifest:    m,
		Content:     content,
		Tracker:     tracker,
		Agent:       a.cfg.Gossip.ID,
		Region:      a.cfg.Region,
		Slots:       a.slots,
		Started:     b.started,
		Logger:      b.logger,
		Progress: func(landed int64) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.landed = landed
		},
		Now: time.Now,
	}
}

// joinSwarm takes part in the build's swarm, once.
func (b *build) joinSwarm(onPiece func(piece int, verified bool)) error {
	b.leaveSwarm() // a retry brings a new tracker
	if entry, ok := b.agent.cfg.Cache.Pinned(b.ann.InfoHash); ok {
		b.hold(entry)
	}
	d, err := b.agent.acquire(b, onPiece)
	if err != nil {
		return err
	}
	d.addPeers(b.agent.gossip.Members())
	b.mu.Lock()
	defer b.mu.Unlock()
	b.download = d
	return nil
}

// hold keeps a pinned entry until leaveSwarm.
func (b *build) hold(entry *cache.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entry == entry {
		entry.Unpin() // one pin is enough
	}
	b.entry = entry
}

func (b *build) leaveSwarm() {
	b.mu.Lock()
	d, entry := b.download, b.entry
	b.download, b.entry = nil, nil
	if d != nil {
		b.traffic = d.torrent.Stats()
		b.traffic.Peers = nil
	}
	b.mu.Unlock()
	if entry != nil {
		entry.Unpin()
	}
	if d != nil {
		b.agent.release(d, b)
		b.agent.evict(0)
	}
}

// seedUntilEnd keeps the build pinned and serving until every destination has
// it, or its announcement holds no longer.
func (b *build) seedUntilEnd(ctx context.Context) {
	expired := time.NewTimer(time.Until(b.ann.Expires))
	defer expired.Stop()
	select {
	case <-ctx.Done():
	case <-b.stopped:
	case <-expired.C:
	}
}

// healthy reports whether nothing has failed so far. The seeder's clock stands
// still for a queued build, so one that fails again and again must not seem so.
func (b *build) healthy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err == nil
}

func (b *build) landedBytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.landed
}

func (b *build) set(state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = state
}

func (b *build) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != api.StateLanded {
		b.state, b.err = api.StateFailed, err
	}
}

func (b *build) succeed(r ledger.Result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state, b.err, b.landed, b.landedAt = api.StateLanded, nil, b.ann.Size, r.Timestamp
	select {
	case b.agent.landedNow <- struct{}{}:
	default: // a report is due already
	}
}

// stop ends the build from outside; the first cause counts.
func (b *build) stop(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == nil {
		b.cause = cause
		close(b.stopped)
	}
}

func (b *build) stopCause() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cause
}

// ended takes the signed notice that the execution is over.
func (b *build) ended(end *announce.End) {
	if end.Reason == announce.Completed {
		b.stop(errCompleted)
		return
	}
	b.stop(fmt.Errorf("%w: %s", errEnded, end.Reason))
}

// finished reports whether run has returned.
func (b *build) finished() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}
