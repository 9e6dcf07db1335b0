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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// members makes a Swarm know these names, and listens to its log.
func members(log io.Writer, names ...string) func(*Config) {
	known := make(map[[20]byte]string)
	for _, name := range names {
		known[peerwire.PeerID(name)] = name
	}
	return func(c *Config) {
		c.Member = func(id [20]byte) (m peerwire.Member) {
			if m.Name = known[id]; m.Name != "" {
				m.Region, m.Seeder, m.Buckets = "region-of-"+m.Name, m.Name == "seeder", []string{m.Name + "-builds"}
			}
			return m
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
	return func(c *Config) { c.DialFrom = &net.TCPAddr{IP: net.ParseIP(addr)} }
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
	if strings.Contains(log.String(), "refused") || s.wire.Counts.TurnedAway.Load() > 0 {
		t.Errorf("%d were turned away: %s", s.wire.Counts.TurnedAway.Load(), log)
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
	eventually(t, func() bool {
		return s.wire.Counts.TurnedAway.Load() >= 5 && strings.Contains(there.String(), "refuses")
	})
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

// A member whose bucket a build does not go to gets nothing of it, from nobody, and both
// sides say so; once it goes there, too, it does.
func TestOnlyDestinationsGetPieces(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	names := []string{"seeder", "inside", "outside"}
	here, there := new(told), new(told)
	s, whole, content, _ := seed(t, size, each(handOut, members(here, names...)))
	e, err := s.cache.Pinned(whole.InfoHash(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Unpin()
	whole.Drop()
	from, err := s.HandOut(e, handout.Place{}, []string{"inside-builds"}, false)
	if err != nil {
		t.Fatal(err)
	}
	inside := start(t, "inside", t.TempDir(), members(here, names...))
	outside := start(t, "outside", t.TempDir(), members(there, names...))
	of := Fetch{InfoHash: from.InfoHash(), Shape: manifest.ShapeOf(size), Destinations: []string{"inside-builds"}}
	f, err := inside.Fetch(of)
	if err != nil {
		t.Fatal(err)
	}
	finish(t, f, content, s.addr)
	of.Destinations = []string{"outside-builds"}
	f, err = outside.Fetch(of)
	if err != nil {
		t.Fatal(err)
	}
	for _, peer := range []*node{s, inside} {
		before := peer.wire.Counts.TurnedAway.Load()
		eventually(t, func() bool {
			f.AddPeers([]peerwire.Peer{peer.addr})
			return peer.wire.Counts.TurnedAway.Load() > before
		})
	}
	if stats := f.Stats(); stats.WireBytes > 0 || len(stats.Peers) > 0 {
		t.Errorf("it got %+v", stats)
	}
	for log, want := range map[*told][]string{
		here:  {"level=WARN", "peer refused: the build does not go to its bucket", "member=outside", "region=region-of-outside", "outside-builds"},
		there: {"level=WARN", "peer refuses our connections", "the build does not go to this member's bucket", "member=inside", "member=seeder"},
	} {
		eventually(t, func() bool {
			return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(log.String(), w) })
		})
	}
	for _, n := range []*node{s, inside, outside} {
		if bad := n.BadPeers(); len(bad) > 0 {
			t.Errorf("%+v", bad)
		}
	}
	if _, err := s.HandOut(e, handout.Place{}, []string{"outside-builds"}, false); err != nil {
		t.Fatal(err)
	}
	finish(t, f, content, s.addr)
}

// greet connects from an address and says who it is; no id: it says nothing.
func greet(t *testing.T, to peerwire.Peer, ip string, infohash [20]byte, id [20]byte) net.Conn {
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
		greet(t, s.addr, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID(fmt.Sprint("stranger-", i)))
		greet(t, s.addr, ip, seeded.InfoHash(), [20]byte{})
	}
	var all sync.WaitGroup
	for _, name := range names {
		n := start(t, name, t.TempDir(), members(io.Discard, append([]string{"seeder"}, names...)...))
		f := n.fetch(t, seeded, size, nil)
		all.Go(func() { finish(t, f, content, s.addr) })
	}
	all.Wait()
	_, greeting, strangers := s.wire.Waiting()
	if strangers > peerwire.MaxStrangersPerAddr {
		t.Errorf("%d strangers of one address", strangers)
	}
	if greeting > peerwire.MaxGreeting {
		t.Errorf("%d have not said who they are", greeting)
	}
}

// A member that connects anew, as it is known to do from its own address, takes the
// place of a connection under its name from elsewhere.
func TestTwinFromElsewhereGivesWay(t *testing.T) {
	t.Parallel()
	s, seeded, _, _ := seed(t, 1<<20, each(members(io.Discard, "agent"), onlyFrom("127.0.0.1")))
	cuckoo := greet(t, s.addr, "127.0.0.2", seeded.InfoHash(), peerwire.PeerID("agent"))
	eventually(t, func() bool { return len(seeded.Stats().Peers) == 1 })
	if ended(cuckoo) {
		t.Fatal("a member from elsewhere is refused")
	}
	eventually(t, func() bool {
		c := greet(t, s.addr, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID("agent"))
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
	answer, err := pp.Handshake(t.Context(), c, &hash, peerwire.PeerID("stranger"), pp.NewPeerExtensionBytes(pp.ExtensionBitFast))
	if err != nil || answer.Hash != hash || answer.PeerID != peerwire.RefusedID {
		t.Errorf("%+v, %v", answer, err)
	}
	eventually(t, func() bool { return ended(c) })
}

// A flood of Have, and of what is as cheap, is read slowly; others go on.
func TestFloodIsReadSlowly(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	log := new(told)
	s, seeded, content, _ := seed(t, size, each(handOut, members(log, "flooder", "agent")))
	flood, started := greet(t, s.addr, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID("flooder")), time.Now()
	var sent int64
	var flooding sync.WaitGroup
	flooding.Go(func() {
		haves := bytes.Repeat(pp.Message{Type: pp.Have, Index: 1}.MustMarshalBinary(), 1<<12)
		for {
			n, err := flood.Write(haves)
			sent += int64(n) / 9
			if err != nil {
				return
			}
		}
	})
	eventually(t, func() bool { return s.wire.Counts.Slowed.Load() > 3 })
	n := start(t, "agent", t.TempDir(), members(io.Discard, "seeder"))
	finish(t, n.fetch(t, seeded, size, nil), content, s.addr)
	heard := s.wire.Conn(flood.LocalAddr().String(), seeded.InfoHash()).Received() / 9
	if limit := int64(peerwire.FreeBurst) + int64(float64(peerwire.FreeRate)*time.Since(started).Seconds()) + 128<<10; heard > limit {
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
