package seeder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/owner"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// jitter is how long to wait before another try: up to wait, so that not all of those
// that wait try at the same moment.
func jitter(wait time.Duration) time.Duration { return rand.N(wait) + firstRetry/10 }

// carrier owns one execution while it is carried: it has done what its machine wants.
type carrier struct {
	*Seeder
	owner   *owner.Owner[event]
	machine machine
	key     ledger.Key
	id      string
	logger  *slog.Logger

	span *tracing.Span // nil while it is not carried
	held *held         // nil before the bytes are here
}

// start has an execution carried. Its owner is told why; where nobody carries it, one
// begins. Its trace continues that of a request whose context is from. False when the
// seeder ends, or leaves the execution alone.
func (s *Seeder) start(from context.Context, r *ledger.Record, why string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Foreign || s.running == nil || s.running.Err() != nil {
		return false
	}
	if why != asOver && leftAlone(r) != nil {
		return false
	}
	s.index.ask(r.ExecutionID, asked{why, tracing.Continue(s.running, from)}, func(r *ledger.Record, last live) *owner.Owner[event] {
		c := s.newCarrier(r)
		c.machine.live = last
		s.group.Go(func() error { c.run(s.running); return nil })
		return c.owner
	})
	return true
}

func (s *Seeder) newCarrier(r *ledger.Record) *carrier {
	logger := s.cfg.Logger.With("key", r.FileKey, "executionId", r.ExecutionID)
	return &carrier{
		Seeder: s, owner: owner.New[event](logger), machine: newMachine(r, s.cfg.ArrivalTimeout, jitter),
		key: r.Key, id: r.ExecutionID, logger: logger,
	}
}

// run carries the execution until there is nothing to do for it, or ctx ends. After a
// fault of its own it begins anew.
func (c *carrier) run(ctx context.Context) {
	err := survive.Run(c.logger, func() error { c.owner.Run(ctx, c); return nil })
	if c.machine.doing != idle {
		c.logger.Info("execution is left, the next start goes on with it", "seconds", since(c.machine.since))
	}
	c.held.release()
	c.span.End(ctx.Err())
	if err == nil {
		return
	}
	c.index.publish(c.id, live{phase: c.machine.live.phase, err: err})
	if !retry.Wait(ctx, jitter(firstRetry)) {
		return
	}
	if r := c.index.abandon(c.id); r != nil {
		c.start(ctx, r, asResumed)
	}
}

// Hear, Due, Wake and Over are for the owner.
func (c *carrier) Hear(now time.Time, e event) {
	if d, ok := e.(done); ok && d.err != nil && c.owner.Ending() {
		return
	}
	c.perform(c.machine.step(now, e))
}

func (c *carrier) Due() time.Time     { return c.machine.due() }
func (c *carrier) Wake(now time.Time) { c.perform(c.machine.wake(now)) }
func (c *carrier) Over() bool         { return c.machine.doing == idle && c.index.leave(c.id, c.owner) }

func (c *carrier) perform(actions []action) {
	for _, a := range actions {
		c.act(a)
	}
	c.index.publish(c.id, c.machine.live)
}

func (c *carrier) act(a action) {
	switch a := a.(type) {
	case begin:
		f, span := c.worker(a.worker), c.span
		fault := func(err error) event { return done{worker: a.worker, err: err} }
		c.owner.Work(string(a.worker), fault, func(ctx context.Context) event {
			d := f(span.In(ctx))
			d.worker = a.worker
			return d
		})
	case cancel:
		c.owner.Cancel(string(a.worker))
	case begun:
		r := c.machine.record
		_, c.span = c.cfg.Tracer.Root(a.asked.trace, "execution", spanAttributes(r, a.asked.why)...)
	case raise:
		c.held.raise(c.swarm)
	case sayArrived:
		c.sayArrived(c.machine.record, a.bucket)
	case sayFailed:
		c.sayFailed(c.machine.record, a.bucket)
	case sayHopeless:
		if c.machine.end == wasFailed {
			c.logger.Info("execution cannot be sent again", "error", a.cause)
		} else {
			c.logger.Error("execution failed", "error", a.cause)
		}
	case complain:
		c.span.Failed("retry", a.err)
		c.logger.Warn("execution is stuck, trying again", "error", a.err, "retryIn", a.delay.Round(time.Millisecond).String())
	case concluded:
		if a.end == brokenOff {
			c.brokenOff()
		}
		c.conclude(a.end)
	}
}

