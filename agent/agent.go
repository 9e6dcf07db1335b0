// Package agent is the role that runs in every region: it hears of builds,
// downloads them with the swarm, lands them in the regional bucket and records
// their arrival.
//
// Agent keeps one build for each execution announced to its bucket (build.go), which
// owns the state of that execution: a machine decides (machine.go) upon what it hears
// (events.go), and workers take part in the swarm (swarm.go), land (land.go), and read
// from the source bucket what no peer has (fallback.go). It says how it went
// (summary.go). Its region's hosts are served in fleet.go. There is one download for each infohash (download.go), which several
// executions of the same bytes share.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/awsmetrics"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/source"
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
	// DefaultMaxActive is how many builds are downloaded and landed at a time; as many high
	// ones may be beside them.
	DefaultMaxActive = 16
)

const (
	// tick is how often peers are looked up, rates measured, progress told.
	tick = time.Second
	// maxFinished bounds the builds that GET /status still shows after their
	// end.
	maxFinished = 200
)

// Config says what an agent serves and with what.
type Config struct {
	Region string
	Bucket *bucket.Bucket
	Ledger *ledger.Ledger
	// Arrivals is the table of arrivals, where this agent records what it lands as soon as
	// the seeders in sight say that they read it; nil for never.
	Arrivals *arrivals.Table
	// ArrivalsMark is a file that remembers over a restart that they do; empty for none. An
	// agent that has one and no Memory yet is new, and takes it that they do.
	ArrivalsMark string
	// Signer signs arrivals; nil for nobody. Checker checks those that others have signed;
	// nil where seeders do not check them either.
	Signer  arrivals.Signer
	Checker arrivals.Checker
	Cache   *cache.Cache
	// Peers and HTTP are listeners; the agent closes them.
	Peers, HTTP net.Listener
	// Gossip's address, keys and members to join; role, region, bucket, ports,
	// book and callbacks are filled in by New.
	Gossip gossip.Config
	// Trust are the public keys whose announcements are followed.
	Trust *signing.Trust
	// AllowPeers are networks whose peers may connect beside the members.
	AllowPeers []netip.Prefix
	// TLS says with which members it is spoken; empty or identity.Off with nobody. Else
	// Identity is this process's.
	TLS      identity.Mode
	Identity *identity.Source
	// Hosts are names, beside those of loopback and this machine's addresses, that the
	// HTTP side answers to.
	Hosts []string
	// Fleet is how the region's hosts are served; the zero value serves none.
	Fleet Fleet
	// Security is who may do what over HTTP; where nobody is asked for a token, limits are
	// changed on loopback alone.
	Security web.Security
	// Limits are how fast bytes may pass; nil for none, until somebody sets some.
	Limits *limits.Limits
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
	slots  *turns.Slots // parts on their way up
	// active are builds being worked on; beyond are the high ones for which there was no
	// place among them.
	active, beyond *turns.Slots
	// highFirst: a build of high priority comes, and others are held back for it.
	highFirst atomic.Bool
	// sourceRead counts the bytes read from source buckets.
	sourceRead atomic.Int64
	puller     *source.Puller
	memory     memory
	records    *records
	rows       *arrivals.Records // nil for none
	// process is another one for each start.
	process string
	store   *store
	hosts   *hosts // nil where none are served, as kept is
	kept    *kept
	metrics *metrics
	// seedersChanged asks whether the seeders still use the same table.
	seedersChanged chan struct{}
	// peersChanged asks for the peers of every download to be looked up before the next
	// tick: an announcement may be here before its seeder is known.
	peersChanged chan struct{}
	// landedNow asks for a report before the next tick.
	landedNow chan struct{}

	// turns are of who begins or ends a download.
	turns turns.Turns[manifest.InfoHash]

	mu        sync.Mutex        // never held over the engine or the disk
	builds    map[string]*build // by executionId
	downloads map[manifest.InfoHash]*download
	running   context.Context // set by Run; nil before
	group     *errgroup.Group
}

