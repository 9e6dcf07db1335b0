package handout

import (
	"cmp"
	"slices"
	"time"
)

const (
	// secondWindow bounds the offers to one peer of pieces that others have:
	// the peers' own trade is to bring those. minSecond are allowed at all
	// peers together even when targetDelay comes to fewer.
	secondWindow = 2
	minSecond    = 16
	// starvedShare is how many times what is offered to starved peers of one torrent
	// fits into what may be outstanding, while others have first copies to hand out.
	starvedShare = 4
	// tailPatience is how long the last pieces may be outstanding before the
	// second phase begins without them, for one slow peer has them.
	tailPatience = 2 * time.Second
	// goneGrace is how long the copies of a peer that had everything and left
	// still count, unless somebody stalls meanwhile: it has finished and hung up, and is
	// likely alive.
	goneGrace = 2 * time.Minute
	// moreGrace is how long second copies wait where more of the build is to come: the
	// next segment needs a moment to be announced and asked for.
	moreGrace = 500 * time.Millisecond
	// helloTimeout is waited for a peer to say what it has; one that has
	// nothing need not (BEP 3).
	helloTimeout = time.Second
	// asksAgain is how many times as much may be asked for as was offered: what was sent
	// just when others were asked for it too, or to a disk that was full, is asked for again.
	asksAgain = 4
	// candidates bounds the pieces looked at for the rarest one.
	candidates = 64
	// maxPeers bounds the connections of one torrent. Each costs a bit for
	// every piece.
	maxPeers = 2000
)

// queue decides which piece is offered to which peer of one torrent, within what its
// place among the others leaves to it (order.go).
//
// A piece is owned when a connected peer has announced it; it is open when it is
// neither owned nor outstanding anywhere. Open pieces are offered in order, each
// to one peer. When every piece has an owner, the second phase gives each peer a
// few pieces that others have, the rarest first.
//
// Whatever the peers say or do, every live one finishes: an offer is never taken
// back at the wire, a piece that is outstanding for too long becomes open again,
// and the second phase opens up to a peer whom nobody else gives anything.
//
// Its fields and methods are guarded by the Set's mutex.
type queue struct {
	set         *Set
	place       Place
	lone        bool // there is one receiver
	removed     bool // from the Set
	pieces      int
	pieceLength int64
	now         func() time.Time
	// sendable are the pieces that can be sent, nil for all of them; so many are absent.
	sendable bitmap
	absent   int
	// before is how many others hand it out before this one, tookOver that none of them does;
	// progress is when a piece last got its first owner, or there was none to hand out.
	before   int
	tookOver bool
	progress time.Time

	owners   []uint16 // peers that announced it, by piece
	assigned []uint16 // peers it is outstanding at in good time, by piece
	// firsts are the peers that were offered the first copies which no other one has yet, by
	// piece: of a thrifty Set alone, while the torrent is in it.
	firsts  []*peer
	open    bitmap
	low     int // no open piece is below it
	unowned int // pieces without an owner

	peers       map[*peer]struct{}
	seq         uint64 // of the newest peer
	working     int    // peers that lack something
	missing     int    // pieces that they lack, all together
	outstanding int    // sum of assigned

	// covered is until when a finished peer that left counts as owner of all.
	covered time.Time
	// exhausted is since when no piece is open; zero while one is.
	exhausted time.Time
	// handed is when a first copy was offered last, at first when a peer came. widened is how
	// often what a peer may have alone was doubled since: see inStep.
	handed  time.Time
	widened int

	counters Stats
}

// peer is one connection as the queue sees it.
type peer struct {
	seq uint64
	// offer passes Have messages on to the connection. It must not block, and
	// not call the queue.
	offer func(pieces ...int)

	has         bitmap
	count       int // of has
	receiver    *receiver
	outstanding map[int]offered
	joined      bool
	since       time.Time // of the last announcement, at first of connecting
	// pace is the usual time from an offer to its announcement.
	pace time.Duration
	// stalled: an offer has expired, and nothing was announced since.
	stalled bool
	// taken and others count pieces that it had from the seeder and from
	// elsewhere since lastCompared; second is how many second-phase offers it may
	// have outstanding.
	taken, others int
	second        int
	lastCompared  time.Time
	// starved: nothing was announced for stallAfter. It is offered missing pieces even
	// when they are assigned elsewhere, ignoring the shared budget.
	starved bool
	// low: no piece below it is missing.
	low int

	// hangUp has the connection closed; it must not block, and not call the queue. whole is
	// since when everything is announced; offers are all pieces that were ever offered, and
	// asked how much was asked for, in bytes: of a thrifty Set alone.
	hangUp func()
	whole  time.Time
	offers bitmap
	asked  int64
}

