package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// members makes a Swarm know these names, and listens to its log.
func members(log io.Writer, names ...string) func(*Config) {
	known := make(map[[20]byte]string)
	for _, name := range names {
		known[PeerID(name)] = name
	}
	return func(c *Config) {
		c.Member = func(id [20]byte) (name, region string) {
			if known[id] == "" {
				return "", ""
			}
			return known[id], "region-of-" + known[id]
		}
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
}

// onlyFrom admits peers that are no members from one address.
func onlyFrom(addr string) func(*Config) {
	return func(c *Config) { c.AllowPeer = func(a netip.Addr) bool { return a == netip.MustParseAddr(addr) } }
}

// from makes a node dial from another address than it listens at, as NAT and a second
// network card do.
func from(addr string) func(*Config) {
	return func(c *Config) { c.dialFrom = &net.TCPAddr{IP: net.ParseIP(addr)} }
}

func each(changes ...func(*Config)) func(*Config) {
	return func(c *Config) {
		for _, change := range changes {
			change(c)
		}
	}
}

// A member is admitted by who it is: from an address that no member has.
func TestMemberFromAnotherAddress(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	log := new(told)
	s, seeded, content, _ := seed(t, size, each(handOut, members(log, "agent"), onlyFrom("127.0.0.1")))
	n := start(t, "agent", t.TempDir(), each(members(io.Discard, "seeder"), from("127.0.0.2")))
	finish(t, n.fetch(t, seeded, size, nil), content, s.addr)
	if strings.Contains(log.String(), "refused") || s.counts.turnedAway.Load() > 0 {
		t.Errorf("%d were turned away: %s", s.counts.turnedAway.Load(), log)
	}
}

// A Landfall process that is no member is refused, and both sides say so: once, with
// the addresses and the flags.
func TestStrangerIsRefusedAloud(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	here, there := new(told), new(told)
	s, seeded, _, _ := seed(t, size, each(handOut, members(here, "agent"), onlyFrom("127.0.0.1")))
	n := start(t, "unheard-of", t.TempDir(), each(members(there, "seeder"), from("127.0.0.2")))
	f := n.fetch(t, seeded, size, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var naming sync.WaitGroup
	naming.Go(func() { f.nameUntil(ctx, s.addr) })
	defer naming.Wait()
	defer cancel()
	eventually(t, func() bool { return s.counts.turnedAway.Load() >= 5 && strings.Contains(there.String(), "refuses") })
	for _, c := range []struct {
		log  *told
		want []string
	}{
		{here, []string{"level=WARN", "peer refused", "--allow-peers", "from=127.0.0.2:", "a Landfall process"}},
		{there, []string{"level=WARN", "peer refuses our connections", "--advertise", "--allow-peers", "member=seeder", "region=region-of-seeder", "peer=" + s.addr.Addr.String(), "ourAddress=127.0.0.2:"}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.log.String(), want) {
				t.Errorf("no %q in %s", want, c.log)
			}
		}
		if lines := strings.Count(c.log.String(), "\n"); lines != 1 {
			t.Errorf("%d lines: %s", lines, c.log)
		}
	}
	if bad := append(n.BadPeers(), s.BadPeers()...); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
}

// greet connects from an address and says who it is; no id: it says nothing.
func greet(t *testing.T, to PeerAddr, ip string, infohash [20]byte, id [20]byte) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext(t.Context(), "tcp", to.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if id == ([20]byte{}) {
		return c
	}
	if _, err := c.Write(handshake(infohash, id)); err != nil {
		t.Log(err) // it may have hung up
	}
	return c
}

func handshake(infohash, id [20]byte) []byte {
	reserved := pp.NewPeerExtensionBytes(pp.ExtensionBitFast)
	return bytes.Join([][]byte{[]byte(pp.Protocol), reserved[:], infohash[:], id[:]}, nil)
}

// ended reports whether the other side has hung up on a connection.
func ended(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	var timeout net.Error
	for b := make([]byte, 4096); ; {
		if _, err := c.Read(b); err != nil {
			return !errors.As(err, &timeout) || !timeout.Timeout()
		}
	}
}

// Idlers and strangers by the hundred, from addresses that may connect, keep no
// member out, and are no more than they may be.
func TestIdlersLockNobodyOut(t *testing.T) {
	t.Parallel()
	const size, idlers, agents = 2 << 20, 300, 3
	var names []string
	for i := range agents {
		names = append(names, fmt.Sprint("agent-", i))
	}
	s, seeded, content, _ := seed(t, size, each(handOut, members(io.Discard, names...), onlyFrom("127.0.0.1")))
	for i := range idlers {
		greet(t, s.addr, "127.0.0.1", seeded.InfoHash(), [20]byte{})
		// As many that have said who they are, from several addresses.
		ip := fmt.Sprintf("127.0.1.%d", i%100)
		greet(t, s.addr, "127.0.0.1", seeded.InfoHash(), PeerID(fmt.Sprint("stranger-", i)))
		greet(t, s.addr, ip, seeded.InfoHash(), [20]byte{})
	}
	var all sync.WaitGroup
	for _, name := range names {
		n := start(t, name, t.TempDir(), members(io.Discard, append([]string{"seeder"}, names...)...))
		f := n.fetch(t, seeded, size, nil)
		all.Go(func() { finish(t, f, content, s.addr) })
	}
	all.Wait()
	s.doors.mu.Lock()
	defer s.doors.mu.Unlock()
	if n := len(s.doors.strangers); n > maxStrangersPerAddr {
		t.Errorf("%d strangers of one address", n)
	}
	if n := len(s.doors.greeting); n > maxGreeting {
		t.Errorf("%d have not said who they are", n)
	}
}

func newGreeting(from string, allowed bool) *watched {
	return &watched{from: netip.MustParseAddr(from), allowed: allowed, inbound: true}
}

// Of connections that do not say who they are, those of unknown addresses have a bound
// of their own, and the address that has most gives way.
func TestGreetingsAreBounded(t *testing.T) {
	var d doors
	honest := newGreeting("10.0.0.1", true)
	if out := d.enter(honest); out != nil {
		t.Fatal("the first has to go")
	}
	for i := range 10 * maxUnknownGreeting {
		d.enter(newGreeting(fmt.Sprintf("10.1.%d.%d", i/256, i%256), false))
	}
	nat := newGreeting("10.2.0.1", false)
	d.enter(nat)
	for range maxUnknownGreeting / 2 { // one address that has many loses its own
		d.enter(newGreeting("10.3.0.1", false))
	}
	if unknown := len(d.greeting) - 1; unknown != maxUnknownGreeting {
		t.Errorf("%d of unknown addresses", unknown)
	}
	for range 2 * maxGreeting {
		d.enter(newGreeting("10.4.0.1", true))
	}
	if len(d.greeting) != maxGreeting {
		t.Errorf("%d in all", len(d.greeting))
	}
	still := func(w *watched) bool {
		for _, g := range d.greeting {
			if g == w {
				return true
			}
		}
		return false
	}
	if !still(honest) || !still(nat) {
		t.Error("others were closed for an address that has many")
	}
	for _, w := range append([]*watched(nil), d.greeting...) {
		d.leave(w)
	}
	if len(d.greeting) != 0 {
		t.Errorf("%d remain", len(d.greeting))
	}
}

// Of strangers the idlest goes, those of one address first, and whoever has become a
// member does not count.
func TestStrangersAreBounded(t *testing.T) {
	var d doors
	now := time.Unix(1, 0)
	turnedMember := make(map[[20]byte]bool)
	isMember := func(id [20]byte) bool { return turnedMember[id] }
	enter := func(i int, from string) (w, out *watched) {
		w = newGreeting(from, true)
		w.id = PeerID(fmt.Sprint(i))
		now = now.Add(time.Minute)
		out, err := d.stranger(w, isMember, now)
		if err != nil {
			t.Fatal(err)
		}
		return w, out
	}
	busy, _ := enter(0, "10.0.0.1")
	busy.useful.Store(1)
	second, _ := enter(1, "10.0.0.1")
	for i := 2; i < maxStrangersPerAddr; i++ {
		if _, out := enter(i, "10.0.0.1"); out != nil {
			t.Fatalf("the %d. of an address is one too many", i)
		}
	}
	if _, out := enter(100, "10.0.0.1"); out != second {
		t.Errorf("not the oldest idler had to go: %+v", out)
	}
	gone := 0
	for i := range 2 * maxStrangers {
		_, out := enter(200+i, fmt.Sprintf("10.0.1.%d", i))
		if out == busy {
			t.Fatal("the busy one had to go")
		}
		if out != nil {
			gone++
		}
	}
	if len(d.strangers) != maxStrangers || gone != maxStrangers+maxStrangersPerAddr {
		t.Errorf("%d remain, %d went", len(d.strangers), gone)
	}
	for _, w := range d.strangers {
		turnedMember[w.id] = true
	}
	if _, out := enter(500, "10.0.0.1"); out != nil || len(d.strangers) != 1 {
		t.Errorf("members are counted: %d", len(d.strangers))
	}
}

// Who is no member connects so often and no more, and addresses remembered are bounded.
func TestStrangersHaveARate(t *testing.T) {
	var d doors
	now := time.Unix(1, 0)
	try := func(from string) error {
		w := newGreeting(from, true)
		_, err := d.stranger(w, func([20]byte) bool { return false }, now)
		d.leave(w)
		return err
	}
	for i := range strangersBurst {
		if err := try("10.0.0.1"); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if err := try("10.0.0.1"); !errors.Is(err, errCrowded) {
		t.Errorf("beyond the burst: %v", err)
	}
	if err := try("10.0.0.2"); err != nil {
		t.Errorf("another address: %v", err)
	}
	now = now.Add(2 * time.Second / strangersPerSecond)
	if err := try("10.0.0.1"); err != nil {
		t.Errorf("later: %v", err)
	}
	for i := range 2 * maxStrangerAddrs {
		_ = try(fmt.Sprintf("10.%d.%d.1", i/256, i%256))
	}
	if len(d.rates) > maxStrangerAddrs+1 {
		t.Errorf("%d addresses are remembered", len(d.rates))
	}
}

// A member that connects anew, as it is known to do from its own address, takes the
// place of a connection under its name from elsewhere.
func TestTwinFromElsewhereGivesWay(t *testing.T) {
	t.Parallel()
	s, seeded, _, _ := seed(t, 1<<20, each(members(io.Discard, "agent"), onlyFrom("127.0.0.1")))
	cuckoo := greet(t, s.addr, "127.0.0.2", seeded.InfoHash(), PeerID("agent"))
	eventually(t, func() bool { return len(seeded.Stats().Peers) == 1 })
	if ended(cuckoo) {
		t.Fatal("a member from elsewhere is refused")
	}
	eventually(t, func() bool {
		c := greet(t, s.addr, "127.0.0.1", seeded.InfoHash(), PeerID("agent"))
		defer c.Close()
		peers := seeded.Stats().Peers
		return len(peers) == 1 && strings.HasPrefix(peers[0].Addr, "127.0.0.1:")
	})
	if !ended(cuckoo) {
		t.Error("the one from elsewhere stays")
	}
}

// A refusal that a member of before does not know is no offence to it: it is a right
// handshake.
func TestRefusalIsAHandshake(t *testing.T) {
	t.Parallel()
	s, seeded, _, _ := seed(t, 1<<20, each(members(io.Discard, "agent"), onlyFrom("127.0.0.1")))
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}).DialContext(t.Context(), "tcp", s.addr.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hash := metainfo.Hash(seeded.InfoHash())
	answer, err := pp.Handshake(t.Context(), c, &hash, PeerID("stranger"), pp.NewPeerExtensionBytes(pp.ExtensionBitFast))
	if err != nil || answer.Hash != hash || answer.PeerID != refusedID {
		t.Errorf("%+v, %v", answer, err)
	}
	eventually(t, func() bool { return ended(c) })
}

// A dial that fails for long is said, of members, once.
func TestUnreachedPeerIsSaid(t *testing.T) {
	log := new(told)
	n := start(t, "agent", t.TempDir(), members(log, "seeder"))
	now := time.Now()
	fail := func(name string, at time.Duration) {
		n.dialFailed(PeerID(name), "10.0.0.1:6881", errors.New("connection refused"), now.Add(at))
	}
	for _, name := range []string{"seeder", "nobody"} {
		fail(name, 0)
		fail(name, unreachedFor-1)
	}
	n.dialReached(PeerID("seeder"))
	fail("seeder", unreachedFor)
	if log.String() != "" {
		t.Errorf("too early: %s", log)
	}
	for range 5 {
		fail("seeder", 2*unreachedFor)
		fail("nobody", 2*unreachedFor)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "member=seeder") || !strings.Contains(log.String(), "connection refused") {
		t.Error(log)
	}
	for i := range 2 * maxUnreached {
		fail(fmt.Sprint(i), 0)
	}
	if len(n.notices.unreached) > maxUnreached {
		t.Errorf("%d are remembered", len(n.notices.unreached))
	}
}

func message(m pp.Message) []byte { return m.MustMarshalBinary() }

// What peers may send for nothing, and what costs them time.
func TestMessagesCost(t *testing.T) {
	now := time.Unix(1, 0)
	have := func(i int) []byte { return message(pp.Message{Type: pp.Have, Index: pp.Integer(i)}) }
	chunk := message(pp.Message{Type: pp.Piece, Piece: make([]byte, 1<<14)})
	bitfield := message(pp.Message{Type: pp.Bitfield, Bitfield: make([]bool, manifest.MaxPieces)})
	for name, k := range map[string]struct {
		send func(m *messages)
		slow bool
	}{
		"the Haves of the largest build": {func(m *messages) {
			for i := range manifest.MaxPieces {
				m.feed(have(i), 0, now)
			}
		}, false},
		"the same Have again and again": {func(m *messages) {
			for range freeBurst + 2 {
				m.feed(have(7), 0, now)
			}
		}, true},
		"Haves beyond the largest build": {func(m *messages) {
			for i := range freeBurst + 1 {
				m.feed(have(manifest.MaxPieces+i), 0, now)
			}
		}, true},
		"interest that comes and goes": {func(m *messages) {
			for range freeBurst {
				m.feed(append(message(pp.Message{Type: pp.Interested}), message(pp.Message{Type: pp.NotInterested})...), 0, now)
			}
		}, true},
		"chokes": {func(m *messages) {
			for range freeBurst {
				m.feed(append(message(pp.Message{Type: pp.Choke}), message(pp.Message{Type: pp.Unchoke})...), 0, now)
			}
		}, true},
		"keep-alives": {func(m *messages) {
			for range freeBurst + 1 {
				m.feed([]byte{0, 0, 0, 0}, 0, now)
			}
		}, true},
		"rejects of nothing": {func(m *messages) {
			for range freeBurst + 1 {
				m.feed(message(pp.Message{Type: pp.Reject, Length: 1 << 14}), 0, now)
			}
		}, true},
		"requests that are not answered": {func(m *messages) {
			for range freeBurst + 1 {
				m.feed(message(pp.Message{Type: pp.Request, Length: 1 << 14}), 0, now)
			}
		}, true},
		"requests that are": {func(m *messages) {
			for i := range 10 * freeBurst {
				m.feed(message(pp.Message{Type: pp.Request, Length: 1 << 14}), int64(i)<<14, now)
			}
		}, false},
		"chunks": {func(m *messages) {
			for range 2 * freeBurst {
				m.feed(chunk, 0, now)
			}
		}, false},
		"empty chunks": {func(m *messages) {
			for range freeBurst + 100 {
				m.feed(message(pp.Message{Type: pp.Piece}), 0, now)
			}
		}, true},
		"the info dictionary of the largest build": {func(m *messages) {
			for range manifest.MaxPieces * 20 >> 14 {
				m.feed(message(pp.Message{Type: pp.Extended, ExtendedID: 2, ExtendedPayload: make([]byte, 1<<14+50)}), 0, now)
			}
		}, false},
		"large extended messages": {func(m *messages) {
			for range 10 {
				m.feed(message(pp.Message{Type: pp.Extended, ExtendedPayload: make([]byte, 1<<19)}), 0, now)
			}
		}, true},
		"bitfields": {func(m *messages) {
			for range freeBurst/32 + 1 {
				m.feed(bitfield, 0, now)
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMessages(now)
			k.send(m)
			if owed := m.owed(now); (owed > 0) != k.slow {
				t.Errorf("waits %s", owed)
			} else if m.owed(now.Add(owed)) > time.Millisecond {
				t.Error("it is never paid")
			}
		})
	}
}

// Messages are followed however they are cut.
func TestMessagesAreCutAnywhere(t *testing.T) {
	var wire []byte
	for i := range 50 {
		wire = append(wire, message(pp.Message{Type: pp.Have, Index: pp.Integer(i % 40)})...)
		wire = append(wire, 0, 0, 0, 0)
		wire = append(wire, message(pp.Message{Type: pp.Unchoke})...)
		wire = append(wire, message(pp.Message{Type: pp.Piece, Piece: make([]byte, i)})...)
	}
	now := time.Unix(1, 0)
	whole := newMessages(now)
	whole.feed(wire, 0, now)
	for _, n := range []int{1, 2, 3, 5, 7, 64} {
		m := newMessages(now)
		for rest := wire; len(rest) > 0; rest = rest[min(n, len(rest)):] {
			m.feed(rest[:min(n, len(rest))], 0, now)
		}
		if d := m.allowance.left - whole.allowance.left; d > 1e-6 || d < -1e-6 || m.have != 0 || m.left != 0 {
			t.Errorf("cut by %d: %v left, whole %v", n, m.allowance.left, whole.allowance.left)
		}
	}
}

// A flood of Have, and of what is as cheap, is read slowly; others go on.
func TestFloodIsReadSlowly(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	log := new(told)
	s, seeded, content, _ := seed(t, size, each(handOut, members(log, "flooder", "agent")))
	flood, started := greet(t, s.addr, "127.0.0.1", seeded.InfoHash(), PeerID("flooder")), time.Now()
	var sent int64
	var flooding sync.WaitGroup
	flooding.Go(func() {
		haves := bytes.Repeat(message(pp.Message{Type: pp.Have, Index: 1}), 1<<12)
		for {
			n, err := flood.Write(haves)
			sent += int64(n) / 9
			if err != nil {
				return
			}
		}
	})
	var heard int64
	w := func() *watched {
		var out *watched
		s.conns.Range(func(_, v any) bool { out = v.(*watched); return !out.is(PeerID("flooder")) })
		return out
	}
	eventually(t, func() bool { return s.counts.slowed.Load() > 3 })
	n := start(t, "agent", t.TempDir(), members(io.Discard, "seeder"))
	finish(t, n.fetch(t, seeded, size, nil), content, s.addr)
	heard = w().in.Load() / 9
	if limit := int64(freeBurst) + int64(float64(freeRate)*time.Since(started).Seconds()) + 128<<10; heard > limit {
		t.Errorf("%d messages were read in %s", heard, time.Since(started))
	}
	flood.Close()
	flooding.Wait()
	if !strings.Contains(log.String(), "member=flooder") || strings.Count(log.String(), "read slowly") != 1 {
		t.Error(log)
	}
	if bad := s.BadPeers(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
	t.Logf("%d were sent, %d read", sent, heard)
}

// FuzzMessages: no bytes take more than they are, and none make what is owed endless.
func FuzzMessages(f *testing.F) {
	f.Add(message(pp.Message{Type: pp.Have, Index: 1}), 3)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 4, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		now := time.Unix(1, 0)
		m := newMessages(now)
		at := max(0, min(len(b), cut))
		m.feed(b[:at], 0, now)
		m.feed(b[at:], 0, now)
		if m.have > len(m.header) || m.allowance.left > m.burst {
			t.Errorf("%+v", m)
		}
	})
}
