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
	"github.com/landfall-dist/landfall/internal/web"
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
		o.BaseEndpoint, o.HTTPClient = aws.String(cloud.URL), away{&w.away, o.HTTPClient}
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
			OnDocument: func(announce.Added) {}, OnGoal: a.take, OnRosterAsked: a.roster,
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

// away is a client of DynamoDB whose other end is away while on.
type away struct {
	on *atomic.Bool
	dynamodb.HTTPClient
}

func (a away) Do(r *http.Request) (*http.Response, error) {
	if a.on.Load() {
		return nil, errors.New("the table is away")
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

// count has the hosts do what the goal says, and says how many are in which state.
func (a *playedAgent) count() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.shelf.Goals() {
		c := goal.Counts{Service: g.Service, Version: g.Version, Hosts: len(a.hosts)}
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
			if b == &g.Target {
				c.Below++
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

// TestServiceIsDeployed has hosts of two regions switch wave by wave, a seeder that is
// killed in the middle of it, and everything go back.
func TestServiceIsDeployed(t *testing.T) {
	w := newFleetWorld(t, 5)
	first := w.build("web-1.zip")
	d := w.deploy(first, api.Policy{Waves: []string{"20%", "100%"}, Bake: "0s"})
	if d.State != deployment.Gate || d.Service != "web" || d.By != "carol" || d.Target.Key != "web-1.zip" {
		t.Errorf("%+v", d)
	}
	w.land(first, "region-a")
	w.until("the gate waits for region-b", func() bool {
		v, _ := w.s.serviceView("web")
		return slices.Equal(v.Deployment.WaitsFor, []string{"region-b"})
	})
	if n := w.on(first); n > 0 {
		t.Fatalf("%d hosts have switched before the build was everywhere", n)
	}
	w.land(first, "region-b")
	w.until("all hosts run it", func() bool { return w.on(first) == 10 })
	w.until("it is done", w.is(deployment.Done))

	// The next one bakes for an hour after its first wave; the seeder is killed there.
	second := w.build("web-2.zip")
	w.land(second, "region-a", "region-b")
	w.deploy(second, api.Policy{Waves: []string{"20%", "100%"}, Bake: "1h"})
	w.until("the first wave has switched", func() bool { return w.on(second) == 2 && w.is(deployment.Baking)() })
	before, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.start()
	w.until("it goes on baking", w.is(deployment.Baking))
	if now, err := w.tables.Service(t.Context(), "web"); err != nil || now.Version != before.Version || w.on(second) != 2 || now.Current.Wave != 1 {
		t.Errorf("goal %d after %d, %d hosts of 2 switched, %v", now.Version, before.Version, w.on(second), err)
	}
	// Before anything goes back it says what that means.
	w.until("the hosts that hold the stable build are counted", func() bool { v, _ := w.s.serviceView("web"); return v.Hosts.Stable == 8 })
	plan, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{DryRun: true}, "dave")
	if want := []api.BackPlan{{Region: "region-a", Hosts: 5, Holding: 4, Fetching: 1}, {Region: "region-b", Hosts: 5, Holding: 4, Fetching: 1}}; err != nil || !plan.DryRun || !slices.Equal(plan.Back, want) || plan.Deployment.State != deployment.Baking {
		t.Errorf("%+v, %v", plan, err)
	}
	if back, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{}, "dave"); err != nil || back.DryRun || !slices.Equal(back.Back, plan.Back) {
		t.Fatalf("%+v, %v", back, err)
	}
	w.until("all hosts are back", func() bool { return w.on(first) == 10 })
	w.until("it went back", w.is(deployment.WentBack))
	all, err := w.s.deploymentsView(t.Context(), "web")
	if err != nil || len(all.Deployments) != 2 || all.Deployments[0].State != deployment.WentBack || all.Deployments[1].State != deployment.Done {
		t.Errorf("%+v, %v", all, err)
	}
	v, err := w.s.serviceView("web")
	if err != nil || v.Stable.Key != "web-1.zip" || v.Target.Key != "web-1.zip" || v.Hosts.Healthy != 10 || v.By != "carol" {
		t.Errorf("%+v, %v", v, err)
	}
	// What agents have is what the table has, and a beat names it.
	table, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range w.agents {
		w.until("the newest goal and a beat that names it are at the agents", func() bool {
			beat, err := goal.Open(a.shelf.Beat(), signing.TrustIn(w.key.Public()), time.Now())
			b, ok := beat.(*goal.Beat)
			return err == nil && ok && b.Versions["web"] == table.Version && bytes.Equal(a.shelf.Wire("web"), table.Wire)
		})
	}
	if head, err := w.tables.Head(t.Context()); err != nil || head == nil {
		t.Errorf("no head in the table: %v", err)
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

// TestKilledBeforeSending has a seeder die between the table and the agents: the next one sends
// what the table has.
func TestKilledBeforeSending(t *testing.T) {
	w := newFleetWorld(t, 2)
	r := w.build("web-1.zip")
	w.deploy(r, api.Policy{})
	w.until("the agents have the goal", func() bool { return w.version() > 0 })
	w.stop()
	before, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	m := deployment.New(before.Service)
	var written int64
	for _, a := range m.Step(time.Now(), deployment.Command{Ask: "x", Kind: api.CommandPause, By: "carol"}) {
		if p, ok := a.(deployment.Publish); ok {
			wire, err := goal.Sign(t.Context(), w.key, p.Goal)
			if err == nil {
				err = w.tables.Write(t.Context(), p.Service, wire, p.Before)
			}
			if err != nil {
				t.Fatal(err)
			}
			written = p.Goal.Version
		}
	}
	if written <= w.version() {
		t.Fatalf("goal %d after %d", written, w.version())
	}
	w.start()
	w.until("the agents have what the table has", func() bool { return w.version() == written })
	w.until("it is paused", w.is(deployment.Paused))
}

// TestTimesAreRecorded has the table say for how long a wave has been healthy, without a new goal,
// and a seeder that starts go on from there.
func TestTimesAreRecorded(t *testing.T) {
	w := newFleetWorld(t, 2)
	r := w.build("web-1.zip")
	w.land(r, "region-a", "region-b")
	w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "100s"})
	w.until("it bakes", w.is(deployment.Baking))
	version := w.version()
	var recorded *services.Service
	w.until("the table says for how long", func() bool {
		var err error
		recorded, err = w.tables.Service(t.Context(), "web")
		return err == nil && recorded.Current.Baked > 0
	})
	if recorded.Version != version || w.version() != version {
		t.Errorf("goal %d in the table, %d at the agents, %d before", recorded.Version, w.version(), version)
	}
	w.stop()
	w.start()
	var baked time.Duration
	w.until("it bakes again", func() bool {
		v, err := w.s.serviceView("web")
		if err != nil || v.Deployment == nil {
			return false
		}
		_, after, ok := strings.Cut(v.Deployment.Reason, "healthy for ")
		said, _, _ := strings.Cut(after, " ")
		baked, err = time.ParseDuration(said)
		return ok && err == nil
	})
	if baked < recorded.Current.Baked.Truncate(time.Second) {
		t.Errorf("healthy for %s, the table said %s", baked, recorded.Current.Baked)
	}
}

// TestRecall: what is recalled reaches the agents, is deployed by nobody, and is nothing that a
// service runs.
func TestRecall(t *testing.T) {
	w := newFleetWorld(t, 1)
	first, second := w.build("web-1.zip"), w.build("web-2.zip")
	w.land(first, "region-a", "region-b")
	w.land(second, "region-a", "region-b")
	all := api.Policy{Waves: []string{"100%"}, Bake: "0s"}
	w.deploy(first, all)
	w.until("the first is done", w.is(deployment.Done))
	recall := func(undo bool, builds ...string) (*api.Recalls, error) {
		return w.s.recall(t.Context(), api.RecallRequest{Builds: builds, Undo: undo}, "carol")
	}
	code := func(err error) int {
		var e *web.Error
		if !errors.As(err, &e) {
			return 0
		}
		return e.Code
	}
	for name, c := range map[string]struct {
		undo   bool
		builds []string
		code   int
	}{
		"what the service runs":    {false, []string{"web-1.zip"}, http.StatusConflict},
		"that, by its execution":   {false, []string{"web-2.zip", first.ExecutionID}, http.StatusConflict},
		"unknown":                  {false, []string{"web-9.zip"}, http.StatusNotFound},
		"nothing":                  {false, nil, http.StatusBadRequest},
		"too many":                 {false, make([]string, goal.MaxRecalled+1), http.StatusBadRequest},
		"taken back, and was none": {true, []string{"web-2.zip"}, http.StatusConflict},
	} {
		if _, err := recall(c.undo, c.builds...); code(err) != c.code {
			t.Errorf("%s: %v, expected %d", name, err, c.code)
		}
	}
	list, err := recall(false, "web-2.zip")
	if err != nil || len(list.Recalled) != 1 || list.Recalled[0].Key != "web-2.zip" || list.Recalled[0].By != "carol" || list.Recalled[0].ExecutionID != second.ExecutionID {
		t.Fatalf("%+v, %v", list, err)
	}
	sum := list.Recalled[0].SHA256
	for _, a := range w.agents {
		w.until("the agents know", func() bool { return a.shelf.Recalled(sum) })
	}
	if _, err := w.s.deployService(t.Context(), "web", api.ServiceDeployRequest{Key: "web-2.zip"}, ""); code(err) != http.StatusConflict || !strings.Contains(err.Error(), "recalled") {
		t.Errorf("deployed: %v", err)
	}
	w.stop()
	w.start()
	w.until("known after a restart", func() bool { list, err := w.s.recallsView(); return err == nil && len(list.Recalled) == 1 })
	w.until("the seeder has read its table", func() bool { return w.s.isReady() == nil })
	if again, err := recall(false, sum); err != nil || len(again.Recalled) != 1 || again.Version <= list.Version || again.Recalled[0].Key != "web-2.zip" {
		t.Errorf("%+v, %v", again, err)
	}
	if list, err := recall(true, "web-2.zip"); err != nil || len(list.Recalled) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, a := range w.agents {
		w.until("the agents know that, too", func() bool { return !a.shelf.Recalled(sum) })
	}
	w.deploy(second, all)
	w.until("the second is done", w.is(deployment.Done))
}

// TestWithoutTable rolls back while the table is away, before and after a restart of the
// seeder, and has the table say so when it is back.
func TestWithoutTable(t *testing.T) {
	w := newFleetWorld(t, 5)
	first, second := w.build("web-1.zip"), w.build("web-2.zip")
	w.land(first, "region-a", "region-b")
	w.land(second, "region-a", "region-b")
	all := api.Policy{Waves: []string{"100%"}, Bake: "0s"}
	w.deploy(first, all)
	w.until("the first is done", w.is(deployment.Done))
	w.deploy(second, all)
	w.until("the second is done", w.is(deployment.Done))
	old, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}

	w.away.Store(true)
	// What is asked for as always waits for the table; what must not wait does not, and gets
	// that out of the way.
	waits, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var e *web.Error
	if _, err := w.s.commandService(waits, "web", api.CommandHold, api.ServiceCommandRequest{Hosts: []string{"host-0"}}, "dave"); !errors.As(err, &e) || e.Code != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "--without-table") {
		t.Fatalf("%v", err)
	}
	back, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{WithoutTable: true, Now: true}, "dave")
	if err != nil || !back.WithoutTable || !strings.Contains(back.Error, "without the table") || back.Version <= old.Version {
		t.Fatalf("%+v, %v", back, err)
	}
	w.until("all but the held hosts are back", func() bool { return w.on(first) == 8 })
	w.until("it went back", w.is(deployment.WentBack))
	ended, err := w.s.serviceView("web")
	if err != nil {
		t.Fatal(err)
	}
	version := ended.Version

	// A restart knows it, without a table.
	w.stop()
	w.start()
	w.until("it is known after a restart", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && v.Version == version && v.WithoutTable
	})
	if _, err := w.s.commandService(t.Context(), "web", api.CommandRelease, api.ServiceCommandRequest{Hosts: []string{"host-0"}}, "dave"); err != nil {
		t.Fatal(err)
	}
	w.until("the held hosts are back too", func() bool { return w.on(first) == 10 })

	w.away.Store(false)
	w.until("the table has it", func() bool {
		now, err := w.tables.Service(t.Context(), "web")
		v, viewErr := w.s.serviceView("web")
		return err == nil && viewErr == nil && !v.WithoutTable && v.Error == "" && now.Version == v.Version && now.Version > version &&
			now.Current.State == deployment.WentBack && bytes.Equal(now.Wire, w.agents["region-a"].shelf.Wire("web"))
	})
	w.deploy(second, all) // as always
	w.until("the second is done again", w.is(deployment.Done))
	if n := w.on(second); n != 10 {
		w.until("all hosts run the second", func() bool { return w.on(second) == 10 })
	}

	// A seeder that has only its disk from the start.
	w.stop()
	w.away.Store(true)
	w.start()
	w.until("it runs", func() bool { return w.s.isReady() == nil })
	w.until("without a table it says so", func() bool {
		_, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{}, "dave")
		return errors.As(err, &e) && e.Code == http.StatusServiceUnavailable
	})
	if _, err := w.s.commandService(t.Context(), "none", api.CommandRollback, api.ServiceCommandRequest{WithoutTable: true}, "dave"); err == nil {
		t.Error("a service that nobody knows went back")
	}
	if _, err := w.s.commandService(t.Context(), "web", api.CommandRollback, api.ServiceCommandRequest{WithoutTable: true}, "dave"); err != nil {
		t.Fatal(err)
	}
	w.until("all hosts are back again", func() bool { return w.on(first) == 10 })
	w.away.Store(false)
	w.until("the table has that, too", func() bool {
		now, err := w.tables.Service(t.Context(), "web")
		return err == nil && now.Version >= w.version() && now.Current.Kind == api.KindRollback
	})
}

