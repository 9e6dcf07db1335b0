// Package agent is the role that runs in every region: it hears of builds,
// downloads them with the swarm, lands them in the regional bucket and records
// their arrival.
//
// Agent keeps one build for each execution announced to its bucket (build.go),
// which takes part in the swarm (swarm.go), lands (land.go), reads from the source
// bucket what no peer has (fallback.go), and says how it went (summary.go); and one
// download for each infohash (download.go), which several executions of the same
// bytes share.
package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/awsmetrics"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/turns"
	"github.com/landfall-dist/landfall/internal/web"
)

// Defaults of Config.
const (
	// DefaultLandParallel is how many parts go up at a time over all builds: a
	// few hide S3's latency, more compete with serving the peers.
	DefaultLandParallel = 4
	// DefaultMaxActive is how many builds are downloaded and landed at a time.
	DefaultMaxActive = 16
)

const (
	// tick is how often peers are looked up, rates measured, progress told.
	tick = time.Second
	// maxFinished bounds the builds that GET /status still shows after their
	// end.
	maxFinished = 200
	// turnPatience is how long a build may make no progress and keep its place
	// when others wait for one.
	turnPatience = 30 * time.Second
)

// Config says what an agent serves and with what.
type Config struct {
	Region string
	Bucket *bucket.Bucket
	Ledger *ledger.Ledger
	Cache  *cache.Cache
	// Peers and HTTP are listeners; the agent closes them.
	Peers, HTTP net.Listener
	// Gossip's address, keys and members to join; role, region, bucket, ports,
	// book and callbacks are filled in by New.
	Gossip gossip.Config
	// Trust are the public keys whose announcements are followed.
	Trust []ed25519.PublicKey
	// AllowPeers are networks whose peers may connect beside the members.
	AllowPeers []netip.Prefix
	// Hosts are names, beside those of loopback and this machine's addresses, that the
	// HTTP side answers to.
	Hosts []string
	// Sources are where the bytes of a build can be read when no peer has them;
	// nil for nowhere. FallbackAfter defaults to DefaultFallbackAfter.
	Sources       *source.Buckets
	FallbackAfter time.Duration
	// Memory is the directory that keeps the announcements of builds under way
	// over a restart; empty for none.
	Memory string
	// Notes is the directory that remembers the parts that were sent to a store which
	// does not say their SHA-256; empty for none.
	Notes string
	// AllowWeakStore has the agent work with a store that lacks a guarantee.
	AllowWeakStore bool
	// LandParallel and MaxActive default to the constants of that name.
	LandParallel, MaxActive int
	// AWSMetrics counts what the clients of AWS do, for /metrics; nil for nobody.
	AWSMetrics *awsmetrics.Metrics
	// Tracer draws builds; nil draws nothing.
	Tracer  *tracing.Tracer
	Version string
	Logger  *slog.Logger
}

// Agent is one region's, or one of several.
type Agent struct {
	cfg    Config
	book   *announce.Book
	gossip *gossip.Gossip
	swarm  *swarm.Swarm
	slots  chan struct{} // parts on their way up
	active chan struct{} // builds being worked on
	queued atomic.Int64  // builds that wait for their turn
	// sourceRead counts the bytes read from source buckets.
	sourceRead atomic.Int64
	puller     *source.Puller
	memory     memory
	store      *store
	notes      notes
	metrics    *metrics
	table      table
	// membersChanged is closed and replaced at every change, so that any
	// number of builds can wait for it.
	membersChanged *notice
	// landedNow asks for a report before the next tick.
	landedNow chan struct{}

	// turns are of who begins or ends a download.
	turns turns.Turns[announce.InfoHash]

	mu        sync.Mutex        // never held over the engine or the disk
	builds    map[string]*build // by executionId
	downloads map[announce.InfoHash]*download
	running   context.Context // set by Run; nil before
	group     *errgroup.Group
	waiting   []announce.Added // heard before Run
}

