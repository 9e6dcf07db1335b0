package deployment

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
)

// TestFailures stops, or goes back, beyond what may fail.
func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		failing    int
		most       goal.Share
		auto       bool
		state, why string
	}{
		"the only one of a wave":        {5, "3", false, Stopped, "all of the 1 host switched in ra have failed"},
		"the only one, and goes back":   {5, "3", true, WentBack, "all of the 1 host switched in ra have failed"},
		"as many as may":                {2, "3", false, Done, ""},
		"more than may, of a last wave": {3, "2", false, Stopped, "failed, at most"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 5})
			// Those with the greatest hash fail, so that the first wave tells them late.
			var all []string
			for _, a := range w.agents["ra"] {
				all = slices.AppendSeq(all, maps.Keys(a.hosts))
			}
			slices.SortFunc(all, func(x, y string) int { return int(goal.HashOf("web", y) - goal.HashOf("web", x)) })
			for _, a := range w.agents["ra"] {
				for host, h := range a.hosts {
					h.fails = slices.Contains(all[:c.failing], host)
				}
			}
			w.deploy(2, policy(t, func(p *Policy) { p.MaxFailed, p.AutoRollback = c.most, c.auto }))
			w.land(2, "ra")
			d := w.until(c.state)
			if !strings.Contains(d.Reason, c.why) {
				t.Errorf("%s: %s", d.State, d.Reason)
			}
			if c.state != Done && *w.table.Completed != build(1) {
				t.Error("a build that has failed is stable")
			}
		})
	}
}

// TestGate has the three gates, a region that is skipped, and one that comes too late.
func TestGate(t *testing.T) {
	begin := func(t *testing.T, change func(*Policy)) *world {
		w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 5, "rb": 5})
		w.deploy(2, policy(t, change))
		w.land(2, "ra")
		for range 20 {
			w.turn()
		}
		return w
	}
	t.Run("region", func(t *testing.T) {
		w := begin(t, func(p *Policy) { p.Gate = api.GateRegion })
		if w.on("ra", 2) != 5 || w.on("rb", 2) != 0 || w.table.Current.State != Wave {
			t.Fatalf("%d, %d, %s", w.on("ra", 2), w.on("rb", 2), w.table.Current.State)
		}
		w.land(2, "rb")
		w.until(Done)
		w.turn()
		if w.on("rb", 2) != 5 {
			t.Errorf("%d", w.on("rb", 2))
		}
	})
	t.Run("none", func(t *testing.T) {
		w := begin(t, func(p *Policy) { p.Gate = api.GateNone })
		if w.until(Done); w.on("ra", 2)+w.on("rb", 2) != 10 {
			t.Error("it waited")
		}
	})
	t.Run("skipped", func(t *testing.T) {
		w := begin(t, nil)
		w.step(Command{Ask: "unknown", Kind: api.CommandSkip, Region: "rc"})
		w.step(Command{Ask: "skip", Kind: api.CommandSkip, Region: "rb"})
		w.until(Done)
		w.turn()
		if w.answers["skip"] != nil || !errors.Is(w.answers["unknown"], ErrState) || w.on("ra", 2) != 5 || w.on("rb", 2) != 0 {
			t.Errorf("%v, %d, %d", w.answers, w.on("ra", 2), w.on("rb", 2))
		}
		w.step(Command{Ask: "skip", Kind: api.CommandSkip, Region: "ra"})
		if !errors.Is(w.answers["skip"], ErrState) {
			t.Error("skipped a region of a deployment that was done")
		}
	})
	t.Run("the only one that has it, skipped", func(t *testing.T) {
		w := begin(t, func(p *Policy) { p.Gate, p.Bake = api.GateRegion, 30*time.Second })
		w.step(Command{Kind: api.CommandSkip, Region: "ra"})
		for range 200 {
			w.turn()
		}
		if d := w.table.Current; d.State != Wave || d.Regions["rb"].Open {
			t.Fatalf("%s, and the build has landed in no region: %+v", d.State, d.Regions)
		}
		w.land(2, "rb")
		w.until(Done)
	})
	t.Run("cuts do not fall", func(t *testing.T) {
		w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 40})
		w.deploy(2, policy(t, func(p *Policy) { p.Waves = []goal.Share{"50%", "10%", "100%"} }))
		w.land(2, "ra")
		w.until(Done) // which turn has checked
	})
	t.Run("all skipped", func(t *testing.T) {
		w := begin(t, nil)
		w.step(Command{Kind: api.CommandSkip, Region: "rb"})
		w.step(Command{Kind: api.CommandSkip, Region: "ra"})
		if d := w.until(Stopped); !strings.Contains(d.Reason, "skipped") {
			t.Error(d.Reason)
		}
	})
	t.Run("timeout", func(t *testing.T) {
		w := begin(t, func(p *Policy) { p.GateTimeout = 15 * time.Second })
		if d := w.until(Stopped); !strings.Contains(d.Reason, "has not landed in rb within 15s") {
			t.Error(d.Reason)
		}
	})
	t.Run("lost", func(t *testing.T) {
		w := begin(t, nil)
		w.step(Lost{build(1).ExecutionID, "another"})
		w.turn()
		w.step(Lost{build(2).ExecutionID, "superseded"})
		if d := w.until(Stopped); !strings.Contains(d.Reason, "will not land in rb: superseded") {
			t.Error(d.Reason)
		}
	})
}

