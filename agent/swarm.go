package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// verifiedPieces passes on which pieces are verified, from before the manifest is
// known.
type verifiedPieces struct {
	changed *notice
	moved   func()
	since   time.Time // when the swarm was joined

	mu      sync.Mutex
	tracker *landing.Tracker // nil without a manifest
}

// set is called by the engine.
func (v *verifiedPieces) set(piece int, verified bool) {
	v.moved()
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

// swarm downloads with the others and lands meanwhile. What runs beside it is given
// what it works with, and has ended when swarm returns; only then does the caller leave
// the swarm. A fault in it is told to fail, which ends ctx.
func (b *build) swarm(ctx context.Context, d *download, verified *verifiedPieces, fail context.CancelCauseFunc) (err error) {
	begun := time.Now()
	b.set(api.StateDownloading)
	inSwarm, span := tracing.StartAt(ctx, verified.since, "swarm")
	defer func() { span.End(err) }() // where it was not whole before
	if b.agent.cfg.Sources != nil {
		defer b.during(inSwarm, fail, func(ctx context.Context) { b.fallBack(ctx, d) })()
	}
	entry, err := d.torrent.Entry(ctx)
	if err != nil {
		if errors.Is(err, cache.ErrNoSpace) {
			b.set(api.StateQueued)
			b.agent.evict(b.ann.Size) // for the next try
		}
		return err
	}
	b.hold(entry)
	tracker := verified.track(entry)
	defer b.during(ctx, fail, func(ctx context.Context) { b.steer(ctx, d, entry.Manifest(), begun, tracker, verified.changed, span) })()
	return b.land(ctx, entry.Manifest(), entry, tracker)
}

// during runs f until it returns or the end of what it is to accompany, which the
// caller says by calling end. A panic in f is told to fail.
func (b *build) during(ctx context.Context, fail context.CancelCauseFunc, f func(ctx context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := survive.Run(b.logger, func() error { f(ctx); return nil }); err != nil {
			fail(err)
		}
	}()
	return func() { cancel(); <-done }
}

// steer keeps the first incomplete parts of a download at high priority. The span
// ends with the download.
func (b *build) steer(ctx context.Context, d *download, m *manifest.Manifest, begun time.Time, tracker *landing.Tracker, progress *notice, span *tracing.Span) {
	for {
		changed := progress.next()
		if tracker.Whole() {
			b.downloaded(d)
			b.agent.metrics.downloads.Observe(time.Since(begun).Seconds())
			span.End(nil)
			return
		}
		var high [][2]int
		for _, part := range tracker.Window(partsAhead) {
			first, end := m.PartPieces(part)
			high = append(high, [2]int{first, end})
		}
		d.torrent.Prioritize(high)
		select {
		case <-ctx.Done():
			if !tracker.Whole() {
				return
			}
		case <-changed:
		}
	}
}
