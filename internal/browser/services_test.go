//go:build linux

package browser

import (
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// fleetRegions, zonesEach and hostsEach make a hundred thousand hosts.
	fleetRegions, zonesEach, hostsEach = 10, 4, 2500
	// mostElements bounds what the page is made of, however many hosts there are.
	mostElements = 1500
)

// fleetPage is a seeder's page with services that are as a test says. Commands ask for a
// token, and for the role that the seeder asks for.
type fleetPage struct {
	url string

	mu       sync.Mutex
	services map[string]api.Service
	recalled []api.RecalledBuild
	asked    []string // commands that were let through
}

func newFleetPage(t *testing.T, services ...api.Service) *fleetPage {
	f := &fleetPage{services: make(map[string]api.Service)}
	for _, s := range services {
		f.services[s.Service] = s
	}
	mux := web.NewMux(web.Options{
		Page: "seeder", Ready: func() error { return nil }, State: web.State{All: f.all, One: f.one}, Metrics: prometheus.NewRegistry(),
		Roles: map[string]operator.Role{"POST /services/{name}/{what}": operator.Deploy}, Logger: slog.New(slog.DiscardHandler),
	})
	mux.JSON("POST /services/{name}/{what}", func(r *http.Request) (int, any, error) {
		switch r.Header.Get("Authorization") {
		case "Bearer " + deploys:
		case "Bearer " + views:
			return 0, nil, web.Errorf(http.StatusForbidden, "viewer has the role view, this asks for deploy")
		default:
			return 0, nil, web.Errorf(http.StatusUnauthorized, "the operator token is missing")
		}
		var request api.ServiceCommandRequest
		if err := web.Read(r, &request); err != nil {
			return 0, nil, err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		s := f.services[r.PathValue("name")]
		d := *s.Deployment
		switch what := r.PathValue("what"); what {
		case api.CommandPause:
			d.State, d.Reason = api.DeploymentPaused, "paused by operator"
		case api.CommandResume:
			d.State, d.Reason = api.DeploymentWave, ""
		case api.CommandRollback:
			if d.State == api.DeploymentBack {
				return 0, nil, web.Errorf(http.StatusConflict, "it is going back already")
			}
			d.State, d.Reason, s.Target = api.DeploymentBack, "rolled back by operator", s.Stable
		}
		s.Deployment = &d
		f.services[s.Service] = s
		f.asked = append(f.asked, fmt.Sprintf("%s, now: %t", r.PathValue("what"), request.Now))
		return http.StatusOK, api.ServiceCommandAnswer{Service: s}, nil
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	f.url = server.URL
	return f
}

const deploys, views = "the-token-of-who-deploys", "the-token-of-who-views"

// all is what everybody is shown, by the names that the seeder gives.
func (f *fleetPage) all() iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		f.mu.Lock()
		services, recalled := maps.Clone(f.services), f.recalled
		f.mu.Unlock()
		if len(recalled) > 0 && !yield("recalls", map[string]any{"all": len(recalled) + 280, "newest": recalled}) {
			return
		}
		if !yield("about", map[string]any{"bucket": "global-builds", "version": "test", "name": "seeder", "destinations": []string{}, "executions": 0, "limits": api.Limits{}}) {
			return
		}
		for name, s := range services {
			row := map[string]any{"service": name, "hosts": s.Hosts}
			if d := s.Deployment; d != nil {
				row["target"], row["stable"], row["state"] = s.Target.Key, s.Stable.Key, d.State
				row["wave"], row["waves"], row["reason"] = d.Wave, len(d.Policy.Waves), d.Reason
			}
			if !yield("service/"+name, row) {
				return
			}
		}
	}
}

func (f *fleetPage) one(name string) (any, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.services[strings.TrimPrefix(name, "deployed/")]
	return s, ok
}

func (f *fleetPage) set(s api.Service) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.services[s.Service] = s
}

