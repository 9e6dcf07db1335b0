package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/terminal/terminaltest"
)

const deploymentID = "01K0Z4V5QW8TQ0H6Q9M3N7R2XD"

// fleet answers as a seeder with one service would, which goes through states, one with each
// question.
type fleet struct {
	mu       sync.Mutex
	states   []api.Service
	requests []string // what was to change something
	deploy   api.ServiceDeployRequest
	unread   bool // the tables are, so nothing is planned
}

func (f *fleet) start(t *testing.T) (url string) {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, code int, v any) {
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	next := func() (s api.Service) {
		f.mu.Lock()
		defer f.mu.Unlock()
		s = f.states[0]
		if len(f.states) > 1 {
			f.states = f.states[1:]
		}
		return s
	}
	mux.HandleFunc("GET /services", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, api.Services{Services: []api.Service{next()}})
	})
	mux.HandleFunc("GET /services/web", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, next()) })
	mux.HandleFunc("GET /services/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, 404, api.Error{Error: "no service " + r.PathValue("name")})
	})
	mux.HandleFunc("GET /services/web/deployments", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, api.Deployments{Deployments: []api.Deployment{*next().Deployment, {DeploymentID: deploymentID, Service: "web", State: api.DeploymentStopped, Reason: "replaced"}}})
	})
	mux.HandleFunc("GET /services/web/hosts", func(w http.ResponseWriter, r *http.Request) {
		at := time.Now()
		if r.URL.Query().Get("state") == api.HostSick { // of which there are three pages
			n := len(r.URL.Query().Get("after"))
			list := api.HostViews{All: 3, Hosts: []api.HostView{{Host: strings.Repeat("h", n+1), Region: "r", State: api.HostSick}}}
			if n < len("r/hhh") {
				list.Next = "r/" + list.Hosts[0].Host
			}
			answer(w, 200, list)
			return
		}
		answer(w, 200, api.HostViews{All: 700, Unanswered: []string{"region-b"}, Hosts: []api.HostView{{
			Host: "h1", Region: "region-a", Zone: "z1", State: r.URL.Query().Get("state"), Running: deploymentID, Version: 7,
			Labels: map[string]string{"rack": "7", "disk": "ssd"}, Program: "1.2.3", Key: "hello-1.0.0.zip", Held: true,
			Phase: "check", Error: "exit status 1", Output: "starting\nport 80 is taken\n", SeenAt: &at,
		}}})
	})
	mux.HandleFunc("POST /services/web/hosts/log", func(w http.ResponseWriter, r *http.Request) {
		answer(w, 200, api.HostsLogged{DeploymentID: deploymentID, Hosts: 12, Regions: []api.RegionLogged{{Region: "region-a", Hosts: 12}}, Unanswered: []string{"region-b"}})
	})
	mux.HandleFunc("POST /services/web/{what}", func(w http.ResponseWriter, r *http.Request) {
		var request api.ServiceCommandRequest
		f.mu.Lock()
		f.requests = append(f.requests, r.PathValue("what"))
		f.mu.Unlock()
		if r.PathValue("what") == "deployments" {
			if err := json.NewDecoder(r.Body).Decode(&f.deploy); err != nil {
				t.Error(err)
			}
			a := api.ServiceDeployAnswer{Deployment: *f.states[0].Deployment, DryRun: f.deploy.DryRun}
			if f.deploy.DryRun {
				a.Plan = []api.WavePlan{{Wave: 1, Share: "20%", Region: "region-a", Hosts: 1}, {Wave: 2, Share: "100%", Region: "region-a", Hosts: 5}}
			}
			answer(w, 202, a)
			return
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			t.Error(err)
		}
		if r.PathValue("what") == "resume" {
			answer(w, 409, api.Error{Error: "deployment " + deploymentID + " is wave"})
			return
		}
		f.mu.Lock()
		f.requests = append(f.requests, fmt.Sprintf("%+v", request))
		f.mu.Unlock()
		if f.unread && !request.WithoutTable {
			answer(w, 503, api.Error{Error: "services: the tables cannot be read"})
			return
		}
		a := api.ServiceCommandAnswer{Service: f.states[0], DryRun: request.DryRun}
		if !request.DryRun {
			a.Service = next()
		}
		if r.PathValue("what") == "rollback" {
			a.Back = []api.BackPlan{{Region: "region-a", Hosts: 5, Holding: 4, Fetching: 1}, {Region: "region-b", Unknown: true}}
		}
		answer(w, 200, a)
	})
	recalls := api.Recalls{Version: 7, Recalled: []api.RecalledBuild{{SHA256: "abc=-1", Key: "hello-2.0.0.zip", ExecutionID: deploymentID, By: "carol", At: time.Now()}}}
	mux.HandleFunc("GET /recalls", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, recalls) })
	mux.HandleFunc("POST /recalls", func(w http.ResponseWriter, r *http.Request) {
		var request api.RecallRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		f.requests = append(f.requests, fmt.Sprintf("%+v", request))
		f.mu.Unlock()
		if request.Undo {
			answer(w, 200, api.Recalls{Version: 8, Recalled: []api.RecalledBuild{}})
			return
		}
		answer(w, 200, recalls)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

// at is the service at one moment of its deployment.
func at(state string, wave int, onTarget, failed int) api.Service {
	began := time.Now().Add(-time.Minute)
	counts := api.HostCounts{Total: 5, Ready: 5 - onTarget - failed, Healthy: onTarget, Failed: failed, Target: onTarget}
	d := &api.Deployment{
		DeploymentID: deploymentID, Service: "web", Kind: api.KindDeploy, State: state, Wave: wave, StartedAt: began, Hosts: counts,
		Target: &api.ServiceBuild{Key: "hello-2.0.0.zip", ExecutionID: deploymentID}, From: &api.ServiceBuild{Key: "hello-1.0.0.zip"},
		Policy: api.Policy{Waves: []string{"20%", "100%"}}, Regions: []string{"region-a"},
	}
	s := api.Service{
		Service: "web", Version: 7, Issued: began, Target: d.Target, Stable: d.From, Hosts: counts, Deployment: d,
		Regions: []api.ServiceRegion{{Region: "region-a", Open: wave > 0, Share: float64(wave) / 2, Roster: 5, Hosts: counts, CountedAt: &began}},
	}
	if failed > 0 {
		d.Reason = "1 of 5 hosts failed, at most 0 may"
		s.Failures = []api.FailureGroup{{Phase: "check", Error: "exit status 1", Hosts: 1, Example: "h1", Output: "starting\nport 80 is taken\n"}}
	}
	if d.Ended() {
		ended := began.Add(42 * time.Second)
		d.EndedAt = &ended
	}
	return s
}

// outcome runs a command to its end.
func outcome(args ...string) (status int, stdout, stderr string) {
	var out, wrong bytes.Buffer
	cmd := binary(nil, args...)
	cmd.Stdout, cmd.Stderr = &out, &wrong
	_ = cmd.Run() // its status says more
	return cmd.ProcessState.ExitCode(), out.String(), wrong.String()
}

// TestDeployIsFollowed: waves and hosts are shown, and the exit status says how it ended.
func TestDeployIsFollowed(t *testing.T) {
	waits := at(api.DeploymentGate, 0, 0, 0)
	waits.Deployment.WaitsFor = []string{"region-b"}
	for name, c := range map[string]struct {
		states []api.Service
		status int
		stdout []string
		stderr string
	}{
		"done": {
			[]api.Service{waits, at(api.DeploymentWave, 1, 1, 0), at(api.DeploymentBaking, 1, 1, 0), at(api.DeploymentWave, 2, 3, 0), at(api.DeploymentDone, 2, 5, 0)}, 0,
			[]string{"waiting for the gate: the build has still to arrive in region-b", "region-a: 0 of 5, gate closed", "wave, 1 of 2 (20%)", "region-a: 1 of 5", "baking, 1 of 2 (20%)",
				"wave, 2 of 2 (100%)", "region-a: 5 of 5", "web: done, 5 of 5 hosts run hello-2.0.0.zip after 42"}, "",
		},
		"stopped": {
			[]api.Service{at(api.DeploymentWave, 1, 0, 0), at(api.DeploymentStopped, 1, 0, 1)}, 1,
			[]string{"region-a: 0 of 5, 1 failed", "1 of check: exit status 1, such as h1", "  port 80 is taken", "web: stopped"},
			"the deployment of hello-2.0.0.zip to web has stopped: 1 of 5 hosts failed, at most 0 may; look at the hosts with: seeder hosts web --state failed",
		},
		"went back": {
			[]api.Service{at(api.DeploymentBack, 1, 2, 0), at(api.DeploymentWentBack, 1, 5, 0)}, 1,
			[]string{"going back", "web: went back, all hosts run hello-1.0.0.zip again after 42"}, "to web went back",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fleet{states: append([]api.Service{c.states[0]}, c.states...)}
			status, stdout, stderr := outcome("deploy", "web", "s3://global-builds/hello-2.0.0.zip", "--wave", "20%, 100%", "--bake", "0s", "--max-failed", "0", "--gate", "region", "--seeder", f.start(t))
			if status != c.status || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit status %d, want %d:\n%s%s", status, c.status, stdout, stderr)
			}
			rest := stdout
			for _, want := range c.stdout {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Errorf("no %q, in this order, in\n%s", want, stdout)
					continue
				}
				rest = after
			}
			if d := f.deploy; d.SourceBucket != "global-builds" || d.Key != "hello-2.0.0.zip" || strings.Join(d.Waves, " ") != "20% 100%" || d.Bake != "0s" || d.MaxFailed != "0" || d.Gate != "region" || d.MaxUnavailable != "" {
				t.Errorf("asked for %+v", d)
			}
		})
	}
}

