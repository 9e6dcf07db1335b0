package swarm

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// certified gives nodes identities of one cluster, which are all known as members: the one
// called seeder is one, the others are agents, each of a region of its own.
type certified struct {
	*identitytest.Cluster
	t     *testing.T
	names []string
	// plain are members that show no certificate.
	plain map[string]bool
}

func newCertified(t *testing.T, names ...string) *certified {
	return &certified{identitytest.New(t, "test", nil), t, names, make(map[string]bool)}
}

func (c *certified) id(name string) identity.ID {
	if name == "seeder" {
		return c.Seeder(name)
	}
	return c.Agent("region-of-"+name, name)
}

// as is a node's configuration.
func (c *certified) as(name string, mode identity.Mode, log io.Writer) func(*Config) {
	return func(cfg *Config) {
		members(log, c.names...)(cfg)
		of := cfg.Member
		cfg.Member = func(id [20]byte) peerwire.Member {
			m := of(id)
			m.ID, m.Certified = m.Name, m.Name != "" && !c.plain[m.Name]
			return m
		}
		if mode != identity.Off {
			cfg.TLS, cfg.Identity = mode, c.Source(c.t, c.id(name))
		}
	}
}

// greetAs connects with a certificate, and says that it is the member called name.
func (c *certified) greetAs(self *identity.Source, to peerwire.Peer, infohash [20]byte, name string) net.Conn {
	c.t.Helper()
	conn, err := tls.Dial("tcp", to.Addr.String(), self.Client(identity.PeerProto, nil))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write(handshake(infohash, peerwire.PeerID(name))); err != nil {
		c.t.Log(err) // it may have hung up
	}
	return conn
}

// A build goes from the seeder to two agents over TLS alone, and its next segment on
// connections that have proven who is at both ends before they are used.
func TestOverTLS(t *testing.T) {
	t.Parallel()
	const size = 4<<20 + 5
	log := new(told)
	c := newCertified(t, "seeder", "a", "b")
	s, from, content, _ := seed(t, size, each(handOut, c.as("seeder", identity.Require, log)))
	a := start(t, "a", t.TempDir(), c.as("a", identity.Require, log))
	b := start(t, "b", t.TempDir(), c.as("b", identity.Require, log))
	var all sync.WaitGroup
	for _, n := range []*node{a, b} {
		f := n.fetch(t, from, size, nil)
		all.Go(func() { finish(t, f, content, s.addr, a.addr, b.addr) })
	}
	all.Wait()
	a.ExpectMore([]peerwire.Peer{s.addr})
	a.ready(t)
	eventually(t, func() bool { return s.silent() == 1 })
	proven := s.wire.Counts.Proven.Load()
	next, content := s.another(t, 2, size)
	a.ExpectMore(nil) // so that no other takes its place
	if a.wire.Counts.Ready.Load() > 0 {
		t.Fatal("a spare was used before it was needed")
	}
	a.ExpectMore([]peerwire.Peer{s.addr})
	a.ready(t)
	eventually(t, func() bool { return s.wire.Counts.Proven.Load() > proven })
	finish(t, a.fetch(t, next, size, nil), content, s.addr)
	if a.wire.Counts.Ready.Load() != 1 {
		t.Error("the spare connection was not used")
	}
	for _, n := range []*node{s, a, b} {
		if bad := n.BadPeers(); len(bad) > 0 {
			t.Errorf("%+v", bad)
		}
	}
	if strings.Contains(log.String(), "WARN") {
		t.Error(log)
	}
}

// Members that are rolled out one by one work together: with TLS where both have it.
func TestMixedModes(t *testing.T) {
	t.Parallel()
	const size = 2 << 20
	c := newCertified(t, "seeder", "a", "b", "old")
	c.plain["old"] = true
	log := new(told)
	s, from, content, _ := seed(t, size, each(handOut, c.as("seeder", identity.Prefer, log)))
	nodes := []*node{
		start(t, "a", t.TempDir(), c.as("a", identity.Prefer, log)),
		start(t, "b", t.TempDir(), c.as("b", identity.Require, log)),
		start(t, "old", t.TempDir(), c.as("old", identity.Off, io.Discard)),
	}
	var all sync.WaitGroup
	for _, n := range nodes {
		f := n.fetch(t, from, size, nil)
		peers := []peerwire.Peer{s.addr, nodes[0].addr}
		all.Go(func() { finish(t, f, content, peers...) })
	}
	all.Wait()
	if s.wire.Counts.Proven.Load() < 2 {
		t.Errorf("%d connections were over TLS", s.wire.Counts.Proven.Load())
	}
}