// TestTableHasMore has somebody else write while a goal was sent without the table: the greater
// version stays.
func TestTableHasMore(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	w.deploy(r, api.Policy{})
	w.until("its regions are known", func() bool { v, err := w.s.serviceView("web"); return err == nil && len(v.Deployment.WaitsFor) == 2 })
	another := services.New(cloud.DynamoDB, w.tables.Names(), 0) // a seeder that reaches the table
	for name, ahead := range map[string]int64{"lesser": -1, "greater": 1000} {
		of, err := w.tables.Service(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		w.away.Store(true)
		command := api.CommandPause
		if of.Current.State == deployment.Paused {
			command = api.CommandResume
		}
		v, _ := w.s.services.get("web")
		if err := v.do(t.Context(), deployment.Command{Kind: command, By: "carol"}, true); err != nil {
			t.Fatal(err)
		}
		sent := v.shown().Version
		other := of.Service
		d := *of.Current
		d.By = "another seeder"
		other.Current, other.Version = &d, sent+ahead
		wire, err := goal.Sign(t.Context(), w.key, goalOf(t, other))
		if err == nil {
			err = another.Write(t.Context(), other, wire, of.Version)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.away.Store(false)
		want := max(sent, sent+ahead)
		w.until(name+": the greater one is in the table, and here", func() bool {
			now, err := w.tables.Service(t.Context(), "web")
			v := v.shown()
			return err == nil && now.Version == want && v.Version == want && !v.WithoutTable
		})
	}
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

// TestRestoredTable: hosts keep the greatest version when the table is restored from an old
// backup, the service says so, and the next deployment is newer than all.
func TestRestoredTable(t *testing.T) {
	w := newFleetWorld(t, 2)
	first, second := w.build("web-1.zip"), w.build("web-2.zip")
	w.land(first, "region-a", "region-b")
	w.land(second, "region-a", "region-b")
	all := api.Policy{Waves: []string{"100%"}, Bake: "0s"}
	w.deploy(first, all)
	w.until("the first is done", w.is(deployment.Done))
	backup, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.deploy(second, all)
	w.until("the second is done", w.is(deployment.Done))
	w.until("hosts run it", func() bool { return w.on(second) == 4 })
	newest, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	w.until("all agents have its last goal", func() bool { return w.version() == newest.Version })
	w.stop()
	if err := w.tables.Write(t.Context(), backup.Service, backup.Wire, newest.Version); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.until("the service says that hosts follow a newer goal", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && v.Version == backup.Version && strings.Contains(v.Error, fmt.Sprintf("hosts follow goal %d", newest.Version))
	})
	if w.version() != newest.Version || w.on(second) != 4 {
		t.Errorf("goal %d at the agents, %d hosts of 4 run the second build", w.version(), w.on(second))
	}
	w.deploy(second, all)
	w.until("it is done", w.is(deployment.Done))
	w.until("nothing is odd any more", func() bool { v, _ := w.s.serviceView("web"); return v.Error == "" && v.Version > newest.Version })
}

// TestPublishedAgain: a key that is published again changes nothing under a running service.
func TestPublishedAgain(t *testing.T) {
	w := newFleetWorld(t, 2)
	first := w.build("web.zip")
	w.land(first, "region-a", "region-b")
	w.deploy(first, api.Policy{Waves: []string{"100%"}, Bake: "0s"})
	w.until("it is done", w.is(deployment.Done))
	done, err := w.s.serviceView("web")
	if err != nil {
		t.Fatal(err)
	}
	version := done.Version
	w.until("all agents have its last goal", func() bool { return w.version() == version })
	if _, err := w.s.cfg.Bucket.Upload(t.Context(), "web.zip", strings.NewReader("another build"), int64(len("another build")), bucket.Headers{}); err != nil {
		t.Fatal(err)
	}
	again, err := w.s.deploy(t.Context(), api.DeployRequest{SourceBucket: w.global, SourceKey: "web.zip"})
	if err != nil || again.ExecutionID == first.ExecutionID {
		t.Fatalf("%+v, %v", again, err)
	}
	var second *ledger.Record
	w.until("the other build is pulled", func() bool { second, _ = w.s.index.get(again.ExecutionID); return second != nil && second.SHA256 != "" })
	w.land(second, "region-a", "region-b")
	v, err := w.s.serviceView("web")
	if err != nil || v.Target.ExecutionID != first.ExecutionID || w.version() != version || w.on(first) != 4 {
		t.Errorf("%+v, %v; goal %d after %d", v, err, w.version(), version)
	}
	w.deploy(second, api.Policy{Waves: []string{"100%"}, Bake: "0s"})
	w.until("hosts run the other", func() bool { return w.on(second) == 4 })
}

// TestAnotherSeeder: what another seeder writes is seen by what hosts follow, and holds here.
func TestAnotherSeeder(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	w.deploy(r, api.Policy{})
	w.until("its regions are known", func() bool { v, err := w.s.serviceView("web"); return err == nil && len(v.Deployment.WaitsFor) == 2 })
	of, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	other := of.Service
	d := *of.Current
	d.State, d.Before, d.By = deployment.Paused, d.State, "another seeder"
	other.Current, other.Version = &d, of.Version+10
	wire, err := goal.Sign(t.Context(), w.key, goalOf(t, other))
	if err == nil {
		err = w.tables.Write(t.Context(), other, wire, of.Version)
	}
	if err == nil {
		err = w.agents["region-a"].take(wire)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.until("it is known here", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && v.Version == other.Version && v.Error == ""
	})
	if v, err := w.s.serviceView("web"); err != nil || v.Deployment.State != deployment.Paused || v.Deployment.By != "another seeder" {
		t.Errorf("%+v, %v", v, err)
	}
	w.until("all agents have it", func() bool { return w.version() == other.Version })
	if _, err := w.s.commandService(t.Context(), "web", api.CommandResume, api.ServiceCommandRequest{}, "carol"); err != nil {
		t.Error(err)
	}
}

// TestTwoDeploys: of two at once one wins, and the other is told.
func TestTwoDeploys(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	w.until("services can be deployed", func() bool { _, why := w.s.services.all(); return why == nil })
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			_, err := w.s.deployService(t.Context(), "web", api.ServiceDeployRequest{Key: r.FileKey}, fmt.Sprint("operator-", i))
			errs <- err
		}()
	}
	won := 0
	for range 8 {
		var e *web.Error
		switch err := <-errs; {
		case err == nil:
			won++
		case !errors.As(err, &e) || e.Code != http.StatusConflict || !strings.Contains(err.Error(), "waiting for the gate"):
			t.Error(err)
		}
	}
	list, err := w.tables.Deployments(t.Context(), "web", 100)
	if won != 1 || err != nil || len(list) != 1 {
		t.Errorf("%d have won, %d deployments, %v", won, len(list), err)
	}
}

