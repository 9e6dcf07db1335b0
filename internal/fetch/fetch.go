// Package fetch is a host's side of the swarm: it brings builds from the region's agents
// and from other hosts, keeps them, and serves them. Which builds, and from whom, its owner
// says; what the bytes have to be is said by the goal, whose digest decides at the end.
//
// Fetcher has the engine (package swarm), the disk (package cache) and a Build for each
// build that is wanted (build.go; segment.go brings each of its segments), which follows its
// recipe as that grows: a region's own
// download may still be under way. What is known of builds survives a restart (recipe.go).
package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/swarm"
)

const (
	// MaxBuilds bounds the builds that are wanted at a time: target and stable of as many
	// services as a host runs, and some that are about to go.
	MaxBuilds = 256
	// MaxPeers bounds the neighbours and sources that are followed.
	MaxPeers = 64
	// DefaultLimit is how much of the disk builds may take that nobody wants any more, in
	// bytes: none, for a host's disk is its services'.
	DefaultLimit = 0
	// maxChunk is what is asked of a peer at a time, in bytes: a whole piece, but of a build
	// of more than 8 GiB. With 256 KiB at a time a host needed some 20 MiB more.
	maxChunk = 128 << 10
)

// tick is how often peers are dialled that are not connected.
const tick = time.Second

// MaxFailures is how often a build fails in a row, with nothing more of it coming between,
// until ErrFailing.
const MaxFailures = 5

// DefaultAgain is when what has failed is tried again: MaxFailures in a row are reached
// after a minute at most.
var DefaultAgain = retry.Policy{First: 5 * time.Second, Max: 5 * time.Minute}

var (
	// ErrWrongBuild says that the bytes are not those of the goal. They were thrown away.
	ErrWrongBuild = errors.New("not the build that the goal names")
	// ErrNotWhole says that bytes are lacking yet.
	ErrNotWhole = errors.New("the build is not here yet")
	// ErrLost says that bytes are lacking that were here: the disk has changed or lost them.
	// They are fetched again.
	ErrLost = errors.New("the disk has changed or lost some of it, which is fetched again")
	// ErrContradiction says that a recipe is another one than what was followed so far.
	ErrContradiction = errors.New("the recipe contradicts what was said of the build before")
	// ErrDropped says that a build is not wanted any more.
	ErrDropped = errors.New("the build is not wanted any more")
	// ErrFailing says that it has failed MaxFailures times in a row. It is tried on.
	ErrFailing = errors.New("has failed again and again")
	// ErrTooMany says that MaxBuilds are wanted already.
	ErrTooMany = errors.New("as many builds are wanted as may be")
)

// Peer is a neighbour, or an agent that hands out.
type Peer struct {
	// Name is unique to one start of the process: its peer id follows from it
	// (peerwire.PeerID). ID is what its certificate says; Agent says of which kind it is.
	Name, ID string
	Agent    bool
	Addr     netip.AddrPort
}

// Config says what a Fetcher works with.
type Config struct {
	// Dir is a directory of its own for builds and what is known of them.
	Dir string
	// Limit is how many bytes of builds that nobody wants any more may stay; those that
	// are wanted stay in any case.
	Limit int64
	// Listener takes connections of other hosts; the Fetcher closes it.
	Listener net.Listener
	// Name is unique to this start of the host, and what others are told as Peer.Name.
	Name string
	// Region is the host's.
	Region string
	// TLS says with whom it is spoken; empty or identity.Off for nobody. Else Identity is
	// the host's.
	TLS      identity.Mode
	Identity *identity.Source
	// Limits are how fast bytes may pass; nil for none.
	Limits *limits.Limits
	// Again is when what has failed is tried again; the zero value for DefaultAgain.
	Again retry.Policy
	// Logger may be nil.
	Logger *slog.Logger

	// chunk is asked of a peer at a time, in bytes; 0 for maxChunk. Tests ask for less.
	chunk int64
	// reached is called at each step of a build; tests fail there.
	reached func(step string)
}

