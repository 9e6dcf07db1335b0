package seeder

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/signing"
)

// fleetWorld is a real seeder with its tables and buckets, and an agent in each region that
// plays its hosts.
type fleetWorld struct {
	t       *testing.T
	key     signing.Ed25519
	global  string
	table   *ledger.Ledger
	tables  *services.Tables
	regions map[string]string // region → bucket
	agents  map[string]*playedAgent
	dir     string
	notices chan notify.Notice
	hook    string      // URL
	away    atomic.Bool // the tables of services are
	hangs   atomic.Bool // the answers to their updates do not come
	s       *Seeder
	stop    func()
}

// playedAgent is a member that has hosts, which do at once what they may.
type playedAgent struct {
	t      *testing.T
	g      *gossip.Gossip
	region string
	shelf  *goal.Shelf

	mu    sync.Mutex
	hosts map[string]string // what they run
	fails map[string]bool   // builds that they cannot switch to
	told  map[string]bool   // failures that were reported
}

func newFleetWorld(t *testing.T, hosts int) *fleetWorld {
	t.Helper()
	w := &fleetWorld{
		t: t, key: signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, ed25519.SeedSize))), dir: t.TempDir(),
		global: cloud.Bucket(t), regions: map[string]string{"region-a": cloud.Bucket(t), "region-b": cloud.Bucket(t)},
		agents: make(map[string]*playedAgent),
	}
	w.notices = make(chan notify.Notice, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var n notify.Notice
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
			t.Error(err)
		}
		w.notices <- n
	}))
	t.Cleanup(hook.Close)
	w.hook = hook.URL
	name := cloud.Table(t)
	w.table = ledger.New(cloud.DynamoDB, name)
	client := dynamodb.NewFromConfig(cloud.AWS, func(o *dynamodb.Options) {
		o.BaseEndpoint, o.HTTPClient = aws.String(cloud.URL), away{&w.away, &w.hangs, o.HTTPClient}
	})
	w.tables = services.New(client, services.Names{Services: name + "-s", Deployments: name + "-d", Logs: name + "-l"}, time.Hour)
	w.makeTables()
	w.start()
	t.Cleanup(func() { w.stop() })
	for region, bucket := range w.regions {
		a := &playedAgent{t: t, region: region, hosts: make(map[string]string), fails: make(map[string]bool), told: make(map[string]bool)}
		var err error
		if a.shelf, err = goal.OpenShelf("", signing.TrustIn(w.key.Public())); err != nil {
			t.Fatal(err)
		}
		for i := range hosts {
			a.hosts[fmt.Sprintf("host-%d", i)] = ""
		}
		trust := signing.TrustIn(w.key.Public())
		a.g, err = gossip.New(gossip.Config{
			Meta:   gossip.Meta{ID: "agent-" + region, Role: gossip.Agent, Region: region, Bucket: bucket, Fleet: 1, Trusts: trust.IDs()},
			Listen: "127.0.0.1:0", Join: []string{w.s.GossipAddr()}, Book: announce.NewBook(trust, nil),
			OnDocument: func(announce.Added) {}, OnGoal: a.take, OnRosterAsked: a.roster, OnHostsAsked: a.listed,
			Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.agents[region] = a
		ctx, cancel := context.WithCancel(context.Background())
		var group sync.WaitGroup
		group.Go(func() { a.g.Run(ctx) }) //nolint:errcheck // the end of ctx
		group.Go(func() {
			ticker := time.NewTicker(200 * time.Millisecond)
			defer ticker.Stop()
			for ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-ticker.C:
					a.count()
				}
			}
		})
		t.Cleanup(func() { cancel(); group.Wait() })
	}
	return w
}

