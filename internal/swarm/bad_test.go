package swarm

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
)

// hasty is defaultPatience ten times as fast, but for what a busy machine would
// not keep to.
func hasty(c *Config) {
	p := defaultPatience()
	p.tick, p.late, p.pause = p.tick/10, p.late/10, p.pause/10
	p.silent, p.faded, p.slow = p.silent/10, p.faded/5, p.slow/10
	p.leastRate *= 10
	c.patience = p
}

// bad starts a peer that misbehaves, under a member's name.
func bad(t *testing.T, b badpeer.Behaviour, name string, m *manifest.Manifest) (*badpeer.Peer, peerwire.Peer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &badpeer.Peer{Behaviour: b, ID: peerwire.PeerID(name), InfoLength: m.InfoLength()}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return p, peerwire.Peer{ID: p.ID, Addr: l.Addr().(*net.TCPAddr).AddrPort()}
}

// told is a log that is read by a test.
type told struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (l *told) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(b)
}

func (l *told) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

// known gives an agent the info dictionary, so that it needs nobody for it.
func (n *node) known(t *testing.T, m *manifest.Manifest) {
	t.Helper()
	e, err := n.cache.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	e.Unpin()
}

// untilNamed names a peer again and again, until it is known to be bad.
func (n *node) untilNamed(t *testing.T, f *Torrent, p peerwire.Peer) peerwire.BadPeer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		f.AddPeers([]peerwire.Peer{p})
		if bad := n.BadPeers(); len(bad) > 0 {
			if len(bad) > 1 {
				t.Fatalf("%+v", bad)
			}
			return bad[0]
		}
		select {
		case <-ctx.Done():
			t.Fatalf("nobody is bad in %s: %+v", timeout, f.Stats())
		case <-ticker.C:
		}
	}
}

// Each bad member is found out, named, hung up on and left alone, and the build
// comes from the others.
func TestBadPeer(t *testing.T) {
	reasons := map[badpeer.Behaviour]peerwire.Reason{
		badpeer.Corrupt: peerwire.Corrupt, badpeer.Silent: peerwire.Stalled, badpeer.Dribble: peerwire.Stalled,
		badpeer.Garbage: peerwire.Garbage, badpeer.Babble: peerwire.Garbage,
		badpeer.Length: peerwire.Corrupt, badpeer.Info: peerwire.Corrupt,
	}
	for _, behaviour := range badpeer.Behaviours {
		t.Run(string(behaviour), func(t *testing.T) {
			t.Parallel()
			const size = 4 << 20
			s, from, content, m := seed(t, size, handOut)
			log := new(told)
			agent := start(t, "agent", t.TempDir(), func(c *Config) {
				hasty(c)
				c.Logger = slog.New(slog.NewTextHandler(log, nil))
				c.Member = func(id [20]byte) (m peerwire.Member) {
					if id == peerwire.PeerID("cuckoo") {
						m.Name, m.Region = "cuckoo", "region-z"
					}
					return m
				}
			})
			if behaviour != badpeer.Info {
				agent.known(t, m)
			}
			f := agent.fetch(t, from, size, nil)
			p, addr := bad(t, behaviour, "cuckoo", m)
			named := agent.untilNamed(t, f, addr)
			if named.ID != addr.ID || named.Name != "cuckoo" && named.Name != "" || named.Addr != addr.Addr.String() || named.Reason != reasons[behaviour] ||
				named.Times != 1 || named.Until.Sub(named.Since) != peerwire.FirstBan {
				t.Errorf("%+v", named)
			}
			finish(t, f, content, s.addr, addr)
			for _, c := range f.Stats().Peers {
				if c.ID == addr.ID {
					t.Error("still connected")
				}
			}
			came := p.Accepted()
			for range 20 {
				f.AddPeers([]peerwire.Peer{addr})
			}
			if err := agent.dialled(addr); err == nil {
				t.Error("it may be dialled")
			}
			if again := p.Accepted(); again != came {
				t.Errorf("dialled %d times since", again-came)
			}
			if err := p.Dial(t.Context(), agent.addr.Addr.String(), from.InfoHash()); err == nil && behaviour != badpeer.Garbage {
				t.Error("it may connect")
			}
			if bad := agent.BadPeers(); len(bad) != 1 || bad[0].Name != "cuckoo" || bad[0].Region != "region-z" {
				t.Errorf("%+v", bad)
			}
			if warnings := strings.Count(log.String(), "bad peer"); warnings != 1 || !strings.Contains(log.String(), "member=cuckoo") {
				t.Errorf("%d warnings: %s", warnings, log)
			}
		})
	}
}

// dialled asks for a connection as the engine does.
func (n *node) dialled(p peerwire.Peer) error {
	c, err := n.wire.Dial(context.Background(), p.Addr.String())
	if err == nil {
		c.Close()
	}
	return err
}

