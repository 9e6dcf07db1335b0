package attack

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
)

// once is a connection whose first write goes through, and no other: a handshake that is
// begun and never ended.
type once struct {
	net.Conn
	written bool
}

func (o *once) Write(b []byte) (int, error) {
	if o.written {
		return len(b), nil
	}
	o.written = true
	return o.Conn.Write(b)
}

// halfOpen begins what it does not end.
func halfOpen(ctx context.Context, t Target) error {
	source, err := identity.Open(identity.FilesIn(t.Stranger), nil)
	if err != nil {
		return err
	}
	addrs := append(append([]string(nil), t.Peers...), t.Gossip...)
	beside(256, func(i int) {
		tick(ctx, 200*time.Millisecond, func() {
			c, end, err := dial(ctx, addrs[i%len(addrs)])
			if err != nil {
				return
			}
			defer end()
			proto := identity.PeerProto
			if i%len(addrs) >= len(t.Peers) {
				proto = identity.GossipProto
			}
			switch i / len(addrs) % 3 {
			case 0: // a record of 16 KiB that never ends
				if _, err := c.Write([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc}); err != nil {
					return
				}
				for ctx.Err() == nil {
					if _, err := c.Write([]byte{0}); err != nil {
						return
					}
					pauseFor(ctx, 300*time.Millisecond)
				}
			case 1: // garbage
				b := make([]byte, 600)
				_, _ = rand.Read(b)
				copy(b, []byte{22, 3, 1, 2, 0x50, 1, 0, 2, 0x4c, 3, 3})
				_, _ = c.Write(b)
				_, _ = io.Copy(io.Discard, c)
			case 2: // a right greeting without a second word
				_ = tls.Client(&once{Conn: c}, source.Client(proto, nil)).HandshakeContext(ctx)
				_, _ = io.Copy(io.Discard, c)
			}
		})
	})
	return nil
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// strangers make whole handshakes that end with a refusal.
func strangers(ctx context.Context, t Target) error {
	var err error
	if t.source, err = identity.Open(identity.FilesIn(t.Stranger), nil); err != nil {
		return err
	}
	config := t.source.Client("", nil)
	config.InsecureSkipVerify, config.VerifyConnection = true, nil
	addrs := append(append([]string(nil), t.Peers...), t.Gossip...)
	beside(64, func(i int) {
		own := config.Clone()
		own.NextProtos = []string{identity.PeerProto}
		if i%len(addrs) >= len(t.Peers) {
			own.NextProtos = []string{[]string{identity.GossipProto, identity.CallProto}[i/len(addrs)%2]}
		}
		tick(ctx, pause, func() {
			raw, end, err := dial(ctx, addrs[i%len(addrs)])
			if err != nil {
				return
			}
			defer end()
			_ = raw.SetDeadline(time.Now().Add(3 * time.Second))
			c := tls.Client(raw, own)
			if c.HandshakeContext(ctx) == nil {
				_, _ = c.Read(make([]byte, 1)) // the refusal
			}
		})
	})
	return nil
}

// calls are what a member may ask of others, and what it may not.
func calls(ctx context.Context, t Target) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	ask := func(method, path, body string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	}
	beside(8*len(t.Gossip), func(i int) {
		tick(ctx, 20*time.Millisecond, func() {
			c, end, err := t.dialTLS(ctx, t.Gossip[i%len(t.Gossip)], identity.CallProto)
			if err != nil {
				return
			}
			defer end()
			if i/len(t.Gossip)%8 == 7 { // garbage below TLS
				b := make([]byte, 5000)
				_, _ = rand.Read(b)
				copy(b, []byte{23, 3, 3, 0x10, 0})
				_, _ = c.NetConn().Write(b)
				_, _ = io.Copy(io.Discard, c)
				return
			}
			var lies []string
			for _, id := range t.Now().Executions {
				lies = append(lies, fmt.Sprintf(`P{"node":%q,"region":%q,"bucket":%q,"builds":[{"executionId":%q,"state":"failed"}]}`, "agent-0", "at-"+t.Bucket, t.Bucket, id),
					fmt.Sprintf(`P{"node":%q,"region":%q,"bucket":%q,"builds":[{"executionId":%q,"state":"landed"}]}`, t.source.ID().Name, t.source.ID().Region, t.ForeignBucket, id))
			}
			lies = append(lies, "L{}", "D"+strings.Repeat("x", 1000), strings.Repeat("y", 2000))
			answers := bufio.NewReader(c)
			for n := 0; ctx.Err() == nil; n++ {
				what := ask("GET", "/hello", "")
				switch (i/len(t.Gossip) + n) % 4 {
				case 1:
					what = ask("POST", "/renew", string(request))
				case 2, 3:
					what = ask("POST", "/message", lies[n%len(lies)])
				}
				if _, err := io.WriteString(c, what); err != nil {
					return
				}
				_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
				if _, err := answers.ReadByte(); err != nil {
					return
				}
				if n := answers.Buffered(); n > 0 {
					_, _ = answers.Discard(n)
				}
			}
		})
	})
	return nil
}