// TestTimesGoOn has the seeder killed in the midst of each time that runs, and paused: it goes
// on from what the table says, at most recordEvery behind, and not while nobody looks.
func TestTimesGoOn(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Policy)
		// begin brings about that a time begins to run, to is where it leads after lasts.
		begin func(*world)
		lasts time.Duration
		over  func(*world) bool
	}{
		"bake": {
			func(p *Policy) { p.Bake = 100 * time.Second },
			func(w *world) { w.land(2, "ra"); w.until(Baking) }, 100 * time.Second,
			func(w *world) bool { return w.table.Current.Wave == 2 },
		},
		"gate": {
			func(p *Policy) { p.GateTimeout = 100 * time.Second },
			func(w *world) { w.turn() }, 100 * time.Second,
			func(w *world) bool { return w.table.Current.State == Stopped },
		},
		"hosts that are silent": {
			func(p *Policy) { p.Waves, p.Bake = []goal.Share{"50%", "100%"}, time.Hour },
			func(w *world) {
				w.land(2, "ra")
				w.until(Wave)
				clear(w.agents["ra"]["a"].hosts)
				clear(w.agents["ra"]["b"].hosts)
			}, SilentFor,
			func(w *world) bool { return w.table.Current.State == Stopped },
		},
	} {
		for _, break_ := range []string{"killed", "paused", "met late"} {
			t.Run(name+"/"+break_, func(t *testing.T) {
				w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 6})
				w.deploy(2, policy(t, c.change))
				c.begin(w)
				began, away := w.now, time.Duration(0)
				for !c.over(w) {
					if w.now.Sub(began) > c.lasts+time.Minute+away {
						w.fatal("not over after %s and %s of %s: %s, %v", w.now.Sub(began)-away, away, c.lasts, w.m.State(), w.m.Waits())
					}
					if ran := w.now.Sub(began); ran > c.lasts/2 && away == 0 {
						at := w.now
						switch break_ {
						case "killed":
							w.now = w.now.Add(time.Hour)
							w.restart()
						case "met late": // of two agents one is met first
							w.restart()
							w.step(Living{Agents: map[string][]string{"ra": {"a"}}, Until: w.now.Add(5 * time.Second)})
							for range 4 {
								w.now = w.now.Add(time.Second)
								w.step(Counted{Region: "ra", Agent: "a", Counts: w.count("ra", "a", w.agents["ra"]["a"])})
							}
							w.step(Living{Agents: w.living})
						case "paused":
							w.step(Command{Kind: api.CommandPause})
							w.write()
							w.now = w.now.Add(time.Hour)
							w.step(Command{Kind: api.CommandResume})
							w.write()
						}
						away = w.now.Sub(at) + 1
					}
					w.turn()
				}
				if took := w.now.Sub(began) - away; took < c.lasts-5*time.Second || took > c.lasts+recordEvery+5*time.Second {
					t.Errorf("over after %s, expected %s and at most %s more", took, c.lasts, recordEvery)
				}
				if n := w.records; n > 40 {
					t.Errorf("the table was told %d times", n)
				}
			})
		}
	}
}

