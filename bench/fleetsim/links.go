package fleetsim

import (
	"bytes"
	"cmp"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// look is what a host does twice a second.
func (w *world) look(i int32) {
	n, h := &w.nodes[i], &w.hosts[i]
	if n.gone {
		return
	}
	if h.looked++; h.looked%2 == 1 {
		w.dial(i)
	}
	if n.lacking > 0 {
		w.askAgain(i)
	}
	w.agenda.add(event{at: w.now + lookInterval, kind: looks, node: i})
}

// dial connects a host with those that it was told of.
func (w *world) dial(i int32) {
	h, n := &w.hosts[i], &w.nodes[i]
	if h.neighbours != nil {
		w.follow(h)
	}
	for _, k := range slices.Sorted(maps.Keys(h.sources)) {
		w.dialAgent(i, k)
	}
	if !h.dirty {
		return
	}
	h.dirty = false
	others := slices.Sorted(maps.Keys(h.peers))
	for _, e := range slices.Clone(n.live) {
		if ed := &n.edges[e]; ed.agent == nil && !slices.Contains(others, ed.to) {
			w.part(i, e)
		}
	}
	for _, other := range others {
		o := &w.hosts[other]
		if !o.peers[i] || !w.nodes[other].on || w.nodes[other].gone {
			h.dirty = true // asks again
			continue
		}
		if !slices.ContainsFunc(n.live, func(e uint8) bool { return n.edges[e].to == other }) {
			w.connect(i, other, nil)
		}
	}
}

// follow reads whom a host was told of.
func (w *world) follow(h *host) {
	m, _, err := hostwire.Read(bytes.NewReader(h.neighbours))
	if err != nil {
		panic(err) // it is of our own making
	}
	h.neighbours, h.dirty = nil, true
	h.peers = make(map[int32]bool)
	for _, p := range m.(*hostwire.Neighbours).Peers {
		h.peers[w.numberOf(p.ID)] = true
	}
	h.sources = make(map[int32]bool)
	for _, p := range m.(*hostwire.Neighbours).Sources {
		k := slices.IndexFunc(w.agents, func(a agent) bool { return a.id == p.ID })
		h.sources[int32(k)] = true
	}
}

func (w *world) numberOf(name string) int32 {
	n, err := strconv.Atoi(strings.TrimPrefix(name, hostPrefix))
	if err != nil {
		panic(err) // it is of our own making
	}
	return int32(n)
}

// dialAgent connects a host with an agent, if that has a place for it.
func (w *world) dialAgent(i, k int32) {
	a := &w.agents[k]
	n, an := &w.nodes[i], &w.nodes[a.node]
	if a.gone {
		return
	}
	at := slices.IndexFunc(n.live, func(e uint8) bool { return n.edges[e].to == a.node })
	if at < 0 {
		if len(an.live) >= swarm.DefaultPlaces {
			idlest := slices.MinFunc(an.live, func(x, y uint8) int { return cmp.Compare(w.usedAt(an, x), w.usedAt(an, y)) })
			if w.now-w.usedAt(an, idlest) < idlePlace {
				return
			}
			w.part(a.node, idlest)
		}
		if !w.connect(i, a.node, &source{make([]uint64, w.words), make(map[int]*handout.Link), w.now}) {
			return
		}
		at = len(n.live) - 1
	}
	for _, s := range n.slots {
		if s.segment >= 0 {
			w.link(i, n.live[at], int(s.segment))
		}
	}
}

func (w *world) usedAt(an *node, e uint8) time.Duration {
	ed := &an.edges[e]
	return w.nodes[ed.to].edges[ed.back].agent.useful
}

// link has an agent hand a segment to a host.
func (w *world) link(i int32, e uint8, segment int) {
	n := &w.nodes[i]
	src := n.edges[e].agent
	if src.links[segment] != nil {
		return
	}
	a := &w.agents[int(n.edges[e].to)-w.cfg.Hosts]
	seg := &w.segments[segment]
	hangUp := func() {
		if l := src.links[segment]; l != nil {
			delete(src.links, segment)
			l.Leave()
		}
	}
	l, _ := a.set.Connect(seg.infohash, peerwire.PeerID(hostwire.NameOf(w.hosts[i].name, started)), func(items ...int) {
		at := int(n.slotOf[segment])
		for _, g := range items {
			if src.offered[seg.word+g/64]>>(g%64)&1 != 0 {
				continue
			}
			src.offered[seg.word+g/64] |= 1 << (g % 64)
			if at >= 0 {
				n.slots[at].has[g]++
			}
		}
		if at >= 0 && n.edges[e].on {
			w.update(i, e, at)
		}
	}, func() { a.hungUp = append(a.hungUp, hangUp) })
	if l == nil {
		return
	}
	src.links[segment] = l
	var has []int
	for g := range seg.items {
		if n.have[seg.word+g/64]>>(g%64)&1 != 0 {
			has = append(has, g)
		}
	}
	l.Has(has...)
}

// openMore opens the oldest segments that a host knows and lacks.
func (w *world) openMore(i int32) {
	n := &w.nodes[i]
	open := 0
	for s := n.first; s < n.known; s++ {
		switch {
		case n.left[s] == 0:
			if s == n.first {
				n.first++
			}
			continue
		case n.slotOf[s] < 0:
			if open >= len(n.slots) {
				return
			}
			w.open(i, s)
		}
		if open++; open >= len(n.slots) {
			return
		}
	}
}

func (w *world) open(i int32, segment int) {
	n := &w.nodes[i]
	at := slices.IndexFunc(n.slots, func(s slot) bool { return s.segment < 0 })
	s := &n.slots[at]
	s.segment = int16(segment)
	n.slotOf[segment] = int8(at)
	clear(s.asked)
	clear(s.sent)
	s.longFrom = 0
	clear(s.has)
	seg := &w.segments[segment]
	for _, e := range n.live {
		ed := &n.edges[e]
		w.forget(&ed.conns[at])
		for k, word := range w.has(ed)[seg.word : seg.word+seg.words] {
			for ; word != 0; word &= word - 1 {
				s.has[k*64+bits.TrailingZeros64(word)]++
			}
		}
	}
	for _, e := range n.live {
		if n.edges[e].agent != nil {
			w.link(i, e, segment)
		}
		w.update(i, e, at)
	}
}

// whole closes a segment that a host has all of.
func (w *world) whole(i int32, segment, at int) {
	n, h := &w.nodes[i], &w.hosts[i]
	n.slots[at].segment = -1
	n.slotOf[segment] = -1
	n.lacking--
	for e := range n.edges {
		w.forget(&n.edges[e].conns[at])
	}
	h.segment = true
	if n.lacking > 0 {
		w.openMore(i)
		return
	}
	if h.agent >= 0 {
		holds := &hostwire.Holds{ExecutionID: execution, Segments: len(w.segments), Whole: true}
		w.says(h, holds)
		h.stream.Holds(epoch.Add(w.now), holds)
	}
	h.done = w.now
	if !h.dying {
		w.lack--
	}
}
