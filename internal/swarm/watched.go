package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

// handshakeLength is that of BEP 3; the infohash and the peer id are its end.
const handshakeLength = len(pp.Protocol) + 8 + 20 + 20

var (
	errLeftAlone = errors.New("bad peer, left alone for a while")
	errGarbage   = errors.New("not a BitTorrent handshake")
)

// watched is a connection to a peer, between the engine and the socket. It reads
// who the peer is from its handshake, refuses those that are left alone, and counts
// bytes.
type watched struct {
	net.Conn
	swarm *Swarm
	// dialled is whom this address was named for; zero when the peer has
	// connected. Who cheats may give another id in its handshake.
	dialled [20]byte
	remote  string
	// inbound is a connection that the peer made, from an address of which allowed
	// says whether peers there need not be members.
	inbound, allowed bool
	from             netip.Addr

	early []byte // what was read before the engine had it; of the one who reads
	hello []byte // the peer's handshake so far; of the one who reads
	// key is set when the handshake is complete; id is who the peer says it is.
	key atomic.Pointer[connKey]
	id  [20]byte
	// of is the torrent that the handshake names, nil for an unknown one; asksFor is the
	// same until the engine has the connection.
	of, asksFor atomic.Pointer[Torrent]
	closed      atomic.Bool
	gone        chan struct{} // closed by the first Close

	// held is what the engine writes to a peer that has not been admitted: the
	// beginning of its handshake. open is set when the peer is.
	gate sync.Mutex
	held []byte
	open atomic.Bool

	// messages is what came after the handshake; of the one who reads.
	messages *messages
	// heard is when bytes came last, useful when a chunk or a request for one did, in
	// Unix nanoseconds; 0 for never.
	heard, useful atomic.Int64

	// owed are bytes that were read and not waited for yet; of the one who reads.
	owed     int
	heldBack heldBack
	// content is when bytes of a chunk came last, in Unix nanoseconds; 0 for never.
	content atomic.Int64

	in atomic.Int64 // bytes read
	// begun counts writes, done those that have returned, written their bytes.
	begun, done, written atomic.Int64
}

// connKey finds a connection from what the engine tells of it.
type connKey struct {
	remote   string
	infohash [20]byte
}

func (s *Swarm) watch(c net.Conn, dialled [20]byte, remote string) *watched {
	if tcp, ok := c.(*net.TCPConn); ok {
		// The engine would do this, did it see the type: a connection that it
		// closes is to be gone at once.
		_ = tcp.SetLinger(0)
	}
	w := &watched{Conn: c, swarm: s, dialled: dialled, remote: remote, gone: make(chan struct{})}
	if addr, err := netip.ParseAddrPort(remote); err == nil {
		w.from = addr.Addr().Unmap()
	}
	return w
}

// NetConn is the connection below, as *tls.Conn has it.
func (w *watched) NetConn() net.Conn { return w.Conn }

func (w *watched) Read(b []byte) (int, error) {
	if w.messages != nil {
		b = w.slowed(b)
	}
	b, err := w.afford(b)
	if err != nil {
		return 0, err
	}
	n, err := w.receive(b)
	w.in.Add(int64(n))
	w.owe(n)
	if n == 0 {
		return n, err
	}
	now := time.Now()
	w.heard.Store(now.UnixNano())
	if w.key.Load() != nil {
		w.follow(b[:n], now)
		return n, err
	}
	before := len(w.hello)
	if refused := w.greet(b[:n]); refused != nil {
		return 0, refused
	}
	if w.key.Load() != nil {
		w.messages = newMessages(now)
		w.follow(b[handshakeLength-before:n], now)
	}
	return n, err
}

// receive reads what was read early, and then on.
func (w *watched) receive(b []byte) (int, error) {
	if len(w.early) > 0 {
		n := copy(b, w.early)
		w.early = w.early[n:]
		return n, nil
	}
	return w.Conn.Read(b)
}

// follow takes what came after the handshake.
func (w *watched) follow(b []byte, now time.Time) {
	before := w.messages.content
	if w.messages.feed(b, w.written.Load(), now) {
		w.useful.Store(now.UnixNano())
		if t := w.of.Load(); t != nil {
			t.useful.Store(now.UnixNano())
		}
	}
	if w.messages.content > before {
		w.content.Store(now.UnixNano())
	}
}

// slowed waits until the peer's messages are paid for, and returns how much of b is
// to be read then.
func (w *watched) slowed(b []byte) []byte {
	owed := w.messages.owed(time.Now())
	if owed == 0 {
		return b
	}
	w.swarm.counts.slowed.Add(1)
	w.swarm.warnFlood(w)
	timer := time.NewTimer(owed)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.gone:
	}
	return b[:min(len(b), slowRead)]
}

