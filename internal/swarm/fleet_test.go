package swarm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
)

// withFleet gives a node a listener for these hosts, and returns where it is.
func withFleet(t *testing.T, places int, hosts ...string) (change func(*Config), at *peerwire.Peer) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[[20]byte]peerwire.Member)
	for _, name := range hosts {
		known[peerwire.PeerID(name)] = peerwire.Member{Name: name, ID: name, Region: "region-a", Host: true, Certified: true}
	}
	at = &peerwire.Peer{Addr: l.Addr().(*net.TCPAddr).AddrPort()}
	return func(c *Config) {
		at.ID = peerwire.PeerID(c.Name)
		c.Fleet = &Fleet{Listener: l, Places: places, Host: func(id [20]byte) peerwire.Member { return known[id] }}
	}, at
}

// slowly bounds what a node sends, in bytes/s.
func slowly(t *testing.T, rate int64) func(*Config) {
	t.Helper()
	l := limits.New(false)
	most := api.Rate(rate)
	if err := l.Change(api.LimitsChange{UploadRate: &most}); err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.Upload = l.Upload }
}

// Hosts receive while the agent itself still downloads, each piece once from it; a member
// that asks the agent sees all of it.
func TestHostsInStep(t *testing.T) {
	t.Parallel()
	const size, hosts = 4 << 20, 3
	s, from, content, m := seed(t, size, each(handOut, slowly(t, 3<<20)))
	var names []string
	for i := range hosts {
		names = append(names, fmt.Sprint("host-", i))
	}
	fleet, at := withFleet(t, 0, names...)
	agent := start(t, "agent", t.TempDir(), fleet)
	f := agent.fetch(t, from, size, nil)
	if err := f.HandToHosts(handout.Place{Execution: "x"}, 0); err == nil {
		t.Error("handed to hosts before anything is known of it")
	}
	var all sync.WaitGroup
	all.Go(func() { finish(t, f, content, s.addr) })
	eventually(t, func() bool { return f.HandToHosts(handout.Place{Execution: "x"}, 0) == nil })
	var nodes []*node
	peers := []peerwire.Peer{*at}
	for _, name := range names {
		n := start(t, name, t.TempDir(), nil)
		nodes, peers = append(nodes, n), append(peers, n.addr)
	}
	early := make(chan struct{}, size)
	for _, n := range nodes {
		h := n.fetch(t, from, size, func(int, bool) {
			if !f.Done() {
				early <- struct{}{}
			}
		})
		all.Go(func() { finish(t, h, content, peers...) })
	}
	all.Wait()
	if len(early) == 0 {
		t.Error("no host had a piece before the agent had all of them")
	}
	stats := agent.Fleet()
	sent := f.Stats().UploadedBytes
	t.Logf("%d pieces came to hosts before the agent had all; it sent %.2f copies, %+v", len(early), float64(sent)/size, stats)
	if sent > size*3/2 || stats.Handed < m.NumPieces() {
		t.Errorf("the agent sent %d bytes of %d, %+v", sent, size, stats)
	}
	// The hosts are whole, and their connections end.
	eventually(t, func() bool { return agent.Fleet().Hosts == 0 })
	member := start(t, "member", t.TempDir(), nil)
	finish(t, member.fetch(t, from, size, nil), content, agent.addr)
	for _, n := range append(nodes, agent, member) {
		if bad := n.BadPeers(); len(bad) > 0 {
			t.Errorf("%+v", bad)
		}
	}
}

// Hosts get nothing that was not handed to them, and nothing of what is not any more; a
// member's peer id, and one that nobody has, is refused on their listener.
func TestHostsGetNothingElse(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	fleet, at := withFleet(t, 0, "host")
	s, seeded, content, _ := seed(t, size, each(members(io.Discard, "member"), fleet))
	refused := func(id [20]byte) {
		t.Helper()
		before := s.fleet.wire.Counts.TurnedAway.Load()
		c := greet(t, *at, "127.0.0.1", seeded.InfoHash(), id)
		eventually(t, func() bool { return ended(c) && s.fleet.wire.Counts.TurnedAway.Load() > before })
	}
	refused(peerwire.PeerID("host")) // not handed to hosts
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	refused(peerwire.PeerID("member"))
	refused(peerwire.PeerID("nobody"))
	h := start(t, "host", t.TempDir(), nil)
	finish(t, h.fetch(t, seeded, size, nil), content, *at)
	seeded.KeepFromHosts()
	refused(peerwire.PeerID("host"))
	if hosts := s.Fleet().Hosts; hosts > 0 {
		t.Errorf("%d hosts are connected", hosts)
	}
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil { // again
		t.Fatal(err)
	}
	h.drop(t, seeded.InfoHash())
	again := start(t, "host", t.TempDir(), nil)
	finish(t, again.fetch(t, seeded, size, nil), content, *at)
}

func (n *node) drop(t *testing.T, infohash manifest.InfoHash) {
	t.Helper()
	f, ok := n.Torrent(infohash)
	if !ok {
		t.Fatal("not there")
	}
	f.Drop()
}

