package host

import (
	"maps"
	"testing"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// TestNews: a build costs a host four messages to its agent, however many waves there are, and
// one for each phase of the switch that lasts. What goes wrong is said at once, and what is well
// again.
func TestNews(t *testing.T) {
	runs := hostwire.ServiceState{Service: "web", Goal: 1, State: goal.Healthy, Running: "one"}
	l := &link{dirty: make(chan struct{}, 1), states: map[string]hostwire.ServiceState{"web": runs}, holds: make(map[string]hostwire.Holds)}
	c := &connected{states: maps.Clone(l.states), holds: make(map[string]hostwire.Holds)}
	state := func(change func(s *hostwire.ServiceState)) func() {
		return func() {
			s := l.states["web"]
			change(&s)
			l.say(s)
		}
	}
	holds := func(segments int, whole bool) func() {
		return func() { l.has(hostwire.Holds{ExecutionID: "two", Segments: segments, Whole: whole}) }
	}
	for _, step := range []struct {
		what string
		do   func()
		says int
	}{
		{"a goal names another build", state(func(s *hostwire.ServiceState) { s.Goal, s.State = 2, goal.Waiting }), 0},
		{"its first segment is here", holds(1, false), 0},
		{"and the next", holds(2, false), 0},
		{"another goal", state(func(s *hostwire.ServiceState) { s.Goal, s.State = 3, goal.Waiting }), 0},
		{"it is to run what it runs", state(func(s *hostwire.ServiceState) { s.State = goal.Healthy }), 0},
		{"it is to run the other one again", state(func(s *hostwire.ServiceState) { s.State = goal.Waiting }), 0},
		{"it does not come", state(func(s *hostwire.ServiceState) { s.Phase, s.Error = "fetch", "no room" }), 1},
		{"it comes again", state(func(s *hostwire.ServiceState) { s.Phase, s.Error = "", "" }), 1},
		{"it is whole", holds(3, true), 1},
		{"its release is in its place", state(func(s *hostwire.ServiceState) { s.State = goal.Ready }), 1},
		{"a wave of others", state(func(s *hostwire.ServiceState) { s.Goal = 3 }), 0},
		{"its wave", state(func(s *hostwire.ServiceState) { s.Goal, s.Wants = 4, "two" }), 1},
		{"it switches", state(func(s *hostwire.ServiceState) { s.State, s.Wants = goal.Switching, "" }), 1},
		{"it runs", state(func(s *hostwire.ServiceState) { s.State, s.Running = goal.Healthy, "two" }), 1},
		{"the deployment is done", state(func(s *hostwire.ServiceState) { s.Goal = 5 }), 0},
		{"it is ill", state(func(s *hostwire.ServiceState) { s.State, s.Error = goal.Failed, "exit status 1" }), 1},
	} {
		step.do()
		if got := l.news(c); len(got) != step.says {
			t.Errorf("%s: %d messages, expected %d: %+v", step.what, len(got), step.says, got)
		}
		if got := l.news(c); len(got) != 0 {
			t.Errorf("%s: said again: %+v", step.what, got)
		}
	}
}

// TestNewsOfNewStream: an agent that was told that a host waits, or is ready, as one that was
// started again is, hears when it is neither.
func TestNewsOfNewStream(t *testing.T) {
	for _, told := range []string{goal.Waiting, goal.Ready} {
		for _, now := range []string{goal.Waiting, goal.Ready, goal.Healthy} {
			runs := hostwire.ServiceState{Service: "web", Goal: 1, State: told, Running: "one"}
			l := &link{dirty: make(chan struct{}, 1), states: map[string]hostwire.ServiceState{"web": runs}}
			c := &connected{states: maps.Clone(l.states), holds: make(map[string]hostwire.Holds)}
			runs.Goal, runs.State = 2, now
			l.say(runs)
			if got := l.news(c); (len(got) == 1) != (told != now) {
				t.Errorf("told %s, now %s: %+v", told, now, got)
			}
		}
	}
}
