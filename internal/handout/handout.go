// Package handout is super-seeding (BEP 16) as a hand-out queue at the wire: a
// seeder's engine that has everything shows its peers nothing, and each piece is
// offered to one of them only, so that the seeder sends each piece about once
// and the peers trade the rest.
//
// Set wraps the connections between engine and socket (conn.go), where it hides
// the engine's pieces and puts Have messages of its own into the stream. Which
// piece goes to whom is decided by a queue for each torrent (queue.go). The
// engine knows nothing of it.
package handout

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/seldom"
)

const (
	// TickInterval is how often Run calls Tick.
	TickInterval = 250 * time.Millisecond
	// noticeInterval is the time between two lines about the same address, of which
	// maxNotices are told apart.
	noticeInterval = time.Minute
	maxNotices     = 32
)

// Config of a Set. The zero value logs nothing and reads the machine's clock.
type Config struct {
	// Logger may be nil.
	Logger *slog.Logger
	// Now tells the time; nil means time.Now.
	Now func() time.Time
	// Thrifty gives second copies to those alone whom nobody else serves: what the peers
	// do not trade among themselves at once, they will. First copies go to who passes
	// them on, or who is slow, or far ahead, would have them all, and everybody else wait
	// for that one. Who asks for what was not offered is disconnected.
	Thrifty bool
	// HangUp is how long a connection stays whose peer has announced every piece; 0 for as
	// long as it likes.
	HangUp time.Duration
}

// Set is the queues of all torrents of one seeder. It is safe for concurrent
// use.
type Set struct {
	logger  *slog.Logger
	now     func() time.Time
	thrifty bool
	hangUp  time.Duration
	notices *seldom.Lines

	mu     sync.Mutex // held for no I/O
	queues map[manifest.InfoHash]*queue
	order  []*queue // by place
	before Totals   // of those removed
	// outstanding is the length of all that is offered and not announced yet; rate is
	// how fast that comes back, in bytes/s, taken what did since lastTick.
	outstanding, taken int64
	rate               float64
	lastTick           time.Time
	// receivers are those who are connected, by peer id; alone is how much all of them were
	// offered first that nobody else has yet, in bytes.
	receivers map[[20]byte]*receiver
	alone     int64
}

// NewSet returns a Set without torrents. Run must run for as long as connections
// are wrapped.
func NewSet(cfg Config) *Set {
	s := &Set{logger: cfg.Logger, now: cfg.Now, thrifty: cfg.Thrifty, hangUp: cfg.HangUp, notices: seldom.New(noticeInterval, maxNotices), queues: make(map[manifest.InfoHash]*queue), receivers: make(map[[20]byte]*receiver)}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.lastTick = s.now()
	return s
}

// Add prepares for a torrent of so many pieces of pieceLength bytes, both greater
// than 0. The engine must not have it yet, or early peers are shown everything. Of a
// torrent that is there only the place changes, to the earlier one, and whether there
// is one receiver, alone.
func (s *Set) Add(infohash manifest.InfoHash, place Place, alone bool, pieces int, pieceLength int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(infohash, place, alone, pieces, pieceLength)
}

// add is called with mu held, and reports whether the torrent is new.
func (s *Set) add(infohash manifest.InfoHash, place Place, alone bool, pieces int, pieceLength int64) (_ *queue, fresh bool) {
	q := s.queues[infohash]
	switch {
	case q == nil:
		q, fresh = newQueue(s, place, pieces, pieceLength), true
		s.queues[infohash] = q
	case place.Compare(q.place) < 0:
		s.take(q)
		q.place = place
	default:
		q.lone = alone
		return q, false
	}
	q.lone = alone
	s.insert(q)
	return q, fresh
}

// Grow is Add for a torrent of which nothing is here yet: its pieces are offered as Here
// says that they are. Of one that is there only the place changes, as by Add. So many others
// hand it out before this Set does, which is on standby then: pieces go to those alone whom
// nobody serves, until nobody who is connected gets anything new any more (takeOverAfter).
func (s *Set) Grow(infohash manifest.InfoHash, place Place, others, pieces int, pieceLength int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, fresh := s.add(infohash, place, false, pieces, pieceLength)
	if fresh {
		q.sendable, q.absent, q.open = newBitmap(pieces), pieces, newBitmap(pieces)
		q.progress = s.now()
	}
	if q.before != others {
		q.before, q.tookOver, q.progress = others, false, s.now()
		s.fill()
	}
}