// TestDeployInTerminals shows a bar for each region, in lines that fit.
func TestDeployInTerminals(t *testing.T) {
	for _, width := range []int{40, 80, 120} {
		f := &fleet{states: []api.Service{at(api.DeploymentWave, 1, 0, 0), at(api.DeploymentWave, 1, 1, 0), at(api.DeploymentWave, 2, 3, 1), at(api.DeploymentDone, 2, 5, 0)}}
		p := terminaltest.Start(t, width, binary(nil, "deploy", "web", "hello-2.0.0.zip", "--seeder", f.start(t)))
		if status := p.Wait(); status != 0 {
			t.Errorf("exit status %d", status)
		}
		check(t, p)
		if seen := p.String(); strings.Count(seen, "region-a") != 1 || !strings.Contains(seen, "100%") || !strings.Contains(strings.ReplaceAll(seen, "\n", " "), "web: done, 5 of 5 hosts run hello-2.0.0.zip") {
			t.Errorf("width %d:\n%s", width, seen)
		}
	}
}

// TestServiceCommands: each asks for what it says, prints a table or JSON, and says what to
// do next where it is refused.
func TestServiceCommands(t *testing.T) {
	done := at(api.DeploymentDone, 2, 5, 0)
	back := at(api.DeploymentWentBack, 2, 5, 0)
	failed := at(api.DeploymentStopped, 1, 1, 1)
	f := &fleet{states: []api.Service{failed}}
	url := f.start(t)
	for _, c := range []struct {
		args   string
		states []api.Service
		status int
		want   string
	}{
		{"services", []api.Service{done}, 0, "SERVICE  TARGET           STABLE           DEPLOYMENT  HOSTS  ON TARGET  FAILED"},
		{"service web", []api.Service{failed}, 0, "port 80 is taken"},
		{"service web", []api.Service{failed}, 0, "web runs hello-2.0.0.zip, stable is hello-1.0.0.zip; goal 7 of "},
		{"service web", []api.Service{failed}, 0, "deployment " + deploymentID + " of hello-2.0.0.zip: stopped: 1 of 5 hosts failed"},
		{"service web --watch", []api.Service{at(api.DeploymentWave, 2, 4, 0), failed}, 1, "web: stopped"},
		{"service none", nil, 1, "no service none"},
		{"service web -o json", []api.Service{done}, 0, `"deploymentId": "` + deploymentID},
		{"services -o json", []api.Service{done}, 0, `"services": [`},
		{"hosts web --state failed", nil, 0, "check: exit status 1 (port 80 is taken)"},
		{"hosts web", nil, 0, "1 of 700 hosts are shown; --limit shows more, --limit 0 all\nagents that did not answer: in region-b"},
		{"hosts web --state sick --limit 0", nil, 0, "hhhh     r"},
		{"hosts web --state sick --limit 2", nil, 0, "2 of 3 hosts are shown; --limit shows more, --limit 0 all"},
		{"hosts web --state sick --limit 2 -o json", nil, 0, `"next": "r/hhhh"`},
		{"hosts web --limit -1", nil, 2, "--limit is -1, expected 0 to 1000000"},
		{"hosts web --limit 1000001", nil, 2, "--limit is 1000001, expected 0 to 1000000"},
		{"hosts web --state failed -o json", nil, 0, `"output": "starting\nport 80 is taken\n"`},
		{"hosts web --state asleep", nil, 2, `--state is "asleep", expected one of waiting, ready`},
		{"hosts", nil, 2, "hosts takes one SERVICE"},
		{"pause web", []api.Service{at(api.DeploymentPaused, 1, 1, 0)}, 0, "paused, 1 of 2 (20%)"},
		{"resume web", nil, 1, "is wave; look at it with: seeder service web --seeder "},
		{"abort web", []api.Service{at(api.DeploymentStopped, 1, 1, 0)}, 0, "stopped"},
		{"skip web region-b", []api.Service{done}, 0, "{Region:region-b Now:false DryRun:false Hosts:[] WithoutTable:false}"},
		{"skip web", nil, 2, "skip takes a SERVICE and a REGION"},
		{"rollback web --now", []api.Service{at(api.DeploymentBack, 1, 1, 0), back}, 0, "went back"},
		{"rollback web --now", []api.Service{at(api.DeploymentBack, 1, 1, 0), back}, 0, "{Region: Now:true DryRun:false Hosts:[] WithoutTable:false}"},
		{"rollback web", []api.Service{at(api.DeploymentBack, 1, 1, 0), back}, 0, "back to hello-1.0.0.zip: 4 hosts hold it, 1 must fetch it; not counted of late: hosts in region-b"},
		{"rollback web --no-wait", []api.Service{at(api.DeploymentBack, 1, 1, 0)}, 0, "{Region: Now:false DryRun:true Hosts:[] WithoutTable:false} rollback {Region: Now:false DryRun:false"},
		{"rollback web --dry-run", []api.Service{done}, 0, "REGION    HOSTS  HOLD IT  MUST FETCH IT\nregion-a  5      4        1"},
		{"rollback web --dry-run -o json", []api.Service{done}, 0, `"fetching": 1`},
		{"rollback web --without-table --no-wait", []api.Service{at(api.DeploymentBack, 1, 1, 0)}, 0, "WITHOUT THE TABLE"},
		{"rollback web --without-table --no-wait", []api.Service{at(api.DeploymentBack, 1, 1, 0)}, 0, "WithoutTable:true}"},
		{"deploy web build.zip --without-table --no-wait", []api.Service{at(api.DeploymentGate, 0, 0, 0)}, 0, "WITHOUT THE TABLE"},
		{"deploy web build.zip --gate none --no-wait", []api.Service{at(api.DeploymentWave, 0, 0, 0)}, 0, "THROUGH NO GATE"},
		{"service web", []api.Service{func() api.Service {
			s := at(api.DeploymentWave, 1, 1, 0)
			s.Deployment.Policy.Gate = api.GateNone
			return s
		}()}, 0, "(20%), through no gate"},
		{"hosts web hold h1 h2", []api.Service{done}, 0, "Hosts:[h1 h2]"},
		{"hosts web release h1", []api.Service{done}, 0, "release {Region: Now:false DryRun:false Hosts:[h1]"},
		{"hosts web stop h1", nil, 2, "hosts takes a SERVICE, or a SERVICE, hold or release, and HOSTs"},
		{"hosts web hold", nil, 2, "hold or release, and HOSTs"},
		{"hosts web log", nil, 0, "REGION    HOSTS\nregion-a  12\nagents that did not answer: in region-b\n12 hosts are written under deployment " + deploymentID},
		{"hosts web log -o json", nil, 0, `"hosts": 12`},
		{"hosts none log", nil, 1, "404"},
		{"hosts web log h1", nil, 2, "and HOSTs, or a SERVICE and log"},
		{"hosts web log --state failed", nil, 2, "it takes neither --state nor --limit"},
		{"hosts web hold ../h1", nil, 2, "expected at most 63"},
		{"hosts web", nil, 0, "disk=ssd,rack=7"},
		{"hosts web", nil, 0, "held; check: exit status 1"},
		{"hosts web", nil, 0, "hello-1.0.0.zip"},
		{"recall", nil, 0, "hello-2.0.0.zip"},
		{"recall hello-2.0.0.zip s3://other-builds/x.zip", nil, 0, "{Builds:[hello-2.0.0.zip x.zip] SourceBucket:other-builds Undo:false}"},
		{"recall hello-2.0.0.zip --undo", nil, 0, "no build is recalled"},
		{"recall -o json", nil, 0, `"version": 7`},
		{"recall --undo", nil, 2, "recall --undo takes BUILDs"},
		{"recall s3://a-bucket/x s3://b-bucket/y", nil, 2, "of another bucket"},
		{"rollback web", []api.Service{at(api.DeploymentBack, 1, 1, 0), failed}, 1, "web has not gone back everywhere: stopped"},
		{"rollback web --no-wait", []api.Service{at(api.DeploymentBack, 1, 1, 0)}, 0, "going back"},
		{"deploy web", nil, 2, "deploy takes a SERVICE and a KEY"},
		{"deploy ../web build.zip", nil, 2, "expected at most 63 lower-case letters"},
		{"deploy web s3://bucket", nil, 2, "s3://bucket is not s3://BUCKET/KEY"},
		{"deploy web build.zip --wave 10%,,20%", nil, 2, "is no share of hosts"},
		{"deploy web build.zip --wave half", nil, 2, `--wave: "half" is no share of hosts, such as 10% or 3`},
		{"deploy web build.zip --max-failed 101%", nil, 2, "--max-failed"},
		{"deploy web build.zip --gate some", nil, 2, `--gate is "some", expected one of all, region, none`},
		{"deploy web build.zip --bake -1s", nil, 2, "--bake is -1s"},
		{"deploy web build.zip --no-wait", []api.Service{at(api.DeploymentGate, 0, 0, 0)}, 0, "has begun; look at it with: seeder service web --seeder "},
		{"deploy web build.zip --dry-run", []api.Service{at(api.DeploymentGate, 0, 0, 0)}, 0, "WAVE  SHARE  REGION    HOSTS ON TARGET\n1     20%    region-a  1"},
		{"deploy web build.zip -o json", []api.Service{done}, 0, `"state": "done"`},
	} {
		f.mu.Lock()
		f.requests = nil
		if c.states != nil {
			f.states = c.states
		}
		f.mu.Unlock()
		status, stdout, stderr := outcome(append(strings.Fields(c.args), "--seeder", url)...)
		all := stdout + stderr + strings.Join(f.requests, " ")
		if status != c.status || !strings.Contains(all, c.want) {
			t.Errorf("seeder %s: exit status %d, want %d with %q:\n%s", c.args, status, c.status, c.want, all)
		}
	}
}

