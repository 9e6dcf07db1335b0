package fleetsim

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/handout"
)

// What the engine (anacrolix/torrent) and package swarm do with requests, as far as it
// matters for how long a build takes. A connection carries one segment between two nodes.
const (
	// lag is what passes between a request to a node that sends nothing and its first byte:
	// a round trip, and the announcement before.
	lag = 1500 * time.Microsecond
	// lookInterval is how often requests that take long are looked for; neighbours are
	// dialled every second time.
	lookInterval = 500 * time.Millisecond
	// stealAfter is when a connection with fewer requests is asked for what another one was
	// asked for.
	stealAfter = 2 * time.Second
	// silentAfter is when a peer that sends nothing is given up.
	silentAfter = 5 * time.Second
	// deepest is how many pieces are asked for on a connection at the most.
	deepest = 250
	// onTheWay is how much may be on its way to a node that receives slower than it is sent
	// to, in bytes: what systems keep for its connections.
	onTheWay = 4 << 20
	// noEdge is nobody's.
	noEdge = 255
)

// node is a host, or an agent as one that only sends.
type node struct {
	up, down float64 // ns a byte
	zone     int
	on, gone bool
	edges    []edge
	live     []uint8 // those edges that are connected

	have     []uint64 // a bit for each item, segments begin with a word
	left     []int16  // items that lack, by segment
	slotOf   []int8   // where a segment is open; -1 where it is not
	slots    []slot
	known    int // segments that it was told of
	first    int // no segment below it lacks anything
	lacking  int // segments
	downFree time.Duration
	held     []flow // edges and slots of its own whose senders wait until it has received more

	flows []flow // what it sends just now
	// share is how many bytes each flow has been sent since the beginning, moment when that
	// was so, and due when the agenda looks again; 0 for nothing to look at.
	share  float64
	moment time.Duration
	due    time.Duration
}

// flow is an item on its way by one connection. All that a node sends shares its uplink
// equally, as connections by TCP do, and as package limits has it.
type flow struct {
	edge, slot uint8 // slot is the receiver's
	item       int32
	ends       float64 // the share at which it has passed
}

// slot is an open segment.
type slot struct {
	segment int16 // -1 for none
	asked   []uint64
	sent    []uint64 // of those, what is on its way
	has     []uint8  // neighbours that have it, by item
	holder  []uint8  // the edge that was asked
	at      []time.Duration
	// longFrom is before when no item has been asked for for long.
	longFrom time.Duration
}

// edge is what a node knows of a neighbour.
type edge struct {
	to    int32
	back  uint8 // which of the other's edges it is
	on    bool
	conns []conn // by slot
	agent *source
}

// conn is a connection: how many items were asked for and have not come; how many of those
// that somebody else was asked for since are on their way all the same; and how many the
// last look has added, which bounds how many may be (the engine's peakRequests).
type conn struct {
	out, cancelled, peak int16
	useful               time.Duration // when something new came last
	flows                bool          // an item is on its way, or held back
	// first and last are the requests that wait, in the world's pool; 0 for none.
	first, last int32
}

// low reports whether nothing is on its way by a connection.
func (c *conn) low() bool { return c.out == 0 && c.cancelled == 0 }

// source is a host's connections with an agent.
type source struct {
	offered []uint64
	links   map[int]*handout.Link // by segment
	useful  time.Duration         // when something came last
}

type request struct {
	item int32 // the segment in the upper half
	next int32
}

func itemOf(segment, index int) int32 { return int32(segment)<<16 | int32(index) }

// connect makes two nodes neighbours; src is set where the other one is an agent.
func (w *world) connect(a, b int32, src *source) bool {
	na, nb := &w.nodes[a], &w.nodes[b]
	if len(na.edges) >= noEdge || len(nb.edges) >= noEdge {
		return false
	}
	i, j := uint8(len(na.edges)), uint8(len(nb.edges))
	na.edges = append(na.edges, edge{to: b, back: j, on: true, conns: make([]conn, len(na.slots)), agent: src})
	nb.edges = append(nb.edges, edge{to: a, back: i, on: true, conns: make([]conn, len(nb.slots))})
	na.live, nb.live = append(na.live, i), append(nb.live, j)
	if src == nil {
		w.counts(na, nb, 1)
		w.counts(nb, na, 1)
		w.updateAll(a, i)
		w.updateAll(b, j)
	}
	return true
}

