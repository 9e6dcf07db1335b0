package fleetsim

import "time"

// event is something that happens at a moment of the simulation. What node, edge and item
// are depends on the kind.
type event struct {
	at   time.Duration
	seq  uint64 // of two at the same moment the earlier made comes first
	kind kind
	edge int32
	node int32
	item int32
}

type kind uint8

const (
	sent     kind = iota // a node's uplink has sent what it was at
	received             // a node has received an item by an edge
	comes                // a host starts
	rejoins              // a host opens a stream to another agent
	dies                 // a host or an agent stops
	missed               // a host's neighbours give it up
	loses                // an agent gives up a host's stream
	told                 // a host hears of so many segments
	looks                // a host looks after its connections and requests
	arrives              // an item is at an agent
	learns               // the agents learn of a segment
	ticks                // an agent tells what is new
	measures             // an agent's hand-out measures
)

// agenda is the events to come, a heap with four children each: there is one for each
// transfer, and they are most of the work.
type agenda struct {
	events []event
	seq    uint64
}

func before(a, b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (a *agenda) add(e event) {
	a.seq++
	e.seq = a.seq
	a.events = append(a.events, e)
	i := len(a.events) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !before(&e, &a.events[up]) {
			break
		}
		a.events[i] = a.events[up]
		i = up
	}
	a.events[i] = e
}

// next takes out the first event; false when there is none.
func (a *agenda) next() (first event, ok bool) {
	if len(a.events) == 0 {
		return first, false
	}
	first = a.events[0]
	last := len(a.events) - 1
	e := a.events[last]
	a.events = a.events[:last]
	if last == 0 {
		return first, true
	}
	i := 0
	for {
		child := 4*i + 1
		if child >= last {
			break
		}
		least := child
		for c := child + 1; c < min(child+4, last); c++ {
			if before(&a.events[c], &a.events[least]) {
				least = c
			}
		}
		if !before(&a.events[least], &e) {
			break
		}
		a.events[i] = a.events[least]
		i = least
	}
	a.events[i] = e
	return first, true
}
