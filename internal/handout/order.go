package handout

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// The torrents of a seeder share one uplink, so what all their peers together have in
// front of them is bounded once, and handed out in one order: by priority, then first
// copies before second ones, then by the torrents' places. Each queue may have
// outstanding what those before it leave of the budget. So the builds come one after
// the other instead of all at the end; and as soon as one has nothing left to give, or
// nobody who takes it, the next one has the rest: the uplink never rests.

// signOfLife is how long a torrent that others go before is handed out nothing at most:
// then one piece is, whatever the budget. Its agents would take it for dead otherwise,
// connect anew, and read it from the source. It is well below the least of their
// patience, 15 s, since the piece has to come to all of them.
const signOfLife = 5 * time.Second

// Place says when a torrent is handed out among others.
type Place struct {
	// High goes before everything that is not.
	High bool
	// Execution is the id, which says how old it is; Segment the torrent's number in
	// its build.
	Execution string
	Segment   int
	// More of the build is to come after this torrent: its first copies need room in
	// front of the peers, which second ones would take.
	More bool
}

// Compare orders places, the first to be handed out first.
func (p Place) Compare(o Place) int {
	switch {
	case p.High != o.High && p.High:
		return -1
	case p.High != o.High:
		return 1
	}
	return cmp.Or(strings.Compare(p.Execution, o.Execution), cmp.Compare(p.Segment, o.Segment))
}

// Idle reports whether nobody waits for anything that is handed out.
func (s *Set) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(s.order, func(q *queue) bool { return q.working > 0 })
}

// insert takes in a queue. The caller holds mu, as of all that follows.
func (s *Set) insert(q *queue) {
	at, _ := slices.BinarySearchFunc(s.order, q.place, func(o *queue, place Place) int { return o.place.Compare(place) })
	s.order = slices.Insert(s.order, at, q)
}

func (s *Set) take(q *queue) {
	if i := slices.Index(s.order, q); i >= 0 {
		s.order = slices.Delete(s.order, i, i+1)
	}
}

// measure takes in what came back announced since the last tick.
func (s *Set) measure(now time.Time) {
	elapsed := now.Sub(s.lastTick)
	if elapsed <= 0 {
		return
	}
	newest := float64(s.taken) / elapsed.Seconds()
	idle := s.taken == 0 && s.outstanding == 0
	s.taken, s.lastTick = 0, now
	switch {
	case !slices.ContainsFunc(s.order, func(q *queue) bool { return q.working > 0 }):
		s.rate = 0 // what comes next may be another network
	case newest > 2*s.rate:
		s.rate = newest // open up at once
	case !idle:
		s.rate += min(1, elapsed.Seconds()/rateTime.Seconds()) * (newest - s.rate)
	}
}

// budget is how much may be outstanding in all queues together, in bytes.
func (s *Set) budget() int64 {
	if s.rate > 0 {
		return int64(s.rate * targetDelay.Seconds())
	}
	var most int64
	for _, q := range s.order {
		most = max(most, int64(q.working)*min(initialWindow*q.pieceLength, initialBytes))
	}
	return most
}

// share is what the queues before q leave of the budget, in bytes; first is set when
// they have nothing outstanding.
func (s *Set) share(q *queue) (bytes int64, first bool) {
	bytes, first = s.budget(), true
	for _, before := range s.order {
		if before == q {
			break
		}
		if before.outstanding > 0 {
			bytes, first = bytes-int64(before.outstanding)*before.pieceLength, false
		}
	}
	return max(bytes, 0), first
}

// othersOpen reports whether another queue of the same priority, or a higher one, has
// first copies to hand out, which go before second ones of q.
func (s *Set) othersOpen(q *queue) bool {
	return slices.ContainsFunc(s.order, func(o *queue) bool {
		return o != q && (o.place.High || !q.place.High) && o.working > 0 && o.hasOpen()
	})
}

// exhausted reports whether no queue has first copies to hand out.
func (s *Set) exhausted() bool {
	return !slices.ContainsFunc(s.order, func(q *queue) bool { return q.working > 0 && q.exhausted.IsZero() })
}

// fill offers what may be offered, in order, and to those whose turn is far a sign of life.
func (s *Set) fill() {
	now := s.now()
	for _, q := range s.order {
		if q.working > 0 && q.outstanding == 0 && now.Sub(q.handed) >= signOfLife && q.hasOpen() {
			q.fillOne()
		}
	}
	for _, high := range []bool{true, false} {
		for _, seconds := range []bool{false, true} {
			for _, q := range s.order {
				if q.working > 0 && q.place.High == high {
					q.fillAll(seconds && (!s.othersOpen(q) || s.outstanding+q.pieceLength <= s.budget()))
				}
			}
		}
	}
}

// passOn offers the first copies of other queues when q leaves enough of the budget.
func (s *Set) passOn(q *queue) {
	budget := s.budget()
	if s.outstanding > budget-budget/8 {
		return
	}
	for _, o := range s.order {
		if o != q && o.working > 0 && o.hasOpen() {
			if o.fillAll(false); s.outstanding >= budget {
				return
			}
		}
	}
}
