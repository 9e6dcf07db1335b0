package peerwire

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// maxSpares bounds the spare connections that are dialled: as many as there are
	// members that one build dials. Each is a socket at both ends.
	maxSpares = MaxDialled
	// spareAge is how long a spare connection may wait for its use. While a build is read
	// that is seconds. Firewalls and NAT forget a connection on which nothing passes, few
	// before a minute, and say nothing.
	spareAge = 30 * time.Second
)

// spares are connections that were dialled ahead, one for each peer with which further
// torrents are expected. A new torrent's handshake is sent on one that is there: to dial
// then would cost a round trip, when its bytes should flow already. It is safe for
// concurrent use.
type spares struct {
	ctx context.Context // ends with the Wire
	// dial makes a connection to whom was named for an address.
	dial func(ctx context.Context, id [20]byte, addr string) (*link, error)
	// alongside runs what the Wire's owner waits for; false when nothing begins any more.
	alongside func(func()) bool

	mu       sync.Mutex // held for no I/O
	expected map[string][20]byte
	byAddr   map[string]*spare
}

// spare is one of them.
type spare struct {
	since time.Time
	end   context.CancelFunc
	// conn is set before dialled is closed, alive before ended is: the peer has neither
	// hung up nor spoken without being greeted. A dial that failed closes ended alone.
	conn    *link
	alive   bool
	dialled chan struct{}
	ended   chan struct{}
}

// expect says with whom further torrents are expected, in place of those before.
func (p *spares) expect(expected map[string][20]byte, now time.Time) {
	p.mu.Lock()
	p.expected = expected
	p.mu.Unlock()
	p.tend(now)
}

// tend ends spares that are not expected any more, or too old, and dials those that lack.
// One that the peer has closed, or that could not be dialled, is not replaced before its
// time: members of an older version close what is silent for four seconds.
func (p *spares) tend(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, s := range p.byAddr {
		if _, expected := p.expected[addr]; !expected || now.Sub(s.since) >= spareAge {
			delete(p.byAddr, addr)
			s.end()
		}
	}
	for addr := range p.expected {
		p.fill(addr, now)
	}
}

// fill dials a spare for an address, if one is expected and none is there. The caller
// holds mu.
func (p *spares) fill(addr string, now time.Time) {
	id, expected := p.expected[addr]
	if !expected || p.byAddr[addr] != nil {
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	s := &spare{since: now, end: cancel, dialled: make(chan struct{}), ended: make(chan struct{})}
	begun := p.alongside(func() {
		defer cancel()
		s.attend(ctx, func() (*link, error) { return p.dial(ctx, id, addr) })
	})
	if !begun {
		cancel()
		return
	}
	p.byAddr[addr] = s
}

// attend dials, and reads until the connection is taken or at its end: a peer says nothing
// before it is greeted.
func (s *spare) attend(ctx context.Context, dial func() (*link, error)) {
	defer close(s.ended)
	conn, err := dial()
	if err != nil {
		return // said by dial
	}
	s.conn = conn
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	close(s.dialled)
	_, err = conn.Read(make([]byte, 1))
	if s.alive = stop() && errors.Is(err, os.ErrDeadlineExceeded); !s.alive {
		conn.Close()
	}
}

// take returns the spare of an address for use, and has another one dialled; nil when none
// is ready.
func (p *spares) take(addr string, now time.Time) *link {
	s := p.ready(addr, now)
	if s == nil {
		return nil
	}
	_ = s.conn.SetReadDeadline(time.Unix(1, 0)) // an error means that it is closed
	if <-s.ended; !s.alive || s.conn.SetReadDeadline(time.Time{}) != nil {
		return nil
	}
	return s.conn
}

// ready takes the spare of an address out, and fills its place.
func (p *spares) ready(addr string, now time.Time) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.byAddr[addr]
	if s == nil {
		return nil
	}
	select {
	case <-s.dialled:
	default:
		return nil // on its way: it is the next one's; or it failed
	}
	delete(p.byAddr, addr)
	p.fill(addr, now)
	return s
}

// count is how many are open.
func (p *spares) count() (open int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.byAddr {
		select {
		case <-s.ended:
			continue
		default:
		}
		select {
		case <-s.dialled:
			open++
		default:
		}
	}
	return open
}

// ExpectMore says with which peers further torrents are expected: a connection to each of
// them is kept open for the next one. Those of others, named before, are closed. Call it
// again when that changes.
func (w *Wire) ExpectMore(peers []Peer) {
	w.Named(peers)
	expected := make(map[string][20]byte)
	for _, p := range peers {
		if len(expected) < maxSpares && !w.Refused(p.ID) {
			expected[p.Addr.String()] = p.ID
		}
	}
	w.spares.expect(expected, time.Now())
}
