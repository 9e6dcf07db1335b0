package agent

import (
	"context"
	"errors"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// membership is a build's part in its swarm. Workers read it.
type membership struct {
	download *download
	entry    *cache.Entry     // pinned; nil before it is known
	tracker  *landing.Tracker // nil before the info dictionary is known
	progress chan struct{}    // has a value when the tracker has changed
	joined   time.Time
	begun    time.Time     // asking for pieces; zero before
	span     *tracing.Span // since joined, until the download is whole
}

// join takes part in the build's swarm.
func (b *build) join(ctx context.Context, ann *announce.Announcement, f *finished) {
	m := &membership{joined: time.Now(), progress: make(chan struct{}, 1)}
	m.entry, _ = b.agent.cfg.Cache.Pinned(ann.InfoHash)
	defer func() {
		if f.got == nil && m.entry != nil { // after a panic, too
			m.entry.Unpin()
		}
	}()
	if m.download, f.err = b.agent.acquire(ctx, b, ann); f.err == nil {
		f.got = m
		m.download.addPeers(b.agent.gossip.Members())
	}
}

// leave returns what has gone to and fro, without the peers.
func (b *build) leave(m *membership) swarm.Stats {
	traffic := m.download.torrent.Stats()
	traffic.Peers = nil
	if m.entry != nil {
		m.entry.Unpin()
	}
	b.agent.release(m.download, b)
	b.agent.evict(0)
	return traffic
}

// open waits until the info dictionary is here and there is room for the build, and
// begins to track its pieces.
func (b *build) open(ctx context.Context, m membership, size int64, f *finished) {
	entry, err := m.download.torrent.Entry(ctx)
	if errors.Is(err, cache.ErrNoSpace) {
		b.agent.evict(size) // for the next try
	}
	if f.err = err; err != nil {
		return
	}
	held := m.entry
	defer func() {
		if f.got == nil || held == entry { // after a panic; or one pin is enough
			entry.Unpin()
		}
	}()
	m.entry, m.tracker = entry, landing.NewTracker(entry.Manifest())
	m.download.subscribe(b, func(piece int, verified bool) {
		b.move()
		if verified {
			m.tracker.Verified(piece)
		} else {
			m.tracker.Invalid(piece)
		}
		ask(m.progress)
	})
	for piece := range entry.Manifest().NumPieces() {
		if entry.Complete(piece) {
			m.tracker.Verified(piece)
		}
	}
	f.got = &m
}

// steer keeps the first incomplete parts of a download at high priority until it is whole.
// It returns where the bytes came from: once others have them all too, connections end.
func (b *build) steer(ctx context.Context, m *membership) (*origins, error) {
	manifest, tracker := m.entry.Manifest(), m.tracker
	for !tracker.Whole() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var high [][2]int
		for _, part := range tracker.Window(partsAhead) {
			first, end := manifest.PartPieces(part)
			high = append(high, [2]int{first, end})
		}
		m.download.torrent.Prioritize(high)
		select {
		case <-ctx.Done():
		case <-m.progress:
		}
	}
	came := m.download.origins(gossip.ByPeerID(b.agent.gossip.Members(), swarm.PeerID))
	return &came, nil
}
