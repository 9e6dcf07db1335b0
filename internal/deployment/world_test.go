package deployment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/goal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const sum = "LCa0a2j/xo/5m0U8HTBBNBNCLXBkg7+g+YpeiGJm564=-1"

// build is one whose executionId ends in n.
func build(n int) goal.Build {
	return goal.Build{SourceBucket: "global-builds", Key: fmt.Sprintf("web-%d.zip", n), ExecutionID: fmt.Sprintf("01J00000000000000000000%03d", n), Size: 7, SHA256: sum}
}

func whole(n int) *goal.Build { b := build(n); return &b }

func id(n int) string { return fmt.Sprintf("01K00000000000000000000%03d", n) }

// world is a service: what its seeder, its table, its agents and its hosts know.
type world struct {
	t       testing.TB
	m       *Machine
	now     time.Time
	table   Service
	goals   []*goal.Goal // all that were ever sent, in order
	agents  map[string]map[string]*agent
	living  map[string][]string
	pending *Publish // which is not written yet
	checks  []Check
	answers map[string]error
	notices []Deployment
	asked   bool
	records int // how often the table was told of times alone
	steps   []string
}

// agent has hosts, and the goal that came last.
type agent struct {
	goal  *goal.Goal
	hosts map[string]*host
}

type host struct {
	goal    *goal.Goal
	running string
	fails   bool // to switch to anything but the build that is stable
	stays   bool // with what it runs: it fails to switch to any other
	silent  bool // it is gone, and its agent has counted it as failed
	slow    bool // does nothing yet
	state   string
}

func newWorld(t testing.TB, s Service, regions map[string]int) *world {
	w := &world{t: t, now: noon, table: s, agents: make(map[string]map[string]*agent), living: make(map[string][]string), answers: make(map[string]error)}
	w.m = New(s.clone())
	for region, n := range regions {
		a, b := &agent{hosts: make(map[string]*host)}, &agent{hosts: make(map[string]*host)}
		w.agents[region] = map[string]*agent{"a": a, "b": b}
		for i := range n {
			h := &host{state: goal.Ready}
			if s.Completed != nil {
				h.running = s.Completed.ExecutionID
			}
			[]*agent{a, b}[i%2].hosts[fmt.Sprintf("host-%d", i)] = h
		}
		w.living[region] = []string{"a", "b"}
	}
	return w
}

// step has the machine hear of something, and does at once what needs no time.
func (w *world) step(e Event) {
	w.steps = append(w.steps, fmt.Sprintf("%s %T%+v", w.now.Sub(noon), e, e))
	for _, a := range w.m.Step(w.now, e) {
		switch a := a.(type) {
		case Publish:
			if w.pending != nil {
				w.fatal("a second write before the first was answered")
			}
			if a.Goal.Version != a.Service.Version || a.Goal.Version <= a.Before {
				w.fatal("version %d after %d, the goal has %d", a.Service.Version, a.Before, a.Goal.Version)
			}
			w.pending = &a
		case Record:
			if a.Version == w.table.Version {
				d := a.Deployment
				w.table.Current = &d
				w.records++
			}
		case Answer:
			w.answers[a.Ask] = a.Err
		case AskRoster:
			w.asked = true
		case Check:
			w.checks = append(w.checks, a)
		case Notice:
			w.notices = append(w.notices, a.Deployment)
		}
	}
}

func (w *world) fatal(format string, args ...any) {
	w.t.Helper()
	steps := w.steps[max(0, len(w.steps)-12):]
	w.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(steps, "\n"))
}

// write puts what is to be published into the table; then agents may hear of it.
func (w *world) write() {
	p := w.pending
	if w.pending = nil; p == nil {
		return
	}
	if p.Before != w.table.Version {
		now := w.table.clone()
		w.step(Written{Version: p.Service.Version, Err: errors.New("somebody else has written"), Table: &now})
		return
	}
	w.table = p.Service.clone()
	w.goals = append(w.goals, p.Goal)
	w.step(Written{Version: p.Service.Version})
}

// restart begins with a machine that knows what the table has.
func (w *world) restart() {
	w.steps = append(w.steps, "restart")
	w.pending, w.asked, w.checks = nil, false, nil
	w.m = New(w.table.clone())
	w.step(Living{Agents: w.living})
}

// hear brings an agent the goal of some index, and its hosts.
func (w *world) hear(a *agent, i int) {
	if g := w.goals[i]; a.goal == nil || a.goal.Version < g.Version {
		a.goal = g
	}
}

// move has a host do what its agent's goal says, one step.
func (w *world) move(region, name string, a *agent, h *host) {
	if a.goal == nil || h.slow || h.silent {
		return
	}
	if h.goal == nil || h.goal.Version < a.goal.Version {
		h.goal = a.goal
		if h.state == goal.Failed { // one attempt for each goal
			h.state = goal.Ready
		}
	}
	g := h.goal
	if b := g.For(region, name); b != nil && g.Leave(region, name, h.running) {
		if h.stays || h.fails && (g.Stable == nil || b.ExecutionID != g.Stable.ExecutionID) {
			h.state = goal.Failed
			return
		}
		h.running = b.ExecutionID
	}
	if b := g.For(region, name); b != nil && h.running == b.ExecutionID {
		h.state = goal.Ready
		if b == &g.Target {
			h.state = goal.Healthy
		}
	}
}

