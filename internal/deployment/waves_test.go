package deployment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
)

// TestWaves has ten hosts switch wave by wave, and go back.
func TestWaves(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 7, Completed: whole(1)}, map[string]int{"ra": 5, "rb": 5})
	w.deploy(2, policy(t, nil))
	for range 20 {
		w.turn()
	}
	if got := w.m.Waits(); w.table.Current.State != Gate || len(got) != 1 || !strings.Contains(got[0], "ra, rb") {
		t.Fatalf("%s, %v", w.table.Current.State, got)
	}
	w.land(2, "ra")
	w.turn()
	if w.table.Current.State != Gate || w.on("ra", 2) > 0 {
		t.Fatal("hosts switch before the build is everywhere")
	}
	w.land(2, "rb")
	d := w.until(Baking)
	if d.Wave != 1 || d.Regions["ra"].Roster != 5 || d.Regions["ra"].Below != 1 || w.on("ra", 2) != 1 || w.on("rb", 2) != 1 {
		t.Fatalf("%+v, %d and %d switched", d, w.on("ra", 2), w.on("rb", 2))
	}
	w.until(Done)
	w.turn()
	if w.on("ra", 2)+w.on("rb", 2) != 10 || *w.table.Completed != build(2) {
		t.Fatalf("%d switched, completed %v", w.on("ra", 2)+w.on("rb", 2), w.table.Completed)
	}
	w.step(Command{Ask: "back", Kind: api.CommandRollback, ID: id(3), By: "carol"})
	d = w.until(WentBack)
	if w.on("ra", 1)+w.on("rb", 1) != 10 || *w.table.Completed != build(1) || d.Kind != api.KindRollback || d.ID != id(3) || d.Reason != "rolled back by carol" {
		t.Fatalf("%d went back, completed %v: %+v", w.on("ra", 1)+w.on("rb", 1), w.table.Completed, d)
	}
	var told []string
	for _, n := range w.notices {
		told = append(told, n.State)
	}
	if want := []string{Done, WentBack}; !slices.Equal(told, want) {
		t.Errorf("told of %v", told)
	}
}

// TestFirst deploys a service that has no stable build, and one that has no hosts.
func TestFirst(t *testing.T) {
	for n, hosts := range []map[string]int{{"ra": 1}, {"ra": 0, "rb": 0}} {
		w := newWorld(t, Service{Name: "web"}, hosts)
		w.deploy(1, policy(t, nil))
		w.land(1, "ra", "rb")
		d := w.until(Done)
		w.turn()
		if w.on("ra", 1) != hosts["ra"] || (d.Reason == "the service has 0 hosts") != (n == 1) || d.Counts.Healthy != hosts["ra"] {
			t.Errorf("%v: %+v", hosts, d)
		}
		w.step(Command{Ask: "back", Kind: api.CommandRollback, ID: id(2)})
		if err := w.answers["back"]; !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "no stable build") {
			t.Errorf("rolled back to nothing: %v", err)
		}
		if g := w.goals[len(w.goals)-1]; g.For("region-of-tomorrow", "host") != &g.Target {
			t.Error("a host that comes later does not run the target")
		}
	}
}

// TestMeeting has the regions found out only when agents had time to be met.
func TestMeeting(t *testing.T) {
	w := newWorld(t, Service{Name: "web"}, map[string]int{"ra": 1, "rb": 1})
	until := w.now.Add(5 * time.Second)
	w.step(Living{Agents: map[string][]string{"ra": {"a", "b"}}, Until: until})
	w.step(Deploy{Ask: "deploy", ID: id(1), Target: build(1), Policy: policy(t, nil)})
	w.turn()
	w.turn()
	w.step(Living{Agents: w.living, Until: until})
	w.land(1, "ra", "rb")
	if d := w.until(Done); len(d.Regions) != 2 || d.Ended.Before(until) {
		t.Errorf("%+v", d.Regions)
	}
}

