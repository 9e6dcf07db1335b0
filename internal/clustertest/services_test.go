package clustertest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/seeder/client"
)

// fleetAgent is an agent in the eyes of the membership, with hosts that do at once what
// their goal says, but for those that fail.
type fleetAgent struct {
	*gossip.Gossip
	c      *Cluster
	region string
	hosts  []string

	mu      sync.Mutex
	goals   map[string]*goal.Goal
	beats   int
	running map[string]string // executionId by host
	fails   string            // the executionId that fails everywhere
	told    map[string]bool   // failures, by host and version
}

func (c *Cluster) fleet(region, hosts int) *fleetAgent {
	c.t.Helper()
	f := &fleetAgent{c: c, region: c.Regions[region], goals: make(map[string]*goal.Goal), running: make(map[string]string), told: make(map[string]bool)}
	for i := range hosts {
		f.hosts = append(f.hosts, fmt.Sprintf("host-%d-%d", region, i))
	}
	g, err := gossip.New(gossip.Config{
		Meta:   gossip.Meta{ID: "fleet-" + f.region, Role: gossip.Agent, Region: f.region, Bucket: c.Bucket(region), Fleet: 1},
		Listen: "127.0.0.1:0", Join: []string{c.cluster.SeederGossip}, Book: announce.NewBook(c.cluster.Trust, nil),
		OnDocument: func(announce.Added) {}, OnGoal: f.take, Logger: slog.New(slog.DiscardHandler),
		OnRosterAsked: func(service string) (hashes []uint32) {
			for _, h := range f.hosts {
				hashes = append(hashes, uint32(goal.HashOf(service, h)))
			}
			slices.Sort(hashes)
			return hashes
		},
		OnHostsAsked: f.views,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	f.Gossip = g
	stop := c.background("fleet", func(ctx context.Context) error {
		var wg sync.WaitGroup
		wg.Go(func() { f.report(ctx) })
		defer wg.Wait()
		return g.Run(ctx)
	})
	c.t.Cleanup(stop)
	return f
}

// take follows a goal.
func (f *fleetAgent) take(wire []byte) error {
	doc, err := goal.Open(wire, f.c.cluster.Trust, time.Now())
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	g, ok := doc.(*goal.Goal)
	if !ok {
		f.beats++
		return nil
	}
	if before := f.goals[g.Service]; before != nil && before.Version >= g.Version {
		return nil
	}
	f.goals[g.Service] = g
	for _, h := range f.hosts {
		if b := g.For(f.region, h); b != nil && g.Leave(f.region, h, f.running[h]) {
			f.running[h] = b.ExecutionID
		}
	}
	return nil
}

// report tells the counts, as an agent does, only faster.
func (f *fleetAgent) report(ctx context.Context) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, c := range f.count() {
			if err := f.ReportCounts(c); err != nil {
				f.c.t.Error(err)
			}
		}
	}
}

// stateOf is a host's state under a goal. The caller holds mu.
func (f *fleetAgent) stateOf(g *goal.Goal, host string) string {
	if f.fails != "" && f.running[host] == f.fails {
		return goal.Failed
	}
	if b := g.For(f.region, host); b == &g.Target && f.running[host] == b.ExecutionID {
		return goal.Healthy
	}
	return goal.Ready
}

func (f *fleetAgent) count() (list []goal.Counts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range f.goals {
		c := goal.Counts{Service: g.Service, Version: g.Version, InStates: goal.InStates{Hosts: len(f.hosts)}}
		for _, h := range f.hosts {
			switch f.stateOf(g, h) {
			case goal.Failed:
				c.Failed++
				if id := fmt.Sprint(h, g.Target.ExecutionID); !f.told[id] {
					f.told[id] = true
					c.Failures = append(c.Failures, goal.Failure{Host: h, Version: g.Version, Phase: "check", Error: "exit status 1", Output: "port 80 is taken", At: time.Now()})
				}
			case goal.Healthy:
				c.Healthy++
			default:
				c.Ready++
			}
			if f.running[h] == g.Target.ExecutionID {
				c.OnTarget++
			}
			if g.For(f.region, h) == &g.Target {
				c.Below++
			}
		}
		c.Zones = []goal.Zone{{Zone: "a", InStates: c.InStates}}
		c.Failures = c.Failures[:min(len(c.Failures), goal.MaxFailures)]
		list = append(list, c)
	}
	return list
}

