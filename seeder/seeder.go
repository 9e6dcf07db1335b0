// Package seeder is the role that watches the global bucket: it finds new
// builds, pulls and hashes them, announces them to the agents, is the swarm's
// first full copy, and keeps the record until every destination has arrived.
//
// The subjects, one a file: load.go reads the table at the start, watch.go finds builds,
// baseline.go knows which are old, deploy.go accepts them, machine.go decides what becomes
// of one execution from the queue to its end (events.go has what it hears and wants),
// carry.go does it, content.go has its bytes, summary.go says how it went, index.go is what
// is known of all executions, view.go how the HTTP side shows them.
package seeder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/awsmetrics"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/seldom"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/turns"
	"github.com/landfall-dist/landfall/internal/web"
)

// Defaults of Config.
const (
	DefaultPoll           = 5 * time.Second
	DefaultSuffix         = ".zip"
	DefaultArrivalTimeout = 30 * time.Minute
)

// Config says what a seeder watches and with what it works.
type Config struct {
	// Bucket is the global bucket.
	Bucket *bucket.Bucket
	// AWS opens other source buckets that POST /deploy may name.
	AWS    aws.Config
	Ledger *ledger.Ledger
	// Arrivals is the table of arrivals, where agents record what has landed; nil: they
	// write into the executions' items.
	Arrivals *arrivals.Table
	// Services are the tables of services; nil: there are none.
	Services *services.Tables
	// Copies are of what Services says, for when they cannot be read; nil for none.
	Copies *services.Copies
	// Checker checks agents' signatures of arrivals; nil for nobody.
	Checker arrivals.Checker
	Cache   *cache.Cache
	// Peers and HTTP are listeners; the seeder closes them.
	Peers, HTTP net.Listener
	// Gossip's address, keys and members to join; the rest is filled in by New.
	Gossip gossip.Config
	// Signer signs announcements.
	Signer signing.Signer
	// Trust are keys of other seeders; this one's own is always trusted.
	Trust *signing.Trust
	// AllowPeers are networks whose peers may connect beside the members.
	AllowPeers []netip.Prefix
	// TLS says with which members it is spoken; empty or identity.Off with nobody. Else
	// Identity is this process's.
	TLS      identity.Mode
	Identity *identity.Source
	// Security is who may do what over HTTP.
	Security web.Security
	// Limits are how fast bytes may pass; nil for none, until somebody sets some.
	Limits *limits.Limits
	// Hosts are names, beside those of loopback and this machine's addresses, that the
	// HTTP side answers to.
	Hosts []string
	// Destinations are the buckets that a build goes to when nobody says.
	Destinations []string
	// Poll is the time from the end of one listing to the start of the next.
	Poll time.Duration
	// Prefix and Suffix choose the keys that start by themselves.
	Prefix, Suffix string
	// Backfill sends what was in the bucket before the first start, too.
	Backfill bool
	// BaselineFile is where earlier versions remembered what was there at the first
	// start; it is read when the table does not know.
	BaselineFile string
	// ArrivalTimeout fails a destination that makes no progress for so long.
	ArrivalTimeout time.Duration
	// AllowWeakStore has the seeder work with a store that lacks a guarantee.
	AllowWeakStore bool
	// BuildSource is the URL under which POST /builds finds builds by commit:
	// http, https or file, as CheckBuildSource says. Empty: not offered.
	BuildSource string
	// MaxFetch is the longest build that is taken from there, in bytes; it defaults
	// to DefaultMaxFetch.
	MaxFetch int64
	// WaveChecks is a directory of programs that a deployment's WaveCheck may name; empty
	// for none.
	WaveChecks string
	// SourceBuckets are those that POST /deploy may name beside Bucket.
	SourceBuckets []string
	// Notify is told of destinations that fail; nil for nobody. Run runs it.
	Notify *notify.Notifier
	// AWSMetrics counts what the clients of AWS do, for /metrics; nil for nobody.
	AWSMetrics *awsmetrics.Metrics
	// Uplink is what this host can send in bytes/s, for the ratio to the bound in
	// an execution's last line; 0 leaves that out.
	Uplink int64
	// Tracer draws executions; nil draws nothing.
	Tracer  *tracing.Tracer
	Version string
	Logger  *slog.Logger
}

