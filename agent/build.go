package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
)

const (
	// firstRetry and maxRetry bound the wait before a failed build is tried
	// again; it doubles in between, with full jitter.
	firstRetry, maxRetry = time.Second, 30 * time.Second
	// standbyInterval is how often an agent that does not land looks whether
	// the one that does has recorded the arrival.
	standbyInterval = 5 * time.Second
	// endInterval is how often, in the mean, an agent that has landed looks whether
	// the execution is over: the notice of that can be lost.
	endInterval = 5 * time.Minute
	// reportAfterEnd is how many more times the end of a build is reported.
	reportAfterEnd = 10
)

var (
	// errSuperseded stops a build whose key has a newer execution.
	errSuperseded = fmt.Errorf("%w by a newer one", landing.ErrSuperseded)
	// errEnded stops a build whose execution was ended from outside.
	errEnded = landing.ErrEnded
	// errCancelled stops a build that the table calls cancelled.
	errCancelled = fmt.Errorf("%w: it was cancelled", landing.ErrEnded)
	// errCompleted is the end that everyone hopes for.
	errCompleted = fmt.Errorf("%w: every destination has it", landing.ErrEnded)
	// errYielded ends an attempt in favour of the builds that wait.
	errYielded = errors.New("other builds wait")
)

// build is one execution at this agent, from its announcement to its end.
type build struct {
	agent   *Agent
	ann     *announce.Announcement
	wire    []byte // ann as it came; set before run
	key     ledger.Key
	logger  *slog.Logger
	span    *tracing.Span // set by run, before anything else
	started time.Time
	stopped chan struct{} // closed by stop
	done    chan struct{} // closed when run has returned

	mu       sync.Mutex
	state    string
	err      error // the newest failure, nil once landed
	cause    error // why it was stopped
	landedAt time.Time
	landedBy string // the agent's name, as the table has it
	came     origins
	retryAt  time.Time // of what failed; past when it is not waited for
	times    times
	landed   int64  // bytes
	reports  int    // left to send after the end
	etag     string // of the source object, once the table was read
	download *download
	entry    *cache.Entry
	traffic  swarm.Stats // at the end of the download
	// yield ends the present attempt so that another build has its turn; nil
	// when there is none.
	yield context.CancelCauseFunc

	// again is the newest announcement of the execution that came meanwhile, nil for
	// none. If the build ends for a reason older than that, it begins anew. Guarded by
	// the agent's mutex.
	again *announce.Added

	// job keeps the upload over several attempts; of run's goroutine.
	job *landing.Job
	// moved is when there last was progress, in Unix nanoseconds.
	moved atomic.Int64
	// fromSource counts bytes read from the source bucket.
	fromSource atomic.Int64
}

func newBuild(a *Agent, ann *announce.Announcement, logger *slog.Logger) *build {
	b := &build{
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
	b.move()
	return b
}

// run works on the build until it has landed, was stopped, or ctx ends. What
// fails is tried again.
func (b *build) run(ctx context.Context) {
	defer close(b.done)
	ctx, b.span = b.agent.cfg.Tracer.Root(tracing.Remote(ctx, string(b.ann.TraceParent)), "build", b.spanAttributes()...)
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
		err := survive.Run(b.logger, func() error { return b.attempt(ctx) })
		switch {
		case err == nil:
			b.conclude()
			b.seedUntilEnd(ctx)
			return
		case ctx.Err() != nil:
			b.over(ctx, context.Cause(ctx))
			return
		case errors.Is(err, landing.ErrSuperseded):
			b.over(ctx, errSuperseded)
			return
		case errors.Is(err, errEnded):
			b.over(ctx, errCancelled)
			return
		case bucket.Permanent(err):
			if err = b.giveUp(ctx, err); err == nil {
				return
			}
		case errors.Is(err, errYielded):
			b.logger.Info("waiting for another turn: there was no progress, and other builds wait")
			continue
		}
		delay := rand.N(wait) + firstRetry/10
		wait = min(2*wait, maxRetry)
		b.complain(err, delay)
		b.waitFor(ctx, nil, delay)
	}
}

// over takes note of why the execution is over here. At the end of the process it
// is not.
func (b *build) over(ctx context.Context, cause error) {
	switch {
	case errors.Is(cause, errCompleted):
		// Another agent of this bucket has landed it.
		b.discard(ctx)
		b.succeed(ledger.Result{Timestamp: time.Now()})
		b.conclude()
	case errors.Is(cause, errSuperseded), errors.Is(cause, errEnded):
		b.stop(cause) // from here on a new announcement is a new beginning
		b.discard(ctx)
		b.fail(cause)
		b.logger.Info("stopped", "reason", cause)
		b.span.Set(attribute.String("landfall.outcome", "stopped"), attribute.String("landfall.reason", cause.Error()))
		b.span.End(nil)
	default:
		b.logger.Info("build is left, the next start goes on with it", "landedBytes", b.landedBytes())
		b.span.End(context.Canceled)
	}
}

// complain notes a failure that is tried again after the delay.
func (b *build) complain(err error, delay time.Duration) {
	b.mu.Lock()
	b.err, b.retryAt = err, time.Now().Add(delay)
	b.mu.Unlock()
	b.span.Failed("retry", err)
	b.logger.Warn("build not landed yet", "error", err, "retryIn", delay.Round(time.Millisecond).String())
}