// offered is one outstanding piece.
type offered struct {
	at      time.Time
	expired bool // others may have it as well
}

func newQueue(s *Set, place Place, pieces int, pieceLength int64) *queue {
	q := &queue{
		set:         s,
		place:       place,
		pieces:      pieces,
		pieceLength: pieceLength,
		now:         s.now,
		owners:      make([]uint16, pieces),
		assigned:    make([]uint16, pieces),
		open:        fullBitmap(pieces),
		unowned:     pieces,
		peers:       make(map[*peer]struct{}),
	}
	if s.thrifty {
		q.firsts = make([]*peer, pieces)
	}
	return q
}

// connect takes in a connection of somebody; nil when there are too many. It is offered
// nothing before it joins.
func (q *queue) connect(peerID [20]byte, offer func(pieces ...int)) *peer {
	if len(q.peers) >= maxPeers {
		return nil
	}
	q.seq++
	now := q.now()
	p := &peer{
		seq:          q.seq,
		offer:        offer,
		has:          newBitmap(q.pieces),
		outstanding:  make(map[int]offered),
		since:        now,
		second:       secondWindow,
		lastCompared: now,
		receiver:     q.set.receiver(peerID),
	}
	q.peers[p] = struct{}{}
	if q.working++; q.working == 1 {
		q.handed = now
	}
	q.missing += q.pieces
	return p
}

// join says what the peer has from the start; it can be offered pieces now.
func (q *queue) join(p *peer, has bitmap) {
	if _, ok := q.peers[p]; !ok {
		return
	}
	before := q.unowned
	has.each(func(i int) { q.own(p, i) })
	p.joined = true
	q.refill(p, before)
}

// have takes an announcement: the peer has verified a piece.
func (q *queue) have(p *peer, i int) {
	if _, ok := q.peers[p]; !ok {
		return
	}
	p.joined = true // it would have said before what it has
	before, first := q.unowned, q.first(i)
	if q.own(p, i) {
		q.settle(p, i)
		if first != nil && q.first(i) == nil {
			q.fill(first, false) // which has less alone now
		}
		q.refill(p, before)
	}
}

// own notes that a peer has a piece; false when that is not new or cannot be.
func (q *queue) own(p *peer, i int) bool {
	if i < 0 || i >= q.pieces || p.has.get(i) {
		return false
	}
	p.has.set(i)
	p.count++
	q.missing--
	if p.count == q.pieces {
		q.working--
		p.whole = q.now()
	}
	switch q.owners[i]++; q.owners[i] {
	case 1:
		q.unowned--
		q.open.clear(i)
		q.progress = q.now()
	case 2:
		q.spread(i)
	}
	return true
}

// settle ends the offer of a piece that the peer now has, if there was one.
func (q *queue) settle(p *peer, i int) {
	now := q.now()
	p.since = now
	o, ok := p.outstanding[i]
	if !ok {
		p.others++
		return
	}
	delete(p.outstanding, i)
	if !o.expired {
		q.assigned[i]--
		q.out(-1)
	}
	p.stalled = false
	p.taken++
	q.set.taken += q.pieceLength
	took := now.Sub(o.at)
	if p.pace == 0 {
		p.pace = took
	}
	p.pace += (took - p.pace) / 8
}

// leave forgets a peer. What was outstanding at it is open again, in order, and
// its copies count no longer; those of a peer that had everything do for a
// while.
func (q *queue) leave(p *peer) {
	if _, ok := q.peers[p]; !ok {
		return
	}
	delete(q.peers, p)
	for i, o := range p.outstanding {
		if !o.expired {
			q.takeBack(i)
		}
	}
	if p.count == q.pieces {
		q.covered = q.now().Add(goneGrace)
	} else {
		q.working--
		q.missing -= q.pieces - p.count
	}
	p.has.each(q.disown)
	for i, first := range q.firsts {
		if first == p {
			q.spread(i)
		}
	}
	q.set.leaves(p.receiver)
	q.fillAll(!q.set.othersOpen(q))
}

