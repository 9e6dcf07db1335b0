package swarm

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// beginning is how many bytes show that a chunk is on its way: more than the few
// messages of a peer that says what it has, less than a packet.
const beginning = 1 << 10

// patience is how long a peer may take. A chunk that was asked for holds its piece
// back: the engine asks nobody else, but for a peer that is idle, and whom it looks
// at, after stealGrace. So a silent peer holds one or two pieces for ever.
//
// Nobody is to be punished for a slow link. Among 16 peers, a region with an uplink
// of 1 Mbit/s sends each 7.8 kB/s, a chunk of 256 KiB in half a minute, but always
// something; what is queued on the own uplink does not count, see peerwire.Mark.
type patience struct {
	// tick is how often the peers are looked at.
	tick time.Duration
	// late is when idle peers are asked for the same pieces, as soon as the
	// engine can.
	late time.Duration
	// silent is how long nothing at all may come after a request that has
	// reached the peer. An honest one answers within a round trip and what its
	// link has queued, a second or two.
	silent time.Duration
	// faded is the same for a peer that has sent something before: on a link
	// that loses much TCP may wait for several seconds between two packets.
	faded time.Duration
	// slow is the time over which leastRate is measured.
	slow time.Duration
	// leastRate in bytes/s is a quarter of the smallest share above. With more
	// than sharers peers the shares are smaller.
	leastRate float64
	sharers   int
	// pause is how long a peer that stalled once is left alone: its pieces come
	// from others meanwhile.
	pause time.Duration
	// behind is how long what is asked for may take, over all peers: see flow.
	behind time.Duration
	// sleeps is how long nothing of a segment must have passed before others that are
	// asked for may have its place in the engine.
	sleeps time.Duration
	// place is how long nothing must have passed with a host for another one to have its
	// place.
	place time.Duration
}

// stall: a link may be down for a moment; twice, without a chunk in between, is no
// accident.
func (p patience) stall() peerwire.Offence {
	return peerwire.Offence{Reason: peerwire.Stalled, Limit: 2, Pause: p.pause}
}

func defaultPatience() patience {
	return patience{
		tick:      500 * time.Millisecond,
		late:      stealGrace,
		silent:    5 * time.Second,
		faded:     15 * time.Second,
		slow:      20 * time.Second,
		leastRate: 2000,
		sharers:   16,
		pause:     5 * time.Second,
		behind:    15 * time.Second,
		sleeps:    sleepsAfter,
		place:     idlePlace,
	}
}

// exchange is what is asked of one connected peer.
type exchange struct {
	conn *peerwire.Conn // nil for a connection that was gone before it was added
	host bool           // the peer is a host, which is asked for nothing
	id   [20]byte
	peer *torrent.PeerConn

	mu    sync.Mutex
	asked map[int]int // chunks that the engine waits for, by piece
	// owed is how many requests the peer has not answered, with a chunk or a
	// refusal. It goes on owing what the engine has asked somebody else for since.
	owed   int
	sent   peerwire.Mark // behind the newest request
	chunks int           // that came since the last tick

	info dictionary // under the engine's lock

	// Of the tick alone.
	read int64
	held time.Duration
	wait wait
}

// added begins an exchange, under the engine's lock.
func (s *Swarm) added(c *torrent.PeerConn) {
	x := &exchange{id: c.PeerID, peer: c, asked: make(map[int]int)}
	if x.conn, x.host = s.conn(c.RemoteAddr.String(), manifest.InfoHash(c.Torrent().InfoHash())); x.conn != nil {
		x.conn.Arrived()
		x.read, x.held = x.conn.Received(), x.conn.HeldBack(time.Now())
	}
	s.exchanges.Store(&c.Peer, x)
}

func (s *Swarm) exchange(p *torrent.Peer) *exchange {
	x, ok := s.exchanges.Load(p)
	if !ok {
		return nil
	}
	return x.(*exchange)
}

// requested and settled count what is outstanding, under the engine's lock.
func (s *Swarm) requested(e torrent.PeerRequestEvent) {
	x := s.exchange(e.Peer)
	if x == nil || x.conn == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.asked[int(e.Index)]++
	x.owed++
	x.sent = x.conn.Mark()
}

func (s *Swarm) settled(e torrent.PeerRequestEvent) {
	x := s.exchange(e.Peer)
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.asked[int(e.Index)]--; x.asked[int(e.Index)] <= 0 {
		delete(x.asked, int(e.Index))
	}
	if !x.peer.PeerExtensionBytes.SupportsFast() {
		x.owed = max(0, x.owed-1) // it need not answer a cancel (BEP 6)
	}
}

// answered takes a peer's message, under the engine's lock.
func (s *Swarm) answered(c *torrent.PeerConn, msg *pp.Message) {
	if msg.Keepalive || msg.Type != pp.Piece && msg.Type != pp.Reject || !c.PeerExtensionBytes.SupportsFast() {
		return
	}
	if x := s.exchange(&c.Peer); x != nil {
		x.mu.Lock()
		x.owed = max(0, x.owed-1)
		x.mu.Unlock()
	}
}

// received notes who sent a chunk, under the engine's lock.
func (s *Swarm) received(e torrent.ReceivedUsefulDataEvent) {
	x := s.exchange(e.Peer)
	if x == nil || x.conn == nil {
		return
	}
	x.mu.Lock()
	x.chunks++
	x.mu.Unlock()
	if t, ok := s.byEngine.Load(e.Peer.Torrent()); ok {
		t.(*Torrent).origins.note(int(e.Message.Index), int64(e.Message.Begin), len(e.Message.Piece), x.conn)
	}
}

