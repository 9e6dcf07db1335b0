package fleet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// tellEachOther has agents tell each other their hosts, until nobody has news. It returns
// how many lists were told.
func tellEachOther(t *testing.T, agents map[string]*world) (told int) {
	t.Helper()
	for name, w := range agents {
		for number, text := range w.m.nearLists() {
			told++
			b, err := decodeBucket(text)
			if err != nil || b.Number != number {
				t.Fatal(number, err)
			}
			for other, to := range agents {
				if other != name {
					to.m.hearsNear(name, b)
				}
			}
		}
	}
	for _, w := range agents {
		w.m.tick()
	}
	return told
}

// Hosts of several agents are one swarm: whom an agent names to one of its hosts, that one's
// agent names to it, all can be reached, and few have others when one comes.
func TestAgentsTellEachOtherTheirHosts(t *testing.T) {
	agents := map[string]*world{"one": newWorld(t), "two": newWorld(t), "three": newWorld(t)}
	number := 0
	come := func(w *world) *testHost {
		number++
		h := &testHost{w: w, name: fmt.Sprint("host-", number), zone: "a", port: uint16(1000 + number)}
		h.state = hostwire.ServiceState{Service: "web", State: goal.Healthy, Running: stable}
		w.hosts[h.name] = h
		w.hello(h)
		return h
	}
	for _, w := range agents {
		w.m.maxHosts = 1000
		for range 100 {
			come(w)
		}
	}
	tellEachOther(t, agents)
	look := func() map[string]map[string]bool {
		peers := map[string]map[string]bool{}
		for _, w := range agents {
			for _, h := range w.hosts {
				peers[h.name] = map[string]bool{}
				for _, p := range w.m.hosts[h.name].toldNeighbours.Peers {
					if p.Addr.Port() == 0 || p.Name != hostwire.NameOf(p.ID, start) {
						t.Errorf("%+v", p)
					}
					peers[h.name][p.ID] = true
				}
			}
		}
		return peers
	}
	peers := look()
	far, most := 0, 0
	at := map[string]*world{}
	for _, w := range agents {
		for name := range w.hosts {
			at[name] = w
		}
	}
	for name, of := range peers {
		most = max(most, len(of))
		for other := range of {
			if !peers[other][name] || other == name {
				t.Errorf("%s has %s, which does not have it", name, other)
			}
			if at[other] != at[name] {
				far++
			}
		}
	}
	if most > degree+2*ringReach || far < 2*len(peers) {
		t.Errorf("up to %d neighbours, %d of %d hosts are another agent's", most, far, len(peers))
	}
	reached, next := map[string]bool{"host-1": true}, []string{"host-1"}
	for len(next) > 0 {
		for other := range peers[next[0]] {
			if !reached[other] {
				reached[other] = true
				next = append(next, other)
			}
		}
		next = next[1:]
	}
	if len(reached) != len(peers) {
		t.Errorf("%d of %d can be reached", len(reached), len(peers))
	}
	if told := tellEachOther(t, agents); told != 0 {
		t.Errorf("%d lists are told again, and nothing has changed", told)
	}
	come(agents["two"])
	if told := tellEachOther(t, agents); told != 1 {
		t.Errorf("%d lists are told since one has come", told)
	}
	changed := 0
	for name, of := range look() {
		for other := range of {
			if peers[name] != nil && !peers[name][other] {
				changed++
				break
			}
		}
	}
	if changed > degree+2*ringReach {
		t.Errorf("%d hosts have other neighbours since one has come", changed)
	}

	// An agent that is gone takes its hosts along.
	agents["one"].m.forgetNear([]string{"two"})
	agents["one"].m.tick()
	for _, h := range agents["one"].hosts {
		for _, p := range agents["one"].m.hosts[h.name].toldNeighbours.Peers {
			if at[p.ID] == agents["three"] {
				t.Fatalf("%s is a neighbour still", p.ID)
			}
		}
	}
}

// What another agent tells is bounded, and is what a list of hosts can be.
func TestListsOfOtherAgents(t *testing.T) {
	good := `{"b":1,"h":[{"h":"host-1","s":"` + start + `","a":"10.0.0.1:7000","v":["web"]}]}`
	for name, text := range map[string]string{
		"no JSON":   "hosts",
		"no list":   strings.Replace(good, `"b":1`, `"b":128`, 1),
		"a name":    strings.Replace(good, "host-1", "../1", 1),
		"a start":   strings.Replace(good, start, "now", 1),
		"a port":    strings.Replace(good, ":7000", ":0", 1),
		"a zone":    strings.Replace(good, `"a":`, `"z":"`+strings.Repeat("z", 64)+`","a":`, 1),
		"services":  strings.Replace(good, `"web"`, strings.Repeat(`"web",`, hostwire.MaxServices)+`"web"`, 1),
		"a length":  good + strings.Repeat(" ", MaxBucket),
		"an object": `[]`,
	} {
		if _, err := decodeBucket([]byte(text)); err == nil {
			t.Errorf("taken: %s", name)
		}
	}
	w := newWorld(t)
	for i := range hostwire.MaxAgents + 1 {
		b, err := decodeBucket([]byte(good))
		if err != nil {
			t.Fatal(err)
		}
		w.m.hearsNear(fmt.Sprint("agent-", i), b)
	}
	if len(w.m.near) != hostwire.MaxAgents {
		t.Errorf("hosts of %d agents are kept", len(w.m.near))
	}
	b := bucket{Number: 2, Hosts: make([]near, maxNear)}
	if w.m.hearsNear("agent-0", b); len(w.m.near["agent-0"][2]) != 0 {
		t.Error("more hosts are kept than may be")
	}

	// A list that would be too long leaves hosts out.
	w = newWorld(t)
	w.m.maxHosts = 1e6
	for i, n := 0, 0; n < 1000; i++ {
		h := &testHost{w: w, name: fmt.Sprint(strings.Repeat("h", 50), i), zone: strings.Repeat("z", 60), port: 7000}
		if bucketOf(h.name) != 5 {
			continue
		}
		n++
		h.state = hostwire.ServiceState{Service: "web"}
		w.m.hosts[h.name] = &host{name: h.name, start: start, zone: h.zone, addr: netip.MustParseAddrPort("10.0.0.1:7000"),
			services: []*running{{service: &service{name: "web"}, node: &node{}}}}
		w.m.nearOut[5] = true
	}
	texts := w.m.nearLists()
	if b, err := decodeBucket(texts[5]); err != nil || len(b.Hosts) < 50 {
		t.Errorf("%d hosts, %v", len(b.Hosts), err)
	}
	clear(w.m.hosts)
}

func FuzzDecodeBucket(f *testing.F) {
	f.Add([]byte(`{"b":1,"h":[{"h":"host-1","s":"` + start + `","z":"a","a":"10.0.0.1:7000","v":["web"]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := decodeBucket(text)
		if err != nil {
			return
		}
		m := newMachine("region-a", 10, nil, func(string, ...any) {})
		m.hearsNear("agent", b)
		m.rings()
	})
}