func (f *fleetAgent) views(q gossip.HostsQuestion) (a gossip.HostsAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.goals[q.Service]
	if g == nil {
		return a
	}
	after, some := q.In(f.region)
	for _, h := range f.hosts { // in order, while they are ten at most
		v := api.HostView{Host: h, State: f.stateOf(g, h), Running: f.running[h], Version: g.Version}
		if v.State == goal.Failed {
			v.Phase, v.Error, v.Output = "check", "exit status 1", "port 80 is taken"
		}
		if q.State == "" || q.State == v.State {
			if a.All++; some && h > after {
				a.Hosts = append(a.Hosts, v)
			}
		}
	}
	return a
}

// on is how many hosts run an execution.
func (f *fleetAgent) on(executionID string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.hosts {
		if f.running[h] == executionID {
			n++
		}
	}
	return n
}

// TestServicesThroughHTTP deploys to a service, has its hosts follow wave by wave, stops where
// they fail, and goes back: the seeder by its HTTP, the agents by what the membership brings
// them.
func TestServicesThroughHTTP(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2})
	fleets := []*fleetAgent{c.fleet(0, 5), c.fleet(1, 5)}
	all := func(executionID string) (n int) {
		for _, f := range fleets {
			n += f.on(executionID)
		}
		return n
	}
	c.Until("the seeder does not know the agents", func() bool {
		a, err := c.Agents[0].AgentStatus(t.Context())
		return err == nil && len(a.Members) == 5
	})
	deploy := func(key string, p client.Policy) *client.ServiceDeployAnswer {
		t.Helper()
		answer, err := c.Seeder.DeployService(t.Context(), "web", client.ServiceDeployRequest{Key: key, Policy: p})
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	until := func(id, state string) (s *client.Service) {
		t.Helper()
		c.Until("deployment "+id+" is not "+state, func() bool {
			var err error
			if s, err = c.Seeder.Service(t.Context(), "web"); err != nil {
				t.Fatal(err)
			}
			return s.Deployment.DeploymentID == id && s.Deployment.State == state
		})
		return s
	}
	quick := client.Policy{Waves: []string{"20%", "100%"}, Bake: "0s", MaxFailed: "0"}
	first := c.Publish("hello-1.zip", content(1, 300_000)).ExecutionID
	plan, err := c.Seeder.DeployService(t.Context(), "web", client.ServiceDeployRequest{Key: "hello-1.zip", DryRun: true})
	if err != nil || !plan.DryRun {
		t.Errorf("dry run: %+v, %v", plan, err)
	}
	s := until(deploy("hello-1.zip", quick).DeploymentID, api.DeploymentDone)
	if n := all(first); n != 10 || s.Target.ExecutionID != first || s.Hosts.Total != 10 {
		t.Errorf("%d hosts run the first build: %+v", n, s)
	}
	if r := s.Regions[1]; len(r.Zones) != 1 || r.Zones[0].Zone != "a" || r.Zones[0].Hosts != r.Hosts || r.Hosts.Total != 5 {
		t.Errorf("zones of %+v", r)
	}

	second := c.Publish("hello-2.zip", content(2, 300_000)).ExecutionID
	until(deploy("hello-2.zip", quick).DeploymentID, api.DeploymentDone)
	if n := all(second); n != 10 {
		t.Errorf("%d hosts run the second build", n)
	}

	// The third fails everywhere: one host a region has tried when it stops.
	third := c.Publish("hello-3.zip", content(3, 300_000)).ExecutionID
	for _, f := range fleets {
		f.mu.Lock()
		f.fails = third
		f.mu.Unlock()
	}
	id := deploy("hello-3.zip", quick).DeploymentID
	s = until(id, api.DeploymentStopped)
	if n := all(third); n != 2 || s.Deployment.Reason == "" {
		t.Errorf("%d hosts run the third build: %+v", n, s.Deployment)
	}
	c.Until("why hosts fail is not told", func() bool {
		s, err := c.Seeder.Service(t.Context(), "web")
		return err == nil && len(s.Failures) > 0 && s.Failures[0].Error == "exit status 1" && strings.Contains(s.Failures[0].Output, "port 80")
	})
	hosts, err := c.Seeder.Hosts(t.Context(), "web", api.HostFailed, 0, "")
	if err != nil || hosts.All != 2 || len(hosts.Hosts) != 2 || hosts.Hosts[0].Region != c.Regions[0] || hosts.Hosts[0].Running != third {
		t.Errorf("failed hosts: %+v, %v", hosts, err)
	}

	back, err := c.Seeder.Rollback(t.Context(), "web", false)
	if err != nil {
		t.Fatal(err)
	}
	until(back.Deployment.DeploymentID, api.DeploymentWentBack)
	if n := all(second); n != 10 {
		t.Errorf("%d hosts run the second build again", n)
	}
	if back.Deployment == nil || back.Deployment.Kind != api.KindRollback {
		t.Errorf("roll-back: %+v", back)
	}
	list, err := c.Seeder.Deployments(t.Context(), "web")
	if err != nil || len(list.Deployments) < 3 {
		t.Errorf("deployments: %+v, %v", list, err)
	}
	services, err := c.Seeder.Services(t.Context())
	if err != nil || len(services.Services) != 1 || services.Services[0].Service != "web" {
		t.Errorf("services: %+v, %v", services, err)
	}

	// A beat comes once a minute, and with a start; the goals come again to who appears.
	late := c.fleet(1, 1)
	c.Until("who comes late has no goal", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return late.goals["web"] != nil
	})
	if _, err := json.Marshal(late.count()); err != nil {
		t.Error(err)
	}
}

