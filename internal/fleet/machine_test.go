package fleet

import (
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// A goal goes down at once, to hosts of its service alone, and to who comes later.
func TestGoalsGoDown(t *testing.T) {
	w := newWorld(t)
	names := w.join(2, "a")
	other := &testHost{w: w, name: "other", state: hostwire.ServiceState{Service: "db", State: goal.Waiting}}
	w.hello(other)
	w.follow(1, 0)
	late := w.join(1, "b")[0]
	for _, name := range append(names, late) {
		if got := take[*hostwire.Goal](w.hosts[name]); len(got) != 1 || string(got[0].Wire) != "goal 1" {
			t.Errorf("%s got %+v", name, got)
		}
	}
	if got := take[*hostwire.Goal](other); len(got) != 0 {
		t.Errorf("a host of another service got %+v", got)
	}
	w.follow(1, goal.Circle) // no newer one
	if got := take[*hostwire.Goal](w.hosts[late]); len(got) != 0 {
		t.Errorf("the same version went down twice: %+v", got)
	}
	w.m.beats([]byte("beat"))
	if got := take[*hostwire.Beat](other); len(got) != 1 {
		t.Errorf("%d beats", len(got))
	}

	// What is believed no more goes to nobody, and an older one counts again.
	w.follow(9, goal.Circle)
	w.m.recall(goal.Recalls, []byte("recalls"))
	w.m.unfollow("web")
	w.m.beats(nil)
	w.m.recall(goal.Recalls, nil)
	take[hostwire.Message](w.hosts[late])
	w.hello(w.hosts[late])
	for _, m := range take[hostwire.Message](w.hosts[late]) {
		switch m.(type) {
		case *hostwire.Goal, *hostwire.Beat:
			t.Errorf("it got %+v", m)
		}
	}
	if got := w.m.report(); len(got) != 0 {
		t.Errorf("without a goal: %+v", got)
	}
	w.follow(2, goal.Circle)
	if got := take[*hostwire.Goal](w.hosts[late]); len(got) != 1 || string(got[0].Wire) != "goal 2" {
		t.Errorf("it got %+v", got)
	}
}

// No more switch at a time than may, of the region and of each zone, and all do in the end.
func TestLeave(t *testing.T) {
	for name, c := range map[string]struct {
		most       goal.Share
		now        bool
		wantRegion int // at most so many at a time
		wantZone   int
	}{
		"a share":          {"10%", false, 6, 3},
		"a number":         {"1", false, 1, 1},
		"none is one":      {"0", false, 1, 1},
		"all":              {"100%", false, 60, 30},
		"now":              {"10%", true, 60, 30},
		"more than are of": {"500", false, 60, 30},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			names := append(w.join(30, "a"), w.join(30, "b")...)
			w.follow(1, goal.Circle, func(g *goal.Goal) { g.MaxUnavailable, g.Now = c.most, c.now })
			for _, n := range names {
				w.says(w.hosts[n], goal.Ready, stable, target)
			}
			most, done := 0, 0
			for round := range 100 {
				zones := map[string]int{}
				var switching []*testHost
				for _, n := range names {
					h := w.hosts[n]
					for _, l := range take[*hostwire.Leave](h) {
						if l.Version != 1 || l.Service != "web" || h.state.Running == target {
							t.Fatalf("%s: %+v", n, l)
						}
						zones[h.zone]++
						switching = append(switching, h)
					}
				}
				if len(switching) > c.wantRegion || zones["a"] > c.wantZone || zones["b"] > c.wantZone {
					t.Fatalf("round %d: %d switch, %v", round, len(switching), zones)
				}
				most = max(most, len(switching))
				if len(switching) == 0 {
					break
				}
				for _, h := range switching {
					w.says(h, goal.Switching, stable, "")
				}
				w.check()
				for _, h := range switching {
					w.says(h, goal.Healthy, target, "")
					done++
				}
				w.check()
			}
			if most != c.wantRegion || done != len(names) {
				t.Errorf("at most %d switched together, %d in all", most, done)
			}
			if n := w.counts(); n.Healthy != 60 || n.OnTarget != 60 || n.Below != 60 {
				t.Errorf("%+v", n)
			}
		})
	}
}

