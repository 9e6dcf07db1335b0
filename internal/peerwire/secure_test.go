package peerwire

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// counting counts the calls that reach a connection.
type counting struct {
	net.Conn
	reads, writes atomic.Int64
}

func (c *counting) Read(b []byte) (int, error) {
	c.reads.Add(1)
	return c.Conn.Read(b)
}

func (c *counting) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// pair is two ends of a TCP connection.
func pair(t *testing.T) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

// securePair is two ends of a connection over TLS, an agent's and a seeder's.
func securePair(t *testing.T) (agent, seeder *link, below *counting) {
	t.Helper()
	cluster := identitytest.New(t, "test", nil)
	a := &Wire{ctx: t.Context(), cfg: Config{Identity: cluster.Source(t, cluster.Agent("region-a", "a"))}}
	s := &Wire{ctx: t.Context(), cfg: Config{Identity: cluster.Source(t, cluster.Seeder("s"))}}
	here, there := pair(t)
	below = &counting{Conn: here}
	agent, seeder = a.newLink(below), s.newLink(there)
	answered := make(chan error)
	go func() { answered <- s.answerSecurely(seeder, nil) }()
	if err := a.greetSecurely(t.Context(), agent, identity.Exactly(cluster.Seeder("s"))); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if agent.peer.ID != cluster.Seeder("s") || seeder.peer.ID != cluster.Agent("region-a", "a") {
		t.Fatalf("%s, %s", agent.peer.ID, seeder.peer.ID)
	}
	return agent, seeder, below
}

// What is written at once goes out in as few calls as fit the buffer, and arrives as it was,
// in both directions; TLS alone makes one for each 16 KiB.
func TestRecordsAreGathered(t *testing.T) {
	agent, seeder, below := securePair(t)
	content := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	for _, way := range []struct {
		name     string
		from, to *link
		calls    *atomic.Int64
	}{{"written", agent, seeder, &below.writes}, {"read", seeder, agent, &below.reads}} {
		before := way.calls.Load()
		var writing sync.WaitGroup
		writing.Go(func() {
			for part := content; len(part) > 0; {
				n := min(len(part), 1+rand.IntN(1<<20))
				if _, err := way.from.Write(part[:n]); err != nil {
					t.Error(err)
				}
				part = part[n:]
			}
		})
		got := make([]byte, len(content))
		if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: not the bytes that were written: %v", way.name, err)
		}
		writing.Wait()
		calls := way.calls.Load() - before
		t.Logf("%s: %d calls for %d records", way.name, calls, len(content)>>14)
		if way.name == "written" && calls > int64(len(content)/bufferSize)+128 {
			t.Errorf("%d calls", calls)
		}
	}
}