// check reports buckets that cannot be worked with.
func (cfg *Config) check() error {
	for _, b := range cfg.Destinations {
		if err := announce.CheckBucketName(b); err != nil {
			return fmt.Errorf("--destinations: %w", err)
		}
		if b == cfg.Bucket.Name() {
			return fmt.Errorf("--destinations: %w: %s", errIntoSource, b)
		}
	}
	for _, b := range cfg.SourceBuckets {
		if err := announce.CheckBucketName(b); err != nil {
			return fmt.Errorf("--source-buckets: %w", err)
		}
	}
	return nil
}

// Seeder is the running role.
type Seeder struct {
	cfg     Config
	book    *announce.Book
	gossip  *gossip.Gossip
	swarm   *swarm.Swarm
	index   *index
	puller  *source.Puller
	sources *source.Buckets
	// regional are the destinations' buckets, as far as this seeder may look into them.
	regional *source.Buckets
	metrics  *metrics
	// refused and mayNotLook bound the lines about arrivals.
	refused, mayNotLook *seldom.Lines

	items    tableItems
	reserved reservations
	uploads  uploads
	turns    turns.Turns[ledger.Key]
	changes  changes
	builds   buildSource // nil for none
	services *serviceOwners
	recalls  *recallList
	reading  *firstReading

	mu      sync.Mutex
	running context.Context // set by Run
	group   *errgroup.Group
	// ready is nil once the table was read and the bucket listed.
	ready error
	// loaded is set when the index has what the table says.
	loaded bool
	// served are the buckets with a living agent that takes this seeder's word when
	// last looked, agents the names of those: another one after each start.
	served, agents map[string]bool
	// distrust bounds the lines about agents that do not.
	distrust *seldom.Lines
}

// New opens the ports. On error the listeners in cfg are closed.
func New(cfg Config) (_ *Seeder, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, cfg.Peers.Close(), cfg.HTTP.Close())
		}
	}()
	if cfg.Poll <= 0 {
		cfg.Poll = DefaultPoll
	}
	if cfg.ArrivalTimeout <= 0 {
		cfg.ArrivalTimeout = DefaultArrivalTimeout
	}
	if cfg.MaxFetch <= 0 {
		cfg.MaxFetch = DefaultMaxFetch
	}
	if cfg.Limits == nil {
		cfg.Limits = limits.New(false)
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	builds, err := newBuildSource(cfg.BuildSource)
	if err != nil {
		return nil, err
	}
	cfg.Ledger = cfg.Ledger.As(cfg.Bucket.Name())
	if cfg.Trust == nil {
		cfg.Trust = signing.TrustIn(cfg.Signer.Public())
	}
	s := &Seeder{
		cfg:      cfg,
		book:     announce.NewBook(cfg.Trust, nil),
		index:    newIndex(),
		puller:   source.NewPuller(cfg.Cache, cfg.Logger),
		sources:  source.NewBuckets(cfg.AWS, cfg.Bucket),
		regional: source.NewBuckets(cfg.AWS),
		refused:  seldom.New(refusedInterval, maxRefused),

		mayNotLook: seldom.New(foldBack, maxBuckets),
		metrics:    newMetrics(cfg.Destinations),
		reserved:   newReservations(),
		builds:     builds,
		ready:      errors.New("starting"),
		served:     make(map[string]bool),
		agents:     make(map[string]bool),
		distrust:   seldom.New(distrustInterval, maxDistrust),
		services:   newServiceOwners(),
		recalls:    newRecallList(),
		reading:    newFirstReading(),
	}
	s.sources.Limit(cfg.Limits.Source)
	g := cfg.Gossip
	g.Role, g.Key = gossip.Seeder, s.keyID()
	g.PeerPort, g.HTTPPort = port(cfg.Peers), port(cfg.HTTP)
	g.Table, g.Arrivals, g.ArrivalsTable = cfg.Ledger.Place().String(), cfg.Arrivals != nil, cfg.Arrivals.Told()
	g.Book, g.Logger = s.book, cfg.Logger
	g.OnDocument = s.document
	g.OnProgress, g.OnLinks, g.OnMembers = s.progress, s.links, s.membersChanged
	g.OnCounts, g.OnRoster = s.counted, s.roster
	if s.gossip, err = gossip.New(g); err != nil {
		return nil, err
	}
	s.swarm, err = swarm.New(swarm.Config{
		Cache: cfg.Cache, Name: s.gossip.Name(), HandOut: true, Config: peerwire.Config{
			Listener:  cfg.Peers,
			AllowPeer: gossip.PeerPolicy(s.gossip, cfg.AllowPeers),
			MemberAt:  gossip.MemberAt(s.gossip),
			Member:    gossip.PeerMembers(s.gossip),
			Upload:    cfg.Limits.Upload,
			Download:  cfg.Limits.Download,
			TLS:       cfg.TLS,
			Identity:  cfg.Identity,
			Logger:    cfg.Logger,
		},
	})
	if err != nil {
		return nil, errors.Join(err, s.gossip.Close())
	}
	return s, nil
}