// Only who is below the cut gets leave; held and paused ones do not.
func TestWhoGetsLeave(t *testing.T) {
	w := newWorld(t)
	names := w.join(40, "a")
	cut := goal.Circle / 2
	w.follow(1, cut, func(g *goal.Goal) { g.MaxUnavailable, g.Held = "100%", names[:5] })
	for _, n := range names {
		w.says(w.hosts[n], goal.Ready, stable, target)
	}
	for i, n := range names {
		want := i >= 5 && goal.HashOf("web", n) < cut
		if got := len(take[*hostwire.Leave](w.hosts[n])) == 1; got != want {
			t.Errorf("%s has leave: %v", n, got)
		}
	}
	if n := w.counts(); n.Hosts != 40 || n.Below >= 40 || n.Below == 0 || n.Ready != 40 {
		t.Errorf("%+v", n)
	}
	if roster := w.m.roster("web"); len(roster) != 35 || !slices.IsSorted(roster) {
		t.Errorf("roster of %d", len(roster))
	}

	w = newWorld(t)
	h := w.hosts[w.join(1, "a")[0]]
	w.follow(1, goal.Circle, func(g *goal.Goal) { g.Paused = true })
	w.says(h, goal.Ready, stable, target)
	if len(take[*hostwire.Leave](h)) != 0 {
		t.Error("leave in a pause")
	}
	w.follow(2, goal.Circle)
	if got := take[*hostwire.Leave](h); len(got) != 1 || got[0].Version != 2 {
		t.Errorf("after the pause: %+v", got)
	}
	w.says(h, goal.Ready, stable, start)
	if len(take[*hostwire.Leave](h)) != 0 {
		t.Error("leave for a build that no goal names")
	}
}

// Who has leave when a new version comes gets it for that one, and nobody else its place.
func TestLeaveFollowsTheGoal(t *testing.T) {
	w := newWorld(t)
	for _, n := range w.join(10, "a") {
		h := w.hosts[n]
		h.state.State, h.state.Wants = goal.Ready, target
		w.hello(h)
	}
	var had *testHost
	for version := range int64(3) {
		w.follow(version+1, goal.Circle)
		for _, h := range w.hosts {
			got := take[*hostwire.Leave](h)
			if len(got) == 0 {
				continue
			}
			if len(got) > 1 || got[0].Version != version+1 || had != nil && had != h {
				t.Errorf("%s: %+v", h.name, got)
			}
			had = h
		}
		w.check()
	}
	if had == nil {
		t.Fatal("nobody has leave")
	}
	// Turned back: the place is free once the host says that it does not switch.
	w.follow(4, 0)
	if w.m.services["web"].switching != 1 {
		t.Error("its place is free, and it may be switching")
	}
	w.says(had, goal.Ready, stable, "")
	if w.m.services["web"].switching != 0 {
		t.Error("its place is not free")
	}
}

// A leave that is not used goes to another host, and who does not come to an end is not
// waited for for ever. Both are named.
func TestLeaveLapses(t *testing.T) {
	w := newWorld(t)
	for _, n := range w.join(2, "a") {
		w.says(w.hosts[n], goal.Ready, stable, "")
	}
	w.follow(1, goal.Circle)
	first, second := w.hosts["host-a0"], w.hosts["host-a1"]
	w.says(first, goal.Ready, stable, target)
	w.says(second, goal.Ready, stable, target)
	leaves := func(h *testHost) int { return len(take[*hostwire.Leave](h)) }
	if leaves(first) != 1 || leaves(second) != 0 {
		t.Fatal("expected one to have leave")
	}
	w.pass(lapseAfter - time.Second)
	if leaves(second) != 0 {
		t.Error("it lapsed early")
	}
	w.pass(2 * time.Second)
	if leaves(second) != 1 || len(w.warned) != 1 || !strings.Contains(w.warned[0], first.name) {
		t.Errorf("expected the other to have leave, %q", w.warned)
	}
	w.says(second, goal.Switching, stable, "")
	w.pass(maxSwitching - time.Second)
	if leaves(first) != 0 {
		t.Error("two switch")
	}
	w.pass(2 * time.Second)
	if leaves(first) != 1 || !strings.Contains(strings.Join(w.warned, ""), second.name) {
		t.Errorf("expected the first to have leave again, %q", w.warned)
	}
	w.says(first, goal.Switching, stable, "")
	w.says(second, goal.Healthy, target, "")
	w.check()
}