// TestTimesOfTheTable has a table say for how long things have lasted that they cannot have.
func TestTimesOfTheTable(t *testing.T) {
	for said, want := range map[time.Duration]time.Duration{-1 << 62: 0, -1: 0, 0: 0, time.Hour: time.Hour, MaxTime + 1: MaxTime, 1 << 62: MaxTime} {
		w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 1})
		w.deploy(2, policy(t, func(p *Policy) { p.GateTimeout = MaxTime }))
		w.table.Current.Waited, w.table.Current.Baked = said, said
		w.restart()
		w.step(Tick{})
		if since := w.now.Sub(w.m.since); since != want || w.m.baked != want {
			t.Errorf("%s: has waited for %s and baked for %s, expected %s", said, since, w.m.baked, want)
		}
	}
}

// tableOf reads what docs/fleet.md says that each command does in each state: state → command
// → state, empty for refused.
func tableOf(t *testing.T) map[string]map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "fleet.md"))
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	table := make(map[string]map[string]string)
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case len(cells) > 1 && cells[0] == "" && cells[1] == "nothing yet":
			states = cells[1:]
			for _, state := range states {
				table[state] = make(map[string]string)
			}
		case len(states) > 0 && len(cells) == len(states)+1 && strings.HasPrefix(cells[0], "`"):
			for i, state := range states {
				table[state][strings.Trim(cells[0], "`")] = strings.Trim(cells[i+1], "–")
			}
		}
	}
	if len(table) != 10 || len(table[Done]) != 9 {
		t.Fatalf("docs/fleet.md has no table of commands and states: %v", table)
	}
	return table
}

// TestCommands has each command in each state do what docs/fleet.md says.
func TestCommands(t *testing.T) {
	const nothing, pausedThere = "nothing yet", "paused there"
	for state, does := range tableOf(t) {
		for command, want := range does {
			t.Run(state+"/"+command, func(t *testing.T) {
				w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 5, "rb": 5})
				if state != nothing {
					w.deploy(2, policy(t, func(p *Policy) { p.Bake = 10 * time.Second }))
				}
				to := func(state string) { w.until(state) }
				if state != nothing && state != Gate && state != pausedThere {
					w.land(2, "ra", "rb")
				}
				switch state {
				case nothing:
				case Gate:
					for range 3 {
						w.turn()
					}
				case pausedThere:
					for range 3 {
						w.turn()
					}
					w.step(Command{Kind: api.CommandPause})
					w.write()
				case Paused:
					to(Wave)
					w.step(Command{Kind: api.CommandPause})
					w.write()
				case GoingBack, WentBack:
					to(Wave)
					w.step(Command{Kind: api.CommandRollback})
					w.write()
					to(state)
				case Stopped:
					to(Wave)
					w.step(Command{Kind: api.CommandAbort})
					w.write()
				default:
					to(state)
				}
				if command == api.CommandRelease && state != nothing {
					w.step(Command{Kind: api.CommandHold, Hosts: []string{"host-0"}})
					w.write()
				}
				before := len(w.goals)
				kind, now := strings.CutSuffix(command, " --now")
				if command == "deploy" {
					w.step(Deploy{Ask: "x", ID: id(9), Target: build(9), Policy: policy(t, nil)})
				} else {
					w.step(Command{Ask: "x", Kind: kind, Now: now, ID: id(9), Region: "ra", Hosts: []string{"host-0"}, By: "carol"})
				}
				_, early := w.answers["x"]
				wrote := w.pending != nil
				w.write()
				err, answered := w.answers["x"]
				switch {
				case !answered:
					t.Fatal("no answer")
				case want == "":
					if !errors.Is(err, ErrState) || wrote && w.goals[len(w.goals)-1].By == "carol" {
						t.Errorf("was not refused: %v", err)
					}
				case err != nil || early || len(w.goals) == before || w.table.Current.State != want:
					t.Errorf("%v, answered before it was written: %v, then %s; expected %s", err, early, w.table.Current.State, want)
				case w.goals[len(w.goals)-1].Now != now:
					t.Errorf("now: %v", w.goals[len(w.goals)-1].Now)
				}
			})
		}
	}
}

