package fleet

import (
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	// degree is how many neighbours a host has in a service: simulated with 10,000 hosts,
	// 6 cost 3 % more time, and more than 8 gain nothing.
	degree = 8
	// crossHosts are how many hosts of a zone have neighbours in other zones, of those of one
	// agent, and crossDegree is how many of their neighbours. What is handed out in one zone
	// comes to the others by them alone, once, however many hosts there are: one in 50 of 1,000
	// hosts was too few for that (docs/fleet.md), and of 10,000 more than is needed.
	crossHosts, crossDegree = 8, 2
	// edgeTries is how many random edges are looked at for one that may be opened: all but
	// a few will do, but among a handful of hosts.
	edgeTries = 32
)

// node is a host in the graph of a service.
type node struct {
	host   *host
	zone   string
	inZone member
	across member // of no mesh but for crossHosts of each zone
}

// graph is who trades with whom, of the hosts of one service: random, and regular in each
// zone. It is repaired when hosts come and go, and never made anew: connections stay.
type graph struct {
	zones  map[string]*mesh
	across *mesh
	rng    *rand.Rand
	// lacking: somebody may lack neighbours.
	lacking bool
	// changed is called for each host whose neighbours are others than before.
	changed func(*host)
}

func newGraph(rng *rand.Rand, changed func(*host)) *graph {
	g := &graph{zones: make(map[string]*mesh), rng: rng, changed: changed}
	g.across = g.newMesh()
	g.across.apart = true
	return g
}

func (g *graph) newMesh() *mesh {
	return &mesh{rng: g.rng, changed: func(m *member) { g.changed(m.node.host) }}
}

// add takes a host in and returns its place.
func (g *graph) add(h *host, zone string) *node {
	g.lacking = true
	n := &node{host: h, zone: zone}
	n.inZone, n.across = member{node: n, want: degree}, member{node: n}
	z := g.zones[zone]
	if z == nil {
		z = g.newMesh()
		g.zones[zone] = z
	}
	if g.across.inZone(zone) < crossHosts {
		n.inZone.want, n.across.want = degree-crossDegree, crossDegree
		g.across.add(&n.across)
	}
	z.add(&n.inZone)
	return n
}

// remove takes a host out. What its neighbours lack then, repair gives them.
func (g *graph) remove(n *node) {
	g.lacking = true
	z := g.zones[n.zone]
	z.remove(&n.inZone)
	if len(z.members) == 0 {
		delete(g.zones, n.zone)
	}
	if n.across.want == 0 {
		return
	}
	g.across.remove(&n.across)
	if len(z.members) < crossHosts {
		return
	}
	from := g.rng.IntN(len(z.members))
	for i := range z.members { // another one takes its place
		if next := z.members[(from+i)%len(z.members)].node; next.across.want == 0 {
			z.wants(&next.inZone, degree-crossDegree)
			next.across.want = crossDegree
			g.across.add(&next.across)
			return
		}
	}
}

// repair gives hosts that lack neighbours others.
func (g *graph) repair() {
	if !g.lacking {
		return
	}
	g.lacking = false
	for _, zone := range slices.Sorted(maps.Keys(g.zones)) {
		g.zones[zone].repair()
	}
	g.across.repair()
}

// neighbours calls f for each neighbour of a host; of nil there is none.
func (n *node) neighbours(f func(*host)) {
	if n == nil {
		return
	}
	for _, m := range n.inZone.adjacent {
		f(m.node.host)
	}
	for _, m := range n.across.adjacent {
		f(m.node.host)
	}
}

// member is a node's place in one mesh.
type member struct {
	node     *node
	at       int // in members
	lacks    int // one more than its place in lacking; 0 for none
	want     int
	adjacent []*member
}

func (m *member) isNextTo(other *member) bool {
	for _, a := range m.adjacent {
		if a == other {
			return true
		}
	}
	return false
}

// mesh is a random graph whose members each want some number of neighbours.
type mesh struct {
	members []*member
	lacking []*member // those that have fewer neighbours than they want
	// apart: neighbours are of different zones.
	apart   bool
	zones   map[string]int // members by zone, where apart
	rng     *rand.Rand
	changed func(*member)
}

func (g *mesh) inZone(zone string) int { return g.zones[zone] }

func (g *mesh) may(a, b *member) bool {
	return a != b && !a.isNextTo(b) && !(g.apart && a.node.zone == b.node.zone)
}

