package peerwire

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// handshakeLength is that of BEP 3; the infohash and the peer id are its end.
const handshakeLength = len(pp.Protocol) + 8 + 20 + 20

var (
	errLeftAlone = errors.New("bad peer, left alone for a while")
	errGarbage   = errors.New("not a BitTorrent handshake")
)

// Conn is a connection with a peer, between the engine and the socket. It reads who the
// peer is from its handshake, refuses those that are left alone, and follows what is said.
type Conn struct {
	*link
	wire *Wire
	// dialled is whom this address was named for; zero when the peer has
	// connected. Who cheats may give another id in its handshake.
	dialled [20]byte
	remote  string
	// inbound is a connection that the peer made, from an address of which allowed
	// says whether peers there need not be members.
	inbound, allowed bool
	// from is the network that it comes from, and the address itself where a member is:
	// atMember.
	from     netip.Addr
	atMember bool

	early []byte // what was read before the engine had it; of the one who reads
	hello []byte // the peer's handshake so far; of the one who reads
	// key is set when the handshake is complete; id is who the peer says it is.
	key atomic.Pointer[connKey]
	id  [20]byte
	// torrent is what it is about, nil for an unknown one; of the one who reads. asksFor
	// is the same until the engine has the connection.
	torrent Torrent
	asksFor atomic.Pointer[Torrent]
	closed  atomic.Bool

	// held is what the engine writes to a peer that has not been admitted: the
	// beginning of its handshake. open is set when the peer is.
	gate sync.Mutex
	held []byte
	open atomic.Bool

	// messages is what came after the handshake; of the one who reads.
	messages *messages
	// heard is when bytes came last, useful when a chunk or a request for one did, content
	// when bytes of a chunk did, in Unix nanoseconds; 0 for never.
	heard, useful, content atomic.Int64

	// begun counts writes, done those that have returned.
	begun, done atomic.Int64
}

func (w *Wire) watch(l *link, dialled [20]byte, remote string) *Conn {
	addr := addrOf(remote)
	c := &Conn{link: l, wire: w, dialled: dialled, remote: remote}
	c.atMember = w.cfg.MemberAt != nil && w.cfg.MemberAt(addr)
	c.from = admission.From(addr, c.atMember).Addr
	return c
}

// addrOf is the IP address of host:port; invalid where it is none.
func addrOf(remote string) netip.Addr {
	addr, _ := netip.ParseAddrPort(remote)
	return addr.Addr().Unmap()
}

// ID is who the peer says it is, zero before it did.
func (c *Conn) ID() [20]byte { return c.id }

// Peer names who is at the other end: by the certificate where it has shown one, else by the
// peer id, which it may have borrowed.
func (c *Conn) Peer() string {
	if c.peer != nil {
		return c.peer.ID.String()
	}
	return string(c.id[:])
}

// Inbound reports whether the peer has made the connection.
func (c *Conn) Inbound() bool { return c.inbound }

// Useful is when a chunk, or a request for one, came last; when the connection was made
// before the first.
func (c *Conn) Useful() time.Time {
	if at := c.useful.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return c.since
}

// Addr is the peer's address, as the engine knows it.
func (c *Conn) Addr() string { return c.remote }

// Gone is closed when the connection has ended.
func (c *Conn) Gone() <-chan struct{} { return c.socket.gone }

// Received is how many bytes have come.
func (c *Conn) Received() int64 { return c.socket.in.Load() }

// Sent is how many bytes were written.
func (c *Conn) Sent() int64 { return c.socket.out.Load() }

// HeldBack is how long it was not read, since the limit did not allow it.
func (c *Conn) HeldBack(now time.Time) time.Duration { return c.socket.heldBack.until(now) }

func (c *Conn) Read(b []byte) (int, error) {
	if c.messages != nil {
		b = c.slowed(b)
	}
	n, err := c.receive(b)
	if n == 0 {
		return n, err
	}
	now := time.Now()
	c.heard.Store(now.UnixNano())
	if c.messages != nil {
		c.follow(b[:n], now)
		return n, err
	}
	before := len(c.hello)
	if refused := c.greet(b[:n]); refused != nil {
		return 0, refused
	}
	if c.key.Load() != nil {
		c.hello, c.messages = nil, newMessages(now)
		c.follow(b[handshakeLength-before:n], now)
	}
	return n, err
}