// atWave is a service of a hundred thousand hosts in the second of three waves.
func atWave() api.Service {
	began, counted := time.Now().Add(-12*time.Minute), time.Now()
	target := &api.ServiceBuild{Key: "web-2.4.0.zip", SourceBucket: "global-builds", ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Size: 180 << 20}
	stable := &api.ServiceBuild{Key: "web-2.3.1.zip", SourceBucket: "global-builds", ExecutionID: "01K0Y1B7ZK3M5N8P2R4T6V8X0A", Size: 178 << 20}
	s := api.Service{Service: "web", Version: 1795737600, Issued: counted.Add(-time.Minute), By: "operator", Target: target, Stable: stable, Held: []string{"web-eu-7"}}
	for r := range fleetRegions {
		region := api.ServiceRegion{Region: fmt.Sprintf("region-%c", 'a'+r), Open: true, Share: 0.1, Roster: zonesEach * hostsEach, CountedAt: &counted}
		for z := range zonesEach {
			c := api.HostCounts{Total: hostsEach, Healthy: 180, Switching: 30, Target: 190, Stable: hostsEach - 10, Failed: 2 * (r % 3), Absent: 5 * z, Sick: 3, Waiting: 100 * (r % 2)}
			c.Ready = c.Total - c.Healthy - c.Switching - c.Failed - c.Absent - c.Sick - c.Waiting
			region.Zones = append(region.Zones, api.ServiceZone{Zone: fmt.Sprintf("zone-%d", z+1), Hosts: c})
			region.Hosts.Add(c)
		}
		s.Regions = append(s.Regions, region)
		s.Hosts.Add(region.Hosts)
	}
	last := &s.Regions[fleetRegions-1]
	last.Open, last.CountedAt, last.Zones = false, nil, last.Zones[:3] // and a zone that is not among the largest
	s.Deployment = &api.Deployment{
		DeploymentID: "01K0Z5C2M1V7Y3B9D4F6H8J0KM", Service: "web", Kind: api.KindDeploy, State: api.DeploymentWave, Wave: 2, StartedAt: began, By: "operator",
		Target: target, From: stable, Hosts: s.Hosts, Policy: api.Policy{Waves: []string{"1%", "10%", "100%"}},
	}
	s.Failures = []api.FailureGroup{
		{Phase: "check", Error: "not healthy in 2m0s: exit status 1", Hosts: 61, Example: "web-b-0417", Output: "starting\nlistening on :8080\npanic: config: no such key \"cache.size\"\n"},
		{Phase: "exec", Error: "exit status 203", Hosts: 14, Example: "web-c-1999", Output: "<script>document.title = 'taken over'</script>"},
		{Phase: "", Error: "not heard of for 2 minutes", Hosts: 5, Example: "web-e-0002"},
	}
	return s
}

