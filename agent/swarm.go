package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// maxOpenSegments bounds the segments of a build that are downloaded at a time: the oldest
// ones are wanted, the others not yet. It is half of what the engine holds of a build, so
// that those who lack older ones get them meanwhile, or a third where hosts are among them.
const (
	maxOpenSegments   = 4
	openWhereAreHosts = 12
)

// openOfBuild is how many segments of a build the engine holds: the own hosts are at older ones
// than this agent.
func (a *Agent) openOfBuild() int {
	if a.cfg.Fleet.Peers == nil {
		return 2 * maxOpenSegments
	}
	return openWhereAreHosts
}

// membership is a build's part in its swarms, one for each segment. It is safe for
// concurrent use.
type membership struct {
	build    *build
	known    *manifest.Build
	tracker  *landing.Tracker
	joined   time.Time
	progress chan struct{} // has a value when there is something to look at
	// Of the owner: begun is when asking for pieces began, zero before; span lasts since
	// joined until the download is whole.
	begun time.Time
	span  *tracing.Span

	newest atomic.Pointer[announce.Announcement]
	// lacks: something that is announced is not here; came is when the last piece did, in
	// Unix nanoseconds.
	lacks atomic.Bool
	came  atomic.Int64

	mu       sync.Mutex
	room     *cache.Room // the disk that was reserved; nil before
	segments []*segment  // the first ones, as far as they were begun
	// waiting: all that is announced is here, and more is to come.
	waiting bool
}

// segment is one of a build's torrents.
type segment struct {
	index    int
	build    string // its executionId
	download *download
	entry    *cache.Entry // pinned; nil before its info dictionary is here
	whole    bool
	move     func() // notes that its pieces come
}

// join takes part in the build's swarms.
func (b *build) join(ctx context.Context, ann *announce.Announcement, f *finished) {
	m := &membership{
		build: b, known: manifest.NewBuild(ann.Layout()), tracker: landing.NewTracker(ann.Layout().Shape),
		joined: time.Now(), progress: make(chan struct{}, 1),
	}
	m.newest.Store(ann)
	defer func() {
		if f.got == nil { // after a panic, too
			m.leave()
		}
	}()
	for i := range maxOpenSegments { // so that peers are met meanwhile
		if i > 0 && !b.agent.swarm.RoomToFetch() {
			break
		}
		if more, err := m.begin(ctx); err != nil {
			f.err = err
			return
		} else if !more {
			break
		}
	}
	f.got = m
}

// begin begins with the next segment that is announced; more is false when there is none.
func (m *membership) begin(ctx context.Context) (more bool, err error) {
	ann := m.newest.Load()
	m.mu.Lock()
	s := &segment{index: len(m.segments), build: m.build.id, move: m.build.move}
	m.mu.Unlock()
	if s.index >= ann.InfoHashes.Len() {
		return false, nil
	}
	a := m.build.agent
	// Before it can be evicted.
	held, err := a.cfg.Cache.Pinned(ann.InfoHashes.At(s.index), s.build)
	if err != nil && !errors.Is(err, cache.ErrNotKept) {
		return false, err
	}
	s.download, err = a.acquire(ctx, s, ann.InfoHashes.At(s.index), ann.Layout().SegmentShape(s.index), ann.Destinations)
	if err != nil {
		if held != nil {
			held.Unpin()
		}
		return false, err
	}
	s.entry = held
	m.mu.Lock()
	m.segments = append(m.segments, s)
	m.mu.Unlock()
	s.download.addPeers(a.gossip.Members())
	return true, nil
}

// all are the segments that were begun.
func (m *membership) all() []*segment {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*segment(nil), m.segments...)
}

// downloads are those of the segments that were begun, each once.
func (m *membership) downloads() (all []*download) {
	seen := make(map[*download]bool)
	for _, s := range m.all() {
		if !seen[s.download] {
			seen[s.download] = true
			all = append(all, s.download)
		}
	}
	return all
}

// entry is a segment's; nil before its info dictionary is here.
func (m *membership) entry(s *segment) *cache.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return s.entry
}

// revise has a newer announcement of the build followed.
func (m *membership) revise(ann *announce.Announcement) {
	m.newest.Store(ann)
	ask(m.progress)
}