// New opens the ports. On error the listeners in cfg are closed.
func New(cfg Config) (_ *Agent, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, cfg.Peers.Close(), cfg.HTTP.Close())
		}
	}()
	if len(cfg.Trust) == 0 {
		return nil, errors.New("no trusted key: give the seeder's public key with --trust")
	}
	if cfg.LandParallel <= 0 {
		cfg.LandParallel = DefaultLandParallel
	}
	if cfg.MaxActive <= 0 {
		cfg.MaxActive = DefaultMaxActive
	}
	if cfg.FallbackAfter <= 0 {
		cfg.FallbackAfter = DefaultFallbackAfter
	}
	a := &Agent{
		cfg:            cfg,
		book:           announce.NewBook(cfg.Trust, nil),
		slots:          make(chan struct{}, cfg.LandParallel),
		active:         make(chan struct{}, cfg.MaxActive),
		puller:         source.NewPuller(cfg.Cache),
		metrics:        newMetrics(),
		store:          newStore(),
		membersChanged: newNotice(),
		landedNow:      make(chan struct{}, 1),
		builds:         make(map[string]*build),
		downloads:      make(map[announce.InfoHash]*download),
	}
	if a.memory, err = newMemory(cfg.Memory); err != nil {
		return nil, err
	}
	g := cfg.Gossip
	g.Role, g.Region, g.Bucket = gossip.Agent, cfg.Region, cfg.Bucket.Name()
	g.PeerPort, g.HTTPPort = port(cfg.Peers), port(cfg.HTTP)
	g.Trusts = keyIDs(cfg.Trust)
	g.Book, g.Logger = a.book, cfg.Logger
	g.Table = cfg.Ledger.Place().String()
	a.table.changed = make(chan struct{}, 1)
	g.OnDocument, g.OnMembers = a.document, func() {
		a.membersChanged.tell()
		a.table.look()
	}
	if a.gossip, err = gossip.New(g); err != nil {
		return nil, err
	}
	a.swarm, err = swarm.New(swarm.Config{
		Cache:     cfg.Cache,
		Listener:  cfg.Peers,
		Name:      a.gossip.Name(),
		AllowPeer: gossip.PeerPolicy(a.gossip, cfg.AllowPeers),
		Member:    gossip.PeerNames(a.gossip, swarm.PeerID),
		Logger:    cfg.Logger,
	})
	if err != nil {
		return nil, errors.Join(err, a.gossip.Close())
	}
	return a, nil
}

// GossipAddr is where members join through this one, as host:port.
func (a *Agent) GossipAddr() string { return a.gossip.Addr() }

func port(l net.Listener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }

// Run works until ctx ends and then leaves the cluster; unfinished landings stay
// where they are for the next start or another agent.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	a.mu.Lock()
	a.running, a.group = ctx, group
	waiting := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	a.cfg.Logger.Info("agent is up", "region", a.cfg.Region, "bucket", a.cfg.Bucket.Name(),
		"http", a.cfg.HTTP.Addr().String(), "peers", a.cfg.Peers.Addr().String(), "gossip", a.gossip.Addr())
	// Before the gossip begins, so that no end is heard before what it ends.
	if err := a.recall(); err != nil {
		a.cfg.Logger.Warn("announcements of before the start are not known, the others may bring them", "error", err)
	}
	group.Go(func() error { return a.gossip.Run(ctx) })
	group.Go(func() error { return web.Serve(ctx, a.cfg.HTTP, a.handler(), a.cfg.Logger) })
	group.Go(func() error { return a.tick(ctx) })
	group.Go(func() error { return a.probe(ctx) })
	group.Go(func() error { return a.watchTable(ctx) })
	group.Go(func() error { // last of all: who holds mu and has seen ctx running may still begin something
		<-ctx.Done()
		a.mu.Lock()
		defer a.mu.Unlock()
		return nil
	})
	group.Go(func() error { return a.complain(ctx) })
	for _, heard := range waiting {
		a.announced(heard)
	}
	err := group.Wait()
	if closeErr := a.swarm.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("agent of %s: %w", a.cfg.Bucket.Name(), err)
	}
	return nil
}

// Close frees what New opened, for an agent that is not Run; after Run it does
// nothing.
func (a *Agent) Close() error {
	a.cfg.HTTP.Close()
	return errors.Join(a.gossip.Close(), a.swarm.Close())
}

// document takes what the cluster has to say.
func (a *Agent) document(d announce.Added) {
	switch {
	case d.Announcement != nil:
		a.announced(d)
	case d.End != nil:
		a.ended(d.End)
	}
}