// A host that is lost keeps its place for as long as it may be switching.
func TestLostHosts(t *testing.T) {
	w := newWorld(t)
	w.join(4, "a")
	w.follow(1, goal.Circle)
	h := func(i int) *testHost { return w.hosts[fmt.Sprint("host-a", i)] }
	lose := func(h *testHost) { w.m.ended(w.m.hosts[h.name], h, false) }
	w.says(h(0), goal.Healthy, target, "")
	for i := 1; i < 4; i++ {
		w.says(h(i), goal.Ready, stable, target)
	}
	w.says(h(1), goal.Switching, stable, "")
	for i := range 3 {
		lose(h(i))
	}
	if n := w.counts(); n.Healthy != 1 || n.Switching != 1 || n.Absent != 1 || n.Ready != 1 || n.Out != 1 {
		t.Errorf("just lost: %+v", n)
	}
	if len(w.m.roster("web")) != 4 {
		t.Error("a host of just now is in no roster")
	}
	w.pass(seenFor + time.Second)
	if len(w.m.roster("web")) != 1 {
		t.Error("a host of more than a minute ago is in the roster")
	}
	if len(take[*hostwire.Leave](h(3))) != 0 {
		t.Error("another one has leave while it may be switching")
	}
	w.m.report()
	w.pass(silentFor)
	if len(take[*hostwire.Leave](h(3))) != 1 {
		t.Error("nobody else has leave")
	}
	if n := w.counts(); n.Failed != 2 || n.Silent != 2 || n.Absent != 1 || n.Ready != 1 {
		t.Errorf("silent for long: %+v", n)
	}
	reports := w.m.report()
	if len(reports) != 1 || len(reports[0].Failures) != 2 || !strings.Contains(reports[0].Failures[0].Error, "not heard of") {
		t.Errorf("%+v", reports)
	}
	// It comes back, and tells how it went.
	h(1).state.State, h(1).state.Running, h(1).state.Wants = goal.Healthy, target, ""
	w.hello(h(1))
	if n := w.counts(); n.Healthy != 1 || n.Failed != 1 || n.Silent != 1 {
		t.Errorf("back: %+v", n)
	}
	w.m.ended(w.m.hosts[h(1).name], h(1), true)
	if n := w.counts(); n.Hosts != 3 {
		t.Errorf("one has left in order: %+v", n)
	}
	w.pass(forgetAfter)
	if n := w.counts(); n.Hosts != 1 {
		t.Errorf("long lost: %+v", n)
	}
}

// The end of a stream that has another one in its place ends nothing.
func TestLateEndOfAStream(t *testing.T) {
	w := newWorld(t)
	h := w.hosts[w.join(1, "a")[0]]
	old := &testHost{w: w, name: h.name}
	*old = *h
	known := w.m.hosts[h.name]
	w.m.hosts[h.name].link = old
	w.hello(h)
	if old.closed == nil {
		t.Error("the old stream goes on")
	}
	w.m.ended(known, old, true)
	if w.m.hosts[h.name] == nil || w.m.hosts[h.name].link == nil {
		t.Error("the new stream was ended")
	}
}

// A start of an agent knows nothing; hellos say all of it.
func TestRebuiltFromHellos(t *testing.T) {
	w := newWorld(t)
	w.follow(1, goal.Circle)
	for i := range 20 {
		h := &testHost{w: w, name: fmt.Sprint("host-", i)}
		h.state = hostwire.ServiceState{Service: "web", Goal: 1, State: goal.Healthy, Running: target}
		if i < 3 {
			h.state = hostwire.ServiceState{Service: "web", Goal: 1, State: goal.Switching, Running: stable}
		}
		if i == 19 {
			h.state = hostwire.ServiceState{Service: "web", Goal: 1, State: goal.Ready, Running: stable, Wants: target}
		}
		w.hosts[h.name] = h
		w.hello(h)
	}
	if n := w.counts(); n.Switching != 3 || n.Healthy != 16 || n.Ready != 1 {
		t.Errorf("%+v", n)
	}
	if len(take[*hostwire.Leave](w.hosts["host-19"])) != 0 {
		t.Error("leave beside three that switch, of two that may")
	}
}

