package fleet

import (
	"net/netip"
	"testing"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// TestInventory: hosts are listed with what they say of themselves; held ones are in no roster
// and wanted by no wave; it is counted who holds the stable build.
func TestInventory(t *testing.T) {
	w := newWorld(t)
	names := w.join(3, "a")
	w.m.join(&hostwire.Hello{
		Version: 1, Host: names[1], Start: start, Zone: "a", Labels: map[string]string{"rack": "7"}, Program: "1.2.3", PeerPort: 1,
		Services: []hostwire.ServiceState{{Service: "web", State: goal.Waiting}},
	}, netip.MustParseAddr("10.0.0.1"), w.hosts[names[1]])
	w.follow(1, goal.Circle, func(g *goal.Goal) { g.Held = names[:1] })
	all, rest, hosts := w.m.list("web", "", "", 10)
	if all != 3 || rest != 0 || !hosts[0].Held || hosts[1].Held || hosts[1].Labels["rack"] != "7" || hosts[1].Program != "1.2.3" || hosts[0].Labels != nil || hosts[0].Version != 0 || hosts[0].SeenAt == nil {
		t.Errorf("%+v", hosts)
	}
	for i, after := range append([]string{""}, names...) {
		for most := range 3 {
			all, rest, page := w.m.list("web", "", after, most)
			if n := min(3-i, most); all != 3 || rest != 3-i-n || len(page) != n || n > 0 && page[0].Host != hosts[i].Host {
				t.Errorf("%d after %q: %+v, %d more of %d", most, after, page, rest, all)
			}
		}
	}
	if n := len(w.m.roster("web")); n != 2 {
		t.Errorf("%d hosts in the roster", n)
	}
	if c := w.counts(); c.Below != 3 || c.Out != 1 || c.HoldStable != 2 || len(c.Zones) != 1 || c.Zones[0].HoldStable != 2 {
		t.Errorf("%+v", c)
	}
	for whole, want := range map[bool]int{true: 3, false: 2} {
		w.m.holds(w.m.hosts[names[1]], &hostwire.Holds{ExecutionID: stable, Segments: 1, Whole: whole})
		if c := w.counts(); c.HoldStable != want {
			t.Errorf("whole: %v: %+v", whole, c)
		}
	}
	held := w.hosts[names[0]]
	w.says(held, goal.Failed, stable, "")
	if c := w.counts(); c.Failed != 0 || c.Sick != 1 || c.Out != 1 {
		t.Errorf("held and failed: %+v", c)
	}
	w.says(held, goal.Healthy, target, "")
	if c := w.counts(); c.Healthy != 1 || c.Out != 0 {
		t.Errorf("held and healthy: %+v", c)
	}
	w.m.ended(w.m.hosts[names[0]], held, false)
	if c := w.counts(); c.Absent != 1 || c.Out != 1 {
		t.Errorf("held and lost: %+v", c)
	}
}

// TestRecallsGoDown: who is here hears of a list, and who comes later before all else.
func TestRecallsGoDown(t *testing.T) {
	w := newWorld(t)
	names := w.join(2, "a")
	w.m.recall(goal.RecallBeats, []byte("its beat"))
	w.m.recall(goal.Recalls, []byte("a list"))
	for _, n := range names {
		if got := take[*hostwire.Goal](w.hosts[n]); len(got) != 2 || string(got[0].Wire) != "its beat" || string(got[1].Wire) != "a list" {
			t.Errorf("%s got %v", n, got)
		}
	}
	w.follow(1, goal.Circle)
	h := w.hosts[names[0]]
	h.got = nil
	w.hello(h)
	if got := take[*hostwire.Goal](h); len(got) != 3 || string(got[0].Wire) != "a list" || string(got[1].Wire) != "its beat" {
		t.Errorf("it hears of %v", got)
	}
}