// worker returns what a worker does, with what it needs.
func (c *carrier) worker(w worker) func(ctx context.Context) done {
	r, held, span := c.machine.record, c.held, c.span
	switch w {
	case fetchWorker:
		if held == nil {
			var err error
			if held, err = newHeld(r); err != nil {
				return func(context.Context) done { return done{err: err} }
			}
			c.held, c.machine.live.sent = held, held.sent
		}
		stalled := errors.Is(c.machine.live.err, answers.ErrStalled)
		return func(ctx context.Context) done { return c.fetch(ctx, r, held, stalled) }
	case announceWorker:
		return func(ctx context.Context) done { return c.announce(ctx, r, held, span) }
	case rereadWorker:
		of := c.machine.content
		return func(ctx context.Context) done { c.rereadTable(ctx, of, held); return done{} }
	case failWorker:
		failures := c.machine.failures
		return func(ctx context.Context) done { return done{err: c.failThem(ctx, failures)} }
	case renewWorker:
		cause := c.machine.live.err
		return func(ctx context.Context) done { return done{err: c.renew(ctx, r, cause)} }
	case leaveWorker:
		c.held = nil
		return func(context.Context) done { c.leave(r, held); return done{} }
	case endWorker:
		reason := c.machine.notice
		return func(ctx context.Context) done { c.retire(ctx, c.key, c.id, reason); return done{} }
	case dropWorker:
		return func(ctx context.Context) done { return done{err: c.drop(ctx, r)} }
	case mendWorker:
		return func(ctx context.Context) done { c.keepWhole(ctx, r, held); return done{} }
	}
	panic("unknown kind of work: " + string(w))
}

// leave gives back what the execution has held, and what a pull that was broken off has
// left on the disk.
func (c *carrier) leave(r *ledger.Record, h *held) {
	if h != nil {
		segments, _ := h.all()
		for _, s := range segments {
			s.torrent.DisconnectComplete()
		}
		h.release()
		c.evict(0)
	}
	// Its segments need not be read again where it is sent again, or asked for as a whole.
	_, keepList := c.index.get(c.id)
	if err := c.cfg.Cache.ForgetPull(c.id, keepList); err != nil {
		c.logger.Warn("disk space is not freed", "error", err)
	}
}

// receivers is how many agents are going to download: one or more for each destination.
func (s *Seeder) receivers(r *ledger.Record) int {
	living := make(map[string]int)
	for _, m := range s.gossip.Members() {
		if m.Role == gossip.Agent {
			living[m.Bucket]++
		}
	}
	n := 0
	for _, b := range r.Destinations {
		n += max(1, living[b])
	}
	return n
}

// announce tells the cluster what is here so far.
func (c *carrier) announce(ctx context.Context, r *ledger.Record, h *held, span *tracing.Span) (d done) {
	_, sub := tracing.Start(ctx, "announce")
	defer func() { sub.End(d.err) }()
	segments, sha256 := h.all()
	if newest, ok := c.index.get(c.id); ok {
		r = newest // which has the ETag where all segments are known
	}
	a := &announce.Announcement{
		ExecutionID:  c.id,
		Term:         r.Term,
		Key:          c.key.FileKey,
		SourceBucket: c.key.SourceBucket,
		Destinations: r.Destinations,
		Size:         h.layout.Size,
		ETag:         r.SourceETag,
		Scheme:       h.layout.Scheme,
		PieceLength:  h.layout.PieceLength,
		PartLength:   h.layout.PartLength,
		Headers:      r.Headers,
		High:         r.High,
		SHA256:       sha256,
		TraceParent:  announce.TraceParent(span.TraceParent()),
		Issued:       c.book.Issue(c.id),
	}
	a.Expires = a.Issued.Add(announce.Lifetime)
	for _, s := range segments {
		a.InfoHashes = a.InfoHashes.Append(s.entry.InfoHash())
	}
	d = done{segments: len(segments), sealed: a.Sealed(), high: a.High}
	wire, err := announce.Sign(ctx, c.cfg.Signer, a)
	if err == nil {
		begun := time.Now()
		err = c.gossip.Broadcast(wire, func() { c.metrics.announcements.Observe(time.Since(begun).Seconds()) })
	}
	if d.err = err; err != nil {
		return d
	}
	c.logger.Info("announced", "segments", d.segments, "of", h.layout.NumSegments(), "sealed", d.sealed, "destinations", a.Destinations)
	return d
}