// What a bad member does in the midst of good ones is nobody else's fault, although
// all have the same IP address; with this little to wait for, it need not be found
// out.
func TestBadPeerAmongGoodOnes(t *testing.T) {
	for _, behaviour := range badpeer.Behaviours {
		t.Run(string(behaviour), func(t *testing.T) {
			t.Parallel()
			const size, agents = 8 << 20, 3
			s, from, content, m := seed(t, size, handOut)
			_, addr := bad(t, behaviour, "cuckoo", m)
			peers := []peerwire.Peer{s.addr, addr}
			var nodes []*node
			for i := range agents {
				n := start(t, fmt.Sprint("agent-", i), t.TempDir(), nil)
				nodes, peers = append(nodes, n), append(peers, n.addr)
			}
			var all sync.WaitGroup
			for _, n := range nodes {
				f := n.fetch(t, from, size, nil)
				all.Go(func() { finish(t, f, content, peers...) })
			}
			all.Wait()
			for _, n := range append(nodes, s) {
				for _, b := range n.BadPeers() {
					if b.ID != addr.ID {
						t.Errorf("%+v is called bad", b)
					}
				}
			}
		})
	}
}

// The last piece is asked of a silent peer: the engine alone waits for ever.
func TestSilentPeerHoldsNothingBack(t *testing.T) {
	t.Parallel()
	const size = manifest.MinPieceLength
	s, from, content, m := seed(t, size, nil)
	agent := start(t, "agent", t.TempDir(), hasty)
	agent.known(t, m)
	f := agent.fetch(t, from, size, nil)
	p, addr := bad(t, badpeer.Silent, "cuckoo", m)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for f.AddPeers([]peerwire.Peer{addr}); p.Taken() == 0; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatal("nothing was asked for")
		}
	}
	finish(t, f, content, s.addr)
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.After(timeout)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not in %s", timeout)
		}
	}
}

// slowListener is a member's slow uplink, for all its connections together.
type slowListener struct {
	net.Listener
	uplink *rate.Limiter
}

type slowConn struct {
	net.Conn
	uplink *rate.Limiter
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return slowConn{c, l.uplink}, nil
}

func (c slowConn) Write(b []byte) (written int, err error) {
	for written < len(b) && err == nil {
		n := min(len(b)-written, c.uplink.Burst())
		if err := c.uplink.WaitN(context.Background(), n); err != nil {
			return written, err
		}
		n, err = c.Conn.Write(b[written : written+n])
		written += n
	}
	return written, err
}

