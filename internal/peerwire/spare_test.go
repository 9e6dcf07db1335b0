package peerwire

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

// dialled are the far ends of connections that were dialled by nobody.
type dialled struct {
	mu   sync.Mutex
	ends []net.Conn
	fail atomic.Bool
}

func (d *dialled) dial(context.Context, [20]byte, string) (*link, error) {
	near, far := net.Pipe()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ends = append(d.ends, far)
	if d.fail.Load() {
		return nil, errors.New("connection refused")
	}
	return new(Wire).newLink(near), nil
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

// One that the other side has closed is not used, and not replaced before its time or its
// use.
func TestSpareThatWasClosed(t *testing.T) {
	t.Parallel()
	p, d := newSpares(t)
	now := time.Now()
	p.expect(map[string][20]byte{"10.0.0.1:1": PeerID("a")}, now)
	eventually(t, func() bool { return p.count() == 1 })
	d.ends[0].Close()
	eventually(t, func() bool { return p.count() == 0 })
	if p.tend(now.Add(spareAge - 1)); d.count() != 1 {
		t.Errorf("%d dials", d.count())
	}
	if c := p.take("10.0.0.1:1", now); c != nil {
		t.Error("it is used")
	}
	eventually(t, func() bool { return p.count() == 1 })
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
	n := start(t, nil)
	closed := func(i int) Peer {
		return Peer{PeerID(fmt.Sprint(i)), netip.MustParseAddrPort(fmt.Sprintf("127.1.%d.%d:1", i/250, 1+i%250))}
	}
	var peers []Peer
	for i := range 2 * maxSpares {
		peers = append(peers, closed(i))
	}
	n.conduct.strike(who{id: peers[0].ID}, CorruptPiece, "")
	n.ExpectMore(peers)
	n.spares.mu.Lock()
	defer n.spares.mu.Unlock()
	if len(n.spares.byAddr) != maxSpares || n.spares.byAddr[peers[0].Addr.String()] != nil {
		t.Errorf("%d are dialled", len(n.spares.byAddr))
	}
}

func TestSilentConnectionsAreBounded(t *testing.T) {
	d := newDoors()
	member := newGreeting("10.0.0.1", true)
	d.wait(member)
	gone := 0
	for range 2 * MaxSilentPerAddr { // many members behind one address
		if out := d.wait(newGreeting("10.1.0.1", true)); out != nil {
			gone++
		}
	}
	if gone != MaxSilentPerAddr {
		t.Errorf("%d of one address had to go", gone)
	}
	var last *Conn
	for i := range 2 * maxSilent {
		last = newGreeting(fmt.Sprintf("10.2.%d.1", i%50), true)
		d.wait(last)
	}
	if d.silent.Len() != maxSilent {
		t.Errorf("%d say nothing", d.silent.Len())
	}
	if !d.silent.Has(member) {
		t.Error("another address took the place")
	}
	if out := d.enter(member); out != nil || d.silent.Len() != maxSilent-1 || d.greeting.Len() != 1 {
		t.Error("one that speaks is silent still")
	}
	d.leave(last)
	if d.silent.Len() != maxSilent-2 {
		t.Error("one that has gone is there")
	}
	if silentAge <= spareAge+DialTimeout {
		t.Error("who dials is not the first to close")
	}
}

// The engine panics when it cannot set a deadline, and a connection may have to go for
// another one before the engine has looked at it.
func TestDeadlineOfAConnectionThatIsGone(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	c := new(Wire).watch(new(Wire).newLink(near), [20]byte{}, "10.0.0.1:1")
	c.Close()
	if err := c.SetDeadline(time.Now()); err != nil {
		t.Error(err)
	}
}
