package fleetsim

import (
	"math/bits"
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
	// askedFor bounds what is asked for on all connections together, by how long it takes to
	// come: where it would be more, a slow host would be asking everybody for everything.
	askedFor = 1500 * time.Millisecond
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
	asked    int64
	most     int64
	full     bool // it asks for so much
	downFree time.Duration

	busy    bool
	sending request
	toEdge  uint8
	ready   fifo // edges with requests
}

// slot is an open segment.
type slot struct {
	segment int16 // -1 for none
	asked   []uint64
	has     []uint8 // neighbours that have it, by item
	holder  []uint8 // the edge that was asked
	at      []time.Duration
}

// edge is what a node knows of a neighbour.
type edge struct {
	to     int32
	back   uint8 // which of the other's edges it is
	on     bool
	queued bool // it stands in ready
	// first and last are the requests of the other that wait, in the world's pool; 0 for none.
	first, last int32
	conns       []conn // by slot
	agent       *source
}

// conn is a connection: how many items were asked for and have not come, and how many the
// last look at them has added, which bounds how many may be (the engine's peakRequests).
type conn struct{ out, peak uint8 }

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

// fifo is edges in turn.
type fifo struct {
	of   []uint8
	head int
}

func (f *fifo) push(e uint8) {
	if f.head > 64 && f.head*2 > len(f.of) {
		f.of = f.of[:copy(f.of, f.of[f.head:])]
		f.head = 0
	}
	f.of = append(f.of, e)
}