// Hosts are counted by zone too: where they name one, and the largest zones alone.
func TestZonesAreCounted(t *testing.T) {
	w := newWorld(t)
	w.join(3, "")
	w.follow(1, goal.Circle)
	if n := w.counts(); len(n.Zones) != 0 {
		t.Errorf("nobody names a zone: %+v", n.Zones)
	}
	w.m.report()
	w.join(2, "b")
	names := w.join(4, "a")
	w.says(w.hosts[names[0]], goal.Healthy, target, "")
	want := []goal.Zone{
		{InStates: goal.InStates{Hosts: 3, Waiting: 3, HoldStable: 3}},
		{Zone: "a", InStates: goal.InStates{Hosts: 4, Healthy: 1, Waiting: 3, OnTarget: 1, HoldStable: 3}},
		{Zone: "b", InStates: goal.InStates{Hosts: 2, Waiting: 2, HoldStable: 2}},
	}
	if n := w.counts(); !slices.Equal(n.Zones, want) || n.Check() != nil {
		t.Errorf("%+v, want %+v, %v", n.Zones, want, n.Check())
	}
	if len(w.m.report()) != 1 {
		t.Error("zones have changed, and nobody was told")
	}
	for i := range goal.MaxZones {
		w.join(2, fmt.Sprint("more-", i))
	}
	n := w.counts()
	if len(n.Zones) != goal.MaxZones || n.Zones[0].Zone != "" || n.Zones[1].Zone != "a" || n.Check() != nil {
		t.Errorf("of too many: %+v, %v", n.Zones, n.Check())
	}
}

// Counts go up when they change, else every ten seconds; failures are told once, eight at a
// time.
func TestReports(t *testing.T) {
	w := newWorld(t)
	names := w.join(20, "a")
	if got := w.m.report(); len(got) != 0 {
		t.Errorf("of a service without a goal: %+v", got)
	}
	w.follow(7, goal.Circle)
	w.m.follow(&goal.Goal{Service: "empty", Version: 1}, []byte("goal"))
	if got := w.m.report(); len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	if got := w.m.report(); len(got) != 0 {
		t.Errorf("nothing has changed: %+v", got)
	}
	for _, n := range names {
		h := w.hosts[n]
		h.state.Goal, h.state.Phase, h.state.Error, h.state.Output, h.state.Attempt = 7, "exec", "exit status 1", "no such file", 1
		w.says(h, goal.Failed, stable, "")
		h.state.Goal = 8
		w.says(h, goal.Failed, stable, target) // the same, and it would try again
		h.state.Goal = 7
	}
	told := map[string]bool{}
	for i, want := range []int{8, 8, 4, 0} {
		got := w.m.report()
		if want == 0 {
			if len(got) != 0 {
				t.Errorf("%+v", got)
			}
			continue
		}
		if len(got) != 1 || len(got[0].Failures) != want || got[0].Failed != 20 || got[0].Version != 7 {
			t.Fatalf("report %d: %+v", i, got)
		}
		for _, f := range got[0].Failures {
			if told[f.Host] || f.Output != "no such file" || f.Version != 7 || f.Phase != "exec" {
				t.Errorf("%+v", f)
			}
			told[f.Host] = true
		}
		if err := got[0].Check(); err != nil {
			t.Error(err)
		}
	}
	w.m.now = w.m.now.Add(reportAgain)
	if got := w.m.report(); len(got) != 2 {
		t.Errorf("after ten seconds: %+v", got)
	}
	all, rest, views := w.m.list("web", goal.Failed, "", 5)
	if all != 20 || rest != 15 || len(views) != 5 || views[0].Output == "" || !slices.IsSortedFunc(views, func(a, b api.HostView) int { return strings.Compare(a.Host, b.Host) }) {
		t.Errorf("%d, %+v", all, views)
	}
}

// States are what hosts say, as far as that can be.
func TestStates(t *testing.T) {
	w := newWorld(t)
	h := w.hosts[w.join(1, "a")[0]]
	w.follow(1, goal.Circle)
	for _, c := range []struct {
		said, running, wants string
		whole                bool
		want                 string
	}{
		{goal.Healthy, stable, "", false, goal.Waiting},
		{goal.Healthy, stable, "", true, goal.Ready},
		{goal.Ready, stable, target, false, goal.Ready},
		{goal.Ready, stable, "", false, goal.Ready},
		{goal.Healthy, target, "", false, goal.Healthy},
		{goal.Waiting, "", "", false, goal.Waiting},
		{goal.Waiting, "", "", true, goal.Ready},
		{goal.Switching, stable, "", false, goal.Switching},
		{goal.Failed, stable, "", false, goal.Failed},
		{goal.Sick, stable, "", false, goal.Sick},
		{goal.Sick, target, "", false, goal.Failed},
		{"dancing", target, "", false, goal.Waiting},
		{goal.Absent, stable, "", false, goal.Waiting},
	} {
		w.m.holds(w.m.hosts[h.name], &hostwire.Holds{ExecutionID: target, Whole: c.whole})
		w.says(h, c.said, c.running, c.wants)
		if got := w.m.stateOf(w.m.services["web"].hosts[h.name]); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}

	// What fails before its turn has come is none of the target's failures, nor is who leaves then.
	w.follow(2, 0)
	w.says(h, goal.Failed, stable, "")
	r := w.m.services["web"].hosts[h.name]
	if got := w.m.stateOf(r); got != goal.Sick {
		t.Errorf("failed above the cut: %s", got)
	}
	if n := w.m.counted(w.m.services["web"]); n.Failed != 0 || n.Sick != 1 || n.Below != 0 || n.Out != 0 {
		t.Errorf("%+v", n)
	}
	r.host.lostAt, r.silent = w.m.now, true
	if got := w.m.stateOf(r); got != goal.Absent {
		t.Errorf("failed above the cut, and lost: %s", got)
	}
}

