package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ready waits for the spare connection with a peer, and returns where it comes from.
func (n *node) ready(t *testing.T, peer PeerAddr) (from string) {
	t.Helper()
	eventually(t, func() bool { return n.spares.count() == 1 })
	n.spares.mu.Lock()
	defer n.spares.mu.Unlock()
	return n.spares.byAddr[peer.Addr.String()].conn.LocalAddr().String()
}

// A new torrent's handshake is the first that is said on a connection that was there
// before, and another one takes its place.
func TestHandshakeOnASpare(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	s, first, content, _ := seed(t, size, handOut)
	n := start(t, "agent", t.TempDir(), nil)
	finish(t, n.fetch(t, first, size, nil), content, s.addr)
	n.ExpectMore([]PeerAddr{s.addr})
	for i := range 3 {
		from := n.ready(t, s.addr)
		eventually(t, func() bool { return s.doors.countSilent() == 1 })
		next, content := s.another(t, byte(2+i), size)
		f := n.fetch(t, next, size, nil)
		finish(t, f, content, s.addr)
		if peers := next.Stats().Peers; len(peers) != 1 || peers[0].Addr != from {
			t.Errorf("segment %d came by %+v, the spare connection was from %s", i, peers, from)
		}
		if ready := n.counts.ready.Load(); ready != int64(i+1) {
			t.Errorf("%d spare connections were used by %d segments", ready, i+1)
		}
	}
	if n.ready(t, s.addr); n.counts.reached.Load() != 5 {
		t.Errorf("%d dials for four segments and a spare", n.counts.reached.Load())
	}
	n.ExpectMore(nil)
	eventually(t, func() bool { return s.doors.countSilent() == 0 })
	if n.spares.count() != 0 {
		t.Error("a spare connection is there though nothing is expected")
	}
}

// One that the other side has closed costs a dial, as if there were none.
func TestSpareThatWasClosed(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	s, from, content, _ := seed(t, size, handOut)
	n := start(t, "agent", t.TempDir(), nil)
	n.ExpectMore([]PeerAddr{s.addr})
	n.ready(t, s.addr)
	eventually(t, func() bool { return s.doors.countSilent() == 1 })
	s.doors.mu.Lock()
	silent := s.doors.silent[0]
	s.doors.mu.Unlock()
	silent.Close()
	eventually(t, func() bool { return n.spares.count() == 0 })
	n.spares.tend(time.Now()) // which dials nothing before its time
	finish(t, n.fetch(t, from, size, nil), content, s.addr)
	if n.counts.ready.Load() != 0 {
		t.Error("a connection was used that the other side had closed")
	}
	if n.ready(t, s.addr); n.counts.reached.Load() != 3 {
		t.Errorf("%d dials for two spare connections and the segment", n.counts.reached.Load())
	}
}

// dialled are the far ends of connections that were dialled by nobody.
type dialled struct {
	mu   sync.Mutex
	ends []net.Conn
	fail atomic.Bool
}

func (d *dialled) dial(context.Context, [20]byte, string) (net.Conn, error) {
	near, far := net.Pipe()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ends = append(d.ends, far)
	if d.fail.Load() {
		return nil, errors.New("connection refused")
	}
	return near, nil
}

func (d *dialled) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ends)
}