// New opens the ports. On error the listeners in cfg are closed.
func New(cfg Config) (_ *Agent, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, cfg.Peers.Close(), cfg.HTTP.Close(), cfg.Fleet.close())
		}
	}()
	if err := cfg.Fleet.check(); err != nil {
		return nil, err
	}
	if len(cfg.Trust.Keys()) == 0 {
		return nil, errors.New("no trusted key: give the seeder's public key with --trust")
	}
	cfg.LandParallel = cmp.Or(max(cfg.LandParallel, 0), DefaultLandParallel)
	cfg.MaxActive = cmp.Or(max(cfg.MaxActive, 0), DefaultMaxActive)
	cfg.FallbackAfter = cmp.Or(max(cfg.FallbackAfter, 0), DefaultFallbackAfter)
	if cfg.Limits == nil {
		cfg.Limits = limits.New(true)
	}
	if cfg.Sources != nil {
		cfg.Sources.Limit(cfg.Limits.Source)
	}
	a := &Agent{
		cfg:            cfg,
		book:           announce.NewBook(cfg.Trust, nil),
		slots:          turns.NewSlots(cfg.LandParallel),
		active:         turns.NewSlots(cfg.MaxActive),
		beyond:         turns.NewSlots(cfg.MaxActive),
		puller:         source.NewPuller(cfg.Cache, cfg.Logger),
		metrics:        newMetrics(),
		process:        ulid.Make().String(),
		store:          newStore(),
		landedNow:      make(chan struct{}, 1),
		seedersChanged: make(chan struct{}, 1),
		peersChanged:   make(chan struct{}, 1),
		builds:         make(map[string]*build),
		downloads:      make(map[manifest.InfoHash]*download),
	}
	if cfg.Arrivals != nil {
		a.rows = arrivals.NewRecords(cfg.Ledger, cfg.Arrivals, cfg.Bucket.Name(), cfg.Gossip.ID, a.process, cfg.Signer, cfg.Checker)
	}
	// Before there is a memory: without one this agent is new.
	if a.records, err = newRecords(cfg.Ledger, a.rows, cfg.ArrivalsMark, isNew(cfg.Memory)); err != nil {
		return nil, err
	}
	if a.memory, err = newMemory(cfg.Memory); err != nil {
		return nil, err
	}
	g := cfg.Gossip
	g.Role, g.Region, g.Bucket = gossip.Agent, cfg.Region, cfg.Bucket.Name()
	g.PeerPort, g.HTTPPort = port(cfg.Peers), port(cfg.HTTP)
	g.Trusts = cfg.Trust.IDs()
	g.Book, g.Logger = a.book, cfg.Logger
	g.Table, g.ArrivalsTable = cfg.Ledger.Place().String(), cfg.Arrivals.Told()
	g.OnContradiction = a.contradicted
	g.OnDocument, g.OnMembers = a.document, func() {
		a.heedSeeders()
		a.tellAll(membersChanged{})
		ask(a.seedersChanged)
		ask(a.peersChanged)
	}
	if err = a.openFleet(&g); err != nil {
		return nil, err
	}
	if a.gossip, err = gossip.New(g); err != nil {
		return nil, err
	}
	a.swarm, err = swarm.New(swarm.Config{
		Cache: cfg.Cache, Name: a.gossip.Name(), Fleet: a.swarmFleet(), OpenOfBuild: a.openOfBuild(), Config: peerwire.Config{
			Listener:  cfg.Peers,
			AllowPeer: gossip.PeerPolicy(a.gossip, cfg.AllowPeers),
			MemberAt:  gossip.MemberAt(a.gossip),
			Member:    gossip.PeerMembers(a.gossip),
			Upload:    cfg.Limits.Upload,
			Download:  cfg.Limits.Download,
			TLS:       cfg.TLS,
			Identity:  cfg.Identity,
			Logger:    cfg.Logger,
		},
	})
	if err != nil {
		return nil, errors.Join(err, a.gossip.Close())
	}
	if a.kept, err = a.openKept(); err != nil {
		return nil, errors.Join(err, a.gossip.Close(), a.swarm.Close())
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
	a.mu.Unlock()
	a.cfg.Logger.Info("agent is up", "region", a.cfg.Region, "bucket", a.cfg.Bucket.Name(),
		"http", a.cfg.HTTP.Addr().String(), "peers", a.cfg.Peers.Addr().String(), "gossip", a.gossip.Addr())
	// Before the gossip begins, so that no end is heard before what it ends.
	if err := a.recall(); err != nil {
		a.cfg.Logger.Warn("announcements from before the start are not known, other members may send them again", "error", err)
	}
	group.Go(func() error { return a.gossip.Run(ctx) })
	group.Go(func() error { return a.cfg.Security.Run(ctx, a.cfg.Logger) })
	group.Go(func() error { return web.Serve(ctx, a.cfg.HTTP, a.handler(), a.cfg.Logger) })
	if a.hosts != nil {
		group.Go(func() error { return a.runFleet(ctx) })
		group.Go(func() error { return a.kept.run(ctx) })
	}
	group.Go(func() error { return a.tick(ctx) })
	group.Go(func() error { return a.probe(ctx) })
	group.Go(func() error { return a.watchSeeders(ctx) })
	group.Go(func() error {
		a.cfg.Trust.Watch(ctx, a.trustChanged, func(err error) {
			a.cfg.Logger.Error("trusted keys not read again, those of before hold", "error", err)
		})
		return nil
	})
	if a.rows != nil {
		group.Go(func() error { a.rows.Beat(ctx, a.cfg.Logger); return nil })
	}
	group.Go(func() error { // last of all: who holds mu and has seen ctx running may still begin something
		<-ctx.Done()
		a.mu.Lock()
		defer a.mu.Unlock()
		return nil
	})
	if err := cmp.Or(group.Wait(), a.swarm.Close()); err != nil {
		return fmt.Errorf("agent of %s: %w", a.cfg.Bucket.Name(), err)
	}
	return nil
}

