// Package devcluster runs a seeder and agents of several regions in one process,
// on loopback, against one S3 and DynamoDB endpoint. The demo and the
// end-to-end tests stand on it; production runs the two daemons.
package devcluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/agent"
	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/awsmetrics"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/host"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/web"
	"github.com/landfall-dist/landfall/seeder"
)

// defaultCacheSize is how much each member keeps of finished builds, in bytes.
const defaultCacheSize = 5 << 30

// Config says what to start and where.
type Config struct {
	// Dir holds every member's data; it must be absolute, for the embedded S3
	// changes the process's directory.
	Dir string
	// AWS reaches S3 and DynamoDB.
	AWS aws.Config
	// Global is the global bucket, Table the table, Arrivals that of arrivals; empty: agents
	// record arrivals in Table.
	Global, Table, Arrivals string
	// Services are the tables of services; the zero value for none.
	Services services.Names
	// SourceBuckets are those that POST /deploy may name beside Global.
	SourceBuckets []string
	// Regions are the regions' names; each lands in NAME-builds.
	Regions []string
	// Unserved is how many of the last Regions get no agent.
	Unserved int
	// TLS says with which members it is spoken; empty or identity.Off with nobody. The
	// cluster has an authority of its own, and makes a certificate for the first agent of
	// each region, of those too that are Expected beside Regions: somebody else runs them.
	TLS      identity.Mode
	Expected []string
	// Fleet has every agent serve hosts; so do Hosts.
	Fleet bool
	Hosts Hosts
	// SeederHTTP, SeederGossip and SeederPeers are addresses; empty for any
	// port of loopback.
	SeederHTTP, SeederGossip, SeederPeers string
	// AgentHTTP returns the address of the i-th region's agent; nil for any.
	AgentHTTP func(i int) string
	// OperatorToken is all members'; empty for none.
	OperatorToken operator.Token
	// Operators is all members' file of named operators; empty for none.
	Operators string
	// CloseReading is all members'.
	CloseReading bool
	// BuildSource is the seeder's.
	BuildSource string
	// FallbackAfter and MaxActive are the agents'; 0 for their defaults.
	FallbackAfter time.Duration
	MaxActive     int
	// CacheSize is each member's, in bytes; 0 for some GiB.
	CacheSize int64
	// Webhook is the URL that the seeder's notices go to; empty for none.
	Webhook string
	// Poll and ArrivalTimeout are the seeder's; 0 for its defaults.
	Poll, ArrivalTimeout time.Duration
	// Uplink is the seeder's, in bytes/s; 0 for not known.
	Uplink int64
	// Limits are each member's.
	Limits api.LimitsChange
	// AllowWeakStore is all members'.
	AllowWeakStore bool
	// Tracer draws the work of all members; nil draws nothing.
	Tracer  *tracing.Tracer
	Version string
	Logger  *slog.Logger
}

// BucketOf returns the regional bucket of a region.
func BucketOf(region string) string { return region + "-builds" }

// Cluster is a seeder and its agents.
type Cluster struct {
	cfg Config
	// Key signs announcements; its public half is in Trust.
	Key   signing.Ed25519
	Trust *signing.Trust
	// SeederURL, SeederGossip and SeederPeers say where the seeder is.
	SeederURL, SeederGossip, SeederPeers string
	// AgentURLs are the agents', in order of the regions.
	AgentURLs []string
	// FleetURLs are where the agents serve hosts, by region; empty without Config.Fleet.
	FleetURLs map[string][]string
	// Hosts are those of Config.Hosts.
	Hosts []*host.Host

	seeder  *member
	members []member // the agents
	// gossip are the addresses of all members so far; whoever comes joins
	// through them.
	gossip []string
	// authority makes the certificates, serves are the regions' buckets; nil without TLS.
	authority *ca.Dir
	serves    call.Serves
}

// member is one role with what it holds open.
type member struct {
	run   func(context.Context) error
	close func() error
}

// Init makes the buckets and the table that are missing.
func Init(ctx context.Context, cfg Config) error {
	names := []string{cfg.Global}
	for _, r := range cfg.Regions {
		names = append(names, BucketOf(r))
	}
	for _, name := range names {
		if _, err := bucket.Create(ctx, cfg.AWS, name, ""); err != nil {
			return err
		}
	}
	if _, err := Ledger(cfg).Create(ctx); err != nil {
		return err
	}
	if rows := Arrivals(cfg); rows != nil {
		if _, err := rows.Create(ctx); err != nil {
			return err
		}
	}
	if tables := Services(cfg); tables != nil {
		return tables.Create(ctx, func(string, bool) {})
	}
	return nil
}