// TestRollbackWithoutAPlan: a seeder that began without its table cannot say what a roll-back
// takes, and goes back all the same.
func TestRollbackWithoutAPlan(t *testing.T) {
	f := &fleet{states: []api.Service{at(api.DeploymentBack, 1, 1, 0)}, unread: true}
	url := f.start(t)
	if status, stdout, stderr := outcome("rollback", "web", "--without-table", "--no-wait", "--seeder", url); status != 0 || !strings.Contains(stdout, "4 hosts hold it") {
		t.Errorf("%d: %s%s", status, stdout, stderr)
	}
	if status, _, stderr := outcome("rollback", "web", "--no-wait", "--seeder", url); status != 1 || !strings.Contains(stderr, "the tables cannot be read") {
		t.Errorf("%d: %s", status, stderr)
	}
}

// TestAnotherDeploymentFollows: the one that is waited for was replaced meanwhile.
func TestAnotherDeploymentFollows(t *testing.T) {
	other := at(api.DeploymentWave, 1, 0, 0)
	other.Deployment.DeploymentID = "01K0Z5C2M1V7Y3B9D4F6H8J0KM"
	f := &fleet{states: []api.Service{at(api.DeploymentWave, 1, 0, 0), at(api.DeploymentWave, 1, 0, 0), other}}
	if status, stdout, stderr := outcome("deploy", "web", "hello-2.0.0.zip", "--seeder", f.start(t)); status != 1 || !strings.Contains(stderr, "has stopped: replaced") {
		t.Errorf("%d: %s%s", status, stdout, stderr)
	}
}