// count is what an agent says of its hosts.
func (w *world) count(region, name string, a *agent) goal.Counts {
	c := goal.Counts{Service: "web", InStates: goal.InStates{Hosts: len(a.hosts)}}
	if a.goal == nil {
		c.Ready = c.Hosts
		return c
	}
	c.Version = a.goal.Version
	for host, h := range a.hosts {
		if h.running == a.goal.Target.ExecutionID {
			c.OnTarget++
		}
		state := h.state
		switch {
		case h.silent:
			state = goal.Failed
			c.Silent++
		case h.goal != a.goal:
			state = goal.Waiting
		}
		held := slices.Contains(a.goal.Held, host)
		below := a.goal.Named(region, host) == &a.goal.Target
		if state == goal.Failed && (held || !below) {
			state = goal.Sick
		}
		if below {
			c.Below++
			if held && state != goal.Healthy {
				c.Out++
			}
		}
		switch state {
		case goal.Healthy:
			c.Healthy++
		case goal.Failed:
			c.Failed++
		case goal.Sick:
			c.Sick++
		case goal.Waiting:
			c.Waiting++
		default:
			c.Ready++
		}
	}
	return c
}

func (w *world) roster(a *agent) (out []uint32) {
	for host := range a.hosts {
		if a.goal != nil && slices.Contains(a.goal.Held, host) {
			continue
		}
		out = append(out, uint32(goal.HashOf("web", host)))
	}
	slices.Sort(out)
	return out
}

// each calls f with all living agents, in order.
func (w *world) each(f func(region, name string, a *agent)) {
	for _, region := range slices.Sorted(maps.Keys(w.agents)) {
		for _, name := range w.living[region] {
			f(region, name, w.agents[region][name])
		}
	}
}

// turn has everything happen that can, and a second pass.
func (w *world) turn() {
	w.write()
	if w.asked {
		w.asked = false
		w.each(func(region, name string, a *agent) {
			w.step(Roster{Region: region, Agent: name, Hashes: w.roster(a)})
		})
	}
	w.write()
	w.each(func(region, name string, a *agent) {
		if len(w.goals) > 0 {
			w.hear(a, len(w.goals)-1)
		}
		for _, host := range slices.Sorted(maps.Keys(a.hosts)) {
			w.move(region, host, a, a.hosts[host])
		}
	})
	w.each(func(region, name string, a *agent) {
		w.step(Counted{Region: region, Agent: name, Counts: w.count(region, name, a)})
		w.write()
	})
	w.now = w.now.Add(time.Second)
	w.step(Tick{})
	w.check()
}

// check holds the world to what has to be true at every moment.
func (w *world) check() {
	w.t.Helper()
	for i, g := range w.goals {
		if i > 0 && g.Version <= w.goals[i-1].Version {
			w.fatal("goal %d follows %d", g.Version, w.goals[i-1].Version)
		}
		for name, r := range g.Regions {
			if i > 0 && w.goals[i-1].Deployment == g.Deployment && r.Cut < w.goals[i-1].Regions[name].Cut {
				w.fatal("the cut of %s fell", name)
			}
		}
	}
}

// mayRun is whether some goal has let a host run the target of a deployment.
func (w *world) mayRun(region, name, running string) bool {
	if running == "" || w.table.Completed != nil && running == w.table.Completed.ExecutionID {
		return true
	}
	return slices.ContainsFunc(w.goals, func(g *goal.Goal) bool {
		b := g.For(region, name)
		return b != nil && b.ExecutionID == running
	})
}

func policy(t testing.TB, change func(*Policy)) Policy {
	t.Helper()
	p := Policy{Waves: []goal.Share{"20%", "100%"}, Bake: 3 * time.Second, MaxFailed: "0"}
	if change != nil {
		change(&p)
	}
	if err := p.Complete(); err != nil {
		t.Fatal(err)
	}
	return p
}

// until has turns pass until the deployment is in a state.
func (w *world) until(state string) *Deployment {
	w.t.Helper()
	for range 400 {
		if d := w.table.Current; d != nil && (d.State == state || state == Baking && w.m.State() == Baking) {
			return d
		}
		w.turn()
	}
	w.fatal("%s, waits: %v; expected %s", w.m.State(), w.m.Waits(), state)
	return nil
}

func (w *world) deploy(n int, p Policy) {
	w.step(Living{Agents: w.living})
	w.step(Deploy{Ask: "deploy", ID: id(n), Target: build(n), Policy: p, By: "carol"})
	w.write()
	if err := w.answers["deploy"]; err != nil {
		w.fatal("%v", err)
	}
}

func (w *world) land(n int, regions ...string) {
	for _, r := range regions {
		w.step(Landed{ExecutionID: build(n).ExecutionID, Region: r, SHA256: sum})
	}
}

// on is how many hosts of a region run a build.
func (w *world) on(region string, n int) (on int) {
	for _, a := range w.agents[region] {
		for _, h := range a.hosts {
			if h.running == build(n).ExecutionID {
				on++
			}
		}
	}
	return on
}