// Services are the tables of services; nil where there are none.
func Services(cfg Config) *services.Tables {
	if cfg.Services == (services.Names{}) {
		return nil
	}
	return services.New(dynamo(cfg), cfg.Services, services.DefaultTTL)
}

func dynamo(cfg Config) *dynamodb.Client {
	return dynamodb.NewFromConfig(cfg.AWS, func(o *dynamodb.Options) { o.HTTPClient = answers.DynamoDB(o.HTTPClient) })
}

// Arrivals is the client of the table of arrivals; nil where there is none.
func Arrivals(cfg Config) *arrivals.Table {
	if cfg.Arrivals == "" {
		return nil
	}
	return arrivals.New(dynamo(cfg), cfg.Arrivals)
}

// Ledger is the table's client.
func Ledger(cfg Config) *ledger.Ledger {
	return ledger.New(dynamo(cfg), cfg.Table)
}

// New opens the seeder's and the agents' ports. Buckets and table must be there.
// On error nothing is left open.
func New(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	cfg.Fleet = cfg.Fleet || cfg.Hosts.PerRegion > 0
	c := &Cluster{cfg: cfg}
	defer func() {
		if err != nil {
			for _, m := range c.all() {
				err = errors.Join(err, m.close())
			}
		}
	}()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if c.Key, err = signingKey(filepath.Join(cfg.Dir, "seeder.key")); err != nil {
		return nil, err
	}
	c.Trust = signing.TrustIn(c.Key.Public())
	if c.authority, c.serves, err = Certify(cfg); err != nil {
		return nil, err
	}
	if c.seeder, err = c.newSeeder(ctx); err != nil {
		return nil, err
	}
	for i, region := range cfg.Regions[:len(cfg.Regions)-cfg.Unserved] {
		addr := ""
		if cfg.AgentHTTP != nil {
			addr = cfg.AgentHTTP(i)
		}
		url, m, err := c.agent(ctx, region, AgentOf(region), addr)
		if err != nil {
			return nil, err
		}
		c.AgentURLs = append(c.AgentURLs, url)
		c.members = append(c.members, m)
	}
	return c, c.newHosts()
}

func signingKey(file string) (signing.Ed25519, error) {
	key, err := signing.ReadKey(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err = signing.WriteKey(file); err == nil {
			key, err = signing.ReadKey(file)
		}
	}
	return key, err
}

// Detach takes the seeder out of what Run runs, for the caller to run and to end by
// itself.
func (c *Cluster) Detach() (run func(ctx context.Context) error) {
	m := *c.seeder
	c.seeder = nil
	return m.runAndClose
}

// NewSeeder opens a seeder on the data of the one before, which has ended, for the caller to
// run. It joins through the agents, and is where SeederURL and the others say from now on.
func (c *Cluster) NewSeeder(ctx context.Context) (run func(ctx context.Context) error, err error) {
	m, err := c.newSeeder(ctx)
	if err != nil {
		return nil, err
	}
	return m.runAndClose, nil
}

// Run runs all members until ctx ends or one fails.
func (c *Cluster) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, m := range c.all() {
		group.Go(func() error { return m.runAndClose(ctx) })
	}
	return group.Wait()
}

func (c *Cluster) all() []member {
	if c.seeder == nil {
		return c.members
	}
	return append([]member{*c.seeder}, c.members...)
}

func (m member) runAndClose(ctx context.Context) error {
	return errors.Join(m.run(ctx), m.close())
}

// ports are the two listeners of a member.
type ports struct{ http, peers net.Listener }

func listen(http, peers string) (p ports, err error) {
	if p.http, err = listenOn(http); err != nil {
		return p, err
	}
	if p.peers, err = listenOn(peers); err != nil {
		p.http.Close()
		return p, err
	}
	return p, nil
}

func listenOn(addr string) (net.Listener, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w; is another landfall-dev running?", err)
	}
	return l, nil
}

// instrumented returns the configuration with clients of AWS that are counted for
// one member.
func instrumented(cfg Config) (Config, *awsmetrics.Metrics) {
	m := awsmetrics.New()
	cfg.AWS = m.Instrument(cfg.AWS)
	return cfg, m
}

