package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	timeout = 3 * time.Minute
	region  = "region-a"
)

// build is one, cut and hashed.
type build struct {
	id      string
	content []byte
	known   *manifest.Build
}

func newBuildOf(t *testing.T, seed byte, size int) *build {
	t.Helper()
	b := &build{id: executionid.New(time.Now(), ""), content: make([]byte, size)}
	rand.NewChaCha8([32]byte{seed}).Read(b.content)
	b.known = manifesttest.Build(t, b.content)
	return b
}

// recipe is of the first n segments.
func (b *build) recipe(n int) Recipe {
	r := Recipe{ExecutionID: b.id, Key: "hello.zip", Size: b.known.Size, Scheme: b.known.Scheme, Sealed: n == b.known.NumSegments()}
	for i := range n {
		r.InfoHashes = r.InfoHashes.Append(b.known.Segment(i).InfoHash())
	}
	return r
}

func (b *build) whole() Recipe { return b.recipe(b.known.NumSegments()) }

// agent is a region's, as far as hosts see it.
type agent struct {
	*swarm.Swarm
	cache *cache.Cache
	peer  Peer
}

// certificates are of a cluster; nil for none.
type certificates struct{ *identitytest.Cluster }

func (c *certificates) of(t *testing.T, host bool, name string) (identity.Mode, *identity.Source) {
	switch {
	case c == nil:
		return identity.Off, nil
	case host:
		return identity.Require, c.Source(t, c.Host(region, name))
	}
	return identity.Require, c.Source(t, c.Agent(region, name))
}