// counts adds what a neighbour has to what neighbours have.
func (w *world) counts(n, of *node, more int) {
	for i := range n.slots {
		s := &n.slots[i]
		if s.segment < 0 || of.have == nil {
			continue
		}
		seg := &w.segments[s.segment]
		for k, word := range of.have[seg.word : seg.word+seg.words] {
			for ; word != 0; word &= word - 1 {
				s.has[k*64+bits.TrailingZeros64(word)] += uint8(more)
			}
		}
	}
}

func (w *world) updateAll(a int32, e uint8) {
	for i := range w.nodes[a].slots {
		if w.nodes[a].slots[i].segment >= 0 {
			w.update(a, e, i)
		}
	}
}

// part ends what a and its neighbour by an edge have with each other.
func (w *world) part(a int32, e uint8) {
	ed := &w.nodes[a].edges[e]
	b, back := ed.to, ed.back
	if !ed.on {
		return
	}
	w.unlink(a, e)
	w.unlink(b, back)
	w.release(a, e)
	w.release(b, back)
}

// unlink takes an edge out at one of its ends.
func (w *world) unlink(a int32, e uint8) {
	n := &w.nodes[a]
	ed := &n.edges[e]
	ed.on = false
	for i, l := range n.live {
		if l == e {
			n.live = append(n.live[:i], n.live[i+1:]...)
			break
		}
	}
	for at := range ed.conns {
		w.forget(&ed.conns[at])
	}
	w.pass(n, w.now)
	n.flows = slices.DeleteFunc(n.flows, func(f flow) bool { return f.edge == e })
	w.await(a)
	if ed.agent != nil {
		for _, segment := range slices.Sorted(maps.Keys(ed.agent.links)) {
			ed.agent.links[segment].Leave()
		}
		for i := range n.slots {
			if s := &n.slots[i]; s.segment >= 0 {
				seg := &w.segments[s.segment]
				for g := range seg.items {
					if ed.agent.offered[seg.word+g/64]>>(g%64)&1 != 0 {
						s.has[g]--
					}
				}
			}
		}
		return
	}
	w.counts(n, &w.nodes[ed.to], -1)
}

// release has what was asked for by an edge that is gone be asked for elsewhere.
func (w *world) release(a int32, e uint8) {
	n := &w.nodes[a]
	for i := range n.slots {
		s := &n.slots[i]
		if s.segment < 0 {
			continue
		}
		for g, holder := range s.holder {
			if holder == e && s.asked[g/64]>>(g%64)&1 != 0 {
				s.asked[g/64] &^= 1 << (g % 64)
			}
		}
		for _, l := range n.live {
			if n.edges[l].conns[i].low() {
				w.update(a, l, i)
			}
		}
	}
}

// has is what the other end of an edge has, or an agent has offered.
func (w *world) has(ed *edge) []uint64 {
	if ed.agent != nil {
		return ed.agent.offered
	}
	return w.nodes[ed.to].have
}

// update asks for more by a connection: of what nobody was asked for the item that the
// fewest neighbours have, of a few of those the one that comes first in an order of the
// host's own. There may be twice as many as the last look has added.
func (w *world) update(a int32, e uint8, at int) { w.askFor(a, e, at, true) }

func (w *world) askFor(a int32, e uint8, at int, mayRob bool) {
	n := &w.nodes[a]
	ed := &n.edges[e]
	c := &ed.conns[at]
	most := max(1, min(2*c.peak, int16(w.depth)))
	added, robbed := int16(0), uint8(noEdge)
	for c.out+c.cancelled < most {
		g := w.pick(a, n, ed, at, max(2, 4*int(most)))
		if g < 0 && mayRob {
			if g = w.stealable(n, ed, e, at, max(2, 4*int(most))); g >= 0 {
				robbed = n.slots[at].holder[g]
				w.cancel(n, at, g)
				w.result.Stolen++
			}
		}
		if g < 0 {
			break
		}
		w.ask(a, e, at, g)
		added++
	}
	c.peak = added
	if robbed != noEdge && n.edges[robbed].conns[at].low() {
		w.askFor(a, robbed, at, false)
	}
}