// attempt brings the build into the bucket and its arrival into the table.
func (b *build) attempt(ctx context.Context) (err error) {
	a := b.agent
	if b.healthy() {
		b.set(api.StateQueued)
	}
	release, err := a.turn(ctx)
	if err != nil {
		return err
	}
	defer release()
	b.reach(turn)
	b.span.Event("turn")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.begin(cancel)
	defer b.begin(nil)
	stays := false // in the swarm, to serve
	defer func() {
		if !stays { // after a panic, too
			b.leaveSwarm()
		}
		var fault *survive.Panic
		if cause := context.Cause(ctx); err != nil && (errors.Is(cause, errYielded) || errors.As(cause, &fault)) {
			err = cause
		}
	}()
	verified := &verifiedPieces{changed: newNotice(), moved: b.move, since: time.Now()}
	if b.ann.Size > 0 {
		b.logger.Info("downloading", "bytes", b.ann.Size)
		// The peers are met while the table is asked: over long distances both
		// take several round trips. A download begins in swarm, or goes on here.
		if err := b.joinSwarm(ctx, verified.set); err != nil {
			return err
		}
	}
	arrived, err := b.arrived(ctx)
	switch {
	case arrived:
		b.leaveSwarm()
		b.joinCached()
		return nil
	case errors.Is(err, landing.ErrSuperseded), errors.Is(err, errEnded), ctx.Err() != nil:
		return err
	case err != nil:
		// The download does without the table; only the landing waits for it.
		b.complain(err, 0)
	}
	if b.ann.Size == 0 {
		m, err := manifest.ParseInline(b.ann.Landfall)
		if err != nil {
			return err
		}
		return b.land(ctx, m, nil, nil)
	}
	err = b.swarm(ctx, b.download, verified, cancel)
	stays = err == nil
	return err
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

// record reads the item of this execution; another execution's, or a cancelled
// one, stops the build.
func (b *build) record(ctx context.Context) (*ledger.Record, error) {
	record, err := b.agent.cfg.Ledger.Get(ctx, b.key)
	if err != nil {
		return nil, err
	}
	if record.ExecutionID != b.ann.ExecutionID {
		return nil, fmt.Errorf("%w: the table has %s", landing.ErrSuperseded, record.ExecutionID)
	}
	if record.Cancelled(b.agent.cfg.Bucket.Name()) {
		// The notice of it was lost, or comes yet.
		b.stop(errCancelled)
		return nil, errCancelled
	}
	if name := b.agent.cfg.Bucket.Name(); record.Hopeless(name) {
		err := fmt.Errorf("%w: it cannot land here: %s", errEnded, record.Results[name].Error)
		b.stop(err)
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.etag = record.SourceETag
	return record, nil
}

// present records the arrival of a build that the bucket already holds.
func (b *build) present(ctx context.Context, record *ledger.Record) (bool, error) {
	job := b.newJob()
	_, present, err := landing.Present(ctx, job.Bucket, record)
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

// joinSwarm takes part in the build's swarm, once.
func (b *build) joinSwarm(ctx context.Context, onPiece func(piece int, verified bool)) error {
	b.leaveSwarm() // a retry brings a new tracker
	if entry, ok := b.agent.cfg.Cache.Pinned(b.ann.InfoHash); ok {
		b.hold(entry)
	}
	d, err := b.agent.acquire(ctx, b, onPiece)
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
// it, or its announcement holds no longer. The table says so too, for the notice of
// the end may never come when the seeder is gone.
func (b *build) seedUntilEnd(ctx context.Context) {
	expired := time.NewTimer(time.Until(b.ann.Expires))
	defer expired.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.stopped:
			return
		case <-expired.C:
			return
		case <-time.After(endInterval/2 + rand.N(endInterval)):
		}
		record, err := b.record(ctx)
		if errors.Is(err, landing.ErrSuperseded) || err == nil && record.Status != ledger.InProgress {
			return
		}
	}
}

// healthy reports whether nothing has failed so far. The seeder's clock stands
// still for a queued build, so one that fails again and again must not seem so.
func (b *build) healthy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err == nil
}

// begin notes how the attempt that begins can be ended; nil at its end.
func (b *build) begin(yield context.CancelCauseFunc) {
	b.move()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.yield = yield
}

// makeRoom ends the present attempt when it has made no progress for so long.
func (b *build) makeRoom(patience time.Duration) {
	b.mu.Lock()
	yield := b.yield
	b.mu.Unlock()
	if yield != nil && time.Since(b.lastMove()) > patience {
		yield(errYielded)
	}
}

// move notes progress.
func (b *build) move() { b.moved.Store(time.Now().UnixNano()) }

func (b *build) lastMove() time.Time { return time.Unix(0, b.moved.Load()) }

func (b *build) sourceETag() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.etag
}

// landedSoFar takes the landing's progress; what was wrong before is over then.
func (b *build) landedSoFar(landed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if landed > b.landed {
		b.move()
		b.err = nil
	}
	b.landed = landed
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
	b.state, b.err, b.landed, b.landedAt, b.landedBy = api.StateLanded, nil, b.ann.Size, r.Timestamp, r.Agent
	b.times.reach(recorded, time.Now())
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

// failed reports whether the execution was cancelled or given up.
func (b *build) failed() bool {
	cause := b.stopCause()
	return errors.Is(cause, errEnded) && !errors.Is(cause, errCompleted)
}

// active reports whether the build is neither over nor about to be.
func (b *build) active() bool {
	select {
	case <-b.stopped:
		return false
	default:
		return !b.finished()
	}
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