// TestGoalReachesFleet: what is deployed over HTTP the agents that serve hosts know, whichever
// way the membership speaks, and one that comes later, too. A service without hosts is done.
func TestGoalReachesFleet(t *testing.T) {
	for _, mode := range []identity.Mode{identity.Off, identity.Require} {
		t.Run(string(mode), func(t *testing.T) {
			c := Start(t, cloud, Options{Regions: 2, Fleet: true, TLS: mode})
			c.Publish("hello-1.zip", content(1, 300_000))
			answer, err := c.Seeder.DeployService(t.Context(), "web", client.ServiceDeployRequest{Key: "hello-1.zip", Policy: client.Policy{Bake: "0s"}})
			if err != nil {
				t.Fatal(err)
			}
			var s *client.Service
			c.Until("it is not done", func() bool {
				s, err = c.Seeder.Service(t.Context(), "web")
				return err == nil && s.Deployment.DeploymentID == answer.DeploymentID && s.Deployment.State == api.DeploymentDone
			})
			if s.Hosts.Total != 0 {
				t.Errorf("hosts: %+v", s.Hosts)
			}
			knows := func(a *client.Client) func() bool {
				return func() bool {
					status, err := a.AgentStatus(t.Context())
					return err == nil && status.Fleet != nil && slices.ContainsFunc(status.Fleet.Services, func(of api.AgentService) bool {
						return of.Service == "web" && of.Version == s.Version
					})
				}
			}
			for i, a := range c.Agents {
				c.Until(fmt.Sprint("agent ", i, " does not know the goal"), knows(a))
			}
			if mode == identity.Off {
				late, _ := c.AddAgent(1, "late")
				c.Until("who comes late does not know the goal", knows(late))
			}
		})
	}
}