func (f *fifo) pop() (uint8, bool) {
	if f.head == len(f.of) {
		f.of, f.head = f.of[:0], 0
		return 0, false
	}
	f.head++
	return f.of[f.head-1], true
}

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
	for ed.first != 0 {
		w.take(ed)
	}
	if ed.agent != nil {
		for _, l := range ed.agent.links {
			l.Leave()
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
		if s.segment < 0 || n.edges[e].conns[i].out == 0 {
			continue
		}
		for g, holder := range s.holder {
			if holder == e && s.asked[g/64]>>(g%64)&1 != 0 {
				s.asked[g/64] &^= 1 << (g % 64)
				n.asked -= w.segments[s.segment].length(g)
			}
		}
		n.edges[e].conns[i].out = 0
		for _, l := range n.live {
			if n.edges[l].conns[i].out == 0 {
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
func (w *world) update(a int32, e uint8, at int) {
	n := &w.nodes[a]
	ed := &n.edges[e]
	c := &ed.conns[at]
	most := uint8(max(1, min(2*int(c.peak), w.depth)))
	added := uint8(0)
	for c.out < most {
		if n.asked >= n.most {
			n.full = true
			break
		}
		g := w.pick(a, n, ed, at, max(2, 4*int(most)))
		if g < 0 {
			if g = w.stealable(n, ed, e, at); g < 0 {
				break
			}
			w.steal(n, at, g)
		}
		w.ask(a, e, at, g)
		added++
	}
	c.peak = added
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
// long ago; -1 for none.
func (w *world) stealable(n *node, ed *edge, e uint8, at int) int {
	s := &n.slots[at]
	seg := &w.segments[s.segment]
	theirs := w.has(ed)[seg.word : seg.word+seg.words]
	for k := range theirs {
		for word := theirs[k] & s.asked[k]; word != 0; word &= word - 1 {
			g := k*64 + bits.TrailingZeros64(word)
			if h := s.holder[g]; h != e && w.now-s.at[g] >= stealAfter && n.edges[h].conns[at].out >= ed.conns[at].out+2 {
				return g
			}
		}
	}
	return -1
}

// steal takes back what was asked for of another one.
func (w *world) steal(n *node, at, g int) {
	s := &n.slots[at]
	n.edges[s.holder[g]].conns[at].out--
	n.asked -= w.segments[s.segment].length(g)
	w.result.Stolen++
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
	s.holder[g], s.at[g] = e, w.now
	ed.conns[at].out++
	n.asked += w.segments[s.segment].length(g)
	b := &w.nodes[ed.to]
	other := &b.edges[ed.back]
	r := w.newRequest(itemOf(int(s.segment), g))
	if other.last == 0 {
		other.first = r
	} else {
		w.pool[other.last].next = r
	}
	other.last = r
	if !other.queued {
		other.queued = true
		b.ready.push(ed.back)
	}
	if !b.busy && !b.gone {
		w.send(ed.to, w.now+lag)
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

// take takes the first request out of an edge's.
func (w *world) take(ed *edge) int32 {
	r := ed.first
	item := w.pool[r].item
	if ed.first = w.pool[r].next; ed.first == 0 {
		ed.last = 0
	}
	w.pool[r].next = w.free
	w.free = r
	return item
}

// send has a node send what comes next: neighbours take turns.
func (w *world) send(b int32, start time.Duration) {
	n := &w.nodes[b]
	n.busy = false
	for !n.gone {
		e, ok := n.ready.pop()
		if !ok {
			return
		}
		ed := &n.edges[e]
		found := false
		var item int32
		for ed.first != 0 && !found {
			item = w.take(ed)
			found = ed.on && w.isAsked(ed, item)
		}
		if ed.queued = ed.first != 0; ed.queued {
			n.ready.push(e)
		}
		if found {
			n.busy, n.sending, n.toEdge = true, request{item: item}, e
			w.agenda.add(event{at: start + w.taking(n.up, item), kind: sent, node: b})
			return
		}
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

// hasSent has what a node was sending be on its way through the other one's downlink.
func (w *world) hasSent(b int32) {
	n := &w.nodes[b]
	if n.gone {
		return
	}
	ed, item := &n.edges[n.toEdge], n.sending.item
	if ed.on {
		to := &w.nodes[ed.to]
		bytes := w.segments[item>>16].length(int(item & 0xffff))
		w.traffic(b, ed.to, bytes)
		to.downFree = max(w.now, to.downFree+w.taking(to.down, item))
		if to.downFree == w.now {
			w.receive(ed.to, ed.back, item)
		} else {
			w.agenda.add(event{at: to.downFree, kind: received, node: ed.to, edge: int32(ed.back), item: item})
		}
	}
	w.send(b, w.now)
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
	idle := uint8(noEdge)
	if s.asked[g/64]>>(g%64)&1 != 0 {
		s.asked[g/64] &^= 1 << (g % 64)
		n.asked -= seg.length(g)
		c := &n.edges[s.holder[g]].conns[at]
		if c.out--; c.out == 0 {
			idle = s.holder[g]
		}
	}
	word, bit := seg.word+g/64, uint64(1)<<(g%64)
	if n.have[word]&bit != 0 {
		w.result.Twice += seg.length(g)
	} else {
		n.have[word] |= bit
		n.left[segment]--
		if src := n.edges[e].agent; src != nil {
			src.useful = w.now
		}
		w.tell(n, segment, g, word, bit)
	}
	if n.left[segment] == 0 {
		w.whole(a, segment, int(at))
	} else if idle != noEdge && n.edges[idle].on {
		w.update(a, idle, int(at))
	}
	if n.full && n.asked < n.most {
		w.askMore(a)
	}
}

// askMore has idle connections ask that could not before, for enough was asked for.
func (w *world) askMore(a int32) {
	n := &w.nodes[a]
	n.full = false
	for at := range n.slots {
		for _, e := range n.live {
			if n.slots[at].segment >= 0 && n.edges[e].conns[at].out == 0 {
				if w.update(a, e, at); n.full {
					return
				}
			}
		}
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
		if c := &b.edges[ed.back].conns[at]; int(c.out) >= max(1, 2*int(c.peak)) {
			c.peak = 0
			continue
		}
		w.update(ed.to, ed.back, int(at))
	}
}

// askAgain has idle connections asked for what was asked for elsewhere and takes long.
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
				if w.now-s.at[g] < stealAfter {
					continue
				}
				for _, i := range n.live {
					ed := &n.edges[i]
					if ed.conns[at].out == 0 && w.has(ed)[seg.word+k]>>(g%64)&1 != 0 {
						w.steal(n, at, g)
						w.ask(a, i, at, g)
						break
					}
				}
			}
		}
	}
}