// recall takes up what was under way before the start.
func (a *Agent) recall() error {
	recalled := make(map[string]bool)
	err := a.memory.recall(func(wire []byte) error {
		added, err := a.book.Add(wire)
		if err != nil {
			return err
		}
		if added.Announcement != nil {
			recalled[added.Announcement.ExecutionID] = true
		}
		a.document(added)
		return nil
	})
	return errors.Join(err, a.cfg.Cache.ForgetPulls(func(id string) bool { return recalled[id] }))
}

func (a *Agent) announced(heard announce.Added) {
	ann := heard.Announcement
	logger := a.cfg.Logger.With("key", ann.Key, "executionId", ann.ExecutionID)
	mine := slices.Contains(ann.Destinations, a.cfg.Bucket.Name())
	if mine && ann.SourceBucket == a.cfg.Bucket.Name() {
		logger.Error("announcement refused: the build comes from this agent's own bucket and would take its own object's place",
			"bucket", ann.SourceBucket, "next", "give the agent its region's bucket with --bucket, or take this one out of --destinations")
		return
	}
	a.mu.Lock()
	if a.running != nil && a.running.Err() == nil && !mine {
		a.mu.Unlock()
		a.assist(ann, logger)
		return
	}
	defer a.mu.Unlock()
	if a.running == nil {
		a.waiting = append(a.waiting, heard)
		return
	}
	if a.running.Err() != nil {
		return
	}
	if b, ok := a.builds[ann.ExecutionID]; ok && b.active() {
		b.again = &heard // for somebody else's sake, or while this one comes to its end
		return
	}
	for _, other := range a.builds {
		if other.ann.Key != ann.Key || other.ann.SourceBucket != ann.SourceBucket || other.finished() {
			continue
		}
		if other.ann.ExecutionID > ann.ExecutionID {
			logger.Info("announcement is older than what is under way", "current", other.ann.ExecutionID)
			return
		}
		other.again = nil
		other.stop(errSuperseded)
	}
	b := newBuild(a, ann, logger)
	b.wire = heard.Wire
	b.logger.Info("heard", "bytes", ann.Size, "sourceBucket", ann.SourceBucket)
	a.builds[ann.ExecutionID] = b
	a.forgetFinished()
	ctx := a.running
	a.group.Go(func() error {
		a.remember(b)
		if err := survive.Run(b.logger, func() error { b.run(ctx); return nil }); err != nil {
			b.fail(err)
		}
		if a.beginAgain(b) {
			return nil
		}
		if b.failed() {
			a.clear(ctx, b.key, ann.ExecutionID)
		}
		if ctx.Err() == nil { // else it goes on after the restart
			a.forget(b)
		}
		return nil
	})
}

// remember keeps an announcement on disk until forget.
func (a *Agent) remember(b *build) {
	if err := a.memory.keep(b.ann.ExecutionID, b.wire); err != nil {
		b.logger.Warn("this build is taken up again after a restart only if a member still announces it", "error", err)
	}
}

// beginAgain begins a build anew that was announced again while it came to its end.
func (a *Agent) beginAgain(b *build) bool {
	a.mu.Lock()
	again := b.again
	b.again = nil
	a.mu.Unlock()
	if again == nil {
		return false
	}
	a.announced(*again)
	return a.newest(b.ann.ExecutionID, b) != b
}

// forget removes what the disk holds of a build that is over, but for the cache.
func (a *Agent) forget(b *build) {
	id := b.ann.ExecutionID
	if a.newest(id, b) != b {
		return // announced again
	}
	if err := errors.Join(a.memory.forget(id), a.cfg.Cache.ForgetPull(id)); err != nil {
		b.logger.Warn("an execution that is over is looked at once more after a restart", "error", err)
	}
	if again := a.newest(id, b); again != b {
		a.remember(again) // announced meanwhile, and forgotten with this one
	}
}

// newest is the build of an execution that was heard of last; b when none is known
// any more.
func (a *Agent) newest(id string, b *build) *build {
	a.mu.Lock()
	defer a.mu.Unlock()
	if newest, ok := a.builds[id]; ok {
		return newest
	}
	return b
}

// assist seeds a build that goes to other buckets and is in the cache here.
func (a *Agent) assist(ann *announce.Announcement, logger *slog.Logger) {
	a.seedCached(ann.InfoHash, logger)
}