// receive reads what was read early, and then on.
func (c *Conn) receive(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// follow takes what came after the handshake.
func (c *Conn) follow(b []byte, now time.Time) {
	before := c.messages.content
	if c.messages.feed(b, c.socket.out.Load(), now) {
		c.useful.Store(now.UnixNano())
		if c.torrent != nil {
			c.torrent.Passed(now)
		}
	}
	if c.messages.content > before {
		c.content.Store(now.UnixNano())
	}
}

// slowed waits until the peer's messages are paid for, and returns how much of b is
// to be read then.
func (c *Conn) slowed(b []byte) []byte {
	owed := c.messages.owed(time.Now())
	if owed == 0 {
		return b
	}
	c.wire.Counts.Slowed.Add(1)
	c.wire.warnFlood(c)
	timer := time.NewTimer(owed)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.Gone():
	}
	return b[:min(len(b), slowRead)]
}

// greet takes the next bytes of the handshake.
func (c *Conn) greet(b []byte) error {
	c.hello = append(c.hello, b[:min(len(b), handshakeLength-len(c.hello))]...)
	if n := min(len(c.hello), len(pp.Protocol)); string(c.hello[:n]) != pp.Protocol[:n] {
		c.wire.conduct.strike(c.unnamed(), Babble, c.remote)
		return errGarbage
	}
	if len(c.hello) < handshakeLength {
		return nil
	}
	key := &connKey{c.remote, manifest.InfoHash(c.hello[handshakeLength-40:])}
	c.id = [20]byte(c.hello[handshakeLength-20:])
	err := c.prove()
	if err == nil && c.wire.conduct.refused(c.who()) {
		return errLeftAlone
	}
	if err == nil {
		err = c.wire.admit(c, key.infohash)
	}
	if err == nil {
		err = c.begin(key.infohash)
	}
	switch {
	case !c.inbound:
	case err != nil:
		c.wire.Counts.TurnedAway.Add(1)
	default:
		c.wire.Counts.Accepted.Add(1)
		err = c.admitted()
	}
	if err != nil {
		return err
	}
	c.key.Store(key)
	c.socket.greeted.Store(true)
	c.wire.conns.Store(*key, c)
	if c.closed.Load() { // meanwhile, without seeing the key
		c.wire.conns.CompareAndDelete(*key, c)
	}
	return nil
}

// prove holds the peer id to the certificate: it is that of the member which has it, and
// of no other. Whose peer id is not known is refused by admit.
func (c *Conn) prove() error {
	m := c.wire.Member(c.id)
	switch {
	case m.Name == "":
	case c.peer == nil && c.wire.speaksTLS(m):
		c.wire.warnInsecure(c, errNoTLS)
		return errNoTLS
	case c.peer != nil && c.wire.identityOf(m) != c.peer.ID:
		c.wire.conduct.strike(c.who(), Babble, c.remote)
		c.wire.warnInsecure(c, errBorrowed)
		return errBorrowed
	}
	return nil
}

// begin learns what the connection is about.
func (c *Conn) begin(infohash manifest.InfoHash) (err error) {
	c.torrent, err = c.wire.cfg.Begin(c, infohash)
	if c.torrent != nil && c.inbound {
		c.asksFor.Store(&c.torrent)
		if err != nil || c.closed.Load() { // meanwhile, without seeing it
			c.Arrived()
		}
	}
	if errors.Is(err, ErrNoPlace) && c.inbound {
		c.wire.refuse(c, infohash, fullID)
	}
	if errors.Is(err, ErrNoDestination) {
		c.wire.warnNoDestination(c, infohash)
		if c.inbound {
			c.wire.refuse(c, infohash, unwantedID)
		}
	}
	return err
}

// Arrived says that the engine has the connection.
func (c *Conn) Arrived() {
	if t := c.asksFor.Swap(nil); t != nil {
		(*t).Arrived()
	}
}