// out counts what is outstanding, here and in all queues.
func (q *queue) out(n int) {
	q.outstanding += n
	if q.removed {
		return
	}
	q.set.outstanding += int64(n) * q.pieceLength
}

// takeBack ends an offer that was not taken up.
func (q *queue) takeBack(i int) {
	q.counters.Requeued++
	q.out(-1)
	if q.assigned[i]--; q.assigned[i] == 0 && q.owners[i] == 0 {
		q.reopen(i)
	}
}

func (q *queue) disown(i int) {
	if q.owners[i]--; q.owners[i] == 0 {
		q.unowned++
		if q.assigned[i] == 0 {
			q.reopen(i)
		}
	}
}

func (q *queue) reopen(i int) {
	if q.sendable != nil && !q.sendable.get(i) {
		return
	}
	q.open.set(i)
	q.low = min(q.low, i)
}

// arrive notes that a piece is here, or not any more, and reports whether that makes it open.
func (q *queue) arrive(i int, here bool) (opened bool) {
	switch {
	case q.sendable.get(i) == here:
		return false
	case !here:
		q.sendable.clear(i)
		q.open.clear(i)
		q.absent++
		return false
	}
	q.sendable.set(i)
	q.absent--
	if q.owners[i] > 0 || q.assigned[i] > 0 {
		return false
	}
	q.reopen(i)
	q.exhausted = time.Time{}
	return true
}

// second reports whether pieces are offered that others have.
func (q *queue) second() bool {
	switch {
	case q.set.thrifty, q.absent > 0:
		return false
	case q.unowned == 0 && q.place.More:
		return !q.exhausted.IsZero() && q.now().Sub(q.exhausted) > moreGrace
	case q.unowned == 0:
		return true
	case q.exhausted.IsZero() && q.covered.IsZero():
		return false
	}
	now := q.now()
	return now.Before(q.covered) || !q.exhausted.IsZero() && now.Sub(q.exhausted) > tailPatience
}

// refill offers pieces after an announcement of p, before which so many pieces
// had no owner.
func (q *queue) refill(p *peer, unownedBefore int) {
	seconds := !q.set.othersOpen(q)
	switch {
	case q.unowned == 0 && unownedBefore > 0:
		q.fillAll(seconds) // the second phase begins
	case !p.starved && q.second() && q.working*secondWindow > q.secondBudget() && (q.pieces-p.count)*q.working < q.missing:
		// There is not enough for all: who has more than the others waits
		// until the next tick has served them.
	default:
		q.fill(p, seconds)
	}
	q.set.passOn(q)
}

// fillAll offers pieces to everyone, those furthest behind first; second copies only
// where seconds is set.
func (q *queue) fillAll(seconds bool) {
	if q.working == 0 {
		return
	}
	peers := make([]*peer, 0, q.working)
	for p := range q.peers {
		if p.joined && p.count < q.pieces {
			peers = append(peers, p)
		}
	}
	slices.SortFunc(peers, func(a, b *peer) int {
		return cmp.Or(cmp.Compare(a.count, b.count), cmp.Compare(a.seq, b.seq))
	})
	for _, p := range peers {
		q.fill(p, seconds)
	}
}

// fill offers a peer pieces up to its window.
func (q *queue) fill(p *peer, seconds bool) {
	if !p.joined || p.stalled || p.count == q.pieces {
		return
	}
	share, first := q.set.share(q)
	window := q.window(share)
	if len(p.outstanding) >= window {
		return
	}
	may := func() bool { return first || int64(q.outstanding+1)*q.pieceLength <= share }
	var offers []int
	if !q.standby() && (q.covered.IsZero() || !q.now().Before(q.covered)) {
		for len(p.outstanding) < window && q.inStep(p) && may() {
			i, ok := q.nextOpen()
			if !ok {
				break
			}
			q.hand(p, i)
			offers = append(offers, i)
		}
	}
	if seconds || p.starved {
		offers = q.fillSecond(p, min(p.second, window), offers)
	}
	if len(offers) > 0 {
		p.offer(offers...)
	}
}