// leave gives back what is held, and returns what has gone to and fro, without the peers.
func (m *membership) leave() (traffic swarm.Stats) {
	traffic = m.stats()
	traffic.Peers = nil
	for _, s := range m.all() {
		if s.entry != nil {
			s.entry.Unpin()
		}
		m.build.agent.release(s.download, s)
	}
	if room := m.reserved(); room != nil {
		room.Free()
	}
	m.build.agent.evict(0)
	return traffic
}

// stats are those of all segments together.
func (m *membership) stats() (all swarm.Stats) {
	peers := make(map[[20]byte]int)
	for _, d := range m.downloads() {
		of := d.torrent.Stats()
		all.VerifiedBytes += of.VerifiedBytes
		all.DownloadedBytes += of.DownloadedBytes
		all.UploadedBytes += of.UploadedBytes
		all.WireBytes += of.WireBytes
		for _, p := range of.Peers {
			i, ok := peers[p.ID]
			if !ok {
				peers[p.ID] = len(all.Peers)
				all.Peers = append(all.Peers, p)
				continue
			}
			sum := &all.Peers[i]
			sum.Downloaded += p.Downloaded
			sum.Uploaded += p.Uploaded
			sum.Has += p.Has
			sum.DownRate += p.DownRate
		}
	}
	return all
}

// rates are those of all segments together, in bytes/s.
func (m *membership) rates() (down, up int64) {
	for _, of := range m.downloads() {
		d, u := of.rates()
		down, up = down+d, up+u
	}
	return down, up
}

// links are those who sent the build so far.
func (m *membership) links(names map[[20]byte]gossip.Member) []gossip.Link {
	of := make(map[string]gossip.Link)
	for _, d := range m.downloads() {
		for _, l := range d.links(names) {
			sum := of[l.ID]
			of[l.ID] = gossip.Link{ID: l.ID, Bytes: sum.Bytes + l.Bytes, Rate: sum.Rate + l.Rate}
		}
	}
	links := make([]gossip.Link, 0, len(of))
	for _, l := range of {
		links = append(links, l)
	}
	return links
}

// origins are where the bytes came from.
func (m *membership) origins(names map[[20]byte]gossip.Member) (o origins) {
	for _, d := range m.downloads() {
		of := d.origins(names)
		o.seeders, o.agents, o.departed = o.seeders+of.seeders, o.agents+of.agents, o.departed+of.departed
	}
	return o
}

// verify hashes pieces of the build once more, from first up to but without end; those
// that are damaged are fetched again.
func (m *membership) verify(first, end int) (damaged int, err error) {
	for _, s := range m.all() {
		from, to := m.known.SegmentPieces(s.index)
		if from, to = max(from, first), min(to, end); from >= to {
			continue
		}
		base, _ := m.known.SegmentPieces(s.index)
		n, err := s.download.torrent.Verify(from-base, to-base)
		if damaged += n; err != nil {
			return damaged, err
		}
	}
	return damaged, nil
}

// ReadAt reads the build's bytes, within one segment, as they are on disk.
func (m *membership) ReadAt(p []byte, offset int64) (int, error) {
	i := m.known.SegmentOf(int(offset / m.known.PartLength))
	m.mu.Lock()
	var entry *cache.Entry
	if i < len(m.segments) {
		entry = m.segments[i].entry
	}
	m.mu.Unlock()
	if entry == nil {
		return 0, fmt.Errorf("segment %d is not here", i)
	}
	start, length := m.known.SegmentRange(i)
	if most := start + length - offset; int64(len(p)) > most {
		p = p[:most]
	}
	return entry.ReadAt(p, offset-start)
}

// open reserves the disk for the build, and waits until its first segment is known.
func (b *build) open(ctx context.Context, m *membership, size int64, f *finished) {
	var kept int64 // in entries, which count for themselves, whole or not
	ann := m.newest.Load()
	for i := range ann.InfoHashes.Len() {
		if _, ok := b.agent.cfg.Cache.Entry(ann.InfoHashes.At(i)); ok {
			_, length := m.known.SegmentRange(i)
			kept += length
		}
	}
	room, err := b.agent.cfg.Cache.Reserve(max(0, size-kept), ann.High)
	if errors.Is(err, cache.ErrNoSpace) {
		b.agent.evict(size) // for the next try
	}
	if f.err = err; err != nil {
		return
	}
	if before := m.reserve(room); before != nil { // of a try that failed
		before.Free()
	}
	f.err = m.know(ctx, m.all()[0])
}

// reserved is the disk that was reserved for the build; nil before.
func (m *membership) reserved() *cache.Room {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.room
}