// TestFailuresAreBounded: a thousand of a region and deployment are in the table with what the
// hooks have said, also those before a restart; the rest is counted by reason.
func TestFailuresAreBounded(t *testing.T) {
	var f failures
	d := &deployment.Deployment{ID: "01K"}
	var list []goal.Failure
	for i := range maxLogged + 300 {
		list = append(list, goal.Failure{Host: fmt.Sprint("host-", i), Phase: "exec", Error: fmt.Sprint("exit status ", i%2), Output: "no such file"})
	}
	f.add("region-a", d, list)
	f.add("region-b", d, list[:1])
	written, rest, counts := make(map[string]int), make(map[string]int), 0
	for range 1000 {
		l, ok := f.next()
		if !ok {
			break
		}
		if len(l.list) > logBatch || l.deployment != "01K" {
			t.Fatalf("%d at once of %s", len(l.list), l.deployment)
		}
		if l.count {
			counts++
			if l.region == "region-a" {
				f.counted(l, 400, []services.Rest{{Phase: "exec", Error: "exit status 0", Hosts: 5, Example: "before"}})
			} else {
				f.counted(l, 0, nil)
			}
			continue
		}
		written[l.region] += len(l.list)
		if len(l.rest) > 0 {
			rest[l.region] = 0
		}
		for _, r := range l.rest {
			rest[l.region] += r.Hosts
		}
	}
	if written["region-a"] != maxLogged-400 || rest["region-a"] != 705 || written["region-b"] != 1 || rest["region-b"] != 0 || counts != 2 {
		t.Errorf("%v are written, %v counted, the table was asked %d times", written, rest, counts)
	}
	var many []goal.Failure
	for i := range 2 * maxReasons {
		many = append(many, goal.Failure{Host: fmt.Sprint("other-", i), Error: fmt.Sprint(i)})
	}
	f.add("region-a", d, many)
	for {
		l, ok := f.next()
		if !ok {
			break
		}
		if len(l.rest) > maxReasons+1 {
			t.Errorf("%d reasons", len(l.rest))
		}
	}
	if n := len(f.groups); n > maxReasons+1 {
		t.Errorf("%d groups", n)
	}
	f.add("region-a", &deployment.Deployment{ID: "01L"}, list[:1])
	if len(f.groups) != 1 || len(f.regions) != 1 {
		t.Error("failures of another deployment are kept")
	}
	for i := range 2 * goal.MaxRegions {
		f.add(fmt.Sprint("region-", i), d, list[:1])
	}
	if n := len(f.regions); n != goal.MaxRegions {
		t.Errorf("failures of %d regions", n)
	}
}

