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
	// aloneTimes is how many times the average of all may be at one peer of a thrifty Set, of
	// first copies that nobody else has yet.
	aloneTimes = 2
	// widenAfter is how long nothing may be offered of a torrent, though pieces are open and
	// a peer lacks some that has taken all it may have alone, before that is twice as much;
	// maxWidened times make it all that most torrents have.
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

// receiver is who gets first copies, over the connections of all torrents.
type receiver struct {
	id    [20]byte
	conns int
	// alone is how much it was offered first that nobody else has yet, in bytes.
	alone int64
}

// receiver returns who has this peer id; leaves ends that.
func (s *Set) receiver(id [20]byte) *receiver {
	r := s.receivers[id]
	if r == nil {
		r = &receiver{id: id}
		s.receivers[id] = r
	}
	r.conns++
	return r
}

func (s *Set) leaves(r *receiver) {
	if r.conns--; r.conns == 0 {
		delete(s.receivers, r.id)
	}
}

// inStep reports whether a peer may be offered one more first copy: who has many more than
// others that it has not passed on yet, since it is slow or they are not as far, has no more
// before they come to others, or all would wait for it.
func (q *queue) inStep(p *peer) bool {
	if q.firsts == nil {
		return true
	}
	most := max(aloneTimes*q.set.alone/int64(len(q.set.receivers)), minWindow*q.pieceLength) << q.widened
	return p.receiver.alone+q.pieceLength <= most
}

// widen lets those who are there have more, when what they have comes to nobody else.
func (q *queue) widen(now time.Time) {
	if q.firsts == nil || q.working == 0 || q.widened == maxWidened || now.Sub(q.handed) < widenAfter || !q.hasOpen() {
		return
	}
	for p := range q.peers {
		if p.joined && p.count < q.pieces && len(p.outstanding) == 0 && !q.inStep(p) {
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