// TestUnknown has no wave begin while an agent does not count, and nothing turn back.
func TestUnknown(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 6})
	w.deploy(2, policy(t, func(p *Policy) { p.Bake = 40 * time.Second }))
	w.land(2, "ra")
	w.until(Baking)
	silent := w.now
	for range 60 { // both agents live and count nothing
		w.now = w.now.Add(time.Second)
		w.step(Tick{})
		w.each(func(region, name string, a *agent) {
			w.step(Roster{Region: region, Agent: name, Hashes: w.roster(a)})
		})
		w.write()
	}
	if d := w.table.Current; d.State != Wave || d.Wave != 1 || w.m.State() != Baking {
		t.Fatalf("%s of wave %d, with counts of a minute ago", w.m.State(), d.Wave)
	}
	for range 5 {
		w.turn()
	}
	if d := w.table.Current; d.Wave != 2 {
		t.Fatalf("wave %d: it bakes anew %s after it was healthy, for counts that were not known", d.Wave, w.now.Sub(silent))
	}
	w = newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 6})
	w.deploy(2, policy(t, nil))
	w.land(2, "ra")
	w.until(Baking)
	w.living["ra"] = nil // nobody is there
	w.step(Living{Agents: w.living})
	for range 300 {
		w.now = w.now.Add(time.Second)
		w.step(Tick{})
		w.write()
	}
	if d := w.table.Current; d.State != Wave || d.Wave != 1 || !slices.Contains(w.m.Waits(), "no agent of ra is there") {
		t.Fatalf("%s of wave %d without an agent: %v", d.State, d.Wave, w.m.Waits())
	}
	w.living["ra"] = []string{"a", "b"}
	w.step(Living{Agents: w.living})
	w.until(Done)
}

// TestSlow has a wave wait for each host whose turn it is.
func TestSlow(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 6})
	slow := func(is bool) {
		for _, a := range w.agents["ra"] {
			for _, h := range a.hosts {
				h.slow = is
			}
		}
	}
	slow(true)
	w.deploy(2, policy(t, nil))
	w.land(2, "ra")
	w.until(Wave)
	for range 300 {
		w.turn()
	}
	if d := w.table.Current; d.Wave != 1 || w.m.State() != Wave || !slices.Contains(w.m.Waits(), "still to switch in ra: 1 host") {
		t.Fatalf("%s of wave %d: %v", w.m.State(), d.Wave, w.m.Waits())
	}
	slow(false)
	w.until(Done)
}

// TestSilent has hosts of the wave vanish with what knew of them: they count as failed after
// a while, not before.
func TestSilent(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 6})
	w.deploy(2, policy(t, func(p *Policy) { p.Waves = []goal.Share{"50%", "100%"} }))
	w.land(2, "ra")
	w.until(Wave)
	clear(w.agents["ra"]["a"].hosts)
	clear(w.agents["ra"]["b"].hosts)
	began := w.now
	d := w.until(Stopped)
	if took := w.now.Sub(began); took < SilentFor || !strings.Contains(d.Reason, "3 hosts of 3 have failed, 3 of them not heard of") {
		t.Errorf("after %s: %s", took, d.Reason)
	}
}

// TestReturning has an agent start again before the last wave: hosts that have not come back
// to it yet are waited for, so that done is said of them too; of those that have gone, not.
func TestReturning(t *testing.T) {
	for name, away := range map[string]time.Duration{"come back": SilentFor / 2, "gone": time.Hour} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 10})
			w.deploy(2, policy(t, func(p *Policy) { p.Waves = []goal.Share{"10%", "100%"} }))
			w.land(2, "ra")
			w.until(Baking)
			a := w.agents["ra"]["a"]
			hosts, began := a.hosts, w.now
			a.hosts = make(map[string]*host)
			for h, of := range hosts { // who runs the target has come back at once
				if of.running == build(2).ExecutionID {
					a.hosts[h] = of
				}
			}
			for w.table.Current.State != Done && w.now.Sub(began) < 2*SilentFor {
				if w.now.Sub(began) >= away {
					a.hosts = hosts
				}
				w.turn()
			}
			took := w.now.Sub(began)
			switch d := w.table.Current; {
			case d.State != Done:
				t.Errorf("%s after %s: %s, waits: %v", d.State, took, d.Reason, w.m.Waits())
			case away < SilentFor && w.on("ra", 2) != 10:
				t.Errorf("done after %s with %d of 10 hosts", took, w.on("ra", 2))
			case away > SilentFor && took < SilentFor:
				t.Errorf("done after %s without those that may have come back", took)
			}
		})
	}
}