// agent has another agent come that serves hosts, and says which by listed; nil for one that does
// not answer.
func (w *fleetWorld) agent(id, region string, listed func(gossip.HostsQuestion) gossip.HostsAnswer) {
	w.t.Helper()
	trust := signing.TrustIn(w.key.Public())
	g, err := gossip.New(gossip.Config{
		Meta:   gossip.Meta{ID: id, Role: gossip.Agent, Region: region, Bucket: cloud.Bucket(w.t), Fleet: 1, Trusts: trust.IDs()},
		Listen: "127.0.0.1:0", Join: []string{w.s.GossipAddr()}, Book: announce.NewBook(trust, nil), OnDocument: func(announce.Added) {},
		OnHostsAsked: listed, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-ended })
}

// away is a client of DynamoDB whose other end is away while on, and does not answer updates
// while it hangs.
type away struct {
	on, hangs *atomic.Bool
	dynamodb.HTTPClient
}

func (a away) Do(r *http.Request) (*http.Response, error) {
	if a.on.Load() {
		return nil, errors.New("the table is away")
	}
	if a.hangs.Load() && strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".UpdateItem") {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return a.HTTPClient.Do(r)
}

func (w *fleetWorld) makeTables() {
	w.t.Helper()
	if err := w.tables.Create(w.t.Context(), func(string, bool) {}); err != nil {
		w.t.Fatal(err)
	}
}