// TestHeld has hosts stay with what they run, over waves and roll-backs, until released.
func TestHeld(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 6})
	running := func(name string) string {
		for _, a := range w.agents["ra"] {
			if h := a.hosts[name]; h != nil {
				return h.running
			}
		}
		return ""
	}
	command := func(kind string, hosts ...string) error {
		w.step(Command{Ask: "x", Kind: kind, ID: id(50 + len(w.goals)), Hosts: hosts})
		w.write()
		return w.answers["x"]
	}
	w.deploy(2, policy(t, nil))
	w.land(2, "ra")
	if err := command(api.CommandHold, "host-0", "host-3"); err != nil {
		t.Fatal(err)
	}
	if d := w.until(Done); d.Counts.Healthy != 4 {
		t.Errorf("%+v", d.Counts)
	}
	notices := len(w.notices)
	if running("host-0") != build(1).ExecutionID || w.on("ra", 2) != 4 {
		t.Errorf("held, and runs %s; %d hosts have switched", running("host-0"), w.on("ra", 2))
	}
	for name, err := range map[string]error{"held twice": command(api.CommandHold, "host-3"), "released, and not held": command(api.CommandRelease, "host-1")} {
		if !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := command(api.CommandRelease, "host-0"); err != nil {
		t.Fatal(err)
	}
	w.turn()
	w.turn()
	if running("host-0") != build(2).ExecutionID || running("host-3") != build(1).ExecutionID || w.table.Current.State != Done || len(w.notices) != notices {
		t.Errorf("%s and %s run, %s, told %d times more", running("host-0"), running("host-3"), w.table.Current.State, len(w.notices)-notices)
	}
	var many []string
	for i := range goal.MaxHeld {
		many = append(many, fmt.Sprintf("many-%d", i))
	}
	if err := command(api.CommandHold, many...); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "at most 200") {
		t.Errorf("one more than can be held: %v", err)
	}
}

// TestRecalled has a build that is recalled be deployed by nobody, and a deployment that brings
// it stop.
func TestRecalled(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: 1, Completed: whole(1)}, map[string]int{"ra": 2})
	recall := func(sums ...string) {
		all := make(map[string]bool)
		for _, sum := range sums {
			all[sum] = true
		}
		w.step(Recalled{all})
	}
	other := strings.Replace(sum, "LCa", "MCa", 1)
	recall(sum)
	w.step(Living{Agents: w.living})
	w.step(Deploy{Ask: "x", ID: id(2), Target: build(2), Policy: policy(t, nil)})
	if err := w.answers["x"]; !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "recalled") {
		t.Fatal(err)
	}
	// What it is of is known when it has landed.
	target := build(2)
	target.SHA256 = ""
	w.step(Deploy{Ask: "y", ID: id(2), Target: target, Policy: policy(t, nil)})
	w.write()
	w.turn()
	w.land(2, "ra")
	if d := w.until(Stopped); d.Reason != "the build is recalled" || w.on("ra", 2) != 0 {
		t.Errorf("%s, %d hosts run it", d.Reason, w.on("ra", 2))
	}
	w.step(Command{Ask: "back", Kind: api.CommandRollback, ID: id(3)})
	if err := w.answers["back"]; !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "recalled") {
		t.Errorf("back to a build that is recalled: %v", err)
	}
	recall(other)
	w.step(Command{Ask: "back", Kind: api.CommandRollback, ID: id(3)})
	w.until(WentBack)
}