// There are so many places and no more; one that is not used goes to who asks, one that is
// does not.
func TestPlacesOfHosts(t *testing.T) {
	t.Parallel()
	const size, places = 1 << 20, 3
	var names []string
	for i := range 2 * places {
		names = append(names, fmt.Sprint("host-", i))
	}
	fleet, at := withFleet(t, places, names...)
	s, seeded, _, _ := seed(t, size, fleet)
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	var inside []net.Conn
	for i := range places {
		inside = append(inside, greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID(names[i])))
		eventually(t, func() bool { return s.Fleet().Hosts == i+1 })
	}
	for _, name := range names[places:] {
		c := greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID(name))
		eventually(t, func() bool { return ended(c) })
	}
	if hosts := s.Fleet().Hosts; hosts != places {
		t.Errorf("%d hosts", hosts)
	}
	// One host has no more connections than it needs.
	for range maxOfHost + 4 {
		greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID(names[0]))
	}
	s.fleet.mu.Lock()
	if n := len(s.fleet.conns); n > maxOfHost+places-1 {
		t.Errorf("%d connections", n)
	}
	s.fleet.mu.Unlock()
	inside[2].Close()
	eventually(t, func() bool {
		c := greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID(names[places]))
		return !ended(c) && s.Fleet().Hosts == places
	})
}

// A place that was not used for a while goes to who asks for it.
func TestIdlePlaceOfAHost(t *testing.T) {
	t.Parallel()
	fleet, at := withFleet(t, 1, "idle", "host")
	s, seeded, content, _ := seed(t, 1<<20, each(fleet, func(c *Config) {
		c.patience = defaultPatience()
		c.patience.place = time.Millisecond
	}))
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	idle := greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID("idle"))
	eventually(t, func() bool { return s.Fleet().Hosts == 1 })
	h := start(t, "host", t.TempDir(), nil)
	finish(t, h.fetch(t, seeded, 1<<20, nil), content, *at)
	if !ended(idle) {
		t.Error("the idle one stays")
	}
}

