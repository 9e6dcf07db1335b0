// Package attack plays the attackers that Landfall must bear, each by name and with what it
// has: a network to the members, or the gossip key of a member that was taken over. Tests
// and measurements run them beside members that mean well.
//
// What they do is bounded in number and rate, so that on one machine the attack is measured
// and not the attacker.
package attack

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
)

// Target is where the members are, and what the attackers know of them.
type Target struct {
	// Gossip, Peers and HTTP are the members' addresses, host:port.
	Gossip, Peers, HTTP []string
	// Listen is an address of the attackers' own, without a port.
	Listen string
	// Keys are the gossip's.
	Keys [][]byte
	// Bucket is a region's, SourceBucket that of the builds.
	Bucket, SourceBucket string
	// TLS says that members have certificates. Foreign is then the directory of an agent's of
	// a region that no build goes to, with the bucket ForeignBucket; Inside that of an agent's
	// of Bucket's region; Stranger that of an agent's of another authority with the same names.
	TLS                       bool
	Foreign, Inside, Stranger string
	ForeignBucket             string
	// OtherSeeder and OtherAgent are directories of a seeder's and an agent's certificate of
	// another cluster.
	OtherSeeder, OtherAgent string
	// Stores is the URL of DynamoDB as the role of Foreign's, or of Inside's, agent reaches it:
	// by it its own bucket's rows alone can be written. ArrivalsTable is the table of those;
	// Buckets are the regions'.
	Stores, ArrivalsTable string
	Buckets               []string
	// Now is what is under way.
	Now func() Now `json:"-"`

	source *identity.Source // of who was taken over
}

// Now is what is under way at a moment.
type Now struct {
	// InfoHash is of a build that is going out; nil where none is.
	InfoHash []byte
	// Names are the members', with their starts.
	Names []string
	// Executions are the ids of what goes out, Builds what their items say.
	Executions []string
	Builds     []Build
}

// Waits says where an attacker is known to delay a build, by as long as a landing waits for
// one that never begins.
type Waits int

// The places.
const (
	Nowhere Waits = iota
	// WithoutTLS: certificates keep it out.
	WithoutTLS
	// Everywhere: it is taken over, and what its own region does is its to delay.
	Everywhere
)

// Attacker is one of them.
type Attacker struct {
	Name string
	// Has is what it has beside a network to the members; Does what it does with it.
	Has, Does string
	Delays    Waits
	// NeedsTLS is set for who is nobody without certificates.
	NeedsTLS bool
	// Often is set for those that have most to tell: every run of the tests has them.
	Often bool
	// Fills is set for who takes what a member that starts needs: one is started beside it.
	Fills bool
	// Writes is set for who writes to the table of arrivals, as the agent of which bucket.
	Writes func(Target) (bucket string)
	// Run attacks until ctx ends. An error is one of the attacker's own.
	Run func(context.Context, Target) error
}

const (
	// connections are opened by those that open many; as many again when they are closed.
	connections = 10_000
	// pause is between two messages of a flood.
	pause = 2 * time.Millisecond
	// stateSize is that of a state that says nothing, in bytes.
	stateSize = 19 << 20
	// madeUp is how many members one process pretends to be.
	madeUp = 20
)