func port(l net.Listener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }

// Run works until ctx ends and then leaves the cluster. What the table calls
// IN_PROGRESS is taken up again by the next start.
func (s *Seeder) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	s.mu.Lock()
	s.running, s.group = ctx, group
	s.mu.Unlock()
	if s.protection().Open() {
		s.cfg.Logger.Warn("everybody who reaches the HTTP side may publish, cancel and send again: it listens beyond loopback without an operator token (--insecure)",
			"http", s.cfg.HTTP.Addr().String())
	}
	group.Go(func() error { return s.cfg.Security.Run(ctx, s.cfg.Logger) })
	group.Go(func() error { return web.Serve(ctx, s.cfg.HTTP, s.handler(), s.cfg.Logger) })
	group.Go(func() error { return s.gossip.Run(ctx) })
	group.Go(func() error { return s.probe(ctx) })
	group.Go(func() error {
		s.cfg.Trust.Watch(ctx, s.trustChanged, func(err error) {
			s.cfg.Logger.Error("trusted keys not read again, those of before hold", "error", err)
		})
		return nil
	})
	group.Go(func() error { // last of all: who holds mu and has seen ctx running may still begin something
		<-ctx.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		return nil
	})
	if s.cfg.Notify != nil {
		group.Go(func() error { return s.cfg.Notify.Run(ctx) })
	}
	if s.cfg.Services != nil {
		group.Go(func() error { return s.loadServices(ctx) })
	} else {
		s.reading.services.done()
	}
	group.Go(func() error {
		if err := s.load(ctx); err != nil {
			return quietAtEnd(ctx, err)
		}
		if s.cfg.Arrivals != nil {
			s.mu.Lock()
			s.group.Go(func() error { return s.foldAgain(ctx) })
			s.mu.Unlock()
		}
		s.cfg.Logger.Info("seeder is up", "bucket", s.cfg.Bucket.Name(), "destinations", s.cfg.Destinations,
			"http", s.cfg.HTTP.Addr().String(), "peers", s.cfg.Peers.Addr().String(), "gossip", s.gossip.Addr())
		return quietAtEnd(ctx, s.watch(ctx))
	})
	err := group.Wait()
	if closeErr := s.swarm.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("seeder of %s: %w", s.cfg.Bucket.Name(), err)
	}
	return nil
}

// Close frees what New opened, for a seeder that is not Run; after Run it does
// nothing.
func (s *Seeder) Close() error {
	s.cfg.HTTP.Close()
	return errors.Join(s.gossip.Close(), s.swarm.Close())
}