// pick returns an item to ask for; -1 for none.
func (w *world) pick(a int32, n *node, ed *edge, at, candidates int) int {
	s := &n.slots[at]
	seg := &w.segments[s.segment]
	theirs := w.has(ed)[seg.word : seg.word+seg.words]
	mine := n.have[seg.word : seg.word+seg.words]
	best, least, seen, order := -1, uint8(255), 0, uint32(0)
	for k := range theirs {
		for word := theirs[k] &^ mine[k] &^ s.asked[k]; word != 0; word &= word - 1 {
			g := k*64 + bits.TrailingZeros64(word)
			switch has := s.has[g]; {
			case has < least:
				best, least, seen, order = g, has, 1, mix(a, s.segment, g)
			case has == least && seen < candidates:
				seen++
				if o := mix(a, s.segment, g); o < order {
					best, order = g, o
				}
			}
		}
	}
	return best
}

// stealable returns an item that a connection with more requests than this one was asked for
// long ago, of the few that the engine looks at: those that the fewest have; -1 for none.
func (w *world) stealable(n *node, ed *edge, e uint8, at, candidates int) int {
	s := &n.slots[at]
	if w.now < s.longFrom {
		return -1
	}
	oldest := w.now
	for k, word := range s.asked {
		for ; word != 0; word &= word - 1 {
			oldest = min(oldest, s.at[k*64+bits.TrailingZeros64(word)])
		}
	}
	if s.longFrom = oldest + stealAfter; w.now < s.longFrom {
		return -1
	}
	seg := &w.segments[s.segment]
	theirs := w.has(ed)[seg.word : seg.word+seg.words]
	found := w.scratch[:0]
	for k := range theirs {
		for word := theirs[k] & s.asked[k]; word != 0; word &= word - 1 {
			if g := k*64 + bits.TrailingZeros64(word); s.holder[g] != e {
				found = append(found, g)
			}
		}
	}
	w.scratch = found
	if len(found) > candidates {
		slices.SortFunc(found, func(g, h int) int { return cmp.Or(cmp.Compare(s.has[g], s.has[h]), cmp.Compare(g, h)) })
		found = found[:candidates]
	}
	best := -1
	for _, g := range found {
		mine, its := &ed.conns[at], &n.edges[s.holder[g]].conns[at]
		more := mine.out - its.out + 2
		if w.now-s.at[g] < stealAfter || more > 1 || more == 1 && mine.useful <= its.useful {
			continue
		}
		if best < 0 || its.out > n.edges[s.holder[best]].conns[at].out {
			best = g
		}
	}
	return best
}

// cancel has an item not be awaited from who was asked for it.
func (w *world) cancel(n *node, at, g int) {
	s := &n.slots[at]
	s.asked[g/64] &^= 1 << (g % 64)
	c := &n.edges[s.holder[g]].conns[at]
	c.out--
	c.peak--
	if s.sent[g/64]>>(g%64)&1 != 0 {
		c.cancelled++
	}
}

// mix is a host's own order of items.
func mix(a int32, segment int16, g int) uint32 {
	x := uint32(a)*0x9E3779B1 ^ uint32(segment)<<16 ^ uint32(g)
	x ^= x >> 15
	x *= 0x2C1B3C6D
	x ^= x >> 12
	x *= 0x297A2D39
	return x ^ x>>15
}

// ask asks for an item by an edge.
func (w *world) ask(a int32, e uint8, at, g int) {
	n := &w.nodes[a]
	s, ed := &n.slots[at], &n.edges[e]
	s.asked[g/64] |= 1 << (g % 64)
	s.sent[g/64] &^= 1 << (g % 64)
	s.holder[g], s.at[g] = e, w.now
	ed.conns[at].out++
	c, r := &ed.conns[at], w.newRequest(itemOf(int(s.segment), g))
	if c.last == 0 {
		c.first = r
	} else {
		w.pool[c.last].next = r
	}
	c.last = r
	if b := &w.nodes[ed.to]; !c.flows && !b.gone {
		start := w.now
		if len(b.flows) == 0 {
			start += lag
		}
		w.pass(b, start)
		w.send(ed.to, ed.back, uint8(at))
	}
}