// What hosts can make the agent keep is bounded.
func TestHostsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.m.maxHosts = 3
	names := w.join(3, "a")
	refused := &testHost{w: w, name: "fourth"}
	refused.state = hostwire.ServiceState{Service: "web"}
	if w.hello(refused); refused.closed != errFull || len(w.m.hosts) != 3 {
		t.Errorf("%v, %d hosts", refused.closed, len(w.m.hosts))
	}
	w.m.ended(w.m.hosts[names[1]], w.hosts[names[1]], false)
	if w.hello(refused); refused.closed != nil || len(w.m.hosts) != 3 || w.m.hosts[names[1]] != nil {
		t.Errorf("the lost one has kept its place: %v", refused.closed)
	}

	w = newWorld(t)
	w.m.maxHosts = 1e6
	for i := range maxIdleServices {
		h := &testHost{w: w, name: fmt.Sprint("host", i)}
		w.hosts[h.name] = h
		h.state = hostwire.ServiceState{Service: fmt.Sprint("service-", i)}
		w.hello(h)
	}
	more := &testHost{w: w, name: "more"}
	more.state = hostwire.ServiceState{Service: "another"}
	if w.hello(more); len(w.m.services) != maxIdleServices || len(w.warned) != 1 {
		t.Errorf("%d services, %q", len(w.m.services), w.warned)
	}
	w.m.ended(w.m.hosts["host0"], w.hosts["host0"], true)
	if w.hello(more); w.m.services["another"] == nil {
		t.Error("there is room again")
	}
	w.follow(1, 0)
	if len(w.m.services) != maxIdleServices+1 {
		t.Error("a goal finds no room")
	}

	w = newWorld(t)
	w.m.maxHosts = 1e6
	for i := range 3 * maxZones {
		h := &testHost{w: w, name: fmt.Sprint("host", i), zone: fmt.Sprint("zone-", i)}
		h.state = hostwire.ServiceState{Service: "web"}
		w.hello(h)
	}
	if n := len(w.m.services["web"].zones); n > maxZones+1 {
		t.Errorf("%d zones", n)
	}
}

// A host that reads nothing is out.
func TestHostThatReadsNothing(t *testing.T) {
	w := newWorld(t)
	h := w.hosts[w.join(1, "a")[0]]
	h.full = true
	if w.follow(1, 0); h.closed != errSlow {
		t.Errorf("%v", h.closed)
	}

	stalled := &stalledStream{release: make(chan struct{})}
	o := &outbox{stream: stalled}
	for i := range maxWaiting + 1 { // one is on its way
		if !o.put(fmt.Sprint(i), hostwire.Encoded(fmt.Sprint(i))) {
			t.Fatalf("no room for message %d", i)
		}
		for i == 0 && o.waits() > 0 {
			runtime.Gosched() // until it is on its way
		}
	}
	if o.put("more", nil) || !o.put("1", hostwire.Encoded("1 again")) {
		t.Error("expected room for a newer one of a name alone")
	}
	close(stalled.release)
	o.senders.Wait()
	o.end(io.EOF)
	if n := len(stalled.sent); n != maxWaiting+1 || stalled.sent[0] != "0" || stalled.sent[n-1] != "1 again" || stalled.why != io.EOF {
		t.Errorf("%d sent, %q", n, stalled.sent)
	}
	if o.put("late", nil); o.sending {
		t.Error("sent after the end")
	}
}

// stalledStream takes nothing before it is released.
type stalledStream struct {
	release chan struct{}
	sent    []string
	why     error
}

func (s *stalledStream) SendEncoded(e hostwire.Encoded) error {
	<-s.release
	s.sent = append(s.sent, string(e))
	return nil
}