// Attackers are all of them.
func Attackers() []Attacker {
	const key, certificate = "the gossip key", "the gossip key and an agent's certificate"
	const rows = certificate + " and role, by which the rows of its own bucket can be written"
	attackers := []Attacker{
		{Name: "idle connections", Does: fmt.Sprintf("tries to hold %d connections to peers, HTTP and gossip, and says nothing", connections), Often: true, Fills: true, Run: idle},
		{Name: "endless handshakes", Does: "begins 256 handshakes with peers and HTTP requests, and sends a byte of each now and then", Run: endless},
		{Name: "wire flood", Does: "greets peers rightly and then sends messages of wrong lengths, bitfields and requests without end", Run: wireFlood},
		{Name: "borrowed ids", Has: "members' names", Does: "greets peers with the ids of other members, again and again", Run: borrowed},
		{Name: "HTTP flood", Does: "asks for everything that costs something, uploads a byte a second, reads no answer", Often: true, Run: httpFlood},
		{Name: "gossip flood", Has: key, Does: "sends every member garbage in packets and streams", Run: gossipFlood},
		{Name: "state of megabytes", Has: key, Does: fmt.Sprintf("exchanges states of %d MiB", stateSize>>20), Run: bigState},
		{Name: "forged deaths", Has: key, Does: "tells every member that every other one is dead, again and again, with the greatest number there is", Often: true, Run: deaths},
		{Name: "made-up members", Has: key, Does: fmt.Sprintf("is %d members of a region's bucket that never land anything, and tells of progress that there is not", madeUp), Delays: WithoutTLS, Often: true, Run: members},
		{Name: "another cluster", Has: key, Does: "is a seeder that announces and ends by a key that nobody trusts", Run: anotherCluster},
	}
	for _, b := range behaviours {
		attackers = append(attackers, Attacker{Name: "bad peer: " + string(b), Does: "takes what is handed out and answers badly", Run: func(ctx context.Context, t Target) error { return badPeers(ctx, t, b) }})
	}
	tls := []Attacker{
		{Name: "half-open TLS", Does: "begins 256 handshakes of TLS with peers and gossip: a record that never ends, garbage, a greeting without a second word, a request that trickles after it", Run: halfOpen},
		{Name: "TLS strangers", Has: "a certificate of another authority", Does: "makes handshakes as fast as it can, 64 at a time", Often: true, Run: strangers},
		{Name: "calls of a taken-over agent", Has: certificate, Does: "calls seeders and agents without end: hellos, lies about progress, renewals, garbage after the handshake", Often: true, Run: abroad(calls)},
		{Name: "gossip flood of a taken-over agent", Has: certificate, Does: "is a member, and sends every other one garbage in packets and over TLS", Run: abroad(gossipFlood)},
		{Name: "states of a taken-over agent", Has: certificate, Does: fmt.Sprintf("is a member, and exchanges states of %d MiB over TLS", stateSize>>20), Run: abroad(bigState)},
		{Name: "replays of a taken-over agent", Has: certificate, Does: "sends every document that it has heard again and again", Run: abroad(replays)},
		{Name: "another cluster with its own authority", Has: "the gossip key and certificates of an authority of its own", Does: "is a seeder and an agent of a region's bucket, announces and ends by a key that nobody trusts, and tells of progress", Often: true, Run: otherCluster},
		{Name: "lying arrivals of a taken-over agent", Has: rows, Does: "records for each build that it has arrived in its own region and in those of others, and that it lands there", Writes: func(t Target) string { return t.ForeignBucket }, Often: true, Run: abroad(liesAbroad)},
		{Name: "lying arrivals of an agent of a region", Has: rows, Does: "is one of two agents of a region, and records that each build has arrived there, and in other regions", Writes: func(t Target) string { return t.Bucket }, Delays: Everywhere, Run: inside(liesAtHome)},
		{Name: "foreign buckets of a taken-over agent", Has: certificate, Does: "is a member for another region's bucket, and asks for builds that do not go to its own", Run: abroad(foreign)},
		{Name: "wire flood of a taken-over agent", Has: certificate, Does: "is one of two agents of a region, and floods peers over TLS with messages of wrong lengths, bitfields and requests, and with the ids of others", Delays: Everywhere, Often: true, Run: inside(wireFloodTLS)},
		{Name: "a taken-over agent that lands nothing", Has: certificate, Does: "is one of two agents of a region, tells of progress, and never lands", Delays: Everywhere, Often: true, Run: inside(lazy)},
	}
	for _, b := range behaviours {
		tls = append(tls, Attacker{Name: "bad peer over TLS: " + string(b), Has: certificate, Does: "is one of two agents of a region, takes what is handed out and answers badly", Delays: Everywhere, Run: inside(func(ctx context.Context, t Target) error { return badPeersTLS(ctx, t, b) })})
	}
	for _, a := range tls {
		a.NeedsTLS = true
		attackers = append(attackers, a)
	}
	return attackers
}

