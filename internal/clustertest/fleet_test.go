package clustertest

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/seeder/client"
)

// A host hears of its service's goal and of what the build is made of from an agent that
// heard of it from a seeder, and the seeder of the host; agents of a region pass goals on,
// and keep them over a restart.
func TestGoalsReachHosts(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1, Fleet: true})
	e := c.Publish("build.zip", content(1, 3<<20))
	second, _ := c.AddAgent(0, "second")
	c.Until("both agents are known", func() bool {
		s, err := second.AgentStatus(t.Context())
		return err == nil && s.Fleet != nil && len(s.Fleet.Agents) == 2
	})

	counted := make(chan goal.Counts, 100)
	key := c.cluster.Key
	book := announce.NewBook(c.cluster.Trust, nil)
	operator, err := gossip.New(gossip.Config{
		Meta: gossip.Meta{ID: "operator", Role: gossip.Seeder, Key: key.Public().ID(), PeerPort: 1, HTTPPort: 1}, Listen: "127.0.0.1:0",
		Join: []string{c.cluster.SeederGossip}, Book: book, OnDocument: func(announce.Added) {},
		OnCounts: func(_ gossip.Member, counts []goal.Counts) {
			for _, n := range counts {
				select {
				case counted <- n:
				default:
				}
			}
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- operator.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	g := &goal.Goal{
		Service: "web", Version: time.Now().Unix(), Deployment: e.ExecutionID, MaxUnavailable: "1", Issued: time.Now(),
		Target:  goal.Build{SourceBucket: c.Global, Key: "build.zip", ExecutionID: e.ExecutionID, Size: 3 << 20, SHA256: base64.StdEncoding.EncodeToString(make([]byte, 32)) + "-1"},
		Regions: map[string]goal.Region{c.Regions[0]: {Open: true, Cut: goal.Circle}},
	}
	wire, err := goal.Sign(t.Context(), key, g)
	if err != nil {
		t.Fatal(err)
	}
	if err := operator.SendGoal("web", wire); err != nil {
		t.Fatal(err)
	}
	state := hostwire.ServiceState{Service: "web", State: goal.Waiting}
	stream, err := hostwire.Dial(t.Context(), hostwire.DialConfig{URL: c.cluster.FleetURLs[c.Regions[0]][1], Hello: &hostwire.Hello{
		Version: hostwire.Version, Host: "host-1", Start: e.ExecutionID, PeerPort: 7000, Services: []hostwire.ServiceState{state},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stream.Close)
	// A host at the other agent becomes its neighbour.
	other, err := hostwire.Dial(t.Context(), hostwire.DialConfig{URL: c.cluster.FleetURLs[c.Regions[0]][0], Hello: &hostwire.Hello{
		Version: hostwire.Version, Host: "host-2", Start: e.ExecutionID, PeerPort: 7001, Services: []hostwire.ServiceState{state},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	said := func(s, running, wants string) {
		state.Goal, state.State, state.Running, state.Wants = g.Version, s, running, wants
		if err := stream.Send(&hostwire.State{ServiceState: state}); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{}
	for !got["welcome"] || !got["goal"] || !got["neighbours"] || !got["leave"] {
		m, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *hostwire.Welcome:
			got["welcome"] = len(m.Agents) == 2
		case *hostwire.Goal:
			switch doc, err := goal.Open(m.Wire, c.cluster.Trust, time.Now()); doc.(type) {
			case *goal.Recall, *goal.RecallBeat: // of the seeder, which come the same way
				continue
			default:
				if err != nil || !slices.Equal(m.Wire, wire) {
					t.Fatalf("another goal came: %+v, %v", doc, err)
				}
			}
			got["goal"] = true
			said(goal.Ready, "", e.ExecutionID)
		case *hostwire.Neighbours:
			got["neighbours"] = got["neighbours"] || len(m.Sources) == 2 && len(m.Peers) == 1 && m.Peers[0].ID == "host-2" && m.Peers[0].Addr.Port() == 7001
		case *hostwire.Recipe:
			t.Logf("%d segments, sealed: %v", m.InfoHashes.Len(), m.Sealed)
		case *hostwire.Leave:
			got["leave"] = true
			said(goal.Healthy, e.ExecutionID, "")
		}
	}
	late := time.After(Timeout)
	for healthy := false; !healthy; {
		select {
		case n := <-counted:
			healthy = n.Service == "web" && n.Healthy == 1 && n.OnTarget == 1 && n.Version == g.Version
		case <-late:
			t.Fatal("the seeder has not heard of it")
		}
	}
	answers, silent, err := operator.HostsOf(t.Context(), gossip.HostsQuestion{Service: "web", Limit: 10})
	hosts := 0
	for _, a := range answers {
		hosts += len(a.Hosts)
	}
	if err != nil || len(silent) != 0 || hosts != 2 {
		t.Errorf("hosts: %+v, silent %+v, %v", answers, silent, err)
	}
	status, err := second.AgentStatus(t.Context())
	if err != nil || len(status.Fleet.Services) != 1 || status.Fleet.Services[0].Version != g.Version {
		t.Errorf("%+v, %v", status.Fleet, err)
	}
}

// TestAllHostsAreListed: those of two agents, which know more of them than fit an answer, and
// one of them both.
func TestAllHostsAreListed(t *testing.T) {
	const each = 60
	c := Start(t, cloud, Options{Regions: 1, Fleet: true})
	e := c.Publish("build.zip", content(1, 300_000))
	second, _ := c.AddAgent(0, "second")
	answer, err := c.Seeder.DeployService(t.Context(), "web", client.ServiceDeployRequest{Key: "build.zip", Policy: client.Policy{Bake: "0s"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Until("the deployment, which has no hosts, is done", func() bool {
		s, err := c.Seeder.Service(t.Context(), "web")
		return err == nil && s.Deployment.DeploymentID == answer.DeploymentID && s.Deployment.Ended()
	})
	failed := hostwire.ServiceState{Service: "web", State: goal.Failed, Phase: "exec", Error: strings.Repeat("e", 200), Output: strings.Repeat("o", goal.MaxOutput)}
	join := func(agent int, host string) *hostwire.Stream {
		s, err := hostwire.Dial(t.Context(), hostwire.DialConfig{URL: c.cluster.FleetURLs[c.Regions[0]][agent], Hello: &hostwire.Hello{
			Version: hostwire.Version, Host: host, Start: e.ExecutionID, Services: []hostwire.ServiceState{failed},
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	var names []string
	for i := range 2 * each {
		names = append(names, fmt.Sprintf("host-%03d", i))
		join(i%2, names[i])
	}
	join(1, names[0]) // which has moved, and its agent has not noticed
	c.Until("both agents know their hosts", func() bool {
		one, err := c.Agents[0].AgentStatus(t.Context())
		two, err2 := second.AgentStatus(t.Context())
		return err == nil && err2 == nil && one.Fleet.Hosts == each && two.Fleet.Hosts == each+1
	})
	var list *client.HostViews
	c.Until("the seeder hears of all hosts", func() bool {
		list, err = c.Seeder.AllHosts(t.Context(), "web", "", 0)
		return err == nil && list.Unanswered == nil && len(list.Hosts) == 2*each
	})
	for i, h := range list.Hosts {
		if h.Host != names[i] || h.Region != c.Regions[0] || len(h.Output) != goal.MaxOutput {
			t.Errorf("host %d is %+v", i, h)
		}
	}
	if list.All != 2*each || list.Next != "" {
		t.Errorf("%d hosts in all, next %q", list.All, list.Next)
	}
	c.Until("not all fit one answer", func() bool {
		page, err := c.Seeder.Hosts(t.Context(), "web", "", 1000, "")
		return err == nil && page.Next != "" && len(page.Hosts) < 2*each
	})
	c.Until("those that have failed are listed, but for five", func() bool {
		some, err := c.Seeder.AllHosts(t.Context(), "web", goal.Failed, 2*each-5)
		return err == nil && len(some.Hosts) == 2*each-5 && some.Next == c.Regions[0]+"/"+names[2*each-6] && some.All >= 2*each
	})
	c.Until("there is none behind the last", func() bool {
		none, err := c.Seeder.Hosts(t.Context(), "web", "", 0, "zone-z/host")
		return err == nil && len(none.Hosts) == 0 && none.Next == "" && none.All >= 2*each
	})
}