// TestServicePage looks at a service of a hundred thousand hosts, and does what a person does
// to its deployment: who may not is told so.
func TestServicePage(t *testing.T) {
	held := atWave()
	for i := range 200 {
		held.Held = append(held.Held[:i], fmt.Sprintf("web-%059d", i)) // as many as can be, with names as long
	}
	f := newFleetPage(t, held, api.Service{Service: "idle", Regions: []api.ServiceRegion{}})
	for i := range 20 {
		f.recalled = append(f.recalled, api.RecalledBuild{SHA256: fmt.Sprintf("%043d=-3", i), Key: fmt.Sprintf("web-2.2.%d<b>.zip", i), By: "operator", At: time.Now().Add(-time.Hour)})
	}
	b := open(t, f.url)
	b.away(true) // the browser notes the answers 401 and 403
	b.shows("#services", "wave 2 of 3")
	b.shows("#services", "100,000")
	b.shows("#services", "web-2.3.1.zip")
	b.shows("#recalled summary", "300 builds are recalled, the newest 20 here")
	b.run(`document.querySelector("#recalled").open = true`)
	b.shows("#recalls", "web-2.2.0<b>.zip")
	b.until("each of those", `document.querySelectorAll("#recalls tr").length === 20`)
	b.audit("services-recalled")
	b.run(`document.querySelector("#recalled").open = false`)
	b.keep("services")
	b.do(chromedp.Click(chromedp.CSS(`#services a[href="#service/web"]`)))

	b.shows("#s-name", "web")
	b.shows("#s-status", "Wave 2 of 3: 7,600 of 100,000 hosts run web-2.4.0.zip.")
	b.shows("#s-facts", "stable web-2.3.1.zip")
	b.shows("#waves", "1,000 of 1,000 hosts, over")
	b.shows("#waves", "7,600 of 10,000 hosts, under way")
	b.shows("#waves", "7,600 of 100,000 hosts, to come")
	b.shows("#states", "7,200 healthy")
	b.until("each region", fmt.Sprintf(`document.querySelectorAll("#s-regions > li").length === %d`, fleetRegions))
	b.shows("#s-regions", "gate open, 10 % may switch")
	b.shows("#s-facts", "200 hosts held")
	b.shows("#held summary", "200 hosts are held")
	b.run(`document.querySelector("#held").open = true`)
	b.shows("#held-names", held.Held[199])
	if wide := eval[bool](b, `document.querySelector("#held-names").scrollWidth > document.querySelector("#service").clientWidth`); wide {
		t.Error("the names of held hosts are wider than the page")
	}
	b.run(`document.querySelector("#held").open = false`)
	b.shows("#s-regions", "not heard of · gate closed")
	b.shows("#reasons", "61 hosts")
	b.shows("#reasons", `panic: config: no such key "cache.size"`)
	b.shows("#reasons", "<script>") // which is text
	if title := eval[string](b, "document.title"); title != "Landfall seeder" {
		t.Errorf("the title is %q", title)
	}
	b.run(`document.querySelectorAll("#s-regions details")[1].open = true; document.querySelector("#s-regions > li:last-child details").open = true`)
	b.shows("#s-regions", "zone-4")
	b.shows("#s-regions", "other zones")
	for state, want := range map[string]string{"healthy": "720", "failed": "8"} {
		got := eval[string](b, fmt.Sprintf(`document.querySelectorAll("#s-regions > li")[1].querySelector(".stack .%s").title`, state))
		if !strings.HasPrefix(got, want+" "+state) {
			t.Errorf("region-b has %q, want %s %s", got, want, state)
		}
	}
	if width := eval[float64](b, `document.querySelectorAll("#s-regions > li")[1].querySelector(".stack .failed").getBoundingClientRect().width`); width < 3 {
		t.Errorf("8 failed hosts of 10,000 are %g pixels wide", width)
	}
	b.run(`document.querySelectorAll("#s-regions details").forEach((d) => { d.open = true })`)
	if n := eval[int](b, `document.querySelectorAll("*").length`); n > mostElements {
		t.Errorf("the page is made of %d elements, at most %d are allowed", n, mostElements)
	}
	b.run(`document.querySelectorAll("#s-regions details").forEach((d, i) => { d.open = i === 1 })`)
	b.keep("service-wave")

	// Who may not, and who may.
	give := func(token string) {
		t.Helper()
		b.until("the token is asked for", `document.querySelector("#asking").open`)
		b.types("#a-token", token)
		b.do(chromedp.Click(chromedp.CSS("#a-go")))
	}
	b.do(chromedp.Click(chromedp.CSS("#pause")))
	give(views)
	b.shows("#s-answer", "viewer has the role view, this asks for deploy")
	b.run(`sessionStorage.clear()`)
	b.do(chromedp.Click(chromedp.CSS("#pause")))
	give(deploys)
	b.shows("#s-answer", "Paused")
	b.shows("#s-status", "Paused, wave 2 of 3")
	b.shows("#waves", "7,600 of 10,000 hosts, paused")
	b.until("it can be resumed", `document.querySelector("#pause").hidden && !document.querySelector("#resume").hidden`)
	b.audit("service-paused")
	b.do(chromedp.Click(chromedp.CSS("#resume")))
	b.shows("#s-status", "Wave 2 of 3")

	b.do(chromedp.Click(chromedp.CSS("#rollback")))
	b.shows("#b-what", "7,600 of 100,000 hosts of web run web-2.4.0.zip. 99,600 hold web-2.3.1.zip, 400 must fetch it. All of them are told to run web-2.3.1.zip")
	b.keep("service-question")
	b.do(chromedp.Click(chromedp.CSS("#b-no")))
	b.do(chromedp.Click(chromedp.CSS("#rollback")), chromedp.Click(chromedp.CSS("#b-now")), chromedp.Click(chromedp.CSS("#b-yes")))
	b.shows("#s-answer", "It goes back.")
	b.shows("#s-status", "Going back: 7,600 of 100,000 hosts run web-2.3.1.zip; rolled back by operator.")
	b.shows("#waves", "all, back")
	b.until("there is nothing to go back from", `document.querySelector("#rollback").hidden && document.querySelector("#pause").hidden`)
	b.audit("service-back")
	f.mu.Lock()
	asked := slices.Clone(f.asked)
	f.mu.Unlock()
	if want := []string{"pause, now: false", "resume, now: false", "rollback, now: true"}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}

	// One that has ended, one that is held up, one without a deployment, and one that is not.
	done := atWave()
	done.Deployment.State, done.Deployment.Wave, done.Failures, done.Held = api.DeploymentDone, 3, nil, nil
	f.set(done)
	b.shows("#s-status", "Done, wave 3 of 3")
	b.until("nobody is held", `document.querySelector("#held").hidden`)
	b.until("no failures are left", `document.querySelectorAll("#reasons li").length === 0 && !document.querySelector("#no-reasons").hidden`)
	gate := atWave()
	gate.Deployment.State, gate.Deployment.Wave, gate.Deployment.WaitsFor = api.DeploymentGate, 0, []string{"region-c", "region-j"}
	f.set(gate)
	b.shows("#s-status", "the build has still to arrive in region-c, region-j")
	b.do(chromedp.Click(chromedp.CSS(`#services a[href="#service/idle"]`)))
	b.shows("#s-status", "Nothing was deployed yet.")
	b.shows("#no-hosts", "No host runs this service")
	b.until("nothing can be done", `["pause", "resume", "rollback"].every((id) => document.getElementById(id).hidden)`)
	b.keep("service-idle")
	b.run(`location.hash = "#service/none"`)
	b.shows("#s-status", "There is no service of this name.")
	b.run(`location.hash = ""`)
	b.shows("#unchosen", "Choose an execution")
}