func (c *Cluster) newSeeder(ctx context.Context) (*member, error) {
	cfg, counted := instrumented(c.cfg)
	dir := filepath.Join(cfg.Dir, "seeder")
	store, err := cache.Open(filepath.Join(dir, "cache"), cmp.Or(cfg.CacheSize, defaultCacheSize), cfg.Logger.With("node", "seeder"))
	if err != nil {
		return nil, err
	}
	global, err := bucket.Open(ctx, cfg.AWS, cfg.Global, bucket.Options{})
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	notifier, err := newNotifier(cfg)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	p, err := listen(cfg.SeederHTTP, cfg.SeederPeers)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	gossipAddr := cfg.SeederGossip
	if gossipAddr == "" {
		gossipAddr = "127.0.0.1:0"
	}
	rates, err := cfg.limits(false)
	if err != nil {
		return nil, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
	}
	var destinations []string
	for _, r := range cfg.Regions {
		destinations = append(destinations, BucketOf(r))
	}
	security, err := cfg.security(dir)
	if err != nil {
		return nil, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
	}
	own, err := c.identity("seeder")
	if err != nil {
		return nil, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
	}
	copies, err := services.OpenCopies(filepath.Join(dir, "services"))
	if err != nil {
		return nil, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
	}
	sc := seeder.Config{
		Copies:         copies,
		Bucket:         global,
		AWS:            cfg.AWS,
		Ledger:         Ledger(cfg),
		Arrivals:       Arrivals(cfg),
		Services:       Services(cfg),
		Cache:          store,
		Peers:          p.peers,
		HTTP:           p.http,
		Gossip:         gossip.Config{Meta: gossip.Meta{ID: "seeder"}, Listen: gossipAddr, Join: c.gossip, Identity: own, TLS: cfg.TLS, Serves: c.serves, Authority: c.authority},
		Signer:         c.Key,
		Security:       security,
		TLS:            cfg.TLS,
		Identity:       own,
		Limits:         rates,
		SourceBuckets:  cfg.SourceBuckets,
		Destinations:   destinations,
		Poll:           cfg.Poll,
		Suffix:         seeder.DefaultSuffix,
		BaselineFile:   filepath.Join(dir, "baseline-"+cfg.Global),
		ArrivalTimeout: cfg.ArrivalTimeout,
		BuildSource:    cfg.BuildSource,
		Notify:         notifier,
		AWSMetrics:     counted,
		Uplink:         cfg.Uplink,
		AllowWeakStore: cfg.AllowWeakStore,
		Tracer:         cfg.Tracer,
		Version:        cfg.Version,
		Logger:         cfg.Logger.With("node", "seeder"),
	}
	if cfg.TLS == identity.Require {
		sc.Checker = call.Checker{Source: own, Serves: c.serves}
	}
	s, err := seeder.New(sc)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	c.SeederURL, c.SeederPeers = "http://"+p.http.Addr().String(), p.peers.Addr().String()
	c.SeederGossip = s.GossipAddr()
	c.gossip = append(c.gossip, c.SeederGossip)
	return &member{s.Run, func() error { security.Audit.Close(); return errors.Join(s.Close(), store.Close()) }}, nil
}

// security is a new member's.
func (cfg Config) security(dir string) (s web.Security, err error) {
	s.CloseReading = cfg.CloseReading
	if s.Access, err = operator.NewAccess(cfg.OperatorToken, cfg.Operators); err == nil {
		s.Audit, err = audit.Open(dir, cfg.Logger)
	}
	return s, err
}

// limits are a new member's.
func (cfg Config) limits(lands bool) (*limits.Limits, error) {
	l := limits.New(lands)
	change := cfg.memberLimits()
	if lands {
		change.LandingRate = cfg.Limits.LandingRate
	}
	return l, l.Change(change)
}

// memberLimits are the limits of who lands nothing.
func (cfg Config) memberLimits() api.LimitsChange {
	change := cfg.Limits
	change.LandingRate = nil
	return change
}

// newNotifier is nil where nobody is to be told.
func newNotifier(cfg Config) (*notify.Notifier, error) {
	if cfg.Webhook == "" {
		return nil, nil
	}
	u, err := notify.ParseWebhook(cfg.Webhook)
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	return notify.New(notify.Config{Webhook: u, Logger: cfg.Logger.With("node", "seeder")})
}