var behaviours = []badpeer.Behaviour{badpeer.Corrupt, badpeer.Babble, badpeer.Length, badpeer.Info}

// tick calls f again and again until ctx ends.
func tick(ctx context.Context, every time.Duration, f func()) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// beside runs n workers until ctx ends.
func beside(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// dial connects, and closes the connection when ctx ends.
func dial(ctx context.Context, addr string) (net.Conn, func(), error) {
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return c, func() { stop(); c.Close() }, nil
}

func (t Target) all() (addrs []string) {
	return append(append(append(addrs, t.Peers...), t.HTTP...), t.Gossip...)
}

func idle(ctx context.Context, t Target) error {
	addrs := t.all()
	beside(connections, func(i int) {
		tick(ctx, time.Second, func() {
			c, end, err := dial(ctx, addrs[i%len(addrs)])
			if err != nil {
				return
			}
			defer end()
			_, _ = io.Copy(io.Discard, c) // until it is closed
		})
	})
	return nil
}

func endless(ctx context.Context, t Target) error {
	beginnings := map[bool]string{true: "\x13BitTorrent protocol", false: "POST /deploy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"}
	addrs := append(append([]string(nil), t.Peers...), t.HTTP...)
	beside(256, func(i int) {
		addr, text := addrs[i%len(addrs)], beginnings[i%len(addrs) < len(t.Peers)]
		tick(ctx, time.Second, func() {
			c, end, err := dial(ctx, addr)
			if err != nil {
				return
			}
			defer end()
			for at := 0; ; at++ {
				if _, err := c.Write([]byte{text[at%len(text)]}); err != nil {
					return
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(200 * time.Millisecond):
				}
			}
		})
	})
	return nil
}

// greet makes a right handshake.
func (t Target) greet(ctx context.Context, addr string, id [20]byte) (net.Conn, func(), error) {
	c, end, err := dial(ctx, addr)
	if err == nil {
		err = t.hello(c, id)
	}
	if err != nil && c != nil {
		end()
	}
	return c, end, err
}

// hello sends a right handshake for what is going out.
func (t Target) hello(c io.Writer, id [20]byte) error {
	infohash := t.Now().InfoHash
	if len(infohash) == 0 {
		return io.EOF
	}
	hello := append([]byte(pp.Protocol), 0, 0, 0, 0, 0, 0x10, 0, 0x05)
	_, err := c.Write(append(append(hello, infohash...), id[:]...))
	return err
}

func randomID() (id [20]byte) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// wireFloods are what no peer should be sent.
func wireFloods() [][]byte {
	return [][]byte{
		{0xff, 0xff, 0xff, 0xff, 7},                                      // a message of 4 GiB
		append([]byte{0, 0x0f, 0xff, 0xff, 5}, 0xff),                     // a bitfield of a megabyte that does not come
		{0, 0, 0, 5, 4, 0xff, 0xff, 0xff, 0xff},                          // a piece that there is not
		{0, 0, 0, 1, 2},                                                  // interested
		{0, 0, 0, 13, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff}, // a request of 2 GiB
		append([]byte{0, 0, 1, 2, 20, 0}, []byte("d1:md11:ut_metadatai-1ee13:metadata_sizei99999999999e")...),
	}
}

func wireFlood(ctx context.Context, t Target) error {
	floods := wireFloods()
	beside(64, func(i int) {
		tick(ctx, 50*time.Millisecond, func() {
			c, end, err := t.greet(ctx, t.Peers[i%len(t.Peers)], randomID())
			if err != nil {
				return
			}
			defer end()
			for n := 0; n < 1000 && ctx.Err() == nil; n++ {
				if _, err := c.Write(floods[(i+n)%len(floods)]); err != nil {
					return
				}
				time.Sleep(pause)
			}
		})
	})
	return nil
}

func borrowed(ctx context.Context, t Target) error {
	beside(6*len(t.Peers), func(i int) {
		tick(ctx, 100*time.Millisecond, func() {
			names := t.Now().Names
			if len(names) == 0 {
				return
			}
			c, end, err := t.greet(ctx, t.Peers[i%len(t.Peers)], peerwire.PeerID(names[i/len(t.Peers)%len(names)]))
			if err != nil {
				return
			}
			defer end()
			// As who has it all, and sends noise then.
			_, _ = c.Write([]byte{0, 0, 0, 1, 0x0e, 0, 0, 0, 1, 1})
			_, _ = c.Write(make([]byte, 64))
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, _ = io.Copy(io.Discard, c)
		})
	})
	return nil
}

func badPeers(ctx context.Context, t Target, how badpeer.Behaviour) error {
	beside(4*len(t.Peers), func(i int) {
		tick(ctx, 200*time.Millisecond, func() {
			if infohash := t.Now().InfoHash; len(infohash) > 0 {
				p := badpeer.Peer{Behaviour: how, ID: randomID(), Claims: i%2 == 0, InfoLength: 1000}
				within, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				_ = p.Dial(within, t.Peers[i%len(t.Peers)], [20]byte(infohash)) // it is hung up on, that is the point
			}
		})
	})
	return nil
}

func httpFlood(ctx context.Context, t Target) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 3 * time.Second}
	paths := []string{"/executions?limit=1000", "/executions?q=" + strings.Repeat("a", 1000), "/metrics", "/", "/events", "/executions/x/torrent", "/executions/x/swarm"}
	beside(64, func(i int) {
		tick(ctx, 20*time.Millisecond, func() {
			url := "http://" + t.HTTP[i%len(t.HTTP)]
			if i%8 == 0 { // an upload that trickles
				body := &trickle{ctx: ctx}
				r, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("%s/uploads/attack-%d.zip", url, i), body)
				if err == nil {
					r.ContentLength = 1 << 30
					if answer, err := client.Do(r); err == nil {
						answer.Body.Close()
					}
				}
				return
			}
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+paths[i%len(paths)], nil)
			if err != nil {
				return
			}
			if answer, err := client.Do(r); err == nil { // most of it is not read
				_, _ = answer.Body.Read(make([]byte, 10))
				answer.Body.Close()
			}
		})
	})
	client.CloseIdleConnections()
	return nil
}