// Fetcher fetches builds for one host. It is safe for concurrent use.
type Fetcher struct {
	cfg     Config
	cache   *cache.Cache
	swarm   *swarm.Swarm
	recipes recipes
	members atomic.Pointer[map[[20]byte]peerwire.Member]
	addrs   atomic.Pointer[map[netip.Addr]bool]
	peers   atomic.Pointer[[]peerwire.Peer]
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	closing sync.Once

	mu     sync.Mutex // held for no I/O
	builds map[string]*Build
	users  map[manifest.InfoHash]int // builds that want a segment
	// waiting are builds of which more segments are to come.
	waiting map[*Build]bool
	ended   bool
}

// New opens the directory and the port, and goes on with the builds that a former start
// has left: those that are not wanted any more are for the caller to Drop. On error the
// listener stays open. End it with Close.
func New(cfg Config) (_ *Fetcher, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Limits == nil {
		cfg.Limits = limits.New(false)
	}
	if cfg.Again.First <= 0 {
		cfg.Again = DefaultAgain
	}
	cfg.chunk = cmp.Or(cfg.chunk, maxChunk)
	if cfg.reached == nil {
		cfg.reached = func(string) {}
	}
	f := &Fetcher{cfg: cfg, recipes: recipes{filepath.Join(cfg.Dir, "recipes")}, builds: make(map[string]*Build), users: make(map[manifest.InfoHash]int), waiting: make(map[*Build]bool)}
	f.Peers(nil, nil)
	if f.cache, err = cache.Open(filepath.Join(cfg.Dir, "cache"), cfg.Limit, cfg.Logger); err != nil {
		return nil, err
	}
	notes, err := f.recipes.read(func(file string, err error) {
		cfg.Logger.Warn("what was known of a build is of no use, it is fetched anew when it is wanted", "file", file, "error", err)
	})
	if err == nil {
		err = f.cache.ForgetPulls(func(string) bool { return false })
	}
	if err == nil {
		f.swarm, err = swarm.New(swarm.Config{Cache: f.cache, Name: cfg.Name, MaxChunk: cfg.chunk, Config: peerwire.Config{
			Listener: cfg.Listener, AllowPeer: f.mayConnect, Member: f.member, Mine: f.mine, Vital: f.isAgent,
			Upload: cfg.Limits.Upload, Download: cfg.Limits.Download,
			TLS: cfg.TLS, Identity: cfg.Identity, Logger: cfg.Logger,
		}})
	}
	if err != nil {
		return nil, errors.Join(err, f.cache.Close())
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for _, n := range notes {
		if _, err := f.begin(n); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// Close ends all builds and waits for their end; what is on disk stays. Again it does
// nothing.
func (f *Fetcher) Close() (err error) {
	f.closing.Do(func() {
		f.mu.Lock()
		f.ended = true
		f.mu.Unlock()
		f.cancel()
		f.wg.Wait()
		err = errors.Join(f.swarm.Close(), f.cache.Close())
	})
	return err
}

// Peers says who else has builds, or fetches them: the host's neighbours, and the agents
// that hand out. Those named before are followed no longer. More than MaxPeers are cut.
func (f *Fetcher) Peers(neighbours, sources []Peer) {
	members := make(map[[20]byte]peerwire.Member)
	addrs := make(map[netip.Addr]bool)
	var peers []peerwire.Peer
	for _, p := range slices.Concat(sources, neighbours) {
		id := peerwire.PeerID(p.Name)
		if _, known := members[id]; known || p.Name == f.cfg.Name || p.Name == "" || !p.Addr.IsValid() || len(peers) >= MaxPeers {
			continue
		}
		members[id] = peerwire.Member{Name: p.Name, ID: p.ID, Region: f.cfg.Region, Host: !p.Agent, Certified: f.cfg.Identity != nil}
		addrs[p.Addr.Addr().Unmap()] = true
		peers = append(peers, peerwire.Peer{ID: id, Addr: p.Addr})
	}
	f.members.Store(&members)
	f.addrs.Store(&addrs)
	f.peers.Store(&peers)
}

func (f *Fetcher) member(id [20]byte) peerwire.Member { return (*f.members.Load())[id] }

// isAgent reports whether a peer is one of the region's agents: nobody else may have what it
// hands out.
func (f *Fetcher) isAgent(id [20]byte, by identity.ID) bool {
	m := f.member(id)
	return by.Kind == identity.Agent || m.Name != "" && !m.Host
}

// mayConnect reports whether somebody of that address was named: it may have begun anew, and
// have another name.
func (f *Fetcher) mayConnect(addr netip.Addr) bool { return (*f.addrs.Load())[addr] }

// mine reports whether a certificate is of the host's region.
func (f *Fetcher) mine(id identity.ID) bool {
	return (id.Kind == identity.Host || id.Kind == identity.Agent) && id.Region == f.cfg.Region
}

// Build fetches a build, or goes on with it, and returns it. Again it is Update.
func (f *Fetcher) Build(r Recipe) (*Build, error) {
	if b, ok := f.Known(r.ExecutionID); ok {
		return b, b.Update(r)
	}
	return f.begin(note{Recipe: r})
}

// Known returns a build that is fetched, or kept.
func (f *Fetcher) Known(executionID string) (*Build, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.builds[executionID]
	return b, ok
}

// Builds are all that are fetched or kept, in no order.
func (f *Fetcher) Builds() []*Build {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.builds))
}

func (f *Fetcher) begin(n note) (*Build, error) {
	layout, err := n.check()
	if err != nil {
		return nil, err
	}
	b := newBuild(f, layout, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch other := f.builds[n.ExecutionID]; {
	case f.ended:
		return nil, ErrDropped
	case other != nil: // meanwhile
		return other, nil
	case len(f.builds) >= MaxBuilds:
		return nil, fmt.Errorf("fetching %s: %w: %d", n.ExecutionID, ErrTooMany, MaxBuilds)
	}
	f.builds[n.ExecutionID] = b
	f.wg.Go(b.run)
	return b, nil
}

// acquire counts one more who wants a segment; release one less, and whether nobody does.
func (f *Fetcher) acquire(infohash manifest.InfoHash) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users[infohash]++
}

func (f *Fetcher) release(infohash manifest.InfoHash) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.users[infohash]--; f.users[infohash] > 0 {
		return false
	}
	delete(f.users, infohash)
	return true
}

