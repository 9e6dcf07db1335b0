package fleet

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// audit holds a graph to what one is: edges both ways, none twice, none to oneself, no more
// than each host wants. It returns how many places are free, how many edges leave a zone,
// and how many hosts can't be reached from the first.
func audit(t *testing.T, nodes map[*node]bool) (free, across, apart int) {
	t.Helper()
	var first *node
	for n := range nodes {
		first = n
		free += n.inZone.want - len(n.inZone.adjacent)
		across += len(n.across.adjacent)
		for _, m := range []*member{&n.inZone, &n.across} {
			if len(m.adjacent) > m.want {
				t.Fatalf("%d neighbours, %d are wanted", len(m.adjacent), m.want)
			}
			seen := map[*member]bool{m: true}
			for _, a := range m.adjacent {
				if seen[a] || !a.isNextTo(m) || !nodes[a.node] {
					t.Fatal("an edge that is none")
				}
				seen[a] = true
				if (a.node.zone == n.zone) != (m == &n.inZone) {
					t.Fatal("an edge of the wrong kind")
				}
			}
		}
	}
	reached, next := map[*node]bool{first: true}, []*node{first}
	for len(next) > 0 {
		n := next[0]
		next = next[1:]
		for _, m := range []*member{&n.inZone, &n.across} {
			for _, a := range m.adjacent {
				if !reached[a.node] {
					reached[a.node] = true
					next = append(next, a.node)
				}
			}
		}
	}
	return free, across, len(nodes) - len(reached)
}

func TestGraph(t *testing.T) {
	for _, c := range []struct{ hosts, zones int }{{1, 1}, {2, 1}, {9, 1}, {10, 1}, {30, 3}, {1000, 1}, {1000, 3}} {
		t.Run(fmt.Sprint(c.hosts, " in ", c.zones), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(c.hosts), uint64(c.zones)))
			changed := map[*host]int{}
			g := newGraph(rng, func(h *host) { changed[h]++ })
			nodes := map[*node]bool{}
			add := func(i int) {
				nodes[g.add(&host{name: fmt.Sprint(i)}, fmt.Sprint("zone-", i%c.zones))] = true
			}
			for i := range c.hosts {
				add(i)
			}
			g.repair()
			check := func(when string) {
				t.Helper()
				free, across, apart := audit(t, nodes)
				perZone := len(nodes) / c.zones
				if apart > 0 {
					t.Errorf("%s: %d hosts are islands", when, apart)
				}
				if perZone > 2*degree && free > c.zones+len(nodes)/100 {
					t.Errorf("%s: %d places are free", when, free)
				}
				hosts := map[string]int{} // with neighbours across
				for n := range nodes {
					if n.across.want > 0 {
						hosts[n.zone]++
					}
				}
				for zone, n := range hosts {
					if n > crossHosts || perZone > 2*crossHosts && n < crossHosts {
						t.Errorf("%s: %d hosts of %s have neighbours across", when, n, zone)
					}
				}
				if most := crossDegree * crossHosts * c.zones; across > most || c.zones > 1 && perZone > crossHosts && across < most-2 {
					t.Errorf("%s: %d ends of edges across, of at most %d", when, across, most)
				}
			}
			check("made")
			// One more changes a few.
			clear(changed)
			add(c.hosts)
			if len(changed) > degree+crossDegree+1 {
				t.Errorf("%d hosts have others for one that came", len(changed))
			}
			// A third goes at once.
			gone := len(nodes) / 3
			clear(changed)
			for n := range nodes {
				if gone--; gone < 0 {
					break
				}
				g.remove(n)
				delete(nodes, n)
			}
			g.repair()
			check("a third has gone")
			// They come and go.
			for i := range 2 * c.hosts {
				for n := range nodes {
					if len(nodes) > 1 {
						g.remove(n)
						delete(nodes, n)
					}
					break
				}
				add(i)
				if i%50 == 0 {
					g.repair()
				}
			}
			g.repair()
			check("all have come and gone")
		})
	}
}
