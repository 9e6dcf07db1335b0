package handout

import (
	"math"
	"time"
)

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
	// loneBytes may be outstanding at a single receiver whatever the rate, in bytes.
	loneBytes = 8 << 20
	// stallAfter is the least time after which an outstanding piece is offered
	// to somebody else as well. A peer that is merely slow gets paceFactor
	// times what it usually takes for a piece, up to maxSlack times as much.
	stallAfter = 10 * time.Second
	// thriftyStall is how long a peer of a thrifty Set may have announced nothing before it
	// counts as starved: the pieces that those have who left count as to be had for so long.
	thriftyStall = 3 * time.Second
	// takeOverAfter is how long no piece may have got its first owner, though there are some
	// to hand out, before who is on standby does it: the one before is gone, which the
	// membership of a wide network knows half a minute later. The second in line waits twice
	// as long, and sees what the first one does.
	takeOverAfter = time.Second
	// evenTimes is how many times the share that each peer of a thrifty Set would have one
	// may be offered of a torrent's first copies: half of them can take all.
	evenTimes = 2
	// widenAfter is how long nothing may be offered of a torrent, though pieces are open and
	// a peer that has taken its share lacks some, before that is twice as much; maxWidened
	// times make it all for one of 2000 peers (maxPeers).
	widenAfter, maxWidened = 500 * time.Millisecond, 11
	// tailStallAfter is the same once nothing else is open: everyone waits for
	// the last pieces then, and to send them twice costs an uplink that has
	// nothing else to do. A link of 1 Mbit/s brings a piece in a second.
	tailStallAfter = 4 * time.Second
	paceFactor     = 4
	maxSlack       = 6
	// leastRate in bytes/s is what a seeder is taken to send when it comes to
	// say how long offers may take.
	leastRate = 1 << 20
	// compareEvery is how often a peer's sources are compared.
	compareEvery = time.Second
	// rateTime is the time constant of the measured rate.
	rateTime = time.Second
)

// tick finds stalls and peers that nobody serves.
func (q *queue) tick(now time.Time) {
	least := q.leastLimit()
	for p := range q.peers {
		if !p.joined && now.Sub(p.since) > helloTimeout {
			p.joined = true
		}
		if p.count == q.pieces {
			if q.set.hangUp > 0 && now.Sub(p.whole) >= q.set.hangUp {
				p.hangUp()
			}
			continue
		}
		if q.sendable != nil && p.has.covers(q.sendable) {
			p.since, p.starved = now, false // it is not behind, the rest is not here yet
		}
		q.expire(p, now, least)
		p.compareSources(now)
		if now.Sub(p.since) > q.starvesAfter() {
			p.starved = true
			q.covered = time.Time{} // who left gives it nothing
		}
	}
	q.takeOver(now)
	q.widen(now)
	if q.hasOpen() {
		q.exhausted = time.Time{}
	} else if q.exhausted.IsZero() {
		q.exhausted = now
	}
}

// takeOver ends a standby when nobody hands out what is here. It lasts for the torrent: a
// slow one that comes back all the same costs some pieces that are sent twice.
func (q *queue) takeOver(now time.Time) {
	if !q.standby() {
		return
	}
	if _, open := q.nextOpen(); !open || q.working == 0 {
		q.progress = now
	} else if now.Sub(q.progress) >= time.Duration(q.before)*takeOverAfter {
		q.tookOver = true
	}
}

// evenShare is how many first copies a peer is offered at the most. A piece that it is
// offered again counts again, so that all of them are no bound.
func (q *queue) evenShare() int {
	share := (evenTimes*q.pieces/max(1, q.set.crowd) + 1) << q.widened
	if !q.set.thrifty || share > q.pieces {
		return math.MaxInt
	}
	return share
}

// widen lets those who are there have more, when others do not come for their share.
func (q *queue) widen(now time.Time) {
	if !q.set.thrifty || q.working == 0 || q.widened == maxWidened || now.Sub(q.handed) < widenAfter || !q.hasOpen() {
		return
	}
	most := q.evenShare()
	for p := range q.peers {
		if p.joined && p.count < q.pieces && len(p.outstanding) == 0 && p.firsts >= most {
			q.widened++
			return
		}
	}
}

// starvesAfter is how long nothing may come to a peer that lacks something.
func (q *queue) starvesAfter() time.Duration {
	if q.set.thrifty { // others are to serve it, and nobody else is held back for it
		return thriftyStall
	}
	return stallAfter
}

// leastLimit is how long every offer may take: four times what the seeder needs
// for all that is outstanding.
func (q *queue) leastLimit() time.Duration {
	ahead := float64(q.set.outstanding + minWindow*q.pieceLength)
	backlog := time.Duration(ahead / max(q.set.rate, leastRate) * float64(time.Second))
	least := stallAfter
	if q.set.exhausted() {
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

// compareSources widens the second phase for a peer that takes what the seeder offers and
// gets little from others, whatever those announce.
func (p *peer) compareSources(now time.Time) {
	if now.Sub(p.lastCompared) < compareEvery {
		return
	}
	switch {
	case p.others > p.taken:
		p.second, p.starved = secondWindow, false
	case p.taken > 4*p.others:
		p.second = min(2*p.second, maxWindow)
	}
	p.taken, p.others, p.lastCompared = 0, 0, now
}

// window is how many pieces may be outstanding at each peer, when the queue has a share
// of so many bytes. A single receiver has nobody to trade with, so it is bounded only
// so that what is more urgent need not wait long.
func (q *queue) window(share int64) int {
	least := minWindow
	if q.lone {
		least = int(max(minWindow, loneBytes/q.pieceLength))
	}
	return min(max(int(share/q.pieceLength)/max(q.working, 1), least), maxWindow)
}