// dropAlone takes a segment out of the engine that nobody else wants.
func (f *Fetcher) dropAlone(infohash manifest.InfoHash) {
	f.mu.Lock()
	alone := f.users[infohash] <= 1
	f.mu.Unlock()
	if alone {
		f.drop(infohash)
	}
}

// Collector is what /metrics shows of the swarm.
func (f *Fetcher) Collector() prometheus.Collector { return swarm.Collector(f.swarm) }

// evict brings what nobody wants below the limit, and makes room for a build of so many
// bytes if it can.
func (f *Fetcher) evict(room int64) {
	if err := f.cache.Evict(room, f.drop); err != nil {
		f.cfg.Logger.Warn("builds that are not wanted any more were not removed", "error", err)
	}
}

func (f *Fetcher) drop(infohash manifest.InfoHash) {
	if t, ok := f.swarm.Torrent(infohash); ok {
		t.Drop()
	}
}

// expectMore has a connection to spare with each peer while a build waits for more of its
// segments: the next one begins on it without a handshake.
func (f *Fetcher) expectMore(b *Build, waits bool) {
	f.mu.Lock()
	before := len(f.waiting) > 0
	if delete(f.waiting, b); waits {
		f.waiting[b] = true
	}
	after := len(f.waiting) > 0
	f.mu.Unlock()
	switch {
	case after:
		f.swarm.ExpectMore(*f.peers.Load())
	case before:
		f.swarm.ExpectMore(nil)
	}
}
