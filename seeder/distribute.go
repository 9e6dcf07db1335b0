package seeder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
)

const (
	// lookInterval is how often the table is asked about a running execution
	// that no agent says has landed: their word can be lost.
	lookInterval = 10 * time.Second
	// firstRetry and maxRetry bound the wait after a failed pull or write; it
	// doubles in between, with full jitter.
	firstRetry, maxRetry = time.Second, time.Minute
)

// jitter is how long to wait before another try: up to wait, so that not all of those
// that wait try at the same moment.
func jitter(wait time.Duration) time.Duration { return rand.N(wait) + firstRetry/10 }

// start carries an execution on. Where that is being done already, whoever does it is
// told, and what comes too late for him begins when he has ended. Its trace continues
// that of a request whose context is from.
func (s *Seeder) start(from context.Context, r *ledger.Record, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Foreign || s.running == nil || s.running.Err() != nil {
		return
	}
	asked := &request{why, tracing.Continue(s.running, from)}
	if s.index.claim(r.ExecutionID, asked) {
		s.group.Go(func() error {
			s.carry(r, asked)
			return nil
		})
	}
}

// carry carries an execution that the caller has claimed, again as long as requests
// come too late, and gives the claim back.
func (s *Seeder) carry(r *ledger.Record, asked *request) {
	for asked != nil && asked.trace.Err() == nil {
		s.carryOnce(r, asked)
		r, asked = s.index.unclaim(r.ExecutionID)
	}
}

func (s *Seeder) carryOnce(r *ledger.Record, asked *request) {
	s.index.update(r.ExecutionID, func(l *live) {
		l.takenUp, l.began, l.whole, l.announced = time.Now(), time.Time{}, time.Time{}, time.Time{}
	})
	ctx, span := s.cfg.Tracer.Root(asked.trace, "execution", spanAttributes(r, asked.why)...)
	d := &distribution{
		Seeder:  s,
		key:     r.Key,
		id:      r.ExecutionID,
		logger:  s.cfg.Logger.With("key", r.FileKey, "executionId", r.ExecutionID),
		span:    span,
		since:   time.Now(),
		arrived: make(map[string]bool),
		failed:  make(map[string]bool),
	}
	if r.Status == ledger.InProgress && (asked.why == asAccepted || asked.why == asResumed) {
		d.since = r.StartTime
	}
	for _, b := range r.Successful {
		d.arrived[b] = true
	}
	for _, b := range r.Failed {
		d.failed[b] = true
	}
	d.pulling.Store(time.Now().UnixNano())
	d.conclude(ctx, d.run(ctx))
}

// distribution carries one execution from the queue to its end. How its bytes come
// here and into the swarm is in content.go.
type distribution struct {
	*Seeder
	key    ledger.Key
	id     string
	logger *slog.Logger
	span   *tracing.Span
	// since is when the execution was accepted; or taken up again, after it had
	// failed.
	since time.Time
	// arrived are the destinations that it was said of; lastArrival is when the last
	// was seen in the table, zero for none in this run.
	arrived     map[string]bool
	lastArrival time.Time
	// failed are the destinations whose failure was told of, here or before.
	failed map[string]bool
	// announced is when the destinations' time began: at the first announcement,
	// or the last that somebody asked for.
	announced time.Time
	// farthest is how many bytes were pulled at most, pulling when that last grew,
	// or when the distribution began, in Unix nanoseconds.
	farthest int64
	pulling  atomic.Int64
	// pulled is what was pulled in this run; nil before. It is not pulled again
	// because the table cannot be written.
	pulled  *manifest.Manifest
	entry   *cache.Entry   // pinned while set
	torrent *swarm.Torrent // nil before it is seeded
}