// Here says that pieces of a torrent that grows are here, or that they are not any more.
// It does not block.
func (s *Set) Here(infohash manifest.InfoHash, here bool, pieces ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[infohash]
	if q == nil || q.sendable == nil {
		return
	}
	opened := false
	for _, i := range pieces {
		if i >= 0 && i < q.pieces {
			opened = q.arrive(i, here) || opened
		}
	}
	if opened {
		q.fillAll(false)
		s.passOn(q)
	}
}

// Raise gives a torrent that is there an earlier place; a later one changes nothing.
func (s *Set) Raise(infohash manifest.InfoHash, place Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[infohash]; q != nil && place.Compare(q.place) < 0 {
		s.take(q)
		q.place = place
		s.insert(q)
		s.fill()
	}
}

// Remove forgets a torrent; one that is not there is fine. Connections made before
// are the engine's to close, when it drops the torrent; those made after it pass
// through untouched.
func (s *Set) Remove(infohash manifest.InfoHash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[infohash]; q != nil {
		delete(s.queues, infohash)
		s.before.add(q.counters)
		s.take(q)
		for i := range q.firsts {
			q.spread(i)
		}
		q.firsts, q.removed = nil, true
		s.outstanding -= int64(q.outstanding) * q.pieceLength
		s.fill()
	}
}

// Link is a peer's place in a torrent's queue.
type Link struct {
	set   *Set
	queue *queue
	peer  *peer
}

// Connect makes somebody, who has the same peer id at all torrents, a peer of one; nil, and
// the torrent's length in pieces, when that has too many, and 0 pieces when it is not in the
// Set. Offers are passed to offer, hangUp is called when the connection is to end; neither
// must block, or call the Set. Wrap does it for connections.
func (s *Set) Connect(infohash manifest.InfoHash, peerID [20]byte, offer func(pieces ...int), hangUp func()) (*Link, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[infohash]
	if q == nil {
		return nil, 0
	}
	p := q.connect(peerID, offer)
	if p == nil {
		return nil, q.pieces
	}
	p.hangUp = hangUp
	return &Link{s, q, p}, q.pieces
}

// Has says what the peer has from the start; offers may come from now on.
func (l *Link) Has(pieces ...int) {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	has := newBitmap(l.queue.pieces)
	for _, i := range pieces {
		has.set(i)
	}
	l.queue.join(l.peer, has)
}

// Have says that the peer has a piece more.
func (l *Link) Have(piece int) {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.queue.have(l.peer, piece)
}

// Leave ends the peer's place.
func (l *Link) Leave() {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.queue.leave(l.peer)
}

// Wrap puts the hand-out into a connection that the engine accepts, above TLS if
// there is any. Which torrent it is about is read from the remote's handshake; one
// for a torrent that is not in the Set, or no handshake at all, passes through
// untouched. The engine must close the returned connection, and use no stream
// encryption of its own.
func (s *Set) Wrap(c net.Conn) net.Conn { return newConn(c, s) }

// Run measures rates and looks for stalls until ctx ends; it returns nil.
func (s *Set) Run(ctx context.Context) error {
	ticker := time.NewTicker(TickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		s.Tick()
	}
}

// Tick measures rates and looks for stalls once.
func (s *Set) Tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.measure(now)
	for _, q := range s.order {
		q.tick(now)
	}
	s.fill()
}

// Stats are counters of one torrent since it was added, in pieces but for Peers.
type Stats struct {
	Pieces   int  // of the torrent
	Peers    int  // connected now
	Owned    int  // pieces that a connected peer has announced
	Handed   int  // offers of pieces that nobody had
	Requeued int  // offers taken back: their peer left, or took too long
	Second   int  // offers of pieces that others had
	TookOver bool // from others who were to hand it out
}

// Totals are counters of all torrents since the Set was made, in pieces.
type Totals struct {
	// Handed are offers of pieces that nobody had, Requeued offers taken back, Second offers
	// of pieces that others had.
	Handed, Requeued, Second int
}

// Totals returns the counters.
func (s *Set) Totals() Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.before
	for _, q := range s.queues {
		all.add(q.counters)
	}
	return all
}

func (t *Totals) add(s Stats) {
	t.Handed, t.Requeued, t.Second = t.Handed+s.Handed, t.Requeued+s.Requeued, t.Second+s.Second
}

// Stats returns the counters; false for a torrent that is not in the Set.
func (s *Set) Stats(infohash manifest.InfoHash) (Stats, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[infohash]
	if q == nil {
		return Stats{}, false
	}
	return q.stats(), true
}