// TestHostileService shows what would take over a terminal.
func TestHostileService(t *testing.T) {
	evil := "\x1b]0;pwned\a\x1b[2J\u009b31m\u202e"
	s := at(api.DeploymentStopped, 1, 1, 1)
	s.By, s.Target, s.Error, s.Held = evil, &api.ServiceBuild{Key: evil}, evil, []string{evil}
	s.Deployment.Reason, s.Deployment.By, s.Deployment.Target = evil, evil, s.Target
	s.Failures[0] = api.FailureGroup{Phase: evil, Error: evil, Example: evil, Output: evil + "\n" + evil}
	s.Regions[0].Region = evil
	f := &fleet{states: []api.Service{s}}
	url := f.start(t)
	for _, args := range [][]string{{"services"}, {"service", "web"}, {"service", "web", "-o", "json"}, {"hosts", "web"}, {"recall"}, {"rollback", "web", "--dry-run"}, {"deploy", "web", evil}, {"service", evil}, {"service", "web", "--watch"}, {"rollback", "web"}, {"pause", "web"}} {
		p := terminaltest.Start(t, 120, binary([]string{"NO_COLOR=1"}, append(args, "--seeder", url)...))
		p.Wait()
		if strings.ContainsAny(p.Raw(), "\a\u009b\u202e") || len(p.Unknown()) > 0 || strings.Contains(p.Raw(), "\x1b[2J") {
			t.Errorf("%q: %q", args, p.Raw())
		}
	}
}