// unnamed is the peer as long as it has not said who it is.
func (c *Conn) unnamed() who {
	switch {
	case c.peer != nil:
		return c.who()
	case c.dialled != ([20]byte{}):
		return who{id: c.dialled}
	}
	return who{ip: c.from}
}

// who is the peer: by its certificate, else as it says itself.
func (c *Conn) who() who {
	if c.peer != nil {
		return who{identity: c.peer.ID}
	}
	return who{id: c.id}
}

// expected is whom we dialled.
func (c *Conn) expected() who {
	if c.peer != nil {
		return c.who()
	}
	return who{id: c.dialled}
}

// Blame holds an offence against whoever is at the other end: who it says it is,
// and whom we dialled.
func (c *Conn) Blame(o Offence) {
	c.wire.conduct.strike(c.who(), o, c.remote)
	if c.peer == nil && c.dialled != ([20]byte{}) && c.dialled != c.id {
		c.wire.conduct.strike(who{id: c.dialled}, o, c.remote)
	}
}

// Delivered ends the doubts about a peer that stalled: it has sent a chunk.
func (c *Conn) Delivered() { c.wire.conduct.delivered(c.who()) }

// LeaveAlone leaves the peer alone for a while and holds nothing against it.
func (c *Conn) LeaveAlone(d time.Duration) { c.wire.conduct.leave(c.who(), d) }

func (c *Conn) is(w who) bool {
	return c.who() == w || c.peer == nil && !w.ip.IsValid() && c.dialled == w.id && w.identity == (identity.ID{})
}

func (c *Conn) Write(b []byte) (int, error) {
	if c.inbound && !c.open.Load() && c.hold(b) {
		return len(b), nil
	}
	return c.write(b)
}

// hold keeps what is written before the peer is admitted; false when it is meanwhile.
// The engine writes no more than its handshake until it has read the peer's.
func (c *Conn) hold(b []byte) bool {
	c.gate.Lock()
	defer c.gate.Unlock()
	if c.open.Load() {
		return false
	}
	c.held = append(c.held, b...)
	return true
}

// admitted lets out what was held.
func (c *Conn) admitted() error {
	c.gate.Lock()
	defer c.gate.Unlock()
	var err error
	if len(c.held) > 0 {
		_, err = c.write(c.held) // into an empty buffer
		c.held = nil
	}
	c.open.Store(true) // what comes now comes after
	return err
}

func (c *Conn) write(b []byte) (int, error) {
	c.begun.Add(1)
	defer c.done.Add(1)
	return c.Conn.Write(b)
}

// SetDeadline never fails: the engine panics on an error, which comes when the connection
// had to go for another one before the engine looked at it. Its reads fail then.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.Conn.SetDeadline(t)
	return nil
}

// Close ends the connection at once.
func (c *Conn) Close() error {
	c.closed.Store(true)
	if c.inbound {
		c.wire.doors.leave(c)
		c.Arrived()
	}
	if key := c.key.Load(); key != nil {
		c.wire.conns.CompareAndDelete(*key, c)
	}
	return c.link.Close()
}

// Mark is a place in what is written to a peer: behind what the engine has decided to say
// so far, which it writes soon. The zero value is the beginning.
type Mark struct {
	// begun is how many writes had begun then; at is the bytes written when all of it
	// surely was among them, 0 before; reached is set when they have come to the peer.
	begun, at int64
	reached   bool
}

// Mark marks the present place.
func (c *Conn) Mark() Mark { return Mark{begun: c.begun.Load()} }

// Reached reports whether what is before a mark has come to the peer's machine: on a slow
// uplink it may wait for long behind what goes to the same peer.
func (c *Conn) Reached(m *Mark) bool {
	if m.at == 0 {
		// The engine writes all that is due at once: the first write that began
		// after the mark has it.
		if c.done.Load() <= m.begun {
			return false
		}
		m.at = c.socket.out.Load()
	}
	m.reached = m.reached || c.socket.acknowledged() >= m.at
	return m.reached
}
