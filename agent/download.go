package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// partsAhead is how many incomplete parts are asked for before all others, so
// that parts become whole, and go up, while the download runs. Two or three cost
// nothing in the download and leave about a second of upload at its end.
const partsAhead = 3

const (
	// stuckAfter is how long a download with peers may hear next to nothing, less
	// than stuckBytes, before it connects to them anew; then twice as long, up
	// to maxStuck. A connection can be dead without either side being told, and
	// the slowest link worth using brings more in that time.
	stuckAfter, maxStuck = 15 * time.Second, 4 * time.Minute
	stuckBytes           = 8 << 10
)

// hangUpAfter is how long a whole segment keeps connections with peers that have all of it,
// too: shorter, and those who are about to say so would look like lost copies.
const hangUpAfter = 5 * time.Second

// rateWeight is the share of the newest second in a rate shown to people.
const rateWeight = 0.3

// download is one infohash being fetched or seeded; the segments of the same
// bytes share it, in whatever build they are.
type download struct {
	infohash manifest.InfoHash
	torrent  *swarm.Torrent
	self     string // this member's name

	mu sync.Mutex
	// urgent are the segments that are the first which their builds lack. Those after it
	// may wait for their turn.
	urgent       map[*segment]bool
	destinations []string // of all executions that hold it
	onPieces     map[*segment]func(piece int, verified bool)
	held         map[*segment]bool // whose build has others go before it
	last         swarm.Stats
	senders      senders
	downRate     float64
	upRate       float64
	// heard is what had come over the wire when something last did, at heardAt;
	// patience is how long nothing may.
	heard    int64
	heardAt  time.Time
	patience time.Duration
	wholeAt  time.Time // zero while it is not
}

// acquire returns the download of a segment, starting it if s is the first to ask.
func (a *Agent) acquire(ctx context.Context, s *segment, infohash manifest.InfoHash, shape manifest.Shape, destinations []string) (*download, error) {
	release, err := a.turns.Take(ctx, infohash)
	if err != nil {
		return nil, err
	}
	defer release()
	a.mu.Lock()
	d := a.downloads[infohash]
	a.mu.Unlock()
	if d != nil {
		d.torrent.GoesTo(destinations)
	} else {
		d = &download{
			infohash: infohash,
			self:     a.gossip.Name(),
			onPieces: make(map[*segment]func(int, bool)),
			urgent:   make(map[*segment]bool),
			held:     make(map[*segment]bool),
			senders:  make(senders),
			heardAt:  time.Now(),
			patience: stuckAfter,
		}
		d.torrent, err = a.swarm.Fetch(swarm.Fetch{
			InfoHash: infohash, Shape: shape, Build: s.build, Destinations: destinations, OnPiece: d.onPiece,
		})
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		a.downloads[infohash] = d
		a.mu.Unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onPieces[s] = func(int, bool) { s.move() }
	for _, name := range destinations {
		if !slices.Contains(d.destinations, name) {
			d.destinations = append(d.destinations, name)
		}
	}
	return d, nil
}

// subscribe has a segment hear of its pieces, as swarm.Fetch says, until the release.
// onPiece must not block.
func (d *download) subscribe(s *segment, onPiece func(piece int, verified bool)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onPieces[s] = onPiece
}

// release ends one segment's interest. A whole one stays in the engine and
// is seeded until the cache evicts it; an unfinished one that nobody wants any
// more leaves the engine, its pieces stay on disk.
func (a *Agent) release(d *download, s *segment) {
	// Whoever has the turn is at the disk, and comes to an end.
	done, _ := a.turns.Take(context.Background(), d.infohash)
	defer done()
	d.mu.Lock()
	delete(d.onPieces, s)
	delete(d.urgent, s)
	last := len(d.onPieces) == 0
	d.mu.Unlock()
	d.hold(s, false)
	if !last {
		return
	}
	a.mu.Lock()
	delete(a.downloads, d.infohash)
	a.mu.Unlock()
	select {
	case <-d.torrent.Whole():
		d.torrent.DisconnectComplete()
	default:
		d.torrent.Drop()
	}
}

// setUrgent takes note whether a segment is the first that its build lacks.
func (d *download) setUrgent(s *segment, urgent bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if delete(d.urgent, s); urgent {
		d.urgent[s] = true
	}
}

// hold has nothing more asked for while the builds of all its segments want it so.
func (d *download) hold(s *segment, held bool) (all bool) {
	d.mu.Lock()
	if delete(d.held, s); held {
		d.held[s] = true
	}
	all = len(d.held) > 0 && len(d.held) == len(d.onPieces)
	d.mu.Unlock()
	d.torrent.Hold(all)
	return all
}

func (d *download) onPiece(piece int, verified bool) {
	d.mu.Lock()
	subscribers := slices.Collect(maps.Values(d.onPieces))
	d.mu.Unlock()
	for _, f := range subscribers {
		f(piece, verified)
	}
}

// addPeers tells the engine of every member that may hold pieces: the seeders,
// and the agents of all destinations. The engine forgets an address that it
// could not reach, hence again and again.
func (d *download) addPeers(members []gossip.Member) {
	if d.torrent.Done() {
		return
	}
	d.mu.Lock()
	destinations := d.destinations
	d.mu.Unlock()
	d.torrent.AddPeers(peersOf(d.self, destinations, members))
}

// measure updates the rates after the time since its last call.
func (d *download) measure(elapsed time.Duration) {
	now := d.torrent.Stats()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.downRate = smoothed(d.downRate, now.DownloadedBytes-d.last.DownloadedBytes, elapsed)
	d.upRate = smoothed(d.upRate, now.UploadedBytes-d.last.UploadedBytes, elapsed)
	d.senders.measure(now.Peers, elapsed)
	d.last = now
}

// count takes in what came since measure, for a report between two. It is not to be
// called beside measure.
func (d *download) count() {
	now := d.torrent.Stats()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.senders.count(now.Peers)
}

// links are those who sent the build so far.
func (d *download) links(names map[[20]byte]gossip.Member) []gossip.Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.senders.links(names)
}

// stuck reports whether it is time to connect to the peers anew.
func (d *download) stuck(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last.WireBytes-d.heard >= stuckBytes {
		d.patience = stuckAfter
	} else if len(d.last.Peers) > 0 && len(d.urgent) > 0 && !d.torrent.Done() {
		if now.Sub(d.heardAt) < d.patience {
			return false
		}
		d.heard, d.heardAt, d.patience = d.last.WireBytes, now, min(2*d.patience, maxStuck)
		return true
	}
	d.heard, d.heardAt = d.last.WireBytes, now
	return false
}

// hangUp ends the connections with peers that have all of a segment as well, once it was
// whole for a while: a build has many segments, and each connection costs memory.
func (d *download) hangUp(now time.Time) {
	d.mu.Lock()
	switch {
	case !d.torrent.Done():
		d.wholeAt = time.Time{}
	case d.wholeAt.IsZero():
		d.wholeAt = now
	}
	due := !d.wholeAt.IsZero() && now.Sub(d.wholeAt) >= hangUpAfter
	d.mu.Unlock()
	if due {
		d.torrent.DisconnectComplete()
	}
}

// rates returns bytes/s down and up.
func (d *download) rates() (down, up int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(d.downRate), int64(d.upRate)
}