// trickle is a body of a byte now and then.
type trickle struct{ ctx context.Context }

func (t *trickle) Read(b []byte) (int, error) {
	select {
	case <-t.ctx.Done():
		return 0, t.ctx.Err()
	case <-time.After(100 * time.Millisecond):
		return copy(b, "x"), nil
	}
}

func gossipFlood(ctx context.Context, t Target) error {
	list, err := t.node("flood", nil, nil)
	for ; err != nil && ctx.Err() == nil; list, err = t.node("flood", nil, nil) {
		pauseFor(ctx, time.Second) // it is refused, and comes again
	}
	if err != nil {
		return nil
	}
	defer list.Shutdown() //nolint:errcheck // of an attacker
	kinds := []byte("DRAPLBSHx")
	n := 0
	tick(ctx, pause, func() {
		n++
		message := make([]byte, 1000)
		_, _ = rand.Read(message)
		message[0] = kinds[n%len(kinds)]
		for _, m := range list.Members() {
			if m.Name == list.LocalNode().Name {
				continue
			}
			if n%100 == 0 {
				_ = list.SendReliable(m, append(message, make([]byte, 100_000)...))
			} else {
				_ = list.SendBestEffort(m, message)
			}
		}
	})
	return nil
}

func bigState(ctx context.Context, t Target) error {
	state := make([]byte, stateSize)
	_, _ = rand.Read(state)
	beside(3, func(i int) {
		list, err := t.node(fmt.Sprint("state-", i), state, nil)
		for ; err != nil && ctx.Err() == nil; list, err = t.node(fmt.Sprint("state-", i), state, nil) {
			pauseFor(ctx, time.Second) // it is refused, and comes again
		}
		if err != nil {
			return
		}
		defer list.Shutdown() //nolint:errcheck // of an attacker
		tick(ctx, time.Second, func() { _, _ = list.Join(t.Gossip) })
	})
	return nil
}