// greet takes the next bytes of the handshake.
func (w *watched) greet(b []byte) error {
	w.hello = append(w.hello, b[:min(len(b), handshakeLength-len(w.hello))]...)
	if n := min(len(w.hello), len(pp.Protocol)); string(w.hello[:n]) != pp.Protocol[:n] {
		w.swarm.conduct.strike(w.unnamed(), babble)
		return errGarbage
	}
	if len(w.hello) < handshakeLength {
		return nil
	}
	key := &connKey{remote: w.remote}
	copy(key.infohash[:], w.hello[handshakeLength-40:])
	copy(w.id[:], w.hello[handshakeLength-20:])
	if w.swarm.conduct.refused(w.id) {
		return errLeftAlone
	}
	if err := w.swarm.admit(w, key); err != nil {
		return err
	}
	if w.inbound {
		if err := w.swarm.openFor(key.infohash, w); err != nil {
			return err
		}
	}
	if err := w.admitted(); err != nil {
		return err
	}
	if t, ok := w.swarm.Torrent(key.infohash); ok {
		w.of.Store(t)
	}
	w.hello = nil
	w.key.Store(key)
	w.swarm.conns.Store(*key, w)
	if w.closed.Load() { // meanwhile, without seeing the key
		w.swarm.conns.CompareAndDelete(*key, w)
	}
	return nil
}

// unnamed is the peer as long as it has not said who it is.
func (w *watched) unnamed() who {
	if w.dialled != ([20]byte{}) {
		return who{id: w.dialled}
	}
	addr, err := netip.ParseAddrPort(w.remote)
	if err != nil {
		return who{}
	}
	return who{ip: addr.Addr().Unmap()}
}

// blame holds an offence against whoever is at the other end: who it says it is,
// and whom we dialled.
func (w *watched) blame(o offence) {
	w.swarm.conduct.strike(who{id: w.id}, o)
	if w.dialled != ([20]byte{}) && w.dialled != w.id {
		w.swarm.conduct.strike(who{id: w.dialled}, o)
	}
}

func (w *watched) is(id [20]byte) bool { return w.id == id || w.dialled == id }

func (w *watched) Write(b []byte) (int, error) {
	if w.inbound && !w.open.Load() && w.hold(b) {
		return len(b), nil
	}
	return w.write(b)
}

// hold keeps what is written before the peer is admitted; false when it is meanwhile.
// The engine writes no more than its handshake until it has read the peer's.
func (w *watched) hold(b []byte) bool {
	w.gate.Lock()
	defer w.gate.Unlock()
	if w.open.Load() {
		return false
	}
	w.held = append(w.held, b...)
	return true
}

// admitted lets out what was held.
func (w *watched) admitted() error {
	w.gate.Lock()
	defer w.gate.Unlock()
	var err error
	if len(w.held) > 0 {
		_, err = w.write(w.held) // into an empty buffer
		w.held = nil
	}
	w.open.Store(true) // what comes now comes after
	return err
}

func (w *watched) write(b []byte) (int, error) {
	w.begun.Add(1)
	defer w.done.Add(1)
	return w.writeWithin(b)
}

// SetDeadline never fails: the engine panics on an error, which comes when the connection
// had to go for another one before the engine looked at it. Its reads fail then.
func (w *watched) SetDeadline(t time.Time) error {
	_ = w.Conn.SetDeadline(t)
	return nil
}

// acknowledged is how many of the written bytes have reached the peer's machine.
func (w *watched) acknowledged() int64 {
	written := w.written.Load()
	return written - unacknowledged(w.Conn)
}

func (w *watched) Close() error {
	if !w.closed.Swap(true) {
		close(w.gone)
	}
	if w.inbound {
		w.swarm.doors.leave(w)
		w.arrived()
	}
	if key := w.key.Load(); key != nil {
		w.swarm.conns.CompareAndDelete(*key, w)
	}
	return w.Conn.Close()
}

// dialer makes the engine's connections.
type dialer struct{ swarm *Swarm }

func (d dialer) DialerNetwork() string { return "tcp" }

func (d dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	id := d.swarm.conduct.at(addr)
	if d.swarm.conduct.refused(id) {
		d.swarm.counts.spared.Add(1)
		return nil, fmt.Errorf("dialling %s: %w", addr, errLeftAlone)
	}
	if c := d.swarm.spares.take(addr, time.Now()); c != nil {
		d.swarm.counts.ready.Add(1)
		return d.swarm.watch(c, id, addr), nil
	}
	c, err := d.swarm.dial(ctx, id, addr)
	if err != nil {
		return nil, err
	}
	return d.swarm.watch(c, id, addr), nil
}

// dial connects to whom was named for an address.
func (s *Swarm) dial(ctx context.Context, id [20]byte, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: dialTimeout, LocalAddr: s.cfg.dialFrom}).DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() == nil {
			s.counts.unreached.Add(1)
			s.dialFailed(id, addr, err, time.Now())
		}
		return nil, err
	}
	s.counts.reached.Add(1)
	s.dialReached(id)
	return c, nil
}
