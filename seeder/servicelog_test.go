package seeder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/web"
)

// logHosts asks for all hosts of a service to be written; status is that of the answer.
func (w *fleetWorld) logHosts(ctx context.Context, name string) (out *api.HostsLogged, status int, err error) {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/services/"+name+"/hosts/log", nil)
	r.SetPathValue("name", name)
	status, body, err := w.s.postHostsLog(r)
	var failed *web.Error
	if errors.As(err, &failed) {
		return nil, failed.Code, err
	}
	out, _ = body.(*api.HostsLogged)
	return out, status, err
}

// logged are the items of the table of hosts under a deployment, by region and host.
func (w *fleetWorld) logged(deploymentID string) map[string]*ledger.Attributes {
	w.t.Helper()
	logs := w.tables.Names().Logs
	all := make(map[string]*ledger.Attributes)
	for in := (&dynamodb.ScanInput{TableName: &logs}); ; {
		out, err := cloud.DynamoDB.Scan(w.t.Context(), in)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, i := range out.Items {
			of := ledger.Read(i, time.Now())
			if at := strings.Split(of.Text("deployment"), "#"); len(at) == 3 && at[1] == deploymentID && at[2] != "rest" {
				all[at[0]+"/"+of.Text("host")] = of
			}
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(out.LastEvaluatedKey) == 0 {
			return all
		}
	}
}

// buildFailing is build, of one to which the hosts of some regions cannot switch.
func (w *fleetWorld) buildFailing(key string, regions ...string) *ledger.Record {
	w.t.Helper()
	r := w.build(key)
	for _, region := range regions {
		a := w.agents[region]
		a.mu.Lock()
		a.fails[r.ExecutionID] = true
		a.mu.Unlock()
	}
	return r
}

// TestAllHostsAreLogged writes those of all regions, says which agents did not answer, and keeps
// what failed.
func TestAllHostsAreLogged(t *testing.T) {
	w := newFleetWorld(t, 5)
	r := w.build("web-1.zip")
	if _, status, err := w.logHosts(t.Context(), "web"); status != http.StatusNotFound {
		t.Errorf("no service: %d, %v", status, err)
	}
	w.land(r, "region-a", "region-b")
	w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "0s"})
	w.until("it is done", w.is(deployment.Done))
	second := w.buildFailing("web-2.zip", "region-b")
	w.land(second, "region-a", "region-b")
	id := w.deploy(second, api.Policy{Waves: []string{"100%"}, Bake: "0s", MaxFailed: "0"}).DeploymentID
	w.until("it has stopped", w.is(deployment.Stopped))
	w.until("the failures are in the table", func() bool { return len(w.logged(id)) == 5 })
	w.agent("mute", "region-c", nil)
	w.until("the mute agent is here", func() bool { return len(w.s.living()) == 3 })

	w.until("all hosts of those who answer are written", func() bool { // who is slow does not answer either
		out, status, err := w.logHosts(t.Context(), "web")
		if err != nil || status != http.StatusOK || out.DeploymentID != id {
			t.Fatalf("%+v, %d, %v", out, status, err)
		}
		return out.Hosts == 10 && fmt.Sprint(out.Regions) == "[{region-a 5} {region-b 5}]" && slices.Equal(out.Unanswered, []string{"region-c"})
	})
	failed := 0
	all := w.logged(id)
	for at, of := range all {
		if of.Text("state") != api.HostHealthy || of.Text("zone") != "z" || of.Text("listed") == "" || of.Number("goal", 100) != 7 {
			t.Errorf("%s: state %q, zone %q, listed %q", at, of.Text("state"), of.Text("zone"), of.Text("listed"))
		}
		if of.Text("at") != "" {
			if failed++; of.Text("phase") != "exec" || of.Text("error") != "exit status 1" || of.Text("output") != "no such file" || !strings.HasPrefix(at, "region-b/") {
				t.Errorf("failure of %s: %q, %q", at, of.Text("error"), of.Text("output"))
			}
		}
	}
	if len(all) != 10 || failed != 5 {
		t.Errorf("%d items, %d of failures", len(all), failed)
	}

	w.away.Store(true)
	if _, status, err := w.logHosts(t.Context(), "web"); status != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "of which 0 were written") {
		t.Errorf("without the table: %d, %v", status, err)
	}
	w.away.Store(false)
}

