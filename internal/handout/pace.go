package handout

import "time"

const (
	// targetDelay is how much work all peers together have in front of them,
	// at the seeder's measured rate: less lets its uplink run dry, twice as
	// much was measured to slow the whole swarm.
	targetDelay = 600 * time.Millisecond
	// minWindow and maxWindow bound the pieces outstanding at one peer, so that
	// a slow swarm has one piece on the wire and one behind it, and one that
	// announces without end costs little.
	minWindow, maxWindow = 2, 1024
	// initialWindow holds until a rate has been measured, for pieces of up to
	// initialBytes together.
	initialWindow = 5
	initialBytes  = 8 << 20
	// stallAfter is the least time after which an outstanding piece is offered
	// to somebody else as well. A peer that is merely slow gets paceFactor
	// times what it usually takes for a piece, up to maxSlack times as much.
	stallAfter = 10 * time.Second
	// tailStallAfter is the same once nothing else is open: everyone waits for
	// the last pieces then, and to send them twice costs an uplink that has
	// nothing else to do. A link of 1 Mbit/s brings a piece in a second.
	tailStallAfter = 4 * time.Second
	paceFactor     = 4
	maxSlack       = 6
	// leastRate in bytes/s is what a seeder is taken to send when it comes to
	// say how long offers may take.
	leastRate = 1 << 20
	// lookEvery is how often a peer's sources are compared.
	lookEvery = time.Second
	// rateTime is the time constant of the measured rate.
	rateTime = time.Second
)

// tick measures the rate, and finds stalls and peers that nobody serves.
func (q *queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	q.measure(now)
	least := q.leastLimit()
	for p := range q.peers {
		if !p.joined && now.Sub(p.since) > helloTimeout {
			p.joined = true
		}
		if p.count == q.pieces {
			continue
		}
		q.expire(p, now, least)
		p.look(now)
		if now.Sub(p.since) > stallAfter {
			p.starved = true
			q.covered = time.Time{} // who left gives it nothing
		}
	}
	if _, ok := q.nextOpen(); ok {
		q.exhausted = time.Time{}
	} else if q.exhausted.IsZero() {
		q.exhausted = now
	}
	q.fillAll()
}

func (q *queue) measure(now time.Time) {
	elapsed := now.Sub(q.lastTick)
	if elapsed <= 0 {
		return
	}
	newest := float64(q.taken) * float64(q.pieceLength) / elapsed.Seconds()
	idle := q.taken == 0 && q.outstanding == 0
	q.taken, q.lastTick = 0, now
	switch {
	case q.working == 0:
		q.rate = 0 // what comes next may be another network
	case newest > 2*q.rate:
		q.rate = newest // open up at once
	case !idle:
		q.rate += min(1, elapsed.Seconds()/rateTime.Seconds()) * (newest - q.rate)
	}
}

// leastLimit is how long every offer may take: four times what the seeder needs
// for all that is outstanding.
func (q *queue) leastLimit() time.Duration {
	ahead := float64(q.outstanding+minWindow) * float64(q.pieceLength)
	backlog := time.Duration(ahead / max(q.rate, leastRate) * float64(time.Second))
	least := stallAfter
	if !q.exhausted.IsZero() {
		least = tailStallAfter
	}
	return max(least, paceFactor*targetDelay, paceFactor*backlog)
}

// expire gives what has been outstanding at a peer for too long to others.
func (q *queue) expire(p *peer, now time.Time, least time.Duration) {
	limit := max(least, min(paceFactor*p.pace, maxSlack*stallAfter))
	for i, o := range p.outstanding {
		if !o.expired && now.Sub(o.at) > limit {
			p.outstanding[i] = offered{o.at, true}
			p.stalled = true
			q.takeBack(i)
		}
	}
}

// look widens the second phase for a peer that takes what the seeder offers and
// gets little from others, whatever those announce.
func (p *peer) look(now time.Time) {
	if now.Sub(p.lastLook) < lookEvery {
		return
	}
	switch {
	case p.others > p.taken:
		p.second, p.starved = secondWindow, false
	case p.taken > 4*p.others:
		p.second = min(2*p.second, maxWindow)
	}
	p.taken, p.others, p.lastLook = 0, 0, now
}

// budget is how many pieces may be outstanding at all peers together.
func (q *queue) budget() int {
	if q.rate == 0 {
		return q.working * int(min(initialWindow, initialBytes/q.pieceLength))
	}
	return int(q.rate * targetDelay.Seconds() / float64(q.pieceLength))
}

// window is how many pieces may be outstanding at each peer.
func (q *queue) window() int {
	return min(max(q.budget()/max(q.working, 1), minWindow), maxWindow)
}