// Six connections with a borrowed peer id do not isolate who it belongs to: neither from
// members with certificates of their own, nor without any, whatever they say next.
func TestBorrowedPeerIDs(t *testing.T) {
	for _, mode := range []identity.Mode{identity.Prefer, identity.Require} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			const size, times = 1 << 20, 6
			c := newCertified(t, "seeder", "victim", "thief")
			log := new(told)
			s, from, content, _ := seed(t, size, each(handOut, c.as("seeder", mode, log)))
			thief := c.Source(t, c.id("thief"))
			noise := bytes.Repeat([]byte{0xff}, 1<<10)
			for range times {
				for _, conn := range []net.Conn{
					c.greetAs(thief, s.addr, from.InfoHash(), "victim"),
					greet(t, s.addr, "127.0.0.1", from.InfoHash(), peerwire.PeerID("victim")),
				} {
					_, _ = conn.Write(noise)
					eventually(t, func() bool { return ended(conn) })
				}
			}
			bad := s.BadPeers()
			if len(bad) != 1 || bad[0].Identity != c.id("thief") || bad[0].Name != "thief" || bad[0].Region != "region-of-thief" {
				t.Errorf("%+v", bad)
			}
			if s.wire.Refused(peerwire.PeerID("victim")) || !s.wire.Refused(peerwire.PeerID("thief")) {
				t.Error("not the thief is left alone")
			}
			victim := start(t, "victim", t.TempDir(), c.as("victim", mode, io.Discard))
			finish(t, victim.fetch(t, from, size, nil), content, s.addr)
			for _, want := range []string{"does not prove who it is", "claims=victim", "member=thief"} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("no %q in %s", want, log)
				}
			}
		})
	}
}

// A peer id that nobody knows is refused, whoever shows a certificate with it.
func TestUnknownPeerIDOverTLS(t *testing.T) {
	t.Parallel()
	c := newCertified(t, "seeder", "a")
	s, from, _, _ := seed(t, 1<<20, each(handOut, c.as("seeder", identity.Require, io.Discard)))
	conn := c.greetAs(c.Source(t, c.id("a")), s.addr, from.InfoHash(), "nobody-knows")
	answer := make([]byte, 68)
	if _, err := io.ReadFull(conn, answer); err != nil || !bytes.HasPrefix(answer, []byte(pp.Protocol)) || [20]byte(answer[48:]) != peerwire.RefusedID {
		t.Errorf("%q, %v", answer, err)
	}
	eventually(t, func() bool { return ended(conn) })
	if len(from.Stats().Peers) > 0 {
		t.Error("it is a peer")
	}
}

// A certificate that is denied ends the connections that it has proven.
func TestDeniedWhileConnected(t *testing.T) {
	t.Parallel()
	c := newCertified(t, "seeder", "a")
	s, from, _, _ := seed(t, 1<<20, each(handOut, c.as("seeder", identity.Require, io.Discard)))
	conn := c.greetAs(c.Source(t, c.id("a")), s.addr, from.InfoHash(), "a")
	eventually(t, func() bool { return len(from.Stats().Peers) == 1 })
	self := s.cfg.Identity
	if err := os.WriteFile(self.Files().Denied, fmt.Appendln(nil, "id", c.id("a")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := self.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return ended(conn) })
}

// No connection outlives what its certificate was looked at for.
func TestConnectionsGrowOld(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	c := newCertified(t, "seeder", "a")
	c.Cluster = identitytest.New(t, "test", func() time.Time { return time.Now().Add(time.Duration(later.Load())) })
	s, from, _, _ := seed(t, 1<<20, each(handOut, c.as("seeder", identity.Require, io.Discard)))
	conn := c.greetAs(c.Source(t, c.id("a")), s.addr, from.InfoHash(), "a")
	eventually(t, func() bool { return len(from.Stats().Peers) == 1 })
	later.Store(int64(identity.MaxConnectionAge))
	eventually(t, func() bool { return ended(conn) })
}
