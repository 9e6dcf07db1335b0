package fleet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	start  = "01JD0000000000000000000001"
	stable = "01JD000000000000000000000A"
	target = "01JD000000000000000000000B"
)

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// world is a machine and its hosts, which do as real ones do.
type world struct {
	t      *testing.T
	m      *machine
	hosts  map[string]*testHost
	warned []string
}

// testHost is the other side of a link.
type testHost struct {
	w      *world
	name   string
	zone   string
	state  hostwire.ServiceState
	port   uint16
	closed error
	full   bool // takes nothing more
	got    []hostwire.Message
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, hosts: make(map[string]*testHost)}
	w.m = newMachine("region-a", 100, rand.New(rand.NewPCG(1, 2)), func(message string, args ...any) {
		w.warned = append(w.warned, fmt.Sprint(append([]any{message}, args...)...))
	})
	w.m.now = noon
	t.Cleanup(func() { w.check() })
	return w
}

func (h *testHost) put(_ string, e hostwire.Encoded) bool {
	if h.full {
		return false
	}
	m, _, err := hostwire.Read(strings.NewReader(string(e)))
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.got = append(h.got, m)
	return true
}

func (h *testHost) close(why error) { h.closed = why }

// take returns the messages of one kind that have come, and forgets all others.
func take[M hostwire.Message](h *testHost) (of []M) {
	for _, m := range h.got {
		if m, ok := m.(M); ok {
			of = append(of, m)
		}
	}
	h.got = nil
	return of
}

// join has hosts come that run stable.
func (w *world) join(n int, zone string) (names []string) {
	for i := range n {
		h := &testHost{w: w, name: fmt.Sprintf("host-%s%d", zone, i), zone: zone, port: uint16(7000 + i)}
		h.state = hostwire.ServiceState{Service: "web", State: goal.Healthy, Running: stable}
		w.hosts[h.name] = h
		w.hello(h)
		names = append(names, h.name)
	}
	return names
}

func (w *world) hello(h *testHost) {
	h.closed = nil
	w.m.join(&hostwire.Hello{Version: 1, Host: h.name, Start: start, Zone: h.zone, PeerPort: h.port, Services: []hostwire.ServiceState{h.state}},
		netip.MustParseAddr("10.0.0.1"), h)
}

func (w *world) says(h *testHost, state, running, wants string) {
	h.state.State, h.state.Running, h.state.Wants = state, running, wants
	s := h.state
	w.m.said(w.m.hosts[h.name], &s)
}

func (w *world) pass(d time.Duration) {
	for end := w.m.now.Add(d); w.m.now.Before(end); {
		w.m.now = w.m.now.Add(time.Second)
		w.m.tick()
	}
}

// follow sends a goal of a version with a cut.
func (w *world) follow(version int64, cut int64, change ...func(*goal.Goal)) *goal.Goal {
	g := &goal.Goal{
		Service: "web", Version: version, Target: goal.Build{ExecutionID: target}, Stable: &goal.Build{ExecutionID: stable},
		Regions: map[string]goal.Region{"region-a": {Open: true, Cut: cut}}, MaxUnavailable: "10%",
	}
	for _, c := range change {
		c(g)
	}
	w.m.follow(g, []byte(fmt.Sprint("goal ", version)))
	return g
}

// check holds what is counted to what there is.
func (w *world) check() {
	w.t.Helper()
	idle := 0
	for _, s := range w.m.services {
		if s.goal == nil {
			idle++
		}
		switching, zones := 0, map[*zone]int{}
		for _, r := range s.hosts {
			zones[r.zone]++
			if r.leave.counted {
				switching++
			}
			if r.leave.given && !r.leave.counted {
				w.t.Errorf("%s has leave and is not counted", r.host.name)
			}
		}
		inZones := 0
		for name, z := range s.zones {
			inZones += z.switching
			if zones[z] != z.hosts || z.hosts == 0 {
				w.t.Errorf("zone %s: %d hosts are %d", name, zones[z], z.hosts)
			}
		}
		if switching != s.switching || inZones != switching {
			w.t.Errorf("%d switch, counted are %d and %d", switching, s.switching, inZones)
		}
		n := w.m.counted(s)
		if n.Waiting+n.Ready+n.Switching+n.Healthy+n.Failed+n.Absent+n.Sick != n.Hosts || n.Hosts != len(s.hosts) {
			w.t.Errorf("%+v", n)
		}
	}
	if idle != w.m.idle {
		w.t.Errorf("%d services have no goal, counted are %d", idle, w.m.idle)
	}
	connected := 0
	for _, h := range w.m.hosts {
		if h.link != nil {
			connected++
		}
	}
	if connected != w.m.connected {
		w.t.Errorf("%d are connected, counted are %d", connected, w.m.connected)
	}
}

func (w *world) counts() goal.Counts { return w.m.counted(w.m.services["web"]) }