func newAgent(t *testing.T, certs *certificates, hosts ...string) *agent {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	c, err := cache.Open(t.TempDir(), 1<<40, logger)
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[[20]byte]peerwire.Member)
	for _, name := range hosts {
		known[peerwire.PeerID(name)] = peerwire.Member{Name: name, ID: name, Region: region, Host: true, Certified: certs != nil}
	}
	members, fleet := listen(t), listen(t)
	mode, source := certs.of(t, false, "agent")
	s, err := swarm.New(swarm.Config{
		Cache: c, Name: "agent",
		Config: peerwire.Config{Listener: members, Logger: logger, TLS: mode, Identity: source, Member: func([20]byte) peerwire.Member { return peerwire.Member{} }},
		Fleet:  &swarm.Fleet{Listener: fleet, Host: func(id [20]byte) peerwire.Member { return known[id] }},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	return &agent{s, c, Peer{Name: "agent", ID: "agent", Agent: true, Addr: addrOf(fleet)}}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func addrOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// has puts a segment into the agent's cache, and hands it to hosts.
func (a *agent) has(t *testing.T, b *build, i int) {
	t.Helper()
	m := b.known.Segment(i)
	p, err := a.cache.Pull(b.id, i, "etag", m.Size, nil)
	if err != nil {
		t.Fatal(err)
	}
	offset, length := b.known.SegmentRange(i)
	if _, err := p.WriteAt(b.content[offset:offset+length], 0); err != nil {
		t.Fatal(err)
	}
	e, err := p.Commit(m)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Unpin()
	torrent, err := a.Seed(e, b.id, nil)
	if err == nil {
		err = torrent.HandToHosts(handout.Place{Execution: b.id, Segment: i}, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// host is one, with its neighbours.
type host struct {
	*Fetcher
	peer Peer
}

func newHost(t *testing.T, certs *certificates, name, dir string, change func(*Config)) *host {
	t.Helper()
	l := listen(t)
	cfg := Config{Dir: dir, Listener: l, Name: name, Region: region, Logger: slog.New(slog.DiscardHandler)}
	cfg.TLS, cfg.Identity = certs.of(t, true, name)
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{f, Peer{Name: name, ID: name, Addr: addrOf(l)}}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (b *build) composite() string { return b.known.Composite() }

// arrive waits until a build is whole, verifies it, and reads it.
func arrive(t *testing.T, got *Build, want *build) {
	t.Helper()
	select {
	case <-got.Whole():
	case <-time.After(timeout):
		t.Errorf("not whole in %s: %+v", timeout, got.Progress())
		return
	}
	if err := got.Verify(want.known.Size, want.composite()); err != nil {
		t.Error(err)
		return
	}
	r, err := got.Open()
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Close()
	var all bytes.Buffer
	if n, err := r.WriteTo(&all); err != nil || n != r.Size() || !bytes.Equal(all.Bytes(), want.content) {
		t.Errorf("%d of %d bytes, alike %v, %v", n, r.Size(), bytes.Equal(all.Bytes(), want.content), err)
	}
	part := make([]byte, min(len(want.content), 300<<10))
	offset := len(want.content) - len(part)
	if _, err := r.ReadAt(part, int64(offset)); err != nil || !bytes.Equal(part, want.content[offset:]) {
		t.Errorf("the end: %v", err)
	}
	if n, err := r.ReadAt(make([]byte, 10), r.Size()-3); n != min(3, len(want.content)) || !errors.Is(err, io.EOF) && len(want.content) > 0 {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
}

// One agent has a build segment by segment, while its region still downloads; hosts
// follow the recipe as it grows, trade, and the agent sends about one copy.
func TestInStep(t *testing.T) {
	for name, c := range map[string]struct {
		certs *certificates
		hosts int
		chunk int64
	}{
		"plain":           {hosts: 6},
		"over TLS":        {hosts: 6, certs: &certificates{identitytest.New(t, "test", nil)}},
		"pieces by parts": {hosts: 2, chunk: manifest.MinPieceLength / 4},
	} {
		certs, hosts := c.certs, c.hosts
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBuildOf(t, 1, 22<<20+5)
			var names []string
			for i := range hosts {
				names = append(names, fmt.Sprint("host-", i))
			}
			a := newAgent(t, certs, names...)
			var all []*host
			var peers []Peer
			for _, name := range names {
				h := newHost(t, certs, name, t.TempDir(), func(cfg *Config) { cfg.chunk = c.chunk })
				all, peers = append(all, h), append(peers, h.peer)
			}
			for _, h := range all {
				h.Peers(peers, []Peer{a.peer})
			}
			var arriving sync.WaitGroup
			for i := range b.known.NumSegments() {
				a.has(t, b, i)
				for _, h := range all {
					got, err := h.Build(b.recipe(i + 1))
					if err != nil {
						t.Fatal(err)
					}
					if i == 0 {
						if err := got.Verify(b.known.Size, b.composite()); !errors.Is(err, ErrNotWhole) {
							t.Errorf("verified before it is here: %v", err)
						}
						if _, err := got.Open(); !errors.Is(err, ErrNotWhole) {
							t.Errorf("opened before it is here: %v", err)
						}
						arriving.Go(func() { arrive(t, got, b) })
					}
				}
			}
			arriving.Wait()
			sent := int64(0)
			for i := range b.known.NumSegments() {
				if torrent, ok := a.Torrent(b.known.Segment(i).InfoHash()); ok {
					sent += torrent.Stats().UploadedBytes
				}
			}
			t.Logf("the agent sent %.2f copies to %d hosts, %+v", float64(sent)/float64(b.known.Size), hosts, a.Fleet())
			if sent > b.known.Size*3/2 {
				t.Errorf("the agent sent %d bytes of a build of %d to %d hosts", sent, b.known.Size, hosts)
			}
		})
	}
}

// A restart goes on with what is on disk, and has what was whole, without an agent.
func TestRestart(t *testing.T) {
	t.Parallel()
	b, dir := newBuildOf(t, 2, 12<<20), t.TempDir()
	a := newAgent(t, nil, "host-1", "host-2", "host-3")
	a.has(t, b, 0)
	h := newHost(t, nil, "host-1", dir, nil)
	h.Peers(nil, []Peer{a.peer})
	got, err := h.Build(b.recipe(1))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return got.Progress().Here == 1 })
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < b.known.NumSegments(); i++ {
		a.has(t, b, i)
	}
	h = newHost(t, nil, "host-2", dir, nil)
	h.Peers(nil, []Peer{a.peer})
	got, ok := h.Known(b.id)
	if !ok {
		t.Fatal("a restart has forgotten the build")
	}
	if err := got.Update(b.whole()); err != nil {
		t.Fatal(err)
	}
	arrive(t, got, b)
	if p := got.Progress(); p.Downloaded > b.known.Size-b.known.Segment(0).Size {
		t.Errorf("it has fetched %d bytes anew", p.Downloaded-(b.known.Size-b.known.Segment(0).Size))
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = newHost(t, nil, "host-3", dir, nil) // which knows nobody
	if got, ok = h.Known(b.id); !ok {
		t.Fatal("a restart has forgotten the build")
	}
	arrive(t, got, b)
	// It serves others.
	other := newHost(t, nil, "other", t.TempDir(), nil)
	other.Peers([]Peer{h.peer}, nil)
	h.Peers([]Peer{other.peer}, nil)
	got, err = other.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	arrive(t, got, b)
}

// What is whole, and not the build that the goal names, is thrown away, and said to be.
func TestWrongBuild(t *testing.T) {
	t.Parallel()
	b, other := newBuildOf(t, 3, 6<<20), newBuildOf(t, 4, 6<<20)
	a := newAgent(t, nil, "host")
	for i := range b.known.NumSegments() {
		a.has(t, b, i)
	}
	h := newHost(t, nil, "host", t.TempDir(), func(c *Config) { c.Limit = 1 << 40 })
	h.Peers(nil, []Peer{a.peer})
	got, err := h.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	arrive(t, got, b)
	err = got.Verify(other.known.Size, other.composite())
	if !errors.Is(err, ErrWrongBuild) {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{b.id, b.composite(), other.composite()} {
		if !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if _, ok := h.Known(b.id); ok {
		t.Error("it is still there")
	}
	if size := h.cache.Size(); size > 0 {
		t.Errorf("%d bytes are left", size)
	}
	if left, err := os.ReadDir(filepath.Join(h.cfg.Dir, "recipes")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	if err := got.Update(b.whole()); !errors.Is(err, ErrDropped) {
		t.Errorf("%v", err)
	}
	if got, err = h.Build(b.whole()); err != nil { // again
		t.Fatal(err)
	}
	arrive(t, got, b)
}

// An info dictionary whose pieces and parts are of different bytes is found out: an agent
// that was taken over cannot have a host take its bytes for the goal's.
func TestPartsOfOtherBytes(t *testing.T) {
	t.Parallel()
	good, evil := newBuildOf(t, 5, 4<<20), newBuildOf(t, 6, 4<<20)
	forged := *evil.known.Segment(0)
	forged.Parts = good.known.Segment(0).Parts
	layout, err := manifest.NewLayout(manifest.Ramp, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	b := &build{id: good.id, content: evil.content, known: manifest.NewBuild(layout)}
	if err := b.known.Know(0, &forged); err != nil || b.known.Composite() != good.composite() {
		t.Fatal(err)
	}
	a := newAgent(t, nil, "host")
	a.has(t, b, 0)
	h := newHost(t, nil, "host", t.TempDir(), nil)
	h.Peers(nil, []Peer{a.peer})
	got, err := h.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return errors.Is(got.Progress().Err, ErrWrongBuild) })
	select {
	case <-got.Whole():
		t.Error("it counts as whole")
	default:
	}
	if err := got.Verify(4<<20, good.composite()); !errors.Is(err, ErrWrongBuild) {
		t.Errorf("%v", err)
	}
	if _, ok := h.Known(b.id); ok || h.cache.Size() > 0 {
		t.Error("it is still there")
	}
}

// What an agent says of a build is held to itself, and bounded.
func TestRecipes(t *testing.T) {
	t.Parallel()
	b, other := newBuildOf(t, 7, 11<<20), newBuildOf(t, 8, 11<<20)
	h := newHost(t, nil, "host", t.TempDir(), nil)
	for name, spoil := range map[string]func(*Recipe){
		"no id":         func(r *Recipe) { r.ExecutionID = "../../etc/passwd" },
		"scheme":        func(r *Recipe) { r.Scheme = "other" },
		"size":          func(r *Recipe) { r.Size = -1 },
		"too large":     func(r *Recipe) { r.Size = manifest.MaxSize + 1 },
		"too many":      func(r *Recipe) { r.InfoHashes = append(r.InfoHashes, make([]byte, 20)...) },
		"half a hash":   func(r *Recipe) { r.InfoHashes = r.InfoHashes[:30] },
		"sealed early":  func(r *Recipe) { r.InfoHashes = r.InfoHashes[:20] },
		"a key so long": func(r *Recipe) { r.Key = string(make([]byte, maxKey+1)) },
	} {
		r := b.whole()
		spoil(&r)
		if _, err := h.Build(r); err == nil {
			t.Errorf("%s: it is followed", name)
		}
	}
	if all := h.Builds(); len(all) > 0 {
		t.Errorf("%d builds", len(all))
	}
	got, err := h.Build(b.recipe(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Update(b.recipe(1)); err != nil || got.Recipe().InfoHashes.Len() != 2 {
		t.Errorf("a shorter one takes something away: %v", err)
	}
	contrary := other.whole()
	contrary.ExecutionID = b.id
	if err := got.Update(contrary); !errors.Is(err, ErrContradiction) {
		t.Errorf("%v", err)
	}
	id := b.id
	for range MaxBuilds - 1 {
		id = executionid.New(time.Now(), id)
		if _, err := h.Build(Recipe{ExecutionID: id, Size: 0, Scheme: manifest.Ramp, Sealed: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Build(other.whole()); !errors.Is(err, ErrTooMany) {
		t.Errorf("%v", err)
	}
	got.Drop()
	got.Drop() // again does nothing
	if _, err := h.Build(other.whole()); err != nil {
		t.Errorf("after one was dropped: %v", err)
	}
}

// A build of 0 bytes has no swarm.
func TestNoBytes(t *testing.T) {
	t.Parallel()
	b := newBuildOf(t, 9, 0)
	h := newHost(t, nil, "host", t.TempDir(), nil)
	got, err := h.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-got.Whole():
	case <-time.After(timeout):
		t.Fatal("not whole")
	}
	sum := sha256.Sum256(nil)
	if err := got.Verify(0, base64.StdEncoding.EncodeToString(sum[:])); err != nil {
		t.Error(err)
	}
	if err := got.Verify(1, ""); !errors.Is(err, ErrWrongBuild) {
		t.Error(err)
	}
}

// Where the disk lacks room, it is said how much before a byte is fetched.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	h := newHost(t, nil, "host", t.TempDir(), nil)
	got, err := h.Build(Recipe{ExecutionID: executionid.New(time.Now(), ""), Size: manifest.MaxSize, Scheme: manifest.Ramp})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return errors.Is(got.Progress().Err, cache.ErrNoSpace) })
}

// A build that is dropped is gone from the disk, but for what is read at the moment, and for
// segments that another one has too.
func TestDrop(t *testing.T) {
	t.Parallel()
	b := newBuildOf(t, 10, 11<<20)
	twin := &build{id: executionid.New(time.Now(), b.id), content: b.content, known: b.known}
	a := newAgent(t, nil, "host")
	for i := range b.known.NumSegments() {
		a.has(t, b, i)
	}
	h := newHost(t, nil, "host", t.TempDir(), nil)
	h.Peers(nil, []Peer{a.peer})
	var both []*Build
	for _, of := range []*build{b, twin} {
		got, err := h.Build(of.whole())
		if err != nil {
			t.Fatal(err)
		}
		arrive(t, got, of)
		both = append(both, got)
	}
	both[0].Drop()
	if size := h.cache.Size(); size != b.known.Size {
		t.Errorf("%d bytes are left for the other one", size)
	}
	r, err := both[1].Open()
	if err != nil {
		t.Fatal(err)
	}
	both[1].Drop()
	got := make([]byte, len(b.content))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, b.content) {
		t.Errorf("it goes while it is read: %v", err)
	}
	if _, err := both[1].Open(); !errors.Is(err, ErrDropped) {
		t.Errorf("%v", err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if size := h.cache.Size(); size > 0 {
		t.Errorf("%d bytes are left", size)
	}
}

// What the disk has changed is not read, and fetched again.
func TestDamagedOnDisk(t *testing.T) {
	t.Parallel()
	b := newBuildOf(t, 11, 3<<20)
	a := newAgent(t, nil, "host")
	a.has(t, b, 0)
	h := newHost(t, nil, "host", t.TempDir(), nil)
	h.Peers(nil, []Peer{a.peer})
	got, err := h.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	arrive(t, got, b)
	infohash := b.known.Segment(0).InfoHash()
	data, err := os.OpenFile(filepath.Join(h.cfg.Dir, "cache", infohash.String(), "data"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := data.WriteAt([]byte("no"), 1<<20); err != nil {
		t.Fatal(err)
	}
	data.Close()
	r, err := got.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.WriteTo(io.Discard); !errors.Is(err, cache.ErrCorrupt) {
		t.Fatalf("%v", err)
	}
	eventually(t, func() bool {
		var all bytes.Buffer
		_, err := r.WriteTo(&all)
		return err == nil && bytes.Equal(all.Bytes(), b.content)
	})
}

func TestPeersAreBounded(t *testing.T) {
	t.Parallel()
	h := newHost(t, nil, "host", t.TempDir(), nil)
	var many []Peer
	for i := range 3 * MaxPeers {
		many = append(many, Peer{Name: fmt.Sprint("host-", i), Addr: netip.MustParseAddrPort("127.0.0.1:1")})
	}
	h.Peers(slices.Concat(many, []Peer{h.peer}), []Peer{{Name: "agent", Agent: true, Addr: netip.MustParseAddrPort("127.0.0.1:2")}})
	peers := *h.peers.Load()
	if len(peers) != MaxPeers || peers[0].ID != peerwire.PeerID("agent") {
		t.Errorf("%d peers, the first is %s", len(peers), peers[0].ID)
	}
	if h.member(peerwire.PeerID("host")).Name != "" {
		t.Error("it is its own neighbour")
	}
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.After(timeout)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not in %s", timeout)
		}
	}
}

// Neighbours that send noise, nothing, or another info dictionary hold a host up for a
// moment; what it has at the end is the build.
func TestBadNeighbours(t *testing.T) {
	for name, chunk := range map[string]int64{"whole pieces": 0, "pieces by parts": manifest.MinPieceLength / 4} {
		t.Run(name, func(t *testing.T) { t.Parallel(); badNeighbours(t, chunk) })
	}
}

func badNeighbours(t *testing.T, chunk int64) {
	b := newBuildOf(t, 12, 4<<20)
	a := newAgent(t, nil, "host")
	a.has(t, b, 0)
	var neighbours []Peer
	for _, behaviour := range badpeer.Behaviours {
		name, l := "bad-"+string(behaviour), listen(t)
		p := &badpeer.Peer{Behaviour: behaviour, ID: peerwire.PeerID(name), InfoLength: b.known.SegmentShape(0).InfoLength()}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- p.Serve(ctx, l) }()
		t.Cleanup(func() {
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		neighbours = append(neighbours, Peer{Name: name, ID: name, Addr: addrOf(l)})
	}
	h := newHost(t, nil, "host", t.TempDir(), func(cfg *Config) { cfg.chunk = chunk })
	h.Peers(neighbours, []Peer{a.peer})
	got, err := h.Build(b.whole())
	if err != nil {
		t.Fatal(err)
	}
	arrive(t, got, b)
}

// A host may have nobody but its agent: it is not banned for long, known by its id or by its
// certificate.
func TestTheOnlyAgentIsNeeded(t *testing.T) {
	t.Parallel()
	h := newHost(t, nil, "host", t.TempDir(), nil)
	h.Peers([]Peer{{Name: "neighbour", ID: "neighbour", Addr: netip.MustParseAddrPort("127.0.0.1:1")}},
		[]Peer{{Name: "agent", ID: "agent", Agent: true, Addr: netip.MustParseAddrPort("127.0.0.1:2")}})
	for _, c := range []struct {
		name string
		by   identity.ID
		want bool
	}{
		{"agent", identity.ID{}, true}, {"neighbour", identity.ID{}, false}, {"stranger", identity.ID{}, false},
		{"", identity.ID{Kind: identity.Agent, Region: region, Name: "agent"}, true}, {"", identity.ID{Kind: identity.Host, Region: region, Name: "neighbour"}, false},
	} {
		if got := h.isAgent(peerwire.PeerID(c.name), c.by); got != c.want {
			t.Errorf("%q, %s: %v", c.name, c.by, got)
		}
	}
}