// An idle connection has none of the buffers.
func TestIdleConnectionHasNoBuffer(t *testing.T) {
	agent, seeder, _ := securePair(t)
	if _, err := agent.Write(make([]byte, 1<<20)[:300<<10]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(seeder, make([]byte, 300<<10)); err != nil {
		t.Fatal(err)
	}
	if b := agent.Conn.(secured).below; b.out != nil {
		t.Error("who writes nothing holds a buffer")
	}
	if b := seeder.Conn.(secured).below; b.buffer != nil {
		t.Error("who has read everything holds a buffer")
	}
}

// secure has a Wire require TLS.
func secure(mode identity.Mode, self *identity.Source) func(*Config) {
	return func(c *Config) { c.TLS, c.Identity = mode, self }
}

// Connections that do not come to show a certificate are bounded, and end; who shows one
// keeps his place meanwhile.
func TestHandshakesAreBounded(t *testing.T) {
	t.Parallel()
	cluster := identitytest.New(t, "test", nil)
	w := start(t, func(c *Config) {
		secure(identity.Require, cluster.Source(t, cluster.Seeder("s")))(c)
		c.AllowPeer = func(netip.Addr) bool { return false }
		c.Member = func([20]byte) Member { return Member{} }
	})
	addr := w.cfg.Listener.Addr().String()
	config := cluster.Source(t, cluster.Agent("region-a", "a")).Client(identity.PeerProto, nil)
	honest, err := tls.Dial("tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer honest.Close()
	eventually(t, func() bool { silent, _, _ := w.Waiting(); return silent == 1 && w.Counts.Proven.Load() == 1 })
	securing := w.doors.securing.Len
	most := 0
	for i := range 3 * maxUnknownSecuring {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte{tlsRecord, 3, 1}); err != nil {
			t.Log(err)
		}
		if i%2 == 0 {
			eventually(t, func() bool { return securing() >= min(maxUnknownSecuring, i/4) || w.Counts.TurnedAway.Load() > 0 })
		}
		most = max(most, securing())
	}
	if most > maxUnknownSecuring {
		t.Errorf("%d were to show a certificate at a time", most)
	}
	eventually(t, func() bool { return securing() == 0 }) // all are too late
	if silent, _, _ := w.Waiting(); silent != 1 || w.Counts.TurnedAway.Load() < 3*maxUnknownSecuring {
		t.Errorf("%d say nothing, %d were turned away", silent, w.Counts.TurnedAway.Load())
	}
}

// Only who shows a member's certificate of the same cluster is heard where TLS is required.
func TestCertificatesThatAreNotHeard(t *testing.T) {
	t.Parallel()
	cluster, other := identitytest.New(t, "test", nil), identitytest.New(t, "other", nil)
	for name, shown := range map[string]struct {
		source *identity.Source
		reason identity.Reason
	}{
		"another cluster's":                {other.Source(t, other.Agent("region-a", "a")), identity.Misplaced},
		"one of another cluster's like it": {identitytest.New(t, "test", nil).Source(t, cluster.Agent("region-a", "a")), identity.Authority},
		"a host's":                         {cluster.Source(t, cluster.Host("region-a", "h")), identity.Misplaced},
		"none at all":                      {nil, identity.Missing},
	} {
		t.Run(name, func(t *testing.T) {
			source := shown.source
			w := start(t, secure(identity.Require, cluster.Source(t, cluster.Seeder("s"))))
			config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{identity.PeerProto}}
			if source != nil {
				config = source.Client(identity.PeerProto, nil)
				config.VerifyConnection = nil // it takes everybody
			}
			c, err := tls.Dial("tcp", w.cfg.Listener.Addr().String(), config)
			if err == nil { // it learns of it from the next bytes
				defer c.Close()
				if _, err = c.Read(make([]byte, 1)); err == nil {
					t.Error("it is answered")
				}
			}
			eventually(t, func() bool { return w.cfg.Identity.Refused(shown.reason) == 1 })
			if w.Counts.TurnedAway.Load() != 1 {
				t.Error("it is not turned away")
			}
			if w.Counts.Proven.Load() != 0 {
				t.Error("it is heard")
			}
		})
	}
}

// Who has failed too often is turned away before TLS is spoken.
func TestFailedHandshakesCostNothing(t *testing.T) {
	t.Parallel()
	cluster := identitytest.New(t, "test", nil)
	w := start(t, secure(identity.Require, cluster.Source(t, cluster.Seeder("s"))))
	config := identitytest.New(t, "test", nil).Source(t, cluster.Agent("region-a", "a")).Client(identity.PeerProto, nil)
	config.VerifyConnection = nil // it takes everybody
	greeted := 0
	begun := time.Now()
	for try := range 3 * admission.FailureBurst {
		c, err := tls.Dial("tcp", w.cfg.Listener.Addr().String(), config)
		if err == nil { // the other side has answered, and then refuses
			greeted++
			c.Close()
		}
		eventually(t, func() bool { return w.Counts.TurnedAway.Load() == int64(try+1) })
	}
	if most := admission.FailureBurst + int(admission.FailuresPerSecond*(time.Since(begun).Seconds()+1)); greeted > most {
		t.Errorf("%d were answered, expected %d at most", greeted, most)
	}
}

// Of silent connections with certificates, each identity has a bound of its own, wherever
// they come from.
func TestSilentConnectionsOfAnIdentityAreBounded(t *testing.T) {
	d := newDoors()
	of := func(name, from string) *Conn {
		c := newGreeting(from, false)
		c.proven.Store(&identity.Peer{ID: identity.ID{Cluster: "test", Kind: identity.Agent, Region: "region-a", Name: name}})
		return c
	}
	honest := of("honest", "10.0.0.1")
	d.wait(honest)
	for i := range 3 * MaxSilentPerAddr {
		d.wait(of("many", fmt.Sprintf("10.0.1.%d", i)))
	}
	if d.silent.Len() != 1+MaxSilentPerAddr || !d.silent.Has(honest) {
		t.Errorf("%d say nothing", d.silent.Len())
	}
}