// agent opens one agent of a region. Several may serve one region.
func (c *Cluster) agent(ctx context.Context, region, id, addr string) (url string, _ member, err error) {
	cfg, counted := instrumented(c.cfg)
	store, err := cache.Open(filepath.Join(cfg.Dir, id, "cache"), cmp.Or(cfg.CacheSize, defaultCacheSize), cfg.Logger.With("node", id))
	if err != nil {
		return "", member{}, err
	}
	regional, err := bucket.Open(ctx, cfg.AWS, BucketOf(region), bucket.Options{})
	if err != nil {
		return "", member{}, errors.Join(err, store.Close())
	}
	p, err := listen(addr, "")
	if err != nil {
		return "", member{}, errors.Join(err, store.Close())
	}
	rates, err := cfg.limits(true)
	if err != nil {
		return "", member{}, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
	}
	security, err := cfg.security(filepath.Join(cfg.Dir, id))
	if err != nil {
		return "", member{}, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
	}
	own, err := c.identity(id)
	if err != nil {
		return "", member{}, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
	}
	ac := agent.Config{
		Security:       security,
		Limits:         rates,
		AllowWeakStore: cfg.AllowWeakStore,
		Region:         region,
		Bucket:         regional,
		Ledger:         Ledger(cfg),
		Arrivals:       Arrivals(cfg),
		Cache:          store,
		Peers:          p.peers,
		HTTP:           p.http,
		Gossip:         gossip.Config{Meta: gossip.Meta{ID: id}, Listen: "127.0.0.1:0", Join: c.gossip, Identity: own, TLS: cfg.TLS, ServesFile: filepath.Join(cfg.Dir, id, "serves.json")},
		TLS:            cfg.TLS,
		Identity:       own,
		Trust:          c.Trust,
		Sources:        source.NewBuckets(cfg.AWS),
		FallbackAfter:  cfg.FallbackAfter,
		MaxActive:      cfg.MaxActive,
		Memory:         filepath.Join(cfg.Dir, id, "announced"),
		Notes:          filepath.Join(cfg.Dir, id, "parts"),
		ArrivalsMark:   filepath.Join(cfg.Dir, id, "arrivals"),
		AWSMetrics:     counted,
		Tracer:         cfg.Tracer,
		Version:        cfg.Version,
		Logger:         cfg.Logger.With("node", id),
	}
	if own != nil {
		ac.Signer = identity.Signer{Source: own}
	}
	if cfg.TLS == identity.Require {
		ac.Checker = call.Checker{Source: own, Serves: call.Serves{region: {regional.Name()}}}
	}
	if cfg.Fleet {
		if ac.Fleet, err = c.fleet(region, id, own); err != nil {
			return "", member{}, errors.Join(err, store.Close(), p.http.Close(), p.peers.Close())
		}
		if table := Services(cfg); table != nil {
			ac.Fleet.Table = table
		}
	}
	a, err := agent.New(ac)
	if err != nil {
		return "", member{}, errors.Join(err, store.Close())
	}
	c.gossip = append(c.gossip, a.GossipAddr())
	return "http://" + p.http.Addr().String(), member{a.Run, func() error { security.Audit.Close(); return errors.Join(a.Close(), store.Close()) }}, nil
}

// fleet opens the listeners for hosts of an agent, which renews their certificates where
// the region has an authority for hosts.
func (c *Cluster) fleet(region, id string, own *identity.Source) (f agent.Fleet, err error) {
	f.Goals, f.Recipes = filepath.Join(c.cfg.Dir, id, "goals"), filepath.Join(c.cfg.Dir, id, "recipes")
	if c.authority != nil && own != nil {
		f.Authority, err = ca.OpenRegionDir(c.authority.RegionDir(region), own.ID().Cluster, region, nil)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	addr := ""
	if i := slices.Index(c.cfg.Regions, region); i >= 0 && id == AgentOf(region) && c.cfg.Hosts.Streams != nil {
		addr = c.cfg.Hosts.Streams(i)
	}
	if f.Listener, err = listenOn(addr); err != nil {
		return f, err
	}
	if f.Peers, err = listenOn(""); err != nil {
		return f, errors.Join(err, f.Listener.Close())
	}
	if c.FleetURLs == nil {
		c.FleetURLs = make(map[string][]string)
	}
	scheme := "http://"
	if c.cfg.TLS != "" && c.cfg.TLS != identity.Off {
		scheme = "https://"
	}
	c.FleetURLs[region] = append(c.FleetURLs[region], scheme+f.Listener.Addr().String())
	return f, nil
}

// RunAgent runs one more agent of a region until ctx ends. It returns when the
// agent's ports are open; done gives the end of its Run.
func (c *Cluster) RunAgent(ctx context.Context, region, id string) (url string, done <-chan error, err error) {
	url, m, err := c.agent(ctx, region, id, "")
	if err != nil {
		return "", nil, err
	}
	end := make(chan error, 1)
	go func() { end <- m.runAndClose(ctx) }()
	return url, end, nil
}