// replays are right once.
func replays(ctx context.Context, t Target) error {
	var mu sync.Mutex
	var heard [][]byte
	list, err := t.node("", nil, func(wire []byte) {
		mu.Lock()
		defer mu.Unlock()
		if len(heard) < 200 {
			heard = append(heard, append([]byte{'D'}, wire...))
		}
	})
	if err != nil {
		return err
	}
	defer list.Shutdown() //nolint:errcheck // of an attacker
	n := 0
	tick(ctx, pause, func() {
		mu.Lock()
		defer mu.Unlock()
		n++
		for _, m := range list.Members() {
			if m.Name == list.LocalNode().Name || len(heard) == 0 {
				continue
			}
			if wire := heard[n%len(heard)]; n%50 == 0 {
				_ = list.SendReliable(m, wire)
			} else if len(wire) < 1300 {
				_ = list.SendBestEffort(m, wire)
			}
		}
	})
	return nil
}

// foreign is a member that says that it is of another region's bucket, and asks for what does
// not go to its own.
func foreign(ctx context.Context, t Target) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		beside(2*len(t.Peers), func(i int) {
			tick(ctx, 50*time.Millisecond, func() {
				c, end, err := t.dialTLS(ctx, t.Peers[i%len(t.Peers)], identity.PeerProto)
				if err != nil {
					return
				}
				defer end()
				if t.hello(c, randomID()) == nil {
					_ = c.SetReadDeadline(time.Now().Add(time.Second))
					_, _ = io.Copy(io.Discard, c)
				}
			})
		})
	})
	defer wg.Wait()
	return t.member(ctx, gossip.Meta{Bucket: t.Bucket, PeerPort: 9, HTTPPort: 9}, key, func(g *gossip.Gossip) {
		for _, id := range t.Now().Executions {
			g.Report(gossip.Progress{Node: t.source.ID().Name, Region: t.source.ID().Region, Bucket: t.Bucket, Builds: []gossip.BuildProgress{{ExecutionID: id, State: "failed"}}})
		}
	})
}

// lazy is an agent of a region that never lands.
func lazy(ctx context.Context, t Target) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	return t.member(ctx, gossip.Meta{Bucket: t.Bucket, PeerPort: 9, HTTPPort: 9}, key, func(g *gossip.Gossip) {
		for _, id := range t.Now().Executions {
			g.Report(gossip.Progress{Node: t.source.ID().Name, Region: t.source.ID().Region, Bucket: t.Bucket, Builds: []gossip.BuildProgress{{ExecutionID: id, State: "queued"}}})
		}
	})
}

// asMember runs f beside a member that has nothing wrong, with the peer id that follows from
// its name.
func (t Target) asMember(ctx context.Context, f func(id [20]byte)) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	begun := false
	return t.member(ctx, gossip.Meta{Bucket: t.Bucket, PeerPort: 9, HTTPPort: 9}, key, func(g *gossip.Gossip) {
		if !begun && len(g.Members()) > 1 {
			begun = true
			wg.Go(func() { f(peerwire.PeerID(g.Name())) })
		}
	})
}

func wireFloodTLS(ctx context.Context, t Target) error {
	floods := wireFloods()
	return t.asMember(ctx, func(self [20]byte) {
		beside(64, func(i int) {
			tick(ctx, 50*time.Millisecond, func() {
				c, end, err := t.dialTLS(ctx, t.Peers[i%len(t.Peers)], identity.PeerProto)
				if err != nil {
					return
				}
				defer end()
				id := self
				if names := t.Now().Names; i%8 == 7 && len(names) > 0 {
					id = peerwire.PeerID(names[i/8%len(names)])
				}
				if t.hello(c, id) != nil {
					return
				}
				for n := 0; n < 1000 && ctx.Err() == nil; n++ {
					if _, err := c.Write(floods[(i+n)%len(floods)]); err != nil {
						return
					}
					time.Sleep(pause)
				}
			})
		})
	})
}

func badPeersTLS(ctx context.Context, t Target, how badpeer.Behaviour) error {
	return t.asMember(ctx, func(self [20]byte) {
		beside(4*len(t.Peers), func(i int) {
			tick(ctx, 200*time.Millisecond, func() {
				infohash := t.Now().InfoHash
				if len(infohash) == 0 {
					return
				}
				within, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				c, end, err := t.dialTLS(within, t.Peers[i%len(t.Peers)], identity.PeerProto)
				if err != nil {
					return
				}
				defer end()
				p := badpeer.Peer{Behaviour: how, ID: self, Claims: i%2 == 0, InfoLength: 1000}
				_ = p.Over(within, c, [20]byte(infohash)) // it is hung up on, that is the point
			})
		})
	})
}