// TestRestoredTable has a table say less than hosts know: that is seen, nothing is concluded
// from what they count, and the next goal is newer than theirs, unless that is a lie.
func TestRestoredTable(t *testing.T) {
	w := newWorld(t, Service{Name: "web", Version: noon.Unix() - 5, Completed: whole(1)}, map[string]int{"ra": 2})
	w.deploy(2, policy(t, nil))
	w.land(2, "ra")
	backup := w.table.clone()
	w.until(Done)
	// The clock of who goes on is behind: versions follow what hosts have, not it.
	known, newest := len(w.goals), w.goals[len(w.goals)-1].Version
	w.table = backup
	w.now = noon.Add(-time.Hour)
	w.restart()
	for _, a := range w.agents["ra"] {
		a.goal = w.goals[known-1]
	}
	w.each(func(region, name string, a *agent) {
		w.step(Counted{Region: region, Agent: name, Counts: w.count(region, name, a)})
	})
	if w.m.Newer() != newest || w.pending != nil {
		t.Fatalf("newer is %d, expected %d, writes %v", w.m.Newer(), newest, w.pending)
	}
	w.step(Counted{Region: "ra", Agent: "liar", Counts: goal.Counts{Version: w.now.Add(maxNewer).Unix() + 1}})
	if w.m.Newer() != newest {
		t.Errorf("an agent that lies makes hosts follow %d", w.m.Newer())
	}
	w.restart()
	w.each(func(region, name string, a *agent) {
		w.step(Counted{Region: region, Agent: name, Counts: w.count(region, name, a)})
	})
	w.step(Command{Ask: "x", Kind: api.CommandAbort})
	w.write()
	if g := w.goals[len(w.goals)-1]; w.answers["x"] != nil || g.Version <= newest || w.m.Newer() != 0 {
		t.Errorf("%v, goal %d after %d, newer %d", w.answers["x"], g.Version, newest, w.m.Newer())
	}
}