// hand assigns the first copy of a piece.
func (q *queue) hand(p *peer, i int) {
	q.counters.Handed++
	q.handed = q.now()
	q.assign(p, i)
	if q.firsts != nil {
		q.spread(i) // from who was offered it before
		q.firsts[i] = p
		p.receiver.alone += q.pieceLength
		q.set.alone += q.pieceLength
	}
}

// first is who was offered the first copy of a piece that nobody else has yet; nil for nobody.
func (q *queue) first(i int) *peer {
	if i < 0 || i >= len(q.firsts) {
		return nil
	}
	return q.firsts[i]
}

// spread notes that a piece is not at one peer alone any more.
func (q *queue) spread(i int) {
	if p := q.first(i); p != nil {
		q.set.alone -= q.pieceLength
		p.receiver.alone -= q.pieceLength
		q.firsts[i] = nil
	}
}

// fillOne offers one open piece to the peer that is furthest behind, whatever the budget.
func (q *queue) fillOne() {
	var to *peer
	for p := range q.peers {
		if p.joined && !p.stalled && p.count < q.pieces && (to == nil || p.count < to.count || p.count == to.count && p.seq < to.seq) {
			to = p
		}
	}
	if i, ok := q.nextOpen(); ok && to != nil {
		q.hand(to, i)
		to.offer(i)
	}
}

// fillSecond adds what the second phase has for a peer to its offers. While others have
// first copies to hand out, a starved peer has a share of what may be outstanding.
func (q *queue) fillSecond(p *peer, window int, offers []int) []int {
	if len(p.outstanding) >= window || !p.starved && !q.second() {
		return offers
	}
	budget, starved := q.secondBudget(), p.starved
	if q.set.othersOpen(q) {
		budget, starved = max(budget/starvedShare, secondWindow), false
	}
	for len(p.outstanding) < window && (starved || q.outstanding < budget) {
		i, ok := q.rarest(p)
		if !ok {
			break
		}
		q.counters.Second++
		q.assign(p, i)
		offers = append(offers, i)
	}
	return offers
}

func (q *queue) secondBudget() int {
	return max(int(q.set.budget()/q.pieceLength), minSecond)
}

// standby reports whether somebody else has the first copies.
func (q *queue) standby() bool { return q.before > 0 && !q.tookOver }

func (q *queue) hasOpen() bool {
	_, ok := q.nextOpen()
	return ok && !q.standby()
}

func (q *queue) assign(p *peer, i int) {
	q.open.clear(i)
	q.assigned[i]++
	q.out(1)
	p.outstanding[i] = offered{at: q.now()}
	if q.set.thrifty {
		if p.offers == nil {
			p.offers = newBitmap(q.pieces)
		}
		p.offers.set(i)
	}
}

// mayAsk reports whether a peer may ask for so many bytes of a piece: it was offered it,
// and asks for no more than some times as much as it was offered in all.
func (q *queue) mayAsk(p *peer, i int, length int64) bool {
	if i < 0 || i >= q.pieces || p.offers == nil || !p.offers.get(i) {
		return false
	}
	p.asked += length
	return p.asked <= asksAgain*q.pieceLength*int64(p.offers.count())
}

// nextOpen returns the first open piece.
func (q *queue) nextOpen() (int, bool) {
	i := q.open.next(q.low)
	if i < 0 {
		q.low = q.pieces
		return 0, false
	}
	q.low = i
	return i, true
}

// rarest returns a piece that the peer lacks and that few have, among the first
// candidates. A first copy that is under way elsewhere is none, unless the peer
// has waited long enough.
func (q *queue) rarest(p *peer) (int, bool) {
	best, seen := -1, 0
	p.low = p.has.nextMissing(p.low)
	for i := p.low; i < q.pieces && seen < candidates; i = p.has.nextMissing(i + 1) {
		if _, outstanding := p.outstanding[i]; outstanding {
			continue
		}
		if !p.starved && q.owners[i] == 0 && q.assigned[i] > 0 || q.sendable != nil && !q.sendable.get(i) {
			continue
		}
		if best < 0 || q.owners[i]+q.assigned[i] < q.owners[best]+q.assigned[best] {
			best = i
		}
		seen++
	}
	return best, best >= 0
}

func (q *queue) stats() Stats {
	s := q.counters
	s.Pieces, s.Peers, s.Owned, s.TookOver = q.pieces, len(q.peers), q.pieces-q.unowned, q.tookOver
	return s
}