// reserve takes note of the disk that was, and returns what was before.
func (m *membership) reserve(room *cache.Room) (before *cache.Room) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, m.room = m.room, room
	return before
}

// know waits until a segment's info dictionary is here, and begins to follow its pieces.
func (m *membership) know(ctx context.Context, s *segment) error {
	entry, err := s.download.torrent.Entry(ctx, m.reserved())
	if err != nil {
		return err
	}
	if err := m.known.Know(s.index, entry.Manifest()); err != nil {
		entry.Unpin()
		return err
	}
	m.mu.Lock()
	if s.entry != nil {
		s.entry.Unpin() // one pin is enough
	}
	s.entry = entry
	m.mu.Unlock()
	m.build.agent.kept.look()
	base, _ := m.known.SegmentPieces(s.index)
	s.download.subscribe(s, func(piece int, verified bool) {
		m.build.move()
		m.came.Store(time.Now().UnixNano())
		if verified {
			m.tracker.Verified(base + piece)
		} else {
			m.tracker.Invalid(base + piece)
		}
		ask(m.progress)
	})
	for piece := range entry.Manifest().NumPieces() {
		if entry.Complete(piece) {
			m.tracker.Verified(base + piece)
		}
	}
	ask(m.progress)
	return nil
}

// steer downloads the segments as they are announced, the oldest first, and keeps the
// first incomplete parts at high priority, until the build is whole. It returns where the
// bytes came from: once others have them all too, connections end.
func (b *build) steer(ctx context.Context, m *membership) (*origins, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var asking sync.WaitGroup
	defer func() {
		cancel(nil)
		asking.Wait()
		m.lacks.Store(false)
		for _, s := range m.all() {
			s.download.hold(s, false)
		}
	}()
	m.came.Store(time.Now().UnixNano())
	asked := make(map[int]bool)
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		ann := m.newest.Load()
		if ann.Sealed() {
			m.known.Seal(ann.SHA256)
		}
		open, lacking, others := 0, false, !ann.High && b.agent.highFirst.Load()
		for _, s := range m.all() {
			entry := m.entry(s)
			s.whole = entry != nil && m.known.Segment(s.index) != nil && entry.Whole()
			s.download.setUrgent(s, !s.whole && !lacking)
			s.download.hold(s, others && lacking && !s.whole)
			if s.whole {
				continue
			}
			lacking = true
			if open++; open > maxOpenSegments || asked[s.index] || m.known.Segment(s.index) != nil {
				continue
			}
			asked[s.index] = true
			asking.Go(func() {
				if err := survive.Run(b.log(), func() error { return m.know(ctx, s) }); err != nil {
					cancel(err)
				}
			})
		}
		for open == 0 || open < maxOpenSegments && b.agent.swarm.RoomToFetch() {
			more, err := m.begin(ctx)
			if err != nil {
				return nil, err
			}
			if !more {
				break
			}
			open, lacking = open+1, true
			ask(m.progress) // for it to be asked for
		}
		if !lacking && ann.Sealed() {
			break
		}
		m.lacks.Store(lacking)
		m.wait(!lacking, ann.InfoHashes.Len())
		m.prioritize()
		select {
		case <-ctx.Done():
		case <-m.progress:
		}
	}
	m.wait(false, 0)
	if room := m.reserved(); room != nil {
		room.Free() // what equal segments did not need
	}
	came := m.origins(gossip.ByPeerID(b.agent.gossip.Members(), peerwire.PeerID))
	return &came, nil
}

// wait takes note whether the next one is waited for after so many segments.
func (m *membership) wait(waits bool, segments int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting != waits {
		m.waiting = waits
		m.build.owner.Tell(caughtUp{waits, segments})
	}
}

// prioritize asks for the first incomplete parts before all others.
func (m *membership) prioritize() {
	high := make(map[*download][][2]int) // equal segments share one
	all := m.all()
	for _, part := range m.tracker.Window(partsAhead) {
		i := m.known.SegmentOf(part)
		if i >= len(all) {
			break
		}
		base, _ := m.known.SegmentPieces(i)
		first, end := m.known.PartPieces(part)
		high[all[i].download] = append(high[all[i].download], [2]int{first - base, end - base})
	}
	for _, s := range all {
		if m.known.Segment(s.index) != nil && !s.whole {
			s.download.torrent.Prioritize(high[s.download])
		}
	}
}
