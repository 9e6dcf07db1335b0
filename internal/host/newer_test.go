package host

import (
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/signing"
)

// TestNewerThanKnown: what a newer version says and a host cannot follow is said of the
// service that it is about. The stream stays, other services go on, and so does this one
// with the next goal.
func TestNewerThanKnown(t *testing.T) {
	a := newAgent(t)
	startHost(t, t.TempDir(), func(c *Config) { c.Services = []string{"web", "worker"} }, a.url)
	one, two, three := newBuild(t, 1), newBuild(t, 2), newBuild(t, 3)
	for _, b := range []*testBuild{one, two, three} {
		a.has(b)
	}
	of := func(service string) (s hostwire.ServiceState) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, said := range a.states {
			if said.Service == service {
				s = said
			}
		}
		return s
	}
	deploy := func(service string, version int64, b *testBuild) {
		t.Helper()
		g := goalOf(version, b, nil)
		g.Service = service
		a.say(sign(t, g, key), b.recipe)
		until(t, "leave is wanted", func() bool { return of(service).Wants == b.goal.ExecutionID })
		a.say(&hostwire.Leave{Service: service, Version: version, Seconds: 30})
		until(t, service+" runs it", func() bool { s := of(service); return s.State == goal.Healthy && s.Running == b.goal.ExecutionID })
	}
	failed := func(phase string, says ...string) {
		t.Helper()
		until(t, "it is said", func() bool { s := of("web"); return s.State == goal.Failed && s.Phase == phase })
		for _, text := range append(says, "a newer agent host is needed") {
			if s := of("web"); !strings.Contains(s.Error, text) {
				t.Errorf("%q is not said: %+v", text, s)
			}
		}
	}

	later := `{"ofLater":{"wire":"AA=="}}`
	if err := a.connected().SendEncoded(append(binary.BigEndian.AppendUint32(nil, uint32(len(later))), later...)); err != nil {
		t.Fatal(err)
	}
	newer := *two.recipe
	newer.Scheme, newer.PieceLength = "steps", 7
	a.say(sign(t, goalOf(10, two, nil), key), &newer)
	failed("fetch", `steps`)
	a.say(&newer)
	deploy("worker", 1, one)
	deploy("web", 20, one)

	text, err := json.Marshal(goalOf(30, two, one))
	doc := make(map[string]any)
	if err == nil {
		err = json.Unmarshal(text, &doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	doc["window"] = "at night"
	wire, err := signing.Envelope{Kinds: []string{"landfall-goal-v1"}, MaxLength: goal.MaxLength}.Sign(t.Context(), key, "landfall-goal-v1", doc)
	if err != nil {
		t.Fatal(err)
	}
	a.say(&hostwire.Goal{Wire: wire})
	failed("goal", "goal 30 of web", "window")
	if s := of("web"); s.Running != one.goal.ExecutionID || s.Goal != 20 {
		t.Errorf("%+v", s)
	}
	deploy("worker", 2, three)
	deploy("web", 40, three)

	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.hellos) != 1 {
		t.Errorf("%d streams", len(a.hellos))
	}
	if slices.ContainsFunc(a.states, func(s hostwire.ServiceState) bool { return s.Service == "worker" && s.State == goal.Failed }) {
		t.Error("the other service has failed")
	}
}