// TestAnyOrderOfEvents has everything happen in any order, and be lost, and checks after
// each step what has to be true at every moment; in the end all is well again, and the
// deployment comes to an end that is true.
func TestAnyOrderOfEvents(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 200
	}
	for seed := range rounds {
		anyOrder(t, rand.New(rand.NewPCG(uint64(seed), 1)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func anyOrder(t *testing.T, r *rand.Rand) {
	w := newWorld(t, Service{Name: "web", Version: noon.Unix() - 100, Completed: whole(1)}, map[string]int{"ra": r.IntN(8), "rb": r.IntN(8)})
	all := maps.Clone(w.living)
	pick := func() (region, name string, a *agent) {
		region = []string{"ra", "rb"}[r.IntN(2)]
		name = []string{"a", "b"}[r.IntN(2)]
		return region, name, w.agents[region][name]
	}
	n := 1
	deploy := func() {
		n++
		w.step(Deploy{Ask: "deploy", ID: id(n), Target: build(n), Policy: policy(t, func(p *Policy) {
			p.Gate = []string{api.GateAll, api.GateRegion}[r.IntN(2)]
			p.AutoRollback = r.IntN(2) == 0
			p.Waves = [][]goal.Share{{"20%", "100%"}, {"50%", "60%", "100%"}}[r.IntN(2)]
			p.MaxFailed = []goal.Share{"0", "20%"}[r.IntN(2)]
		})})
	}
	w.step(Living{Agents: w.living})
	deploy()
	hosts := 100
	for range 150 {
		region, name, a := pick()
		switch r.IntN(20) {
		case 0, 1, 2:
			w.write()
		case 3:
			if w.pending != nil && r.IntN(3) == 0 { // it is in the table, and nobody says so
				if p := w.pending; p.Before == w.table.Version {
					w.table, w.goals = p.Service.clone(), append(w.goals, p.Goal)
				}
			}
			if r.IntN(3) == 0 {
				w.restart()
			}
		case 4, 5:
			if len(w.goals) > 0 {
				w.hear(a, r.IntN(len(w.goals)))
				w.hear(a, len(w.goals)-1-r.IntN(min(2, len(w.goals))))
			}
		case 6, 7, 8:
			for _, host := range slices.Sorted(maps.Keys(a.hosts)) {
				if r.IntN(2) == 0 {
					w.move(region, host, a, a.hosts[host])
				}
			}
		case 9, 10, 11:
			w.step(Counted{Region: region, Agent: name, Counts: w.count(region, name, a)})
		case 12:
			w.step(Roster{Region: region, Agent: name, Hashes: w.roster(a)})
		case 13:
			w.land(1+r.IntN(n), region)
		case 14:
			kinds := []string{api.CommandPause, api.CommandResume, api.CommandResume, api.CommandAbort, api.CommandRollback, api.CommandSkip, api.CommandHold, api.CommandRelease}
			w.step(Command{Ask: "x", Kind: kinds[r.IntN(len(kinds))], ID: id(500 + n), Region: region, Hosts: []string{fmt.Sprintf("host-%d", r.IntN(8))}, Now: r.IntN(2) == 0})
		case 15:
			if r.IntN(3) == 0 {
				deploy()
			}
		case 16: // hosts come, and go
			if hosts++; r.IntN(2) == 0 {
				a.hosts[fmt.Sprintf("host-%d", hosts)] = &host{state: goal.Waiting, fails: r.IntN(4) == 0}
			} else if names := slices.Sorted(maps.Keys(a.hosts)); len(names) > 0 {
				delete(a.hosts, names[r.IntN(len(names))])
			}
		case 17: // an agent goes, its hosts to the other
			w.living = maps.Clone(all)
			if r.IntN(2) == 0 {
				w.living[region] = []string{name}
				other := w.agents[region][map[string]string{"a": "b", "b": "a"}[name]]
				maps.Copy(a.hosts, other.hosts)
				clear(other.hosts)
			}
			w.step(Living{Agents: w.living})
		default:
			w.now = w.now.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
			w.step(Tick{})
		}
		w.hold()
	}
	w.living = all
	w.step(Living{Agents: w.living})
	for range 600 {
		w.land(n, "ra", "rb")
		if w.asked = w.asked || r.IntN(10) == 0; w.table.Current != nil && w.table.Current.State == Paused {
			w.step(Command{Kind: api.CommandResume})
		}
		w.turn()
		w.hold()
		if d := w.table.Current; d != nil && d.Over() && w.pending == nil {
			break
		}
		if d := w.table.Current; d != nil && d.Target.ExecutionID != build(n).ExecutionID { // an earlier one, which never lands
			w.step(Lost{d.Target.ExecutionID, "superseded"})
		}
	}
	if d := w.table.Current; d != nil && !d.Over() {
		w.fatal("it does not come to an end: %s, waits %v, %+v", d.State, w.m.Waits(), d)
	}
	for range 3 {
		w.turn()
	}
	w.hold()
	if len(w.goals) == 0 {
		return
	}
	g := w.goals[len(w.goals)-1]
	w.each(func(region, name string, a *agent) {
		for host, h := range a.hosts {
			if b := g.For(region, host); b != nil && h.running != b.ExecutionID && h.state != goal.Failed && g.Leave(region, host, h.running) {
				w.fatal("%s of %s runs %q under goal %d, expected %s", host, region, h.running, g.Version, b.ExecutionID)
			}
		}
	})
}

// hold is what has to be true at every moment.
func (w *world) hold() {
	w.t.Helper()
	w.check()
	for region, of := range w.agents {
		for _, a := range of {
			for name, h := range a.hosts {
				if !w.mayRun(region, name, h.running) && h.running != build(1).ExecutionID {
					w.fatal("%s of %s runs %s, which no goal has said", name, region, h.running)
				}
			}
		}
	}
	d := w.table.Current
	if d == nil {
		return
	}
	for name, r := range d.Regions {
		if r.Open && !r.Landed && d.Kind == api.KindDeploy && d.Policy.Gate != api.GateNone {
			w.fatal("%s is open, and the build has not landed there", name)
		}
	}
	if d.State == Done {
		if w.table.Completed == nil || w.table.Completed.ExecutionID != d.Target.ExecutionID {
			w.fatal("done, and the build is not what completed")
		}
		for name, r := range d.Regions {
			if !r.Skipped && r.Cut != goal.Circle {
				w.fatal("done, and the cut of %s is %d", name, r.Cut)
			}
		}
	}
}