// GossipAddr is where members join through this one, as host:port.
func (s *Seeder) GossipAddr() string { return s.gossip.Addr() }

// quietAtEnd drops errors that are only the end of ctx.
func quietAtEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Seeder) setReady(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = err
}

// isLoaded reports whether the index has all that the table says.
func (s *Seeder) isLoaded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loaded
}

func (s *Seeder) isReady() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// membersChanged sends again what an agent that has just come, or started again,
// lacks.
func (s *Seeder) membersChanged() {
	s.livingChanged()
	all, agents, members := s.gossip.Members(), make(map[string]string), make(map[string]bool)
	elsewhere := make(map[string]string)
	for _, m := range all {
		members[m.ID] = true
		if m.Role == gossip.Agent && s.trustedBy(m) {
			agents[m.Name] = m.Bucket
			if err := s.recordsElsewhere(m); err != nil {
				elsewhere[m.Bucket] = err.Error()
			}
		}
	}
	for bucket, why := range s.index.recordElsewhere(elsewhere) {
		s.cfg.Logger.Warn("an agent records arrivals in another table, they are not seen here", "bucket", bucket, "error", why)
	}
	now, distrust := s.servedBy(all)
	s.mu.Lock()
	before := s.agents
	s.served, s.agents = now, make(map[string]bool)
	for name := range agents {
		s.agents[name] = true
	}
	loaded := s.loaded
	s.mu.Unlock()
	s.index.serve(now, distrust, members)
	if !loaded {
		return
	}
	come := make(map[string]bool)
	for name, bucket := range agents {
		if !before[name] {
			come[bucket] = true
		}
	}
	if len(come) == 0 {
		return
	}
	for _, r := range s.index.unfinished() {
		if lacks(r, come) && !s.index.sourceMissing(r.ExecutionID) {
			s.start(context.Background(), r, asAwaited)
		}
	}
}

// recordsElsewhere says why this seeder does not see what an agent records.
func (s *Seeder) recordsElsewhere(m gossip.Member) error {
	mine := s.cfg.Ledger.Place()
	return cmp.Or(mine.Of(m.Table).Differs("agent "+m.ID, "this seeder", mine),
		arrivals.Differs("agent "+m.ID, m.ArrivalsTable, "this seeder", s.cfg.Arrivals.Told()))
}

// lacks reports whether one of the buckets still has to get the build.
func lacks(r *ledger.Record, buckets map[string]bool) bool {
	return !r.Foreign && slices.ContainsFunc(r.Unfinished(), func(b string) bool {
		return buckets[b] && !r.Cancelled(b) && !r.Hopeless(b)
	})
}

// document takes in what came from the cluster: one of this seeder's own, as a
// rule, from before its start.
func (s *Seeder) document(d announce.Added) {
	if s.isLoaded() && d.Announcement != nil {
		s.retireEnded(d.Announcement)
	}
}

// retireEnded ends an announcement that is still about although its execution ended
// while no seeder was there to say so.
func (s *Seeder) retireEnded(a *announce.Announcement) {
	newest := s.index.newest(ledger.Key{FileKey: a.Key, SourceBucket: a.SourceBucket})
	switch {
	case newest == nil || newest.Foreign || newest.ExecutionID < a.ExecutionID:
		return // another seeder's
	case newest.ExecutionID > a.ExecutionID:
		s.retireAlongside(newest.Key, a.ExecutionID)
		return
	}
	s.start(context.Background(), newest, asOver)
}

// retireAlongside sends the notice that an execution was superseded, while whoever has
// found it out, which may be the one who takes all that comes from the cluster, goes on.
func (s *Seeder) retireAlongside(k ledger.Key, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx := s.running
	if ctx == nil || ctx.Err() != nil {
		return // the next start does
	}
	s.group.Go(func() error { s.retire(ctx, k, id, announce.Superseded); return nil })
}

func (s *Seeder) isServed(bucket string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[bucket]
}