// seedCached puts a whole build of the cache into the engine.
func (a *Agent) seedCached(infohash cache.InfoHash, logger *slog.Logger) {
	entry, ok := a.cfg.Cache.Pinned(infohash)
	if !ok {
		return
	}
	defer entry.Unpin()
	if !entry.Whole() {
		return
	}
	if _, err := a.swarm.Seed(entry, false); err != nil {
		logger.Warn("cached build not seeded", "error", err)
	}
}

func (a *Agent) ended(end *announce.End) {
	a.mu.Lock()
	b := a.builds[end.ExecutionID]
	if b != nil {
		b.again = nil // what was announced before is over, too
	}
	if b == nil && end.Reason == announce.Failed && a.running != nil && a.running.Err() == nil {
		ctx := a.running
		a.group.Go(func() error {
			a.clear(ctx, ledger.Key{FileKey: end.Key, SourceBucket: end.SourceBucket}, end.ExecutionID)
			return nil
		})
	}
	a.mu.Unlock()
	if b != nil {
		b.ended(end)
		a.evict(0)
	}
}

// evict brings the cache below its limit, makes room for a build of so many
// bytes if it can, and takes what goes out of the engine.
func (a *Agent) evict(room int64) {
	err := a.cfg.Cache.Evict(room, func(infohash cache.InfoHash) {
		if t, ok := a.swarm.Torrent(infohash); ok {
			t.Drop()
		}
	})
	if err != nil {
		a.cfg.Logger.Warn("cache not cleaned", "error", err)
	}
}

// forgetFinished bounds the builds remembered. The caller holds mu.
func (a *Agent) forgetFinished() {
	var finished []*build
	for _, b := range a.builds {
		if b.finished() {
			finished = append(finished, b)
		}
	}
	if len(finished) <= maxFinished {
		return
	}
	slices.SortFunc(finished, func(x, y *build) int { return x.started.Compare(y.started) })
	for _, b := range finished[:len(finished)-maxFinished] {
		delete(a.builds, b.ann.ExecutionID)
	}
}

// tick looks up peers, measures rates and tells the seeders.
func (a *Agent) tick(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.landedNow:
			for _, d := range a.allDownloads() {
				d.count()
			}
			a.report()
		case now := <-ticker.C:
			members := a.gossip.Members()
			for _, d := range a.allDownloads() {
				d.measure(now.Sub(last))
				if d.stuck(now) {
					a.cfg.Logger.Warn("nothing comes from the peers, connecting to them anew", "infohash", d.infohash.String())
					d.torrent.Disconnect()
				}
				d.addPeers(members)
			}
			last = now
			a.share()
			a.report()
		}
	}
}

// turn waits for a place among the builds that are worked on, first come first
// served.
func (a *Agent) turn(ctx context.Context) (release func(), err error) {
	a.queued.Add(1)
	defer a.queued.Add(-1)
	begun := time.Now()
	select {
	case a.active <- struct{}{}:
		a.metrics.queued.Observe(time.Since(begun).Seconds())
		return func() { <-a.active }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// share takes the place of builds that get nowhere, when others wait for one, so
// that a few whose source is gone do not keep all others back.
func (a *Agent) share() {
	if a.queued.Load() == 0 {
		return
	}
	for _, b := range a.allBuilds() {
		b.makeRoom(turnPatience)
	}
}

// report sends the progress of every build that is not over, and for a while
// the end of those that are: a packet can be lost.
func (a *Agent) report() {
	var progress []gossip.BuildProgress
	names := gossip.ByPeerID(a.gossip.Members(), swarm.PeerID)
	for _, b := range a.allBuilds() {
		p, ok := b.progress()
		if !ok {
			continue
		}
		progress = append(progress, p)
		for _, l := range gossip.PackLinks(a.cfg.Gossip.ID, b.ann.ExecutionID, b.links(names)) {
			a.gossip.ReportLinks(l)
		}
	}
	for _, p := range gossip.Pack(a.cfg.Gossip.ID, a.cfg.Region, a.cfg.Bucket.Name(), progress) {
		a.gossip.Report(p)
	}
}

func (a *Agent) allBuilds() []*build {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*build, 0, len(a.builds))
	for _, b := range a.builds {
		out = append(out, b)
	}
	slices.SortFunc(out, func(x, y *build) int { return y.started.Compare(x.started) })
	return out
}

func (a *Agent) allDownloads() []*download {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*download, 0, len(a.downloads))
	for _, d := range a.downloads {
		out = append(out, d)
	}
	return out
}