// Several members behind slow links are honest all the same: here with three times
// the least rate.
func TestSlowPeersAreNotBad(t *testing.T) {
	t.Parallel()
	const size, slow = 512 << 10, 3
	_, from, content, m := seed(t, size, nil)
	agent := start(t, "agent", t.TempDir(), func(c *Config) {
		hasty(c)
		// The machine may stop for a moment, the tests are many.
		c.patience.silent, c.patience.faded = 4*c.patience.silent, 4*c.patience.faded
	})
	agent.known(t, m)
	var peers []peerwire.Peer
	for i := range slow {
		n := start(t, fmt.Sprint("slow-", i), t.TempDir(), func(c *Config) {
			least := 3 * 10 * defaultPatience().leastRate
			c.Listener = slowListener{c.Listener, rate.NewLimiter(rate.Limit(least), 1<<10)}
		})
		n.pull(t, content, m)
		peers = append(peers, n.addr)
	}
	f := agent.fetch(t, from, size, nil)
	finish(t, f, content, peers...)
	if bad := agent.BadPeers(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
	for _, p := range peers {
		if agent.wire.Refused(p.ID) {
			t.Errorf("%x is left alone", p.ID)
		}
	}
}

// A member that restarts, or leaves in the midst of it, is not bad.
func TestRestartIsNotBad(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	s, from, content, m := seed(t, size, nil)
	agent := start(t, "agent", t.TempDir(), nil)
	other := start(t, "other", t.TempDir(), nil)
	other.pull(t, content, m)
	agent.known(t, m)
	first := make(chan struct{})
	var once sync.Once
	f := agent.fetch(t, from, size, func(int, bool) { once.Do(func() { close(first) }) })
	f.AddPeers([]peerwire.Peer{other.addr})
	select {
	case <-first:
	case <-time.After(timeout):
		t.Fatal("nothing came")
	}
	other.stop(t)
	finish(t, f, content, s.addr, other.addr)
	if bad := agent.BadPeers(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
}

// Garbage from nobody knows whom is named by its address, and the members behind
// the same address go on.
func TestGarbageIsCountedByAddress(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	s, from, content, _ := seed(t, size, handOut)
	p := &badpeer.Peer{Behaviour: badpeer.Garbage}
	for range peerwire.Babble.Limit {
		if err := p.Dial(t.Context(), s.addr.Addr.String(), from.InfoHash()); err == nil {
			t.Log("it hung up") // as often as not with a reset
		}
	}
	if bad := s.BadPeers(); len(bad) != 1 || bad[0].Addr != "127.0.0.1" || bad[0].Reason != peerwire.Garbage || !bad[0].Until.IsZero() {
		t.Errorf("%+v", bad)
	}
	finish(t, start(t, "agent", t.TempDir(), nil).fetch(t, from, size, nil), content, s.addr)
}

// A seeder is told lies as well: a member that takes every piece that is handed out,
// says at once that it has it, and gives nothing.
func TestClaimsDoNotStopTheHandOut(t *testing.T) {
	t.Parallel()
	const size, agents = 8 << 20, 3
	s, from, content, _ := seed(t, size, handOut)
	p := &badpeer.Peer{Behaviour: badpeer.Silent, ID: peerwire.PeerID("cuckoo"), Claims: true}
	ctx, cancel := context.WithCancel(t.Context())
	lied := make(chan struct{})
	go func() {
		defer close(lied)
		_ = p.Dial(ctx, s.addr.Addr.String(), from.InfoHash())
	}()
	defer func() { cancel(); <-lied }()
	eventually(t, func() bool { return p.Claimed() > 0 })
	peers := []peerwire.Peer{s.addr}
	var all sync.WaitGroup
	var fetched []*Torrent
	for i := range agents {
		n := start(t, fmt.Sprint("agent-", i), t.TempDir(), nil)
		peers = append(peers, n.addr)
		fetched = append(fetched, n.fetch(t, from, size, nil))
	}
	for _, f := range fetched {
		all.Go(func() { finish(t, f, content, peers...) })
	}
	all.Wait()
}

// sent is a sender that remembers what it was told.
type sent struct {
	id    [20]byte
	bad   int // times
	apart bool
}

func (s *sent) ID() [20]byte { return s.id }

func (s *sent) Blame(o peerwire.Offence) {
	if o == peerwire.CorruptPiece {
		s.bad++
	}
}

func (s *sent) LeaveAlone(time.Duration) { s.apart = true }

func TestOrigins(t *testing.T) {
	good, wrong := "aaaabbbb", "aaaaxxxx"
	newOrigins := func() (*origins, *sent, *sent) {
		return new(origins), &sent{id: peerwire.PeerID("a")}, &sent{id: peerwire.PeerID("b")}
	}
	half := func(o *origins, a, b sender) {
		o.note(7, 0, 4, a)
		o.note(7, 4, 4, b)
	}
	t.Run("one sender", func(t *testing.T) {
		o, a, b := newOrigins()
		half(o, b, b)
		o.failed(7, strings.NewReader(wrong))
		if a.bad != 0 || b.bad != 1 {
			t.Errorf("%+v, %+v", a, b)
		}
	})
	t.Run("of two senders the one whose bytes differ", func(t *testing.T) {
		o, a, b := newOrigins()
		half(o, a, b)
		o.failed(7, strings.NewReader(wrong))
		if a.bad+b.bad > 0 {
			t.Fatalf("%+v, %+v", a, b)
		}
		o.note(7, 0, 8, a)
		o.passed(7, strings.NewReader(good))
		if a.bad != 0 || b.bad != 1 {
			t.Errorf("%+v, %+v", a, b)
		}
	})
	t.Run("two senders again are kept apart", func(t *testing.T) {
		o, a, b := newOrigins()
		for range 2 {
			half(o, a, b)
			o.failed(7, strings.NewReader(wrong))
		}
		if a.bad+b.bad > 0 || a.apart || !b.apart {
			t.Errorf("%+v, %+v", a, b)
		}
	})
	t.Run("a chunk that came twice", func(t *testing.T) {
		o, a, b := newOrigins()
		half(o, a, b)
		o.note(7, 4, 4, a)
		o.failed(7, strings.NewReader(wrong))
		if a.bad != 1 || b.bad != 0 {
			t.Errorf("%+v, %+v", a, b)
		}
	})
	t.Run("bounded", func(t *testing.T) {
		o, a, b := newOrigins()
		for i := range 2 * maxDoubts {
			o.note(i, 0, 4, a)
			o.note(i, 4, 4, b)
			o.failed(i, strings.NewReader(wrong))
		}
		for range maxVersions {
			half(o, a, b)
			o.failed(7, strings.NewReader(wrong))
		}
		if len(o.doubts) != maxDoubts || len(o.doubts[7]) != maxVersions || len(o.senders) != 0 {
			t.Errorf("%d, %d, %d", len(o.doubts), len(o.doubts[7]), len(o.senders))
		}
	})
}