func (w *world) newRequest(item int32) int32 {
	if r := w.free; r != 0 {
		w.free = w.pool[r].next
		w.pool[r] = request{item: item}
		return r
	}
	w.pool = append(w.pool, request{item: item})
	return int32(len(w.pool) - 1)
}

// take takes out the first request of a connection.
func (w *world) take(c *conn) (item int32) {
	r := c.first
	item = w.pool[r].item
	if c.first = w.pool[r].next; c.first == 0 {
		c.last = 0
	}
	w.pool[r].next = w.free
	w.free = r
	return item
}

// forget ends a connection.
func (w *world) forget(c *conn) {
	for c.first != 0 {
		w.take(c)
	}
	*c = conn{}
}

// pass counts what a node's flows have been sent since it was counted last.
func (w *world) pass(n *node, now time.Duration) {
	if n.moment < now {
		if len(n.flows) > 0 {
			n.share += float64(now-n.moment) / n.up / float64(len(n.flows))
		}
		n.moment = now
	}
}

// send has a node send what comes next by a connection.
func (w *world) send(b int32, e, slot uint8) {
	n := &w.nodes[b]
	ed := &n.edges[e]
	to := &w.nodes[ed.to]
	c := &to.edges[ed.back].conns[slot]
	if to.downFree > w.now && float64(to.downFree-w.now) > onTheWay*to.down {
		c.flows = true
		to.held = append(to.held, flow{edge: ed.back, slot: slot, item: itemOf(int(to.slots[slot].segment), 0)})
		return
	}
	c.flows = false
	for c.first != 0 {
		item := w.take(c)
		g := item & 0xffff
		if !w.isAsked(ed, item) || to.slots[slot].sent[g/64]>>(g%64)&1 != 0 {
			continue
		}
		to.slots[slot].sent[g/64] |= 1 << (g % 64)
		c.flows = true
		n.flows = append(n.flows, flow{e, slot, item, n.share + float64(w.segments[item>>16].length(int(g)))})
		w.await(b)
		return
	}
}

// goOn has those send that waited for a node to have received more.
func (w *world) goOn(a int32) {
	n := &w.nodes[a]
	for len(n.held) > 0 && float64(n.downFree-w.now) <= onTheWay*n.down {
		f := n.held[0]
		n.held = slices.Delete(n.held, 0, 1)
		if ed := &n.edges[f.edge]; ed.on && n.slotOf[f.item>>16] == int8(f.slot) && !w.nodes[ed.to].gone {
			w.pass(&w.nodes[ed.to], w.now)
			w.send(ed.to, ed.back, f.slot)
		}
	}
}

// await has the agenda look when the first of a node's flows has passed.
func (w *world) await(b int32) {
	n := &w.nodes[b]
	if len(n.flows) == 0 {
		return
	}
	least := n.flows[0].ends
	for _, f := range n.flows[1:] {
		least = min(least, f.ends)
	}
	at := n.moment + 1 + time.Duration((least-n.share)*n.up*float64(len(n.flows)))
	if n.due == 0 || at < n.due {
		n.due = at
		w.agenda.add(event{at: at, kind: sent, node: b})
	}
}

func (w *world) taking(perByte float64, item int32) time.Duration {
	return time.Duration(perByte * float64(w.segments[item>>16].length(int(item&0xffff))))
}

// isAsked reports whether the other end of an edge still waits for an item from here.
func (w *world) isAsked(ed *edge, item int32) bool {
	n := &w.nodes[ed.to]
	at := n.slotOf[item>>16]
	if at < 0 || n.gone {
		return false
	}
	g := item & 0xffff
	s := &n.slots[at]
	return s.asked[g/64]>>(g%64)&1 != 0 && s.holder[g] == ed.back
}

// hasSent has what a node has sent be on its way through the other one's downlink.
func (w *world) hasSent(b int32) {
	n := &w.nodes[b]
	if n.gone || n.due != w.now {
		return // another look is due
	}
	n.due = 0
	w.pass(n, w.now)
	for {
		i := slices.IndexFunc(n.flows, func(f flow) bool { return f.ends <= n.share+0.5 })
		if i < 0 {
			break
		}
		f := n.flows[i]
		n.flows = slices.Delete(n.flows, i, i+1)
		w.passed(b, f)
	}
	w.await(b)
}