// disconnected hears why a connection ended, under the engine's lock.
func (s *Swarm) disconnected(e torrent.StatusUpdatedEvent) {
	if e.Event != torrent.PeerDisconnected || e.Error == nil || !isBabble(e.Error) {
		return
	}
	s.exchanges.Range(func(_, v any) bool {
		x := v.(*exchange)
		if x.id != e.PeerId || x.conn == nil {
			return true
		}
		x.conn.Blame(peerwire.Babble)
		return false
	})
}

// isBabble reports whether a connection ended for what the peer said, and not for
// what became of the connection.
func isBabble(err error) bool {
	var network net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network):
		return false
	}
	return true
}

// judge looks for peers that take requests and do not answer them, until ctx ends.
func (s *Swarm) judge(ctx context.Context) {
	ticker := time.NewTicker(s.patience.tick)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			// A process that was stopped, or starved, knows nothing of that time.
			s.look(min(now.Sub(last), 2*s.patience.tick))
			last = now
		}
	}
}

// look judges every peer by what came from it in the time that has elapsed.
func (s *Swarm) look(elapsed time.Duration) {
	type seen struct {
		*exchange
		bytes  int64
		chunks int
		held   time.Duration
	}
	var waiting []seen
	peers, asked := make(map[*torrent.Torrent]int), make(map[*torrent.Torrent]map[int]bool)
	quiet, now, came := true, time.Now(), int64(0)
	s.exchanges.Range(func(_, v any) bool {
		x := v.(*exchange)
		if x.conn == nil {
			return true
		}
		peers[x.peer.Torrent()]++
		read := x.conn.Received()
		bytes := read - x.read
		x.read = read
		until := x.conn.HeldBack(now)
		held := until - x.held
		x.held = until
		x.mu.Lock()
		chunks, due := x.chunks, x.owed > 0 && x.conn.Reached(&x.sent)
		x.chunks = 0
		for i := range x.asked {
			of := asked[x.peer.Torrent()]
			if of == nil {
				of = make(map[int]bool)
				asked[x.peer.Torrent()] = of
			}
			of[i] = true
		}
		x.mu.Unlock()
		quiet, came = quiet && bytes == 0, came+bytes
		if chunks > 0 {
			x.conn.Delivered()
		}
		if due {
			waiting = append(waiting, seen{x, bytes, chunks, held})
		} else {
			x.wait.over(false)
		}
		return true
	})
	if quiet && len(waiting) > 1 || s.narrowed.Load() {
		// More likely the own link is down than all of them at once; or it is what is slow.
		elapsed /= 4
	}
	for _, x := range waiting {
		t := x.peer.Torrent()
		least := s.patience.leastRate * min(1, float64(s.patience.sharers)/float64(peers[t]))
		// While it is not read, for the own limit's sake, nothing can come.
		late, stalled := x.wait.judge(s.patience, max(0, elapsed-x.held), x.bytes, x.chunks, least)
		if stalled {
			x.conn.Blame(s.patience.stall())
		} else if late {
			x.offer()
		}
	}
	s.ask(now, came, asked)
}

// offer lets idle peers take the pieces that this one holds back: the engine looks
// at them when a piece becomes wanted.
func (x *exchange) offer() {
	x.mu.Lock()
	pieces := make([]int, 0, len(x.asked))
	for i := range x.asked {
		pieces = append(pieces, i)
	}
	x.mu.Unlock()
	t := x.peer.Torrent()
	for _, i := range pieces {
		if state := t.PieceState(i); !state.Complete && state.Priority != torrent.PiecePriorityNone {
			t.Piece(i).SetPriority(torrent.PiecePriorityNone)
			t.Piece(i).SetPriority(state.Priority)
		}
	}
}

// wait is how long, since its last chunk, a peer has let us wait.
type wait struct {
	proven      bool // it has sent chunks
	whole       time.Duration
	silent      time.Duration
	bytes       int64 // since the beginning
	window      time.Duration
	windowBytes int64
}

// over begins anew, when a chunk came or nothing is waited for any more.
func (w *wait) over(chunk bool) { *w = wait{proven: w.proven || chunk} }

// judge takes what came in the time that has elapsed. The peer is late when others
// should be asked as well, and has stalled when that is against it.
func (w *wait) judge(p patience, elapsed time.Duration, bytes int64, chunks int, least float64) (late, stalled bool) {
	if chunks > 0 {
		w.over(true)
		return false, false
	}
	w.whole += elapsed
	w.window += elapsed
	w.bytes += bytes
	w.windowBytes += bytes
	w.silent += elapsed
	limit := p.silent
	if bytes > 0 {
		w.silent = 0
	}
	if w.bytes >= beginning || w.proven {
		limit = p.faded
	}
	stalled = w.silent >= limit
	if w.window >= p.slow {
		stalled = stalled || float64(w.windowBytes) < least*w.window.Seconds()
		w.window, w.windowBytes = 0, 0
	}
	// Bytes that are no chunk at all.
	stalled = stalled || w.whole.Seconds() >= maxChunk/least+p.silent.Seconds()
	late = w.whole >= p.late && float64(w.bytes) < least*w.whole.Seconds()
	return late, stalled
}