// closed waits for the end of the i-th.
func (d *dialled) closed(t *testing.T, i int) {
	t.Helper()
	d.mu.Lock()
	far := d.ends[i]
	d.mu.Unlock()
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func newSpares(t *testing.T) (*spares, *dialled) {
	d := new(dialled)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	return &spares{ctx: ctx, dial: d.dial, byAddr: make(map[string]*spare), alongside: func(f func()) bool {
		running.Go(f)
		return true
	}}, d
}

// A spare connection is replaced when it is old, and ends when nothing is expected any more.
func TestSparesGrowOld(t *testing.T) {
	t.Parallel()
	p, d := newSpares(t)
	now := time.Now()
	expected := map[string][20]byte{"10.0.0.1:1": PeerID("a")}
	p.expect(expected, now)
	eventually(t, func() bool { return p.count() == 1 })
	p.tend(now.Add(spareAge - 1))
	if p.tend(now.Add(spareAge)); p.take("10.0.0.2:1", now) != nil {
		t.Error("a spare of somebody else")
	}
	d.closed(t, 0)
	eventually(t, func() bool { return p.count() == 1 })
	if d.count() != 2 {
		t.Errorf("%d dials", d.count())
	}
	p.expect(nil, now.Add(spareAge))
	d.closed(t, 1)
	if c := p.take("10.0.0.1:1", now); c != nil {
		t.Error("there is one still")
	}
	// What speaks before it is greeted is not used.
	p.expect(expected, now)
	eventually(t, func() bool { return p.count() == 1 })
	if _, err := d.ends[2].Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if c := p.take("10.0.0.1:1", now); c != nil {
		t.Error("a peer that speaks first is used")
	}
}

// Who is not reached is not dialled again before its time.
func TestSpareThatIsNotReached(t *testing.T) {
	t.Parallel()
	p, d := newSpares(t)
	d.fail.Store(true)
	now := time.Now()
	p.expect(map[string][20]byte{"10.0.0.1:1": PeerID("a")}, now)
	eventually(t, func() bool { return d.count() == 1 })
	for range 10 {
		if p.tend(now.Add(spareAge - 1)); p.take("10.0.0.1:1", now) != nil {
			t.Error("there is one")
		}
	}
	p.tend(now.Add(spareAge))
	eventually(t, func() bool { return d.count() == 2 })
}

// There are as many as there may be, and none with who is left alone.
func TestSparesAreBounded(t *testing.T) {
	t.Parallel()
	n := start(t, "agent", t.TempDir(), nil)
	closed := func(i int) PeerAddr {
		return PeerAddr{PeerID(fmt.Sprint(i)), netip.MustParseAddrPort(fmt.Sprintf("127.1.%d.%d:1", i/250, 1+i%250))}
	}
	var peers []PeerAddr
	for i := range 2 * maxSpares {
		peers = append(peers, closed(i))
	}
	n.conduct.strike(who{id: peers[0].ID}, corruptPiece)
	n.ExpectMore(peers)
	n.spares.mu.Lock()
	defer n.spares.mu.Unlock()
	if len(n.spares.byAddr) != maxSpares || n.spares.byAddr[peers[0].Addr.String()] != nil {
		t.Errorf("%d are dialled", len(n.spares.byAddr))
	}
}

// A connection that says nothing has a place of its own until it speaks: the engine would
// drop it. Whoever opens many takes nobody's place.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	s, from, content, _ := seed(t, size, each(members(io.Discard, "agent"), onlyFrom("127.0.0.1")))
	n := start(t, "agent", t.TempDir(), nil)
	n.ExpectMore([]PeerAddr{s.addr})
	n.ready(t, s.addr)
	eventually(t, func() bool { return s.doors.countSilent() == 1 })
	idlers := make([]net.Conn, 0, 2*maxSilentPerAddr)
	for range cap(idlers) {
		idlers = append(idlers, greet(t, s.addr, "127.0.0.2", from.InfoHash(), [20]byte{}))
	}
	eventually(t, func() bool { return s.counts.turnedAway.Load() == int64(cap(idlers)-maxUnknownSilent) })
	if !ended(idlers[0]) || ended(idlers[len(idlers)-1]) {
		t.Error("not the oldest had to go")
	}
	if silent := s.doors.countSilent(); silent != 1+maxUnknownSilent {
		t.Errorf("%d say nothing", silent)
	}
	if len(s.doors.greeting) != 0 {
		t.Errorf("%d are greeting", len(s.doors.greeting))
	}
	finish(t, n.fetch(t, from, size, nil), content, s.addr)
	if n.counts.ready.Load() != 1 {
		t.Error("the spare connection has lost its place")
	}
}

func TestSilentConnectionsAreBounded(t *testing.T) {
	var d doors
	member := newGreeting("10.0.0.1", true)
	d.wait(member)
	gone := 0
	for range 2 * maxSilentPerAddr { // many members behind one address
		if out := d.wait(newGreeting("10.1.0.1", true)); out != nil {
			gone++
		}
	}
	if gone != maxSilentPerAddr {
		t.Errorf("%d of one address had to go", gone)
	}
	for i := range 2 * maxSilent {
		d.wait(newGreeting(fmt.Sprintf("10.2.%d.1", i%50), true))
	}
	if len(d.silent) != maxSilent {
		t.Errorf("%d say nothing", len(d.silent))
	}
	if d.silent[0] != member {
		t.Error("another address took the place")
	}
	if out := d.enter(member); out != nil || len(d.silent) != maxSilent-1 || len(d.greeting) != 1 {
		t.Error("one that speaks is silent still")
	}
	d.leave(d.silent[0])
	if len(d.silent) != maxSilent-2 {
		t.Error("one that has gone is there")
	}
	if silentAge <= spareAge+dialTimeout {
		t.Error("who dials is not the first to close")
	}
}

// A silent connection has an end, though its owner forgets it.
func TestSilentConnectionGrowsOld(t *testing.T) {
	t.Parallel()
	s := start(t, "seeder", t.TempDir(), func(c *Config) {
		c.patience = defaultPatience()
		c.patience.silence = 50 * time.Millisecond
	})
	c := greet(t, s.addr, "127.0.0.1", [20]byte{}, [20]byte{})
	eventually(t, func() bool { return ended(c) })
	eventually(t, func() bool { return s.doors.countSilent() == 0 })
}

// The engine panics when it cannot set a deadline, and a connection may have to go for
// another one before the engine has looked at it.
func TestDeadlineOfAConnectionThatIsGone(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	w := start(t, "a", t.TempDir(), nil).watch(near, [20]byte{}, "10.0.0.1:1")
	w.Close()
	if err := w.SetDeadline(time.Now()); err != nil {
		t.Error(err)
	}
}
