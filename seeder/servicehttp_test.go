package seeder

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
)

// TestHostsOfSeveralAgents: a host that two agents know has moved, and is counted once.
func TestHostsOfSeveralAgents(t *testing.T) {
	earlier, later := time.Unix(100, 0), time.Unix(200, 0)
	host := func(region, name, state string, seen *time.Time) api.HostView {
		return api.HostView{Region: region, Host: name, State: state, SeenAt: seen}
	}
	answers := []gossip.HostsAnswer{
		{All: 3, Hosts: []api.HostView{host("region-b", "h1", api.HostReady, nil), host("region-a", "h2", api.HostAbsent, &earlier), host("region-a", "h1", api.HostHealthy, &later)}},
		{All: 2, Hosts: []api.HostView{host("region-a", "h2", api.HostHealthy, &later), host("region-a", "h1", api.HostAbsent, &earlier)}},
		{All: 1000},
	}
	silent := []gossip.Member{{Meta: gossip.Meta{Region: "region-c"}}, {Meta: gossip.Meta{Region: "region-b"}}, {Meta: gossip.Meta{Region: "region-c"}}}
	got := mergeHosts(answers, silent, gossip.HostPlace{}, 10)
	var said []string
	for _, h := range got.Hosts {
		said = append(said, h.Region+" "+h.Host+" "+h.State)
	}
	if want := "region-a h1 healthy, region-a h2 healthy, region-b h1 ready"; strings.Join(said, ", ") != want || got.All != 1003 || got.Next != "" || fmt.Sprint(got.Unanswered) != "[region-b region-c]" {
		t.Errorf("%v of %d, unanswered %v; want %s", said, got.All, got.Unanswered, want)
	}
	if got := mergeHosts(answers, nil, gossip.HostPlace{}, 1); len(got.Hosts) != 1 || got.All != 1003 || got.Next != "region-a/h1" {
		t.Errorf("at most one: %+v", got)
	}
	if got := mergeHosts(nil, nil, gossip.HostPlace{}, 1); got.Hosts == nil {
		t.Error("no hosts are no list")
	}
}

// TestServiceLabelsAreBounded: however many services there are.
func TestServiceLabelsAreBounded(t *testing.T) {
	var list api.Services
	for i := range 250 {
		list.Services = append(list.Services, api.Service{
			Service: fmt.Sprintf("s%03d", i), Hosts: api.HostCounts{Total: 3, Healthy: 2, Failed: 1, Target: 2},
			Deployment: &api.Deployment{State: []string{api.DeploymentDone, api.DeploymentStopped}[i%2]},
		})
	}
	list.Services[7].Error = "the table cannot be written"
	under := list.Services[8].Deployment
	under.State, under.StartedAt = api.DeploymentPaused, time.Now().Add(-time.Hour)
	r := prometheus.NewRegistry()
	r.MustRegister(serviceCollector{func() api.Services { return list }})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	series := make(map[string]int)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			series[f.GetName()]++
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue()
		}
	}
	if n := series["landfall_service_hosts"]; n != (maxServiceLabels+1)*len(api.HostStates()) {
		t.Errorf("%d series of hosts", n)
	}
	if age := got["landfall_oldest_deployment_age_seconds"]; age < 3600 || age > 3700 {
		t.Errorf("the deployment under way is %g s old", age)
	}
	for name, want := range map[string]float64{
		"landfall_services done": 124, "landfall_services paused": 1, "landfall_services_failing": 1, "landfall_services stopped": 125, "landfall_services wave": 0, "landfall_services went back": 0,
		"landfall_service_hosts s000 healthy": 2, "landfall_service_hosts s031 failed": 1, "landfall_service_hosts_on_target s000": 2,
		"landfall_service_hosts OTHER failed": 250 - maxServiceLabels, "landfall_service_hosts_on_target OTHER": 2 * (250 - maxServiceLabels),
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
}
