package gossip

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/admission/admissiontest"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// hold opens as many connections and says nothing on them, and others when they are closed,
// until the test ends. It returns when one was closed, or all are open.
func hold(t *testing.T, d *net.Dialer, addr string, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	var opened atomic.Int64
	full, reached := make(chan struct{}), sync.Once{}
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := d.DialContext(ctx, "tcp", addr)
				if err == nil {
					if opened.Add(1) == int64(n) {
						reached.Do(func() { close(full) })
					}
					stop := context.AfterFunc(ctx, func() { c.Close() })
					_, _ = io.Copy(io.Discard, c) // until it is closed
					stop()
					c.Close()
				}
				select {
				case <-ctx.Done():
				case <-time.After(150 * time.Millisecond):
				}
			}
		})
	}
	<-full
}

// Whoever holds connections and says nothing has no more of them than half, and keeps nobody
// else out: members come, hear documents and come again after a restart.
func TestIdleConnectionsKeepNobodyOut(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	for name, with := range map[string]func(...func(*Config)) func(*Config){
		"without TLS": func(more ...func(*Config)) func(*Config) { return all(append(more, keyed(1))...) },
		"with TLS":    func(more ...func(*Config)) func(*Config) { return withTLS(t, prod, identity.Require, more...) },
	} {
		t.Run(name, func(t *testing.T) {
			d := admissiontest.Elsewhere(t)
			s := start(t, seeder("s1"), with())
			hold(t, d, s.Addr(), 2*maxStreams)
			a := start(t, agent("a1", "region-a"), with(join(s)))
			a.await(t, 2)
			s.await(t, 2)
			b := start(t, agent("b1", "region-b"), with(join(s)))
			b.await(t, 3)
			if err := s.Broadcast(announcement(t), nil); err != nil {
				t.Fatal(err)
			}
			receive(t, a.documents)
			receive(t, b.documents)
			a.stop()
			again := start(t, agent("a1", "region-a"), with(join(s)))
			again.await(t, 3)
		})
	}
}

// What an address that is no member's has open has bounds, and one identity has others, while
// each connection gets in.
func TestStreamsOfEachAreBounded(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Require))
	ports := s.ports
	d := admissiontest.Elsewhere(t)
	for range 2 * maxUnknownStreams {
		c, err := d.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	s.untilTrue(t, "not all are here", func() bool { return ports.strangers.Len() == maxUnknownStreams })
	// Behind one address there may be many members: who has shown a certificate has left the
	// places of the address.
	for i, id := range []identity.ID{prod.Agent("region-a", "a1"), prod.Agent("region-a", "a2"), prod.Seeder("s2")} {
		config := prod.Source(t, id).Client(identity.GossipProto, nil)
		for range 2 * maxStreamsOfOne {
			c, err := tls.DialWithDialer(d, "tcp", s.Addr(), config)
			if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			defer c.Close()
		}
		if n := ports.members.Len(); n > (i+1)*maxStreamsOfOne {
			t.Errorf("%d connections of %d members", n, i+1)
		}
	}
	if n := ports.strangers.Len(); n > maxUnknownStreams {
		t.Errorf("%d connections of an unknown address", n)
	}
}

// Who has failed to show a certificate too often is turned away before TLS is spoken, and
// keeps nobody else out.
func TestFailedHandshakesHaveARate(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	s := start(t, seeder("s1"), withTLS(t, prod, identity.Require))
	config := identitytest.New(t, "prod", nil).Source(t, prod.Agent("region-a", "a1")).Client(identity.GossipProto, nil)
	config.VerifyConnection = nil // it takes everybody
	d := admissiontest.Elsewhere(t)
	greeted, begun := 0, time.Now()
	for range 3 * admission.FailureBurst {
		c, err := tls.DialWithDialer(d, "tcp", s.Addr(), config)
		if err != nil {
			continue
		}
		greeted++
		_, _ = c.Read(make([]byte, 1)) // the refusal
		c.Close()
	}
	// A failure is counted a moment after it was told.
	if most := admission.FailureBurst + int(admission.FailuresPerSecond*(time.Since(begun).Seconds()+3)); greeted > most {
		t.Errorf("%d were answered, expected %d at most", greeted, most)
	}
	a := start(t, agent("a1", "region-a"), withTLS(t, prod, identity.Require, join(s)))
	a.await(t, 2)
}