// TestReturningAsItGoesBack: who runs the target has not come back to an agent that was
// started again, others have: it has not gone back.
func TestReturningAsItGoesBack(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 10})
	w.deploy(2, policy(t, func(p *Policy) { p.Waves = []goal.Share{"10%", "100%"} }))
	w.land(2, "ra")
	w.until(Baking)
	a := w.agents["ra"]["a"]
	hosts, began := a.hosts, w.now
	a.hosts = make(map[string]*host)
	for h, of := range hosts {
		if of.running != build(2).ExecutionID {
			a.hosts[h] = of
		}
	}
	w.step(Command{Kind: api.CommandRollback})
	for w.now.Sub(began) < SilentFor/2 {
		if w.turn(); w.table.Current.State == WentBack {
			t.Fatalf("went back after %s without the host that runs the target", w.now.Sub(began))
		}
	}
	a.hosts = hosts
	if w.until(WentBack); w.on("ra", 2) != 0 {
		t.Errorf("went back, and %d hosts run the target", w.on("ra", 2))
	}
}

// TestGoneAsItGoesBack: hosts that are gone, forgotten by their agents or not yet, have not failed
// to go back.
func TestGoneAsItGoesBack(t *testing.T) {
	for name, c := range map[string]struct {
		forgotten, silent, fail int
		want                    string
	}{
		"none":                {0, 0, 0, "rolled back by carol"},
		"forgotten":           {3, 0, 0, "rolled back by carol; not heard of: 3 hosts"},
		"silent":              {0, 1, 0, "rolled back by carol; not heard of: 1 host"},
		"both, and one fails": {2, 1, 1, "rolled back by carol; 1 host failed to go back; not heard of: 3 hosts"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 10})
			w.deploy(2, policy(t, nil))
			w.land(2, "ra")
			w.until(Done)
			a := w.agents["ra"]["a"]
			for i, host := range slices.Sorted(maps.Keys(a.hosts)) {
				switch h := a.hosts[host]; {
				case i < c.forgotten:
					delete(a.hosts, host)
				case i < c.forgotten+c.silent:
					h.silent = true
				case i < c.forgotten+c.silent+c.fail:
					h.stays = true
				}
			}
			w.step(Command{Kind: api.CommandRollback, ID: id(3), By: "carol"})
			if d := w.until(WentBack); d.Reason != c.want {
				t.Errorf("%s, want %s", d.Reason, c.want)
			}
		})
	}
}

// TestInventedRegions: an agent that counts for one region after the other takes the place of none
// where there are agents.
func TestInventedRegions(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 5})
	for i := range 3 * maxCounted {
		w.step(Counted{Region: fmt.Sprint("invented-", i), Agent: "liar", Counts: goal.Counts{Service: "web", InStates: goal.InStates{Hosts: 1}}})
		if len(w.m.counts) > maxCounted {
			t.Fatalf("%d regions are counted", len(w.m.counts))
		}
	}
	w.deploy(2, policy(t, nil))
	w.land(2, "ra")
	w.until(Done)
	for i := range 3 * maxCounted {
		w.step(Counted{Region: fmt.Sprint("others-", i), Agent: "liar", Counts: goal.Counts{Service: "web"}})
	}
	if c, _ := w.m.Counts("ra"); c.Hosts != 5 {
		t.Errorf("%d hosts are counted", c.Hosts)
	}
}