// TestInventedHosts: agents that name ever other hosts hold up no other region, and those of one
// region end where there cannot be more.
func TestInventedHosts(t *testing.T) {
	w := newFleetWorld(t, 5)
	r := w.build("web-1.zip")
	w.land(r, "region-a", "region-b")
	id := w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "0s"}).DeploymentID
	w.until("it is done", w.is(deployment.Done))
	var invented atomic.Int64
	w.agent("liar", "a-region", func(gossip.HostsQuestion) (out gossip.HostsAnswer) {
		for range gossip.LeastHosts {
			out.Hosts = append(out.Hosts, api.HostView{Host: fmt.Sprintf("h%09d", invented.Add(1)), State: api.HostHealthy})
		}
		out.All, out.Rest = goal.MaxHostsOfAgent, goal.MaxHostsOfAgent
		return out
	})
	w.until("it is here", func() bool { return len(w.s.living()) == 3 })
	w.until("it is asked first", func() bool {
		page, err := w.s.hosts(t.Context(), gossip.HostsQuestion{Service: "web", Limit: 100})
		return err == nil && len(page.Hosts) > 0 && page.Hosts[0].Region == "a-region"
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, _, err := w.logHosts(ctx, "web")
		ended <- err
	}()
	w.until("hosts of the others are written", func() bool {
		others := 0
		for at := range w.logged(id) {
			if !strings.HasPrefix(at, "a-region/") {
				others++
			}
		}
		return others == 10
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "a-region") {
		t.Errorf("the one that goes on for ever: %v", err)
	}
	const most = 50
	w.until("no more is written than there can be", func() bool { // in one go, where the agent is not slow
		var out regionLogged
		if err := w.s.logRegion(t.Context(), "web", id, "a-region", most, make(chan struct{}, 1), &out); err != nil {
			t.Fatal(err)
		}
		return out.incomplete && out.hosts >= most && out.hosts < most+gossip.LeastHosts
	})
}

// TestRegionsThatNoGoalNames: an agent that says that it is of one keeps no service from being
// deployed, nor its hosts from being listed.
func TestRegionsThatNoGoalNames(t *testing.T) {
	w := newFleetWorld(t, 2)
	for i, region := range []string{"", "Region A", "region/a"} {
		w.agent(fmt.Sprint("odd-", i), region, func(gossip.HostsQuestion) gossip.HostsAnswer {
			return gossip.HostsAnswer{All: 7, Hosts: []api.HostView{{Host: "h1", State: api.HostHealthy}}, Rest: 6}
		})
	}
	w.until("they are here", func() bool { return len(w.s.gossip.Members()) == 6 })
	r := w.build("web-1.zip")
	w.land(r, "region-a", "region-b")
	id := w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "0s"}).DeploymentID
	w.until("it is done", w.is(deployment.Done))
	w.until("the others' are written", func() bool {
		out, _, err := w.logHosts(t.Context(), "web")
		return err == nil && out.DeploymentID == id && out.Hosts == 4 && out.Unanswered == nil
	})
}

// TestLoggingHoldsNothingUp: while the table does not answer about hosts, goals and failures are
// written, no second request begins, and the first one ends with who asked.
func TestLoggingHoldsNothingUp(t *testing.T) {
	w := newFleetWorld(t, 2)
	r := w.build("web-1.zip")
	w.land(r, "region-a", "region-b")
	w.deploy(r, api.Policy{Waves: []string{"100%"}, Bake: "0s"})
	w.until("it is done", w.is(deployment.Done))
	w.hangs.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type answer struct {
		status int
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		_, status, err := w.logHosts(ctx, "web")
		answers <- answer{status, err}
	}()
	w.until("the writing has begun", func() bool {
		w.s.services.mu.Lock()
		defer w.s.services.mu.Unlock()
		return w.s.services.logging["web"]
	})
	if _, status, err := w.logHosts(t.Context(), "web"); status != http.StatusConflict {
		t.Errorf("a second request: %d, %v", status, err)
	}
	second := w.buildFailing("web-2.zip", "region-a", "region-b")
	w.land(second, "region-a", "region-b")
	id := w.deploy(second, api.Policy{Waves: []string{"100%"}, Bake: "0s", MaxFailed: "0"}).DeploymentID
	w.until("it has stopped", w.is(deployment.Stopped))
	w.until("failures are in the table", func() bool { return len(w.logged(id)) > 0 })
	cancel()
	if a := <-answers; a.status != http.StatusServiceUnavailable || !errors.Is(a.err, context.Canceled) {
		t.Errorf("%d, %v", a.status, a.err)
	}
	w.hangs.Store(false)
	w.until("all are written afterwards", func() bool {
		out, _, err := w.logHosts(t.Context(), "web")
		return err == nil && out.Hosts == 4
	})
}

// TestLoggingsAreBounded: one of a service at a time, and some in all.
func TestLoggingsAreBounded(t *testing.T) {
	o := newServiceOwners()
	for i := range maxLoggings {
		if err := o.beginLogging(fmt.Sprint("s", i)); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]int{"s0": http.StatusConflict, "more": http.StatusServiceUnavailable} {
		var failed *web.Error
		if err := o.beginLogging(name); !errors.As(err, &failed) || failed.Code != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	o.endLogging("s0")
	if err := o.beginLogging("more"); err != nil || len(o.logging) != maxLoggings {
		t.Errorf("%d, %v", len(o.logging), err)
	}
}