// TestFailuresOfHosts stops a deployment, and says why.
func TestFailuresOfHosts(t *testing.T) {
	w := newFleetWorld(t, 5)
	r := w.build("web-1.zip")
	for _, a := range w.agents {
		a.mu.Lock()
		a.fails[r.ExecutionID] = true
		a.mu.Unlock()
	}
	w.land(r, "region-a", "region-b")
	w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "0s", MaxFailed: "0"})
	w.until("it has stopped", w.is(deployment.Stopped))
	if n := <-w.notices; n.Event != notify.DeploymentStopped || n.Service != "web" || n.Key != "web-1.zip" || !strings.Contains(n.Error, "failed") {
		t.Errorf("told of %+v", n)
	}
	w.until("failures are shown", func() bool {
		v, _ := w.s.serviceView("web")
		return len(v.Failures) == 1 && v.Failures[0].Error == "exit status 1" && v.Failures[0].Output == "no such file" && v.Failures[0].Hosts > 0
	})
	logs := w.tables.Names().Logs
	w.until("failures are in the table", func() bool {
		out, err := cloud.DynamoDB.Scan(t.Context(), &dynamodb.ScanInput{TableName: &logs})
		return err == nil && len(out.Items) > 0
	})
}

// TestServiceErrors has each thing that is refused.
func TestServiceErrors(t *testing.T) {
	w := newFleetWorld(t, 1)
	r := w.build("web-1.zip")
	deploy := func(service, key string, p api.Policy) error {
		_, err := w.s.deployService(t.Context(), service, api.ServiceDeployRequest{Key: key, Policy: p}, "")
		return err
	}
	w.deploy(r, api.Policy{})
	w.until("its regions are known", func() bool {
		v, err := w.s.serviceView("web")
		return err == nil && len(v.Deployment.WaitsFor) == 2
	})
	command := func(service, name, region string) error {
		_, err := w.s.commandService(t.Context(), service, name, api.ServiceCommandRequest{Region: region}, "")
		return err
	}
	for name, c := range map[string]struct {
		err  error
		code int
		says string
	}{
		"another deployment":    {deploy("web", "web-1.zip", api.Policy{}), http.StatusConflict, "waiting for the gate"},
		"unknown key":           {deploy("api", "none.zip", api.Policy{}), http.StatusNotFound, "publish it first"},
		"no key":                {deploy("api", "", api.Policy{}), http.StatusBadRequest, "key"},
		"no name for a service": {deploy("../web", "web-1.zip", api.Policy{}), http.StatusBadRequest, "service"},
		"a wave":                {deploy("api", "web-1.zip", api.Policy{Waves: []string{"200%"}}), http.StatusBadRequest, "200%"},
		"bake":                  {deploy("api", "web-1.zip", api.Policy{Bake: "soon"}), http.StatusBadRequest, "soon"},
		"bake, too long":        {deploy("api", "web-1.zip", api.Policy{Bake: "9000h"}), http.StatusBadRequest, "9000h"},
		"gate":                  {deploy("api", "web-1.zip", api.Policy{Gate: "open"}), http.StatusBadRequest, "open"},
		"a command as check":    {deploy("api", "web-1.zip", api.Policy{WaveCheck: "rm -rf /"}), http.StatusBadRequest, "http://"},
		"unknown service":       {command("api", api.CommandPause, ""), http.StatusNotFound, "seeder deploy api"},
		"resume":                {command("web", api.CommandResume, ""), http.StatusConflict, "waiting for the gate"},
		"nothing to go back to": {command("web", api.CommandRollback, ""), http.StatusConflict, "no stable build"},
		"region":                {command("web", api.CommandSkip, "region-x"), http.StatusConflict, "region-x"},
		"region's name":         {command("web", api.CommandSkip, "A/B"), http.StatusBadRequest, "region"},
	} {
		var e *web.Error
		if !errors.As(c.err, &e) || e.Code != c.code || !strings.Contains(c.err.Error(), c.says) {
			t.Errorf("%s: %v; expected %d and %q", name, c.err, c.code, c.says)
		}
	}
	plan, err := w.s.deployService(t.Context(), "api", api.ServiceDeployRequest{Key: "web-1.zip", DryRun: true}, "")
	if err != nil || !plan.DryRun || plan.Policy.Bake != "2m" || len(plan.Policy.Waves) != 3 {
		t.Errorf("%+v, %v", plan, err)
	}
	if _, err := w.s.serviceView("api"); err == nil {
		t.Error("a dry run has made a service")
	}
	// Somebody else writes: who comes second is told, and sees what holds.
	of, err := w.tables.Service(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	other := *of.Current
	other.ID, other.By = services.NewID(time.Now(), of.Current), "another seeder"
	s := of.Service
	s.Version, s.Current = of.Version+1000, &other
	if err := w.tables.Write(t.Context(), s, of.Wire, of.Version); err != nil {
		t.Fatal(err)
	}
	err = command("web", api.CommandAbort, "")
	var e *web.Error
	if !errors.As(err, &e) || e.Code != http.StatusConflict {
		t.Errorf("wrote over another seeder's goal: %v", err)
	}
	if v, err := w.s.serviceView("web"); err != nil || v.Deployment.By != "another seeder" || v.Version != s.Version {
		t.Errorf("%+v, %v", v, err)
	}
	if err := command("web", api.CommandAbort, ""); err != nil {
		t.Error("the second time:", err)
	}
}

// TestServicesWithoutTables says what is missing, and goes on when it is there.
func TestServicesWithoutTables(t *testing.T) {
	w := newFleetWorld(t, 0)
	r := w.build("web-1.zip")
	w.stop()
	names := w.tables.Names()
	w.tables = services.New(cloud.DynamoDB, services.Names{Services: names.Services + "2", Deployments: names.Deployments + "2", Logs: names.Logs + "2"}, 0)
	w.start()
	w.until("the seeder has read its table", func() bool { return w.s.isReady() == nil })
	var e *web.Error
	w.until("it says what to do", func() bool {
		_, err := w.s.deployService(t.Context(), "web", api.ServiceDeployRequest{Key: r.FileKey}, "")
		return errors.As(err, &e) && e.Code == http.StatusServiceUnavailable && strings.Contains(err.Error(), "seeder init")
	})
	w.makeTables()
	w.deploy(r, api.Policy{})
}

// TestCheckWave asks a URL.
func TestCheckWave(t *testing.T) {
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		switch r.URL.Path {
		case "/no":
			http.Error(out, "freeze", http.StatusForbidden)
		case "/elsewhere":
			http.Redirect(out, r, "/yes", http.StatusFound)
		}
	}))
	defer server.Close()
	v := &service{name: "web"}
	for path, want := range map[string]string{"/yes?team=a": "", "/no": "403", "/elsewhere": "302"} {
		err := v.checkWave(t.Context(), deployment.Check{Deployment: "01K", Wave: 2, Ask: server.URL + path})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if got := <-asked; !strings.Contains(got, "deployment=01K") || !strings.Contains(got, "service=web") || !strings.Contains(got, "wave=2") || path == "/yes?team=a" && !strings.Contains(got, "team=a") {
			t.Errorf("asked %s", got)
		}
	}
	if err := v.checkWave(t.Context(), deployment.Check{Ask: "http://127.0.0.1:1/"}); err == nil {
		t.Error("nobody has answered, and it was let pass")
	}
}