func (s *stalledStream) Abort(why error) { s.why = why }

// Recipes grow, are told piecemeal to who knows the beginning, whole to who comes later,
// and not to who holds the build.
func TestRecipes(t *testing.T) {
	w := newWorld(t)
	shape := manifest.ShapeOf(1 << 30)
	layout, err := manifest.NewLayout(manifest.Ramp, shape.Size)
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	look := func(id string) (hostwire.Recipe, bool) {
		if id != target || known == 0 {
			return hostwire.Recipe{}, false
		}
		r := hostwire.Recipe{ExecutionID: id, Key: "k", Size: shape.Size, Scheme: manifest.Ramp, PieceLength: shape.PieceLength, PartLength: shape.PartLength, Sealed: known == layout.NumSegments()}
		for i := range known {
			r.InfoHashes = announce.InfoHashes(r.InfoHashes).Append(manifest.InfoHash{1, byte(i)})
		}
		return r, true
	}
	early, holder := w.hosts[w.join(2, "a")[0]], w.hosts["host-a1"]
	w.m.holds(w.m.hosts[holder.name], &hostwire.Holds{ExecutionID: target, Whole: true})
	w.follow(1, 0)
	w.m.cook(look)
	if got := take[*hostwire.Recipe](early); len(got) != 0 {
		t.Errorf("nothing is known: %+v", got)
	}
	var sum announce.InfoHashes
	for _, known = range []int{2, 2, 5, layout.NumSegments()} {
		w.m.cook(look)
		for _, r := range take[*hostwire.Recipe](early) {
			if r.From != sum.Len() {
				t.Errorf("from %d, expected %d", r.From, sum.Len())
			}
			sum = append(sum, r.InfoHashes...)
		}
		if sum.Len() != known {
			t.Errorf("%d segments of %d", sum.Len(), known)
		}
	}
	late := w.hosts[w.join(1, "b")[0]]
	if got := take[*hostwire.Recipe](late); len(got) != 1 || got[0].From != 0 || !reflect.DeepEqual(got[0].InfoHashes, sum) || !got[0].Sealed {
		t.Errorf("%+v", got)
	}
	if got := take[*hostwire.Recipe](holder); len(got) != 0 {
		t.Errorf("who holds it got %+v", got)
	}
	w.follow(2, 0, func(g *goal.Goal) { g.Target = *g.Stable })
	w.m.cook(look)
	if len(w.m.recipes) != 0 {
		t.Error("a recipe is kept that no goal names")
	}
}

// Whatever comes in whatever order: counts agree with what there is, and no more switch
// than may.
func TestAnyOrder(t *testing.T) {
	seeds := uint64(30)
	if raced { // one goroutine: the detector finds nothing here, and takes twenty times as long
		seeds = 5
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t)
		w.join(20, "a")
		w.join(15, "b")
		w.follow(1, goal.Circle)
		version := int64(1)
		names := make([]string, 0, len(w.hosts))
		for n := range w.hosts {
			names = append(names, n)
		}
		slices.Sort(names)
		for range 2000 {
			h := w.hosts[names[rng.IntN(len(names))]]
			known := w.m.hosts[h.name]
			connected := known != nil && known.link != nil
			switch rng.IntN(13) {
			case 12:
				if rng.IntN(10) == 0 {
					w.m.unfollow("web")
				}
			case 0:
				version++
				w.follow(version, rng.Int64N(goal.Circle+1), func(g *goal.Goal) { g.Paused = rng.IntN(4) == 0 })
			case 1:
				if connected {
					w.m.ended(known, h, rng.IntN(2) == 0)
				}
			case 2, 3:
				w.hello(h)
			case 4:
				w.pass(time.Duration(rng.IntN(40)) * time.Second)
			default:
				if !connected {
					continue
				}
				leaves := take[*hostwire.Leave](h)
				switch {
				case h.state.State == goal.Switching:
					w.says(h, []string{goal.Healthy, goal.Failed}[rng.IntN(2)], []string{stable, target}[rng.IntN(2)], "")
				case len(leaves) > 0 && leaves[len(leaves)-1].Version == version && rng.IntN(3) > 0:
					w.says(h, goal.Switching, h.state.Running, "")
				default:
					w.says(h, goal.Ready, h.state.Running, []string{"", target, stable}[rng.IntN(3)])
				}
			}
			w.check()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}

func (o *outbox) waits() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.waiting)
}
