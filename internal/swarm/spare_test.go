package swarm

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/peerwire"
)

// ready waits for the spare connection with a peer.
func (n *node) ready(t *testing.T) {
	t.Helper()
	eventually(t, func() bool { return n.wire.Spares() == 1 })
}

// silent is how many connections have said nothing to a node yet.
func (n *node) silent() int {
	silent, _, _ := n.wire.Waiting()
	return silent
}

// A new torrent's handshake is the first that is said on a connection that was there
// before, and another one takes its place.
func TestHandshakeOnASpare(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	s, first, content, _ := seed(t, size, handOut)
	n := start(t, "agent", t.TempDir(), nil)
	finish(t, n.fetch(t, first, size, nil), content, s.addr)
	n.ExpectMore([]peerwire.Peer{s.addr})
	for i := range 3 {
		n.ready(t)
		eventually(t, func() bool { return s.silent() == 1 })
		next, content := s.another(t, byte(2+i), size)
		f := n.fetch(t, next, size, nil)
		finish(t, f, content, s.addr)
		if ready := n.wire.Counts.Ready.Load(); ready != int64(i+1) || len(next.Stats().Peers) != 1 {
			t.Errorf("%d spare connections were used by %d segments: %+v", ready, i+1, next.Stats().Peers)
		}
	}
	if n.ready(t); n.wire.Counts.Reached.Load() != 5 {
		t.Errorf("%d dials for four segments and a spare", n.wire.Counts.Reached.Load())
	}
	n.ExpectMore(nil)
	eventually(t, func() bool { return s.silent() == 0 })
	if n.wire.Spares() != 0 {
		t.Error("a spare connection is there though nothing is expected")
	}
}

// A connection that says nothing has a place of its own until it speaks: the engine would
// drop it. Whoever opens many takes nobody's place.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	s, from, content, _ := seed(t, size, each(members(io.Discard, "agent"), onlyFrom("127.0.0.1")))
	n := start(t, "agent", t.TempDir(), nil)
	n.ExpectMore([]peerwire.Peer{s.addr})
	n.ready(t)
	eventually(t, func() bool { return s.silent() == 1 })
	idlers := make([]net.Conn, 0, 2*peerwire.MaxSilentPerAddr)
	for range cap(idlers) {
		idlers = append(idlers, greet(t, s.addr, "127.0.0.2", from.InfoHash(), [20]byte{}))
	}
	eventually(t, func() bool { return s.wire.Counts.TurnedAway.Load() == int64(cap(idlers)-peerwire.MaxUnknownSilent) })
	if !ended(idlers[0]) || ended(idlers[len(idlers)-1]) {
		t.Error("not the oldest had to go")
	}
	if silent := s.silent(); silent != 1+peerwire.MaxUnknownSilent {
		t.Errorf("%d say nothing", silent)
	}
	if _, greeting, _ := s.wire.Waiting(); greeting != 0 {
		t.Errorf("%d are greeting", greeting)
	}
	finish(t, n.fetch(t, from, size, nil), content, s.addr)
	if n.wire.Counts.Ready.Load() != 1 {
		t.Error("the spare connection has lost its place")
	}
}

// A silent connection has an end, though its owner forgets it.
func TestSilentConnectionGrowsOld(t *testing.T) {
	t.Parallel()
	s := start(t, "seeder", t.TempDir(), func(c *Config) {
		c.Silence = 50 * time.Millisecond
	})
	c := greet(t, s.addr, "127.0.0.1", [20]byte{}, [20]byte{})
	eventually(t, func() bool { return ended(c) })
	eventually(t, func() bool { return s.silent() == 0 })
}