// TestHeldBetweenWaves: a host that is held is in no roster, and no wave waits for it: neither
// for one that is switched off then. Others that have not come back are waited for.
func TestHeldBetweenWaves(t *testing.T) {
	for name, of := range map[string]struct {
		state      string // in which it is held
		hold       []string
		away, back []string // hosts that are gone then, and come back after a minute
		restart    bool
		most       time.Duration // until it is done; longer than a minute where hosts are waited for
	}{
		"before the first wave":                {state: Gate, hold: []string{"host-3"}, most: time.Minute},
		"between waves":                        {state: Baking, hold: []string{"host-3", "host-4"}, most: time.Minute},
		"and switched off":                     {state: Baking, hold: []string{"host-3"}, away: []string{"host-3"}, most: time.Minute},
		"the seeder starts again after that":   {state: Baking, hold: []string{"host-3"}, restart: true, most: time.Minute},
		"while others have not come back":      {state: Baking, hold: []string{"host-3"}, back: []string{"host-4", "host-5"}, most: SilentFor},
		"one that is not there, others return": {state: Baking, hold: []string{"host-77"}, back: []string{"host-4"}, most: SilentFor},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 10, "rb": 2})
			w.deploy(2, policy(t, func(p *Policy) { p.Waves = []goal.Share{"10%", "100%"} }))
			for of.state == Gate && (w.table.Current == nil || !w.table.Current.Fixed) {
				w.turn()
			}
			if of.state == Baking {
				w.land(2, "ra", "rb")
				w.until(Baking)
			}
			w.step(Command{Ask: "hold", Kind: api.CommandHold, Hosts: of.hold})
			w.write()
			if err := w.answers["hold"]; err != nil {
				t.Fatal(err)
			}
			if of.restart {
				w.restart()
			}
			gone := make(map[string]func())
			for _, a := range w.agents["ra"] {
				for _, h := range slices.Concat(of.away, of.back) {
					if host := a.hosts[h]; host != nil {
						delete(a.hosts, h)
						gone[h] = func() { a.hosts[h] = host }
					}
				}
			}
			began := w.now
			w.land(2, "ra", "rb")
			for w.table.Current.State != Done && w.now.Sub(began) < 2*SilentFor {
				if w.now.Sub(began) >= time.Minute {
					for _, h := range of.back {
						gone[h]()
					}
				}
				w.turn()
			}
			took, held := w.now.Sub(began), 0
			for _, a := range w.agents["ra"] {
				for _, h := range of.hold {
					if a.hosts[h] != nil {
						held++
					}
				}
			}
			if d := w.table.Current; d.State != Done || took >= of.most || len(of.back) > 0 && took < time.Minute {
				t.Errorf("%s after %s, waits: %v", d.State, took, w.m.Waits())
			}
			if on, want := w.on("ra", 2), 10-len(of.away)-held; on != want {
				t.Errorf("done with %d hosts on the build, want %d", on, want)
			}
		})
	}
}

// TestWaveCheck pauses where the check does not say yes.
func TestWaveCheck(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 5})
	w.deploy(2, policy(t, func(p *Policy) { p.WaveCheck = "https://checks.example.com" }))
	w.land(2, "ra")
	answer := func(wave int, err error) {
		t.Helper()
		for range 50 {
			if len(w.checks) > 0 {
				break
			}
			w.turn()
		}
		if len(w.checks) != 1 || w.checks[0] != (Check{id(2), wave, "https://checks.example.com"}) {
			w.fatal("asked %v", w.checks)
		}
		w.checks = nil
		w.step(Checked{id(2), wave, err})
		w.write()
	}
	answer(1, nil)
	answer(2, errors.New("no answer"))
	if d := w.until(Paused); d.Wave != 1 || !strings.Contains(d.Reason, "wave 2 was not let begin: no answer") {
		t.Fatalf("%+v", d)
	}
	w.step(Command{Kind: api.CommandResume})
	answer(2, nil)
	w.until(Done)
}