// Close frees what New opened, for an agent that is not Run; after Run it does
// nothing.
func (a *Agent) Close() error {
	a.cfg.HTTP.Close()
	return errors.Join(a.gossip.Close(), a.swarm.Close(), a.cfg.Fleet.close())
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
	if a.rows != nil && !a.records.heeded.Load() { // who has announced it may have come just now
		a.heedSeeders()
	}
	logger := a.cfg.Logger.With("key", ann.Key, "executionId", ann.ExecutionID)
	switch name := a.cfg.Bucket.Name(); {
	case !slices.Contains(ann.Destinations, name):
		a.seedCached(ann, logger) // for the others' sake
		return
	case ann.SourceBucket == name:
		logger.Error("announcement refused: the build comes from this agent's own bucket and would take its own object's place",
			"bucket", ann.SourceBucket, "next", "give the agent its region's bucket with --bucket, or take this one out of --destinations")
		return
	}
	a.kept.note(ann)
	a.mu.Lock()
	defer a.mu.Unlock()
	key := ledger.Key{FileKey: ann.Key, SourceBucket: ann.SourceBucket}
	for _, other := range a.builds {
		// While a build goes up to its source bucket, its object has no ETag and it does not
		// have the key: whatever has goes on beside it.
		if other.key != key || other.id == ann.ExecutionID || other.over || ann.ETag == "" || !other.hasKey {
			continue
		}
		if other.id > ann.ExecutionID {
			logger.Info("announcement is older than what is under way", "current", other.id)
			return
		}
		other.owner.Tell(ended{errSuperseded})
	}
	a.tell(ann.ExecutionID, key, announced{ann, heard.Wire})
}

// contradicted ends a build of which two announcements say what cannot both be so.
func (a *Agent) contradicted(ann *announce.Announcement, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.builds[ann.ExecutionID]; b != nil && !b.over {
		b.owner.Tell(contradicted{err})
	}
}

// tell has the build of an execution hear an event, one that begins where there is none.
// The caller holds mu.
func (a *Agent) tell(id string, key ledger.Key, e event) {
	if a.running.Err() != nil {
		return
	}
	b := a.builds[id]
	if b == nil || b.over {
		b = newBuild(a, id, key)
		a.builds[id] = b
		a.forgetFinished()
		ctx := a.running
		a.group.Go(func() error {
			if b.run(ctx) != nil {
				a.beginAgain(ctx, b)
			}
			return nil
		})
	}
	if news, ok := e.(announced); ok && news.ann.ETag != "" {
		b.hasKey = true
	}
	b.owner.Tell(e)
}

// beginAgain takes up a build after a fault in its machine, unless that was done already.
func (a *Agent) beginAgain(ctx context.Context, b *build) {
	if !retry.Wait(ctx, rand.N(firstRetry)+firstRetry/10) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if ann := b.machine.ann; ann != nil && a.builds[b.id] == b {
		a.tell(b.id, b.key, announced{ann, b.machine.wire})
	}
}

