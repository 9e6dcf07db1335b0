package host

import (
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// TestAgentTakenOver: an agent that does what it likes has a host switch to nothing but what
// a seeder has signed for it, and what it keeps back shows as age.
func TestAgentTakenOver(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t)
	h := startHost(t, dir, nil, a.url)
	one, two, other := newBuild(t, 1), newBuild(t, 2), newBuild(t, 3)
	for _, b := range []*testBuild{one, two, other} {
		a.has(b)
	}
	// What it says of a build, and of bytes of another one, is of no use without a goal; one
	// of its own making is none, as new as it may be.
	a.say(sign(t, goalOf(99, two, nil), newKey()), two.recipe, &hostwire.Leave{Service: "web", Version: 99, Seconds: 30})
	a.say(sign(t, goalOf(11, one, nil), key), one.recipe)
	a.await("it wants leave", func(s hostwire.ServiceState) bool { return s.Wants == one.goal.ExecutionID })
	if h.shelf.Goal("web").Version != 11 {
		t.Errorf("goal %d: one that the agent has made counts", h.shelf.Goal("web").Version)
	}
	a.say(&hostwire.Leave{Service: "web", Version: 11, Seconds: 30})
	a.await("the first build runs", func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })

	// The host is above the cut, then held, then its gate is closed: leave is none.
	version := int64(20)
	for what, change := range map[string]func(*goal.Goal){
		"the cut": func(g *goal.Goal) { g.Regions[testRegion] = goal.Region{Open: true} },
		"held":    func(g *goal.Goal) { g.Held = []string{"host-1"} },
		"a gate":  func(g *goal.Goal) { g.Regions[testRegion] = goal.Region{Cut: goal.Circle} },
		"another region's": func(g *goal.Goal) {
			g.Regions = map[string]goal.Region{"region-b": {Open: true, Cut: goal.Circle}}
		},
	} {
		version++
		g := goalOf(version, two, one)
		change(g)
		a.say(sign(t, g, key), two.recipe, &hostwire.Leave{Service: "web", Version: version, Seconds: 30})
		until(t, "the goal is here", func() bool { return h.shelf.Goal("web").Version == version })
		until(t, "the build is held", func() bool { return h.services["web"].release.Placed(two.goal.ExecutionID) })
		a.say(&hostwire.Leave{Service: "web", Version: version, Seconds: 30})
		// Two of the service's looks later it would have begun.
		began := time.Now()
		until(t, "it had time to switch", func() bool { return time.Since(began) > 2*lookInterval })
		if runs(t, dir) != "build 1" {
			t.Fatalf("%s: it has switched", what)
		}
	}
	// Another build's bytes under the goal's name.
	lies := *other.recipe
	lies.ExecutionID, lies.Key, lies.Size = two.recipe.ExecutionID, two.recipe.Key, two.recipe.Size
	a.say(&lies)
	// An older goal changes nothing, and that no newer one comes is to be seen.
	a.say(sign(t, goalOf(12, two, one), key))
	age := func() float64 {
		if s := h.Status(); s.GoalAge != nil {
			return *s.GoalAge
		}
		return -1
	}
	before := age()
	until(t, "the goal grows old", func() bool { return before >= 0 && age() > before })
	if v := h.shelf.Goal("web").Version; v != version || runs(t, dir) != "build 1" {
		t.Errorf("goal %d, runs %q", v, runs(t, dir))
	}
}

// TestRecallsKeptBack: an agent that keeps the list of recalls from a host, and goes on with
// goals, is seen by the age; one that keeps back the list alone, by its name.
func TestRecallsKeptBack(t *testing.T) {
	a := newAgent(t)
	h := startHost(t, t.TempDir(), nil, a.url)
	beat := func(doc any) *hostwire.Goal {
		t.Helper()
		wire, err := goal.Sign(t.Context(), key, doc)
		if err != nil {
			t.Fatal(err)
		}
		return &hostwire.Goal{Wire: wire}
	}
	one, now := newBuild(t, 1), time.Now()
	fresh := func() bool { s := h.Status(); return s.GoalAge != nil && *s.GoalAge < 300 }
	a.say(sign(t, goalOf(10, one, nil), key), beat(&goal.Beat{Time: now, Versions: map[string]int64{"web": 10}}))
	until(t, "the goal is of now", fresh)
	a.say(beat(&goal.RecallBeat{Time: now.Add(-time.Hour)}))
	until(t, "the list is of an hour ago", func() bool { return *h.Status().GoalAge >= 3600 })
	a.say(beat(&goal.RecallBeat{Time: now, Version: 9}))
	until(t, "there is one that is lacking", func() bool { return fresh() && slices.Equal(h.Status().Behind, []string{goal.Recalls}) })
	if code, _ := h.get(t, "/status"); code != 200 {
		t.Errorf("/status: %d", code)
	}
	a.say(beat(&goal.Recall{Version: 9, SourceBucket: "global-builds", Issued: now}))
	until(t, "it is here", func() bool { return len(h.Status().Behind) == 0 })
}

// TestAgentOfAnotherRegion: a host whose certificate names its region takes no other one's
// word.
func TestAgentOfAnotherRegion(t *testing.T) {
	region := testRegion
	h := &Host{cfg: Config{Region: region}}
	h.region.Store(&region)
	if err := h.toldRegion("region-b"); err == nil {
		t.Error("it moves to another region")
	}
	if err := h.toldRegion("../region"); err == nil {
		t.Error("a region's name that is none")
	}
	if err := h.toldRegion(region); err != nil || h.where() != region {
		t.Errorf("%v, %s", err, h.where())
	}
}