// run pulls, announces and follows. A failure that may pass is tried again; one
// that cannot is recorded for every destination that has not arrived. Its error is
// that of ctx, or ledger.ErrSuperseded.
func (d *distribution) run(ctx context.Context) error {
	defer d.unpin()
	defer func() {
		if ctx.Err() != nil {
			return // the next start goes on
		}
		if err := d.cfg.Cache.ForgetPull(d.id); err != nil {
			d.logger.Warn("disk space is not freed", "error", err)
		}
	}()
	wait := firstRetry
	for {
		err := survive.Run(d.logger, func() error { return d.attempt(ctx) })
		d.index.update(d.id, func(l *live) { l.err = err })
		switch {
		case err == nil, ctx.Err() != nil, errors.Is(err, ledger.ErrSuperseded):
			return err
		case errors.Is(err, bucket.ErrNotFound), errors.Is(err, manifest.ErrInvalid), bucket.Permanent(err):
			gone := errors.Is(err, bucket.ErrNotFound)
			if err = d.failAll(ctx, err); err == nil {
				d.index.update(d.id, func(l *live) { l.gone = gone })
				return nil
			}
		case errors.Is(err, bucket.ErrChanged):
			if err = d.restart(ctx, err); err == nil {
				return nil
			}
		case d.announced.IsZero() && time.Since(d.lastPull()) > d.cfg.ArrivalTimeout:
			if err = d.failAll(ctx, fmt.Errorf("no progress for %s: %w", d.cfg.ArrivalTimeout, err)); err == nil {
				return nil
			}
		}
		delay := jitter(wait)
		wait = min(2*wait, maxRetry)
		d.index.update(d.id, func(l *live) { l.retryAt = time.Now().Add(delay) })
		d.span.Failed("retry", err)
		d.logger.Warn("execution is stuck, trying again", "error", err, "retryIn", delay.Round(time.Millisecond).String())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}

func (d *distribution) attempt(ctx context.Context) error {
	record, ok := d.index.take(d.id)
	if !ok {
		return ledger.ErrSuperseded
	}
	if err := bucket.ParseHeaders(record.Headers).Check(landing.AddedMetadata); err != nil {
		return err
	}
	m, err := d.content(ctx, record)
	if err != nil {
		return err
	}
	for again := true; again; {
		if record, _, ok = d.index.get(d.id); !ok {
			return ledger.ErrSuperseded
		}
		if !wanted(record) { // cancelled meanwhile
			d.end(record)
			return nil
		}
		if err := d.announce(ctx, record, m); err != nil {
			return err
		}
		if d.announced.IsZero() {
			d.announced = time.Now()
		}
		d.index.update(d.id, func(l *live) { l.announced = d.announced })
		if again, err = d.follow(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *distribution) lastPull() time.Time { return time.Unix(0, d.pulling.Load()) }

// wanted reports whether a destination is left to be reached.
func wanted(r *ledger.Record) bool {
	return slices.ContainsFunc(r.Unfinished(), func(bucket string) bool { return !r.Cancelled(bucket) && !r.Hopeless(bucket) })
}

// receivers is how many agents are going to download: one or more for each
// destination.
func (d *distribution) receivers(r *ledger.Record) int {
	served := make(map[string]int)
	for _, m := range d.gossip.Members() {
		if m.Role == gossip.Agent {
			served[m.Bucket]++
		}
	}
	n := 0
	for _, b := range r.Destinations {
		n += max(1, served[b])
	}
	return n
}

// announce tells the cluster.
func (d *distribution) announce(ctx context.Context, record *ledger.Record, m *manifest.Manifest) (err error) {
	_, span := tracing.Start(ctx, "announce")
	defer func() { span.End(err) }()
	a := &announce.Announcement{
		ExecutionID:  d.id,
		Key:          d.key.FileKey,
		SourceBucket: d.key.SourceBucket,
		Destinations: record.Destinations,
		Size:         m.Size,
		TraceParent:  announce.TraceParent(d.span.TraceParent()),
		Issued:       d.book.Issue(d.id),
	}
	a.Expires = a.Issued.Add(announce.Lifetime)
	if m.Size == 0 {
		a.Landfall = m.InlineBytes()
	} else {
		a.InfoHash = d.entry.InfoHash()
	}
	wire, err := announce.Sign(d.cfg.SigningKey, a)
	if err != nil {
		return err
	}
	begun := time.Now()
	tried := func() { d.metrics.announcements.Observe(time.Since(begun).Seconds()) }
	if err := d.gossip.Broadcast(wire, tried); err != nil {
		return err
	}
	d.phase(api.PhaseDistributing)
	d.logger.Info("announced", "infohash", a.InfoHash.String(), "destinations", a.Destinations)
	return nil
}

// follow waits until nothing is left to wait for, then retires the announcement;
// or returns early, to announce again, when somebody asked for a retry.
func (d *distribution) follow(ctx context.Context) (again bool, err error) {
	ticker := time.NewTicker(min(lookInterval, d.cfg.ArrivalTimeout))
	defer ticker.Stop()
	for {
		record, changed, ok := d.index.get(d.id)
		if !ok {
			return false, ledger.ErrSuperseded
		}
		d.arrivals(record)
		look, again := d.index.asked(d.id)
		if again {
			d.announced = time.Time{}
			return true, nil
		}
		if look {
			d.look(ctx)
			continue
		}
		waiting, err := d.timeOut(ctx, record)
		if err != nil {
			return false, err
		}
		if waiting == 0 {
			if newest, _, ok := d.index.get(d.id); ok {
				record = newest // as timeOut has left it
			}
			if len(record.Pending()) > 0 {
				continue // made so since, by a retry
			}
			d.end(record)
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-changed:
		case <-d.lost():
			d.mend(ctx, record)
		case <-ticker.C:
			d.mend(ctx, record)
			d.look(ctx)
		}
	}
}

// look reads the item and takes in what it says, and adds what is missing there.
func (d *distribution) look(ctx context.Context) {
	r, err := d.cfg.Ledger.Get(ctx, d.key)
	if err == nil && d.pulled != nil && r.ExecutionID == d.id && r.SHA256 == "" {
		r, err = d.noteContent(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			d.logger.Warn("table not read", "error", err)
		}
		return
	}
	d.put(r)
}

// timeOut fails the destinations that have made no progress for too long, and
// counts those still waited for. One that has failed already is waited for as
// well, as long as its agents move, or have come not long ago: it may arrive after all.
func (d *distribution) timeOut(ctx context.Context, r *ledger.Record) (waiting int, err error) {
	for _, b := range r.Unfinished() {
		if r.Cancelled(b) || r.Hopeless(b) {
			continue
		}
		moved, complaint := d.index.idle(d.id, b)
		if moved.Before(d.announced) {
			moved = d.announced
		}
		if time.Since(moved) < d.cfg.ArrivalTimeout {
			waiting++
			continue
		}
		if time.Since(d.index.servedSince(b)) < d.cfg.ArrivalTimeout {
			waiting++
		}
		if slices.Contains(r.Failed, b) {
			continue
		}
		reason := fmt.Sprintf("no progress for %s", d.cfg.ArrivalTimeout)
		switch {
		case complaint != "":
			reason += ": " + complaint
		case !d.isServed(b):
			reason += ": " + d.index.whyUnserved(b)
		}
		if err := d.fail(ctx, b, reason, false); err != nil {
			return 0, err
		}
	}
	return waiting, nil
}

// fail records that a destination has failed, and tells of it. One that is not
// pending any more, by an arrival or a cancel since the caller looked, is left as
// it is. final: another try does not change it.
func (d *distribution) fail(ctx context.Context, b, reason string, final bool) error {
	before, _, ok := d.index.get(d.id)
	if !ok {
		return ledger.ErrSuperseded
	}
	if !slices.Contains(before.Pending(), b) {
		return nil
	}
	at := time.Now()
	updated, err := d.cfg.Ledger.Fail(ctx, d.key, d.id, b, ledger.Result{Timestamp: at, Error: reason, Final: final})
	if err != nil {
		return err
	}
	d.put(updated)
	// The table may know better than the index: an arrival, or a failure before.
	if !slices.Contains(updated.Failed, b) || !updated.Results[b].Timestamp.Equal(at) {
		return nil
	}
	d.failedAt(updated, b)
	return nil
}

// failedAt tells of a destination that has failed.
func (d *distribution) failedAt(r *ledger.Record, b string) {
	d.failed[b] = true
	d.logger.Error("destination failed", "bucket", b, "error", r.Results[b].Error)
	d.span.Event("failed", attribute.String("landfall.bucket", b))
	if d.cfg.Notify != nil {
		d.cfg.Notify.Send(notify.Of(r, b))
	}
}

// end retires the announcement.
func (d *distribution) end(r *ledger.Record) {
	d.phase(api.PhaseEnded)
	d.retire(d.key, d.id, endOf(r))
	if d.entry != nil {
		if t, ok := d.swarm.Torrent(d.entry.InfoHash()); ok {
			t.DisconnectComplete()
		}
	}
	d.unpin()
	d.evict(0)
}

// endOf is why the announcement of an execution ends that nobody carries any more.
func endOf(r *ledger.Record) string {
	if r.Status == ledger.Completed {
		return announce.Completed
	}
	return announce.Failed
}

// retire sends the signed notice that an execution is over.
func (s *Seeder) retire(k ledger.Key, id, reason string) {
	issued := s.book.Issue(id)
	wire, err := announce.Sign(s.cfg.SigningKey, &announce.End{
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
		s.cfg.Logger.Warn("end of execution not told", "key", k.FileKey, "executionId", id, "error", err)
	}
}

// failAll records why nothing more will come.
func (d *distribution) failAll(ctx context.Context, cause error) error {
	record, _, ok := d.index.get(d.id)
	if !ok {
		return nil
	}
	if len(record.Pending()) == 0 {
		d.logger.Info("execution cannot be sent again", "error", cause)
		d.phase(api.PhaseEnded)
		return nil
	}
	for _, b := range record.Pending() {
		err := d.fail(ctx, b, cause.Error(), bucket.Permanent(cause))
		if errors.Is(err, ledger.ErrSuperseded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("recording the failure of %s: %w", b, err)
		}
	}
	d.logger.Error("execution failed", "error", cause)
	d.phase(api.PhaseEnded)
	d.retire(d.key, d.id, announce.Failed)
	return nil
}

// restart begins again with the object as it is now: it was replaced while it
// was pulled, or since.
func (d *distribution) restart(ctx context.Context, cause error) error {
	if err := d.waitForChange(ctx); err != nil {
		return err
	}
	record, _, ok := d.index.get(d.id)
	if !ok {
		return nil
	}
	if !wanted(record) { // cancelled meanwhile
		d.end(record)
		return nil
	}
	from, err := d.sources.Get(ctx, d.key.SourceBucket)
	if err != nil {
		return err
	}
	object, err := from.Head(ctx, d.key.FileKey)
	if errors.Is(err, bucket.ErrNotFound) {
		return d.failAll(ctx, fmt.Errorf("%w, and now it is gone: %w", cause, err))
	}
	if err != nil {
		return err
	}
	d.logger.Warn("object changed underneath, starting afresh", "error", cause)
	if _, err = d.accept(ctx, d.key.SourceBucket, object, record.Unfinished()); err == nil {
		d.changes.began(d.key, time.Now())
	}
	return err
}

// waitForChange waits until an object that goes on to change may have its next
// execution, or this one is over.
func (d *distribution) waitForChange(ctx context.Context) error {
	wait := d.changesAgain(d.key)
	if wait == 0 {
		return nil
	}
	d.index.update(d.id, func(l *live) { l.retryAt = time.Now().Add(wait) })
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		record, changed, ok := d.index.get(d.id)
		if !ok || !wanted(record) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer.C:
			return nil
		}
	}
}

// progress takes an agent's report.
func (s *Seeder) progress(p gossip.Progress) {
	for _, b := range p.Builds {
		s.index.heard(p, b, time.Now())
	}
}

// links takes an agent's word on where its bytes came from.
func (s *Seeder) links(l gossip.Links) { s.index.heardLinks(l, time.Now()) }

func (d *distribution) phase(p string) {
	d.index.update(d.id, func(l *live) { l.phase = p })
}

func (d *distribution) unpin() {
	if d.entry != nil {
		d.entry.Unpin()
		d.entry = nil
	}
}

// evict brings the cache below its limit, and makes room for a build of so many
// bytes if it can.
func (s *Seeder) evict(room int64) {
	err := s.cfg.Cache.Evict(room, func(infohash cache.InfoHash) {
		if t, ok := s.swarm.Torrent(infohash); ok {
			t.Drop()
		}
	})
	if err != nil {
		s.cfg.Logger.Warn("cache not cleaned", "error", err)
	}
}

// torrentFile returns the bencoded .torrent of an execution (BEP 3), for
// ordinary clients.
func (s *Seeder) torrentFile(r *ledger.Record) ([]byte, error) {
	var infohash announce.InfoHash
	if err := infohash.UnmarshalText([]byte(r.InfoHash)); err != nil {
		return nil, errors.New("the build was not pulled yet, or has 0 bytes")
	}
	entry, ok := s.cfg.Cache.Entry(infohash)
	if !ok {
		return nil, errors.New("the build is not in the seeder's cache any more")
	}
	return swarm.TorrentFile(entry.Manifest()), nil
}