func members(ctx context.Context, t Target) error {
	var failed error
	beside(madeUp, func(i int) {
		key, err := newKey()
		if err == nil {
			err = t.member(ctx, gossip.Meta{ID: fmt.Sprint("made-up-", i), Role: gossip.Agent, Region: "made-up", Bucket: t.Bucket, PeerPort: 9, HTTPPort: 9}, key, func(g *gossip.Gossip) {
				for _, id := range t.Now().Executions {
					g.Report(gossip.Progress{Node: g.Name(), Region: "made-up", Bucket: t.Bucket, Builds: []gossip.BuildProgress{{ExecutionID: id, State: "queued"}}})
				}
			})
		}
		if err != nil && i == 0 {
			failed = err
		}
	})
	return failed
}

func anotherCluster(ctx context.Context, t Target) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	shape := manifest.ShapeOf(1000)
	return t.member(ctx, gossip.Meta{ID: "another", Role: gossip.Seeder, PeerPort: 9, HTTPPort: 9, Key: key.Public().ID()}, key, func(g *gossip.Gossip) {
		now := time.Now()
		ids := append(t.Now().Executions, executionid.New(now, ""))
		for _, id := range ids {
			for _, doc := range []any{
				&announce.Announcement{ExecutionID: id, Key: "other.zip", SourceBucket: t.SourceBucket, Destinations: []string{t.Bucket}, ETag: `"x"`, Size: 1000, Scheme: manifest.Ramp,
					PieceLength: shape.PieceLength, PartLength: shape.PartLength, InfoHashes: announce.InfoHashes(nil).Append(randomID()), SHA256: strings.Repeat("0f", 32), Issued: now, Expires: now.Add(announce.Lifetime)},
				&announce.End{ExecutionID: id, Key: "other.zip", SourceBucket: t.SourceBucket, Reason: announce.Failed, Issued: now, Expires: now.Add(announce.Lifetime)},
			} {
				if wire, err := announce.Sign(ctx, key, doc); err == nil {
					_ = g.Broadcast(wire, nil)
				}
			}
		}
	})
}

// otherCluster is anotherCluster with certificates of its own authority, and an agent beside it:
// the key of the gossip alone has them meet the members.
func otherCluster(ctx context.Context, t Target) error {
	var failed [2]error
	beside(2, func(i int) {
		var run func(context.Context, Target) error
		own, dir := t, ""
		if dir, run = t.OtherSeeder, anotherCluster; i == 1 {
			dir, run = t.OtherAgent, lazy
		}
		own.source, failed[i] = identity.Open(identity.FilesIn(dir), nil)
		if failed[i] == nil {
			failed[i] = run(ctx, own)
		}
	})
	return errors.Join(failed[:]...)
}

func newKey() (signing.Ed25519, error) {
	_, key, err := ed25519.GenerateKey(nil)
	return signing.Ed25519(key), err
}

// member is one as the product is, but for what it says: f is called again and again.
func (t Target) member(ctx context.Context, meta gossip.Meta, key signing.Ed25519, f func(*gossip.Gossip)) error {
	cfg := gossip.Config{
		Meta: meta, Listen: net.JoinHostPort(t.Listen, "0"), Join: t.Gossip, Keys: t.Keys,
		Book: announce.NewBook(signing.TrustIn(key.Public()), nil), OnDocument: func(announce.Added) {}, Logger: slog.New(slog.DiscardHandler),
	}
	if t.source != nil {
		id := t.source.ID()
		cfg.ID, cfg.Region, cfg.Role, cfg.Identity, cfg.TLS, cfg.FixedIdentity = id.Name, id.Region, gossip.Role(id.Kind), t.source, identity.Require, true
	}
	g, err := gossip.New(cfg)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	tick(ctx, 100*time.Millisecond, func() { f(g) })
	return <-done
}