// retire sends the signed notice that an execution is over. A signature that is made
// elsewhere takes its time.
func (s *Seeder) retire(ctx context.Context, k ledger.Key, id, reason string) {
	issued := s.book.Issue(id)
	wire, err := announce.Sign(ctx, s.cfg.Signer, &announce.End{
		ExecutionID:  id,
		Key:          k.FileKey,
		SourceBucket: k.SourceBucket,
		Reason:       reason,
		Issued:       issued,
		Expires:      issued.Add(announce.Lifetime),
	})
	if err == nil {
		err = s.gossip.Broadcast(wire, nil)
	}
	if err != nil {
		s.cfg.Logger.Warn("end notice not sent", "key", k.FileKey, "executionId", id, "error", err)
	}
}

// rereadTable reads the item and takes in what it says, and adds what is missing there: what
// was found out about the build, and where it has arrived.
func (c *carrier) rereadTable(ctx context.Context, of *content, h *held) {
	r, err := c.cfg.Ledger.Get(ctx, c.key)
	if err == nil && of != nil && r.ExecutionID == c.id && r.SHA256 == "" {
		r, err = c.cfg.Ledger.SetContent(ctx, c.key, c.id, of.infohash, of.sha256)
	}
	if err == nil {
		c.put(r)
		if r.ExecutionID == c.id {
			r, err = c.fold(ctx, r, h.composite())
			c.put(r)
		}
	}
	if err != nil && ctx.Err() == nil {
		c.logger.Warn("table not read", "error", err)
	}
}

// failThem records that destinations have failed. One that is not pending any more, by
// an arrival or a cancel since, is left as it is.
func (c *carrier) failThem(ctx context.Context, failures []failure) error {
	c.foldKnown(ctx, c.id)
	for _, f := range failures {
		r, ok := c.index.get(c.id)
		if !ok {
			return ledger.ErrSuperseded
		}
		if !slices.Contains(r.Pending(), f.bucket) {
			continue
		}
		r, err := c.cfg.Ledger.Fail(ctx, c.key, c.id, f.bucket, ledger.Result{Timestamp: time.Now(), Error: f.reason, Final: f.final})
		if err != nil {
			return fmt.Errorf("recording the failure of %s: %w", f.bucket, err)
		}
		c.put(r)
	}
	return nil
}

// renew begins again with the object as it is now: it was replaced while it was pulled,
// or since. One that goes on to change is waited for.
func (c *carrier) renew(ctx context.Context, r *ledger.Record, cause error) error {
	if wait := c.changesAgain(c.key); wait > 0 {
		c.owner.Tell(delayed{time.Now().Add(wait)})
		if !retry.Wait(ctx, wait) {
			return ctx.Err()
		}
	}
	from, err := c.sources.Get(ctx, c.key.SourceBucket)
	if err != nil {
		return err
	}
	object, err := from.Head(ctx, c.key.FileKey)
	if errors.Is(err, bucket.ErrNotFound) {
		return fmt.Errorf("%w, and now it is gone: %w", cause, err)
	}
	if err != nil {
		return err
	}
	c.logger.Warn("another execution begins, with the object as it is now", "error", cause)
	if _, err = c.acceptInstead(ctx, c.id, c.key.SourceBucket, object, r.Unfinished(), r.High); err == nil {
		c.changes.began(c.key, time.Now())
	}
	return err
}