// passed has an item be on its way through the other one's downlink, and the next one of
// its connection follow.
func (w *world) passed(b int32, f flow) {
	ed, bytes := &w.nodes[b].edges[f.edge], w.segments[f.item>>16].length(int(f.item&0xffff))
	to := &w.nodes[ed.to]
	if to.slotOf[f.item>>16] == int8(f.slot) {
		w.send(b, f.edge, f.slot)
	}
	w.traffic(b, ed.to, bytes)
	to.downFree = max(w.now, to.downFree+w.taking(to.down, f.item))
	if to.downFree == w.now {
		w.receive(ed.to, ed.back, f.item)
	} else {
		w.agenda.add(event{at: to.downFree, kind: received, node: ed.to, edge: int32(ed.back), item: f.item})
	}
}

// receive takes in an item, and tells the neighbours.
func (w *world) receive(a int32, e uint8, item int32) {
	n := &w.nodes[a]
	if n.gone || !n.on {
		return
	}
	segment, g := int(item>>16), int(item&0xffff)
	seg := &w.segments[segment]
	at := n.slotOf[segment]
	if at < 0 {
		w.result.Twice += seg.length(g)
		return
	}
	s := &n.slots[at]
	c, robbed := &n.edges[e].conns[at], uint8(noEdge)
	switch asked := s.asked[g/64]>>(g%64)&1 != 0; {
	case asked && s.holder[g] == e:
		s.asked[g/64] &^= 1 << (g % 64)
		c.out--
		if s.sent[g/64]>>(g%64)&1 == 0 { // it was asked for twice, and this is for the first time
			c.cancelled = max(0, c.cancelled-1)
		}
	case asked:
		robbed = s.holder[g]
		w.cancel(n, int(at), g)
		fallthrough
	default:
		c.cancelled = max(0, c.cancelled-1)
	}
	word, bit := seg.word+g/64, uint64(1)<<(g%64)
	if n.have[word]&bit != 0 {
		w.result.Twice += seg.length(g)
	} else {
		n.have[word] |= bit
		n.left[segment]--
		c.useful = w.now
		if src := n.edges[e].agent; src != nil {
			src.useful = w.now
		}
		w.tell(n, segment, g, word, bit)
	}
	if n.left[segment] == 0 {
		w.whole(a, segment, int(at))
		return
	}
	if n.edges[e].on && c.low() {
		w.update(a, e, int(at))
	}
	if robbed != noEdge && n.edges[robbed].on && n.edges[robbed].conns[at].low() {
		w.askFor(a, robbed, int(at), false)
	}
}

// tell has the neighbours know of an item.
func (w *world) tell(n *node, segment, g, word int, bit uint64) {
	for _, i := range n.live {
		ed := &n.edges[i]
		if ed.agent != nil {
			if l := ed.agent.links[segment]; l != nil {
				l.Have(g)
			}
			continue
		}
		b := &w.nodes[ed.to]
		at := b.slotOf[segment]
		if at < 0 || b.have[word]&bit != 0 {
			continue
		}
		b.slots[at].has[g]++
		if c := &b.edges[ed.back].conns[at]; c.out+c.cancelled >= max(1, 2*c.peak) {
			c.peak = 0
			continue
		}
		w.update(ed.to, ed.back, int(at))
	}
}

// askAgain has idle connections asked for what was asked of a neighbour that is silent.
func (w *world) askAgain(a int32) {
	n := &w.nodes[a]
	for at := range n.slots {
		s := &n.slots[at]
		if s.segment < 0 {
			continue
		}
		seg := &w.segments[s.segment]
		for k, word := range s.asked {
			for ; word != 0; word &= word - 1 {
				g := k*64 + bits.TrailingZeros64(word)
				if w.now-s.at[g] < stealAfter || !w.silent(n, s.holder[g]) {
					continue
				}
				for _, i := range n.live {
					ed := &n.edges[i]
					if ed.conns[at].low() && w.has(ed)[seg.word+k]>>(g%64)&1 != 0 {
						w.cancel(n, at, g)
						w.result.Stolen++
						w.ask(a, i, at, g)
						break
					}
				}
			}
		}
	}
}

// silent reports whether nothing comes from a neighbour any more.
func (w *world) silent(n *node, e uint8) bool { return w.nodes[n.edges[e].to].gone }