// start runs a seeder; another start goes on where the one before has ended.
func (w *fleetWorld) start() {
	w.t.Helper()
	store, err := cache.Open(filepath.Join(w.dir, "cache"), 1<<30, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	global, err := bucket.Open(w.t.Context(), cloud.AWS, w.global, bucket.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			w.t.Fatal(err)
		}
		return l
	}
	join := []string{}
	for _, a := range w.agents {
		join = append(join, a.g.Addr())
	}
	u, err := notify.ParseWebhook(w.hook)
	if err != nil {
		w.t.Fatal(err)
	}
	notifier, err := notify.New(notify.Config{Webhook: u, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	copies, err := services.OpenCopies(filepath.Join(w.dir, "services"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.s, err = New(Config{
		Copies: copies,
		Notify: notifier,
		Bucket: global, AWS: cloud.AWS, Ledger: w.table, Services: w.tables, Cache: store, Peers: listen(), HTTP: listen(),
		Gossip: gossip.Config{Meta: gossip.Meta{ID: "seeder"}, Listen: "127.0.0.1:0", Join: join}, Signer: w.key,
		Destinations: slices.Sorted(maps.Values(w.regions)), Poll: time.Hour, Suffix: ".zip", Version: "test", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.s.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
		if err := store.Close(); err != nil {
			w.t.Error(err)
		}
	})
}

// until waits for something that is to come about.
func (w *fleetWorld) until(what string, condition func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			v, err := w.s.serviceView("web")
			w.t.Fatalf("not within 2 minutes: %s; %+v, %v", what, v, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// build has an execution of n bytes that is here; it lands with land.
func (w *fleetWorld) build(key string) *ledger.Record {
	w.t.Helper()
	w.until("the seeder has read its table", func() bool { return w.s.isReady() == nil })
	if _, err := w.s.cfg.Bucket.Upload(w.t.Context(), key, strings.NewReader("build "+key), int64(len("build "+key)), bucket.Headers{}); err != nil {
		w.t.Fatal(err)
	}
	a, err := w.s.deploy(w.t.Context(), api.DeployRequest{SourceBucket: w.global, SourceKey: key})
	if err != nil {
		w.t.Fatal(err)
	}
	var r *ledger.Record
	w.until("the build is pulled", func() bool { r, _ = w.s.index.get(a.ExecutionID); return r != nil && r.SHA256 != "" })
	return r
}

func (w *fleetWorld) land(r *ledger.Record, regions ...string) {
	w.t.Helper()
	for _, region := range regions {
		next, err := w.table.As(w.global).Arrive(w.t.Context(), r, w.regions[region], ledger.Result{Timestamp: time.Now(), Region: region, Success: true})
		if err != nil {
			w.t.Fatal(err)
		}
		w.s.put(next)
		r = next
	}
}

func (a *playedAgent) take(wire []byte) error {
	_, err := a.shelf.Add(wire)
	if errors.Is(err, goal.ErrOld) {
		return nil
	}
	return err
}

func (a *playedAgent) roster(string) (out []uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for host := range a.hosts {
		out = append(out, uint32(goal.HashOf("web", host)))
	}
	slices.Sort(out)
	return out
}

// listed names the hosts, some at a time.
func (a *playedAgent) listed(q gossip.HostsQuestion) (out gossip.HostsAnswer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	after, some := q.In(a.region)
	for _, host := range slices.Sorted(maps.Keys(a.hosts)) {
		switch out.All++; {
		case !some || host <= after:
		case len(out.Hosts) == gossip.LeastHosts:
			out.Rest++
		default:
			out.Hosts = append(out.Hosts, api.HostView{Host: host, Zone: "z", State: api.HostHealthy, Running: a.hosts[host], Version: 7})
		}
	}
	return out
}

// count has the hosts do what the goal says, and says how many are in which state.
func (a *playedAgent) count() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.shelf.Goals() {
		c := goal.Counts{Service: g.Service, Version: g.Version, InStates: goal.InStates{Hosts: len(a.hosts)}}
		for host, running := range a.hosts {
			b := g.For(a.region, host)
			failed := false
			if b != nil && g.Leave(a.region, host, running) {
				if failed = a.fails[b.ExecutionID]; !failed {
					running = b.ExecutionID
					a.hosts[host] = running
				} else if mark := host + b.ExecutionID; !a.told[mark] {
					a.told[mark] = true
					c.Failures = append(c.Failures, goal.Failure{Host: host, Version: g.Version, Phase: "exec", Error: "exit status 1", Output: "no such file", At: time.Now()})
				}
			}
			if g.Named(a.region, host) == &g.Target {
				c.Below++
				if b == nil && running != g.Target.ExecutionID { // it is held
					c.Out++
				}
			}
			switch {
			case failed:
				c.Failed++
			case b == &g.Target && running == b.ExecutionID:
				c.Healthy++
			default:
				c.Ready++
			}
			if running == g.Target.ExecutionID {
				c.OnTarget++
			}
			if g.Stable != nil && running == g.Stable.ExecutionID {
				c.HoldStable++
			}
		}
		c.Failures = c.Failures[:min(len(c.Failures), goal.MaxFailures)]
		if err := a.g.ReportCounts(c); err != nil {
			a.t.Error(err)
		}
	}
}

// on is how many hosts of all regions run an execution.
func (w *fleetWorld) on(r *ledger.Record) (n int) {
	for _, a := range w.agents {
		a.mu.Lock()
		for _, running := range a.hosts {
			if running == r.ExecutionID {
				n++
			}
		}
		a.mu.Unlock()
	}
	return n
}

func (w *fleetWorld) deploy(r *ledger.Record, p api.Policy) *api.ServiceDeployAnswer {
	w.t.Helper()
	w.until("services can be deployed", func() bool { _, why := w.s.services.all(); return why == nil })
	w.until("the agents are here", func() bool { return len(w.s.living()) == len(w.regions) })
	out, err := w.s.deployService(w.t.Context(), "web", api.ServiceDeployRequest{Key: r.FileKey, Policy: p}, "carol")
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *fleetWorld) is(state string) func() bool {
	return func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && v.Deployment != nil && v.Deployment.State == state
	}
}

// version is that of the goal at each agent, once it is the same.
func (w *fleetWorld) version() (v int64) {
	for _, a := range w.agents {
		g := a.shelf.Goal("web")
		if g == nil || v != 0 && g.Version != v {
			return 0
		}
		v = g.Version
	}
	return v
}

// goalOf is what a seeder would send of a service.
func goalOf(t *testing.T, s deployment.Service) *goal.Goal {
	t.Helper()
	d := s.Current
	return &goal.Goal{
		Service: s.Name, Version: s.Version, Deployment: d.ID, Target: d.Target, Stable: d.Stable, MaxUnavailable: d.Policy.MaxUnavailable,
		By: d.By, Issued: time.Now(),
	}
}