func (a *Agent) tellAll(e event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.builds {
		if !b.over {
			b.owner.Tell(e)
		}
	}
}

// seedCached puts the segments of a build that the cache has whole into the engine.
func (a *Agent) seedCached(ann *announce.Announcement, logger *slog.Logger) {
	for i := range ann.InfoHashes.Len() {
		entry, err := a.cfg.Cache.Pinned(ann.InfoHashes.At(i), ann.ExecutionID)
		if errors.Is(err, cache.ErrNotKept) {
			continue
		}
		if err != nil {
			logger.Warn("cached segment not seeded", "segment", i, "error", err)
			continue
		}
		if entry.Whole() {
			if _, err := a.swarm.Seed(entry, ann.ExecutionID, ann.Destinations); err != nil {
				logger.Warn("cached segment not seeded", "segment", i, "error", err)
			}
		}
		entry.Unpin()
	}
}

func (a *Agent) ended(end *announce.End) {
	cause := errCompleted
	if end.Reason != announce.Completed {
		cause = fmt.Errorf("%w: %s", errEnded, end.Reason)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.builds[end.ExecutionID]
	if b != nil && !b.over || b == nil && end.Reason == announce.Failed { // whose uploads are to be removed
		a.tell(end.ExecutionID, ledger.Key{FileKey: end.Key, SourceBucket: end.SourceBucket}, ended{cause})
	}
}

// evict brings the cache below its limit, makes room for a build of so many
// bytes if it can, and takes what goes out of the engine.
func (a *Agent) evict(room int64) {
	err := a.cfg.Cache.Evict(room, func(infohash manifest.InfoHash) {
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
	var finished []string
	for id, b := range a.builds {
		if b.over {
			finished = append(finished, id)
		}
	}
	slices.Sort(finished) // the oldest first
	for _, id := range finished[:max(0, len(finished)-maxFinished)] {
		delete(a.builds, id)
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
		case <-a.peersChanged:
			members := a.gossip.Members()
			for _, d := range a.allDownloads() {
				d.addPeers(members)
			}
			a.expectMore(members)
		case now := <-ticker.C:
			members := a.gossip.Members()
			for _, d := range a.allDownloads() {
				d.measure(now.Sub(last))
				d.hangUp(now)
				if d.torrent.Arriving(last) {
					d.arrives(now)
				}
				if d.stuck(now) {
					a.cfg.Logger.Warn("nothing comes from the peers, connecting to them anew", "infohash", d.infohash.String())
					d.torrent.Disconnect()
				}
				d.addPeers(members)
			}
			a.expectMore(members)
			last = now
			if err := a.store.ready(); err != nil {
				a.tellAll(storeAway{err})
			}
			a.holdOthers(now)
			if a.queued() > 0 {
				a.tellAll(othersWait{}) // so that a few whose source is gone do not keep all others back
			}
			a.report()
		}
	}
}

// ask leaves a value in c, unless one is there already.
func ask(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// report sends the progress of every build that is not over, and for a while
// the end of those that are: a packet can be lost.
func (a *Agent) report() {
	var progress []gossip.BuildProgress
	names := gossip.ByPeerID(a.gossip.Members(), peerwire.PeerID)
	for _, b := range a.allBuilds() {
		s := b.seen.Load()
		switch {
		case s.state != api.StateLanded && s.state != api.StateFailed:
			b.reports = reportAfterEnd
		case b.reports == 0:
			continue
		default:
			b.reports--
		}
		progress = append(progress, s.progress())
		if s.member != nil {
			for _, l := range gossip.PackLinks(a.cfg.Gossip.ID, b.id, s.member.links(names)) {
				a.gossip.ReportLinks(l)
			}
		}
	}
	for _, p := range gossip.Pack(a.cfg.Gossip.ID, a.cfg.Region, a.cfg.Bucket.Name(), progress) {
		a.gossip.Report(p)
	}
}

// allBuilds are those that something is to be seen of, the newest first.
func (a *Agent) allBuilds() []*build {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*build, 0, len(a.builds))
	for _, b := range a.builds {
		if b.seen.Load() != nil {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(x, y *build) int { return y.seen.Load().started.Compare(x.seen.Load().started) })
	return out
}

func (a *Agent) allDownloads() []*download {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.downloads))
}
