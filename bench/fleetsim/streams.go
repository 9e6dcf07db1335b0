package fleetsim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// join has a host open a stream to the first agent of its order that is there.
func (w *world) join(i int32) {
	h := &w.hosts[i]
	if n := &w.nodes[i]; !n.on {
		if n.on = true; w.now >= 0 {
			w.agenda.add(event{at: w.now + w.upTo(lookInterval), kind: looks, node: i})
		}
	}
	h.agent = -1
	var best [sha256.Size]byte
	for k := range w.agents {
		if sum := sha256.Sum256([]byte(h.name + "\x00" + w.agents[k].url)); !w.agents[k].gone && (h.agent < 0 || bytes.Compare(sum[:], best[:]) < 0) {
			h.agent, best = k, sum
		}
	}
	hello := &hostwire.Hello{
		Version: hostwire.Version, Host: h.name, Start: started, Zone: fmt.Sprint("zone-", w.nodes[i].zone), PeerPort: 7093,
		Services: []hostwire.ServiceState{{Service: service, State: goal.Healthy, Running: "01JD000000000000000000000A"}},
	}
	if h.segment {
		hello.Holds = []hostwire.Holds{{ExecutionID: execution, Segments: 1, Whole: w.nodes[i].lacking == 0}}
	}
	w.says(h, hello)
	addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	h.stream = w.agents[h.agent].trial.Join(epoch.Add(w.now), hello, addr, func(name string, e hostwire.Encoded) { w.said(i, name, e) })
	w.passTold()
}

// says counts what a host says.
func (w *world) says(h *host, m hostwire.Message) {
	e, err := hostwire.Encode(m)
	if err != nil {
		panic(err) // it is of our own making
	}
	h.upMessages++
	h.upBytes += len(e)
	a := &w.agents[h.agent]
	a.up.messages++
	a.up.bytes += int64(len(e))
}

// said takes what an agent says to a host.
func (w *world) said(i int32, name string, e hostwire.Encoded) {
	h := &w.hosts[i]
	h.downMessages++
	h.downBytes += len(e)
	if h.agent >= 0 {
		w.agents[h.agent].down.messages++
		w.agents[h.agent].down.bytes += int64(len(e))
	}
	switch kind, _, _ := strings.Cut(name, "/"); kind {
	case "neighbours":
		h.neighbours = e
	case "recipe":
		w.toldNow = append(w.toldNow, i)
	}
}

// passTold has the hosts that were told of segments hear of it, in an order that does not
// depend on that of a map.
func (w *world) passTold() {
	slices.Sort(w.toldNow)
	for _, i := range w.toldNow {
		w.agenda.add(event{at: w.now + streamLag, kind: told, node: i, item: int32(w.announced)})
	}
	w.toldNow = w.toldNow[:0]
}

func (w *world) recipe(string) (hostwire.Recipe, bool) {
	return hostwire.Recipe{
		ExecutionID: execution, Key: w.goal.Target.Key, Size: w.cfg.Size, Scheme: manifest.Ramp, PieceLength: w.layout.PieceLength, PartLength: w.layout.PartLength,
		InfoHashes: w.hashes[:w.announced*len(manifest.InfoHash{})], Sealed: w.announced == len(w.segments),
	}, w.announced > 0
}

// members are the agents that an agent takes to be there.
func (w *world) members() (of []int) {
	for i := range w.agents {
		if a := &w.agents[i]; !a.gone || w.now-a.goneAt < memberLost {
			of = append(of, i)
		}
	}
	return of
}

// tick is an agent's, once a second.
func (w *world) tick(i int) {
	a := &w.agents[i]
	var urls, others []string
	var sources []hostwire.Peer
	for _, k := range w.members() {
		urls, sources = append(urls, w.agents[k].url), append(sources, w.agents[k].peer)
		if k != i {
			others = append(others, w.agents[k].name)
		}
	}
	a.trial.Tick(epoch.Add(w.now), urls, sources, others, w.recipe, func(_ int, hosts []byte) {
		for k := range w.agents {
			if k != i && !w.agents[k].gone {
				if err := w.agents[k].trial.HearNear(a.name, hosts); err != nil {
					panic(err) // it is of our own making
				}
			}
		}
	})
	w.passTold()
	for s := range w.announced {
		w.grow(i, s)
	}
}

// rank is an agent's place in the order of a segment, as agent.rendezvousRank has it.
func (w *world) rank(i, segment int) (before int) {
	hash := func(k int) []byte {
		sum := sha256.Sum256([]byte(w.segments[segment].infohash.String() + "\x00" + w.agents[k].id))
		return sum[:]
	}
	for _, k := range w.members() {
		if k != i && bytes.Compare(hash(k), hash(i)) > 0 {
			before++
		}
	}
	return before
}

// grow has an agent hand a segment to hosts.
func (w *world) grow(i, segment int) {
	s := &w.segments[segment]
	place := handout.Place{Execution: execution, Segment: segment, More: segment < len(w.segments)-1}
	w.agents[i].set.Grow(s.infohash, place, w.rank(i, segment), s.items, s.item)
}

// announce has the agents learn of a segment, whose items come from now on.
func (w *world) announce(segment int) {
	w.announced = segment + 1
	for i := range w.agents {
		if a := &w.agents[i]; !a.gone {
			w.grow(i, segment)
			a.orders[segment] = w.rng.Perm(w.segments[segment].items)
			w.comesIn(i, segment, 0)
		}
	}
}

// comesIn has the next items of a segment come to an agent.
func (w *world) comesIn(i, segment, next int) {
	s := &w.segments[segment]
	if next >= s.items {
		delete(w.agents[i].orders, segment)
		return
	}
	at := s.begins + (s.ends-s.begins)*time.Duration(next+1)/time.Duration(s.items)
	w.agenda.add(event{at: at, kind: arrives, node: int32(i), item: itemOf(segment, next)})
}

func (w *world) arrive(i int, item int32) {
	a := &w.agents[i]
	if a.gone {
		return
	}
	segment, next := int(item>>16), int(item&0xffff)
	a.set.Here(w.segments[segment].infohash, true, a.orders[segment][next])
	w.comesIn(i, segment, next+1)
}