func (g *mesh) note(m *member) {
	if lacks := len(m.adjacent) < m.want; lacks && m.lacks == 0 {
		g.lacking = append(g.lacking, m)
		m.lacks = len(g.lacking)
	} else if !lacks {
		g.lacksNothing(m)
	}
	g.changed(m)
}

func (g *mesh) lacksNothing(m *member) {
	if m.lacks == 0 {
		return
	}
	last := len(g.lacking) - 1
	g.lacking[m.lacks-1] = g.lacking[last]
	g.lacking[m.lacks-1].lacks = m.lacks
	g.lacking[last] = nil
	g.lacking, m.lacks = g.lacking[:last], 0
}

// lackers are those that lack neighbours, from a random one on.
func (g *mesh) lackers() []*member {
	if len(g.lacking) == 0 {
		return nil
	}
	from := g.rng.IntN(len(g.lacking))
	return slices.Concat(g.lacking[from:], g.lacking[:from])
}

func (g *mesh) connect(a, b *member) {
	a.adjacent, b.adjacent = append(a.adjacent, b), append(b.adjacent, a)
	g.note(a)
	g.note(b)
}

func (g *mesh) part(a, b *member) {
	a.adjacent, b.adjacent = without(a.adjacent, b), without(b.adjacent, a)
	g.note(a)
	g.note(b)
}

func without(list []*member, m *member) []*member {
	for i := range list {
		if list[i] == m {
			last := len(list) - 1
			list[i], list[last] = list[last], nil
			return list[:last]
		}
	}
	return list
}

func (g *mesh) add(m *member) {
	m.at = len(g.members)
	g.members = append(g.members, m)
	if g.apart {
		if g.zones == nil {
			g.zones = make(map[string]int)
		}
		g.zones[m.node.zone]++
	}
	g.note(m)
	g.satisfy(m)
}

func (g *mesh) remove(m *member) {
	for len(m.adjacent) > 0 {
		g.part(m, m.adjacent[0])
	}
	last := len(g.members) - 1
	g.members[m.at] = g.members[last]
	g.members[m.at].at = m.at
	g.members[last] = nil
	g.members = g.members[:last]
	g.lacksNothing(m)
	if g.apart {
		if g.zones[m.node.zone]--; g.zones[m.node.zone] == 0 {
			delete(g.zones, m.node.zone)
		}
	}
}

// wants changes how many neighbours a member has.
func (g *mesh) wants(m *member, n int) {
	m.want = n
	for len(m.adjacent) > n {
		g.part(m, m.adjacent[g.rng.IntN(len(m.adjacent))])
	}
	g.note(m)
}

// satisfy gives a member the neighbours that it lacks: others that lack some, then two at
// a time by opening a random edge between others, whose number of neighbours stays.
func (g *mesh) satisfy(m *member) {
	for _, other := range g.lackers() {
		if len(m.adjacent) >= m.want {
			return
		}
		if g.may(m, other) {
			g.connect(m, other)
		}
	}
	for len(m.adjacent)+2 <= m.want {
		a, b, ok := g.edge(func(a, b *member) bool { return g.may(m, a) && g.may(m, b) })
		if !ok {
			return
		}
		g.part(a, b)
		g.connect(m, a)
		g.connect(m, b)
	}
}

// edge returns a random one that will do.
func (g *mesh) edge(will func(a, b *member) bool) (a, b *member, ok bool) {
	for range edgeTries {
		a := g.members[g.rng.IntN(len(g.members))]
		if len(a.adjacent) == 0 {
			continue
		}
		if b := a.adjacent[g.rng.IntN(len(a.adjacent))]; will(a, b) {
			return a, b, true
		}
	}
	return nil, nil, false
}

// repair gives all members the neighbours that they lack, as far as that goes: of an odd
// number of places one stays free.
func (g *mesh) repair() {
	for _, m := range g.lackers() {
		g.satisfy(m)
	}
	// Two that lack one neighbour each and are neighbours of each other.
	var first *member
	for _, m := range g.lackers() {
		if m.lacks == 0 { // by now
			continue
		}
		if first == nil {
			first = m
			continue
		}
		if a, b, ok := g.edge(func(a, b *member) bool { return g.may(first, a) && g.may(m, b) && a != m && b != first }); ok {
			g.part(a, b)
			g.connect(first, a)
			g.connect(m, b)
		}
		first = nil
	}
}