// A host that asks for what it was not offered is disconnected, and gets none of it.
func TestHostAsksForMore(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	log := new(told)
	fleet, at := withFleet(t, 0, "greedy", "host")
	s, seeded, content, m := seed(t, size, each(fleet, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) }))
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	c := greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID("greedy"))
	for _, msg := range []pp.Message{{Type: pp.HaveNone}, {Type: pp.Interested}, {Type: pp.Request, Index: pp.Integer(m.NumPieces() - 1), Length: 16 << 10}} {
		if _, err := c.Write(msg.MustMarshalBinary()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(c)
	if len(got) > 16<<10 {
		t.Errorf("it got %d bytes, %v", len(got), err)
	}
	eventually(t, func() bool { return strings.Contains(log.String(), "it was not offered") })
	h := start(t, "host", t.TempDir(), nil)
	finish(t, h.fetch(t, seeded, size, nil), content, *at)
	if bad := s.BadPeers(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
}

// An agent asks a host for nothing, whatever that says it has: wrong pieces, or none, of
// hosts neither spoil nor hold up the region's own download.
func TestNothingIsAskedOfHosts(t *testing.T) {
	t.Parallel()
	const size = 2 << 20
	s, from, content, m := seed(t, size, each(handOut, slowly(t, 2<<20)))
	fleet, at := withFleet(t, 0, "liar")
	agent := start(t, "agent", t.TempDir(), fleet)
	agent.known(t, m)
	f := agent.fetch(t, from, size, nil)
	if err := f.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	c := greet(t, *at, "127.0.0.1", from.InfoHash(), peerwire.PeerID("liar"))
	for _, msg := range []pp.Message{{Type: pp.HaveAll}, {Type: pp.Unchoke}} {
		if _, err := c.Write(msg.MustMarshalBinary()); err != nil {
			t.Fatal(err)
		}
	}
	asked := make(chan bool, 1)
	go func() { asked <- asksFor(c) }()
	eventually(t, func() bool { return len(f.Stats().Peers) == 1 })
	finish(t, f, content, s.addr)
	c.Close()
	if <-asked {
		t.Error("the agent has asked a host for a piece")
	}
	if stats := f.Stats(); stats.DownloadedBytes > size {
		t.Errorf("%+v", stats)
	}
}

// asksFor reads until the end, and reports whether a request came.
func asksFor(c net.Conn) bool {
	if _, err := io.ReadFull(c, make([]byte, 68)); err != nil {
		return false
	}
	for header := make([]byte, 4); ; {
		if _, err := io.ReadFull(c, header); err != nil {
			return false
		}
		body := make([]byte, binary.BigEndian.Uint32(header))
		if _, err := io.ReadFull(c, body); err != nil {
			return false
		}
		if len(body) > 0 && pp.MessageType(body[0]) == pp.Request {
			return true
		}
	}
}

// With TLS, a certificate of a host of the region is what counts: no other region's, no
// member's, none at all, and nobody else's peer id.
func TestHostsOverTLS(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	c := newCertified(t, "agent")
	fleet, at := withFleet(t, 0, "host", "victim")
	mine := func(cfg *Config) {
		cfg.TLS, cfg.Identity = identity.Require, c.Source(t, c.Agent("region-a", "agent"))
		cfg.Fleet.Mine = func(id identity.ID) bool { return id.Kind == identity.Host && id.Region == "region-a" }
	}
	s, seeded, content, _ := seed(t, size, each(members(io.Discard), fleet, mine))
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	source := func(n *Config) {
		n.Member = func(id [20]byte) peerwire.Member {
			if id == at.ID {
				return peerwire.Member{Name: "seeder", ID: "agent", Region: "region-a", Certified: true}
			}
			return peerwire.Member{}
		}
		n.Mine = func(identity.ID) bool { return true }
	}
	for _, name := range []string{"host", "unknown"} {
		h := start(t, name, t.TempDir(), each(source, func(n *Config) {
			n.TLS, n.Identity = identity.Require, c.Source(t, c.Host("region-a", name))
		}))
		finish(t, h.fetch(t, seeded, size, nil), content, *at)
	}
	for name, id := range map[string]identity.ID{
		"another region's host": c.Host("region-b", "host"),
		"an agent":              c.Agent("region-a", "other"),
		"a seeder":              c.Seeder("seeder"),
		"with a borrowed id":    c.Host("region-a", "host"),
	} {
		before := s.fleet.wire.Counts.TurnedAway.Load()
		claims := "host"
		if name == "with a borrowed id" {
			claims = "victim"
		}
		conn := c.greetAs(c.Source(t, id), *at, seeded.InfoHash(), claims)
		eventually(t, func() bool { return s.fleet.wire.Counts.TurnedAway.Load() > before })
		conn.Close()
	}
	before := s.fleet.wire.Counts.TurnedAway.Load()
	greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID("host"))
	eventually(t, func() bool { return s.fleet.wire.Counts.TurnedAway.Load() > before })
}

// Hosts that flood their listener take nothing away from members.
func TestHostsLockNoMemberOut(t *testing.T) {
	t.Parallel()
	const size = 2 << 20
	fleet, at := withFleet(t, 2, "flooder")
	s, seeded, content, _ := seed(t, size, each(handOut, members(io.Discard, "member"), fleet))
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		greet(t, *at, fmt.Sprintf("127.0.1.%d", i%100), seeded.InfoHash(), [20]byte{})
		greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID("flooder"))
		greet(t, *at, "127.0.0.1", seeded.InfoHash(), peerwire.PeerID(fmt.Sprint("stranger-", i)))
	}
	n := start(t, "member", t.TempDir(), members(io.Discard, "seeder"))
	finish(t, n.fetch(t, seeded, size, nil), content, s.addr)
	silent, greeting, strangers := s.fleet.wire.Waiting()
	if silent > peerwire.MaxUnknownSilent || greeting > peerwire.MaxGreeting || strangers > 0 || s.Fleet().Hosts > 2 {
		t.Errorf("%d silent, %d greeting, %d strangers, %d hosts", silent, greeting, strangers, s.Fleet().Hosts)
	}
	if silent, _, _ := s.wire.Waiting(); silent > 1 {
		t.Errorf("%d connections of hosts are among the members'", silent)
	}
}

// On standby, an agent hands out what another one does not.
func TestStandby(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	content := make([]byte, size)
	m := manifesttest.Segment(content)
	fleet, at := withFleet(t, 0, "host")
	a := start(t, "agent", t.TempDir(), fleet)
	seeded := a.pull(t, content, m)
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 1); err != nil {
		t.Fatal(err)
	}
	h := start(t, "host", t.TempDir(), nil)
	f := h.fetch(t, seeded, size, nil)
	finish(t, f, content, *at)
	if stats := a.Fleet(); stats.Handed != m.NumPieces() || stats.Second > 0 {
		t.Errorf("%+v", stats)
	}
}

// Hosts that say that they have what was handed to them, and pass nothing on, do not keep
// another one from getting all of it.
func TestHostsThatKeepToThemselves(t *testing.T) {
	t.Parallel()
	const size, liars = 4 << 20, 3
	names := []string{"host"}
	for i := range liars {
		names = append(names, fmt.Sprint("liar-", i))
	}
	fleet, at := withFleet(t, 0, names...)
	s, seeded, content, _ := seed(t, size, fleet)
	if err := seeded.HandToHosts(handout.Place{Execution: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var lying sync.WaitGroup
	defer lying.Wait()
	defer cancel()
	for _, name := range names[1:] {
		p := &badpeer.Peer{Behaviour: badpeer.Silent, ID: peerwire.PeerID(name), Claims: true}
		lying.Go(func() { _ = p.Dial(ctx, at.Addr.String(), seeded.InfoHash()) })
		eventually(t, func() bool { return p.Claimed() > 0 })
	}
	h := start(t, "host", t.TempDir(), nil)
	finish(t, h.fetch(t, seeded, size, nil), content, *at)
	t.Logf("%+v", s.Fleet())
}
