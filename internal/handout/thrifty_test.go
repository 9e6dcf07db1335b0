package handout

import (
	"slices"
	"testing"
	"time"
)

// Who is on standby hands out what those before it do not, after as long as there are of
// them; and what they do hand out, it leaves to them.
func TestStandbyTakesOver(t *testing.T) {
	for _, others := range []int{1, 2} {
		b := newBench(t, 100)
		b.set.thrifty = true
		b.set.Remove(testHash)
		b.set.Grow(testHash, Place{}, others, 100, 256<<10)
		b.queue = b.set.queues[testHash]
		c := b.client()
		b.later(10 * takeOverAfter)
		all := make([]int, 100)
		for i := range all {
			all[i] = i
		}
		b.set.Here(testHash, true, all...) // nothing was to be handed out before
		for i := range 10 {
			b.have(c.peer, i)
			b.later(takeOverAfter - TickInterval)
		}
		if c.expect(); b.stats().TookOver {
			t.Errorf("%d before: they hand out, and are taken for gone", others)
		}
		b.later(time.Duration(others-1) * takeOverAfter)
		b.set.Grow(testHash, Place{}, others, 100, 256<<10) // nothing new
		if c.expect(); b.stats().TookOver {
			t.Errorf("%d before: taken over at once", others)
		}
		b.later(TickInterval)
		if !b.stats().TookOver || len(c.offered) == 0 || c.offered[0] != 10 || b.stats().Second > 0 {
			t.Errorf("%d before: %v, %+v", others, c.offered, b.stats())
		}
		b.set.Grow(testHash, Place{}, others, 100, 256<<10)
		if !b.stats().TookOver {
			t.Errorf("%d before: given back though nobody has come", others)
		}
	}
}

// TestInStep: of first copies those have fewer that pass them on more slowly.
func TestInStep(t *testing.T) {
	const pieces, peers = 400, 10
	b := newThriftyBench(t, pieces)
	var clients []*client
	for range peers {
		clients = append(clients, b.client())
	}
	fast := clients[0]
	takes := func() (taken int) {
		for range 4 * pieces {
			taken += len(fast.offered)
			fast.take(-1)
		}
		return taken
	}
	taken := takes()
	if taken >= pieces/2 {
		t.Errorf("who passes nothing on was offered %d of %d pieces", taken, pieces)
	}
	if average := b.set.alone / peers; fast.receiver.alone > aloneTimes*average || fast.receiver.alone != int64(taken)*b.pieceLength {
		t.Errorf("%d pieces of %d bytes are at one alone, on the average %d bytes", taken, fast.receiver.alone, average)
	}
	// What others have is not alone any more: there is room for as many, if others have as
	// much as before.
	had := fast.receiver.alone
	for _, c := range clients[1:] {
		c.take(-1)
	}
	for range 4 {
		b.have(clients[1].peer, fast.has.next(slices.IndexFunc(b.firsts, func(p *peer) bool { return p == fast.peer })))
	}
	if fast.receiver.alone >= had && len(fast.offered) == 0 {
		t.Errorf("%d bytes are alone, %d before others had some", fast.receiver.alone, had)
	}
	if more := takes(); more == 0 {
		t.Error("who has passed pieces on is offered no more")
	}
	// What it has alone of one torrent counts at all others.
	b.set.Add([20]byte{9}, Place{Segment: 1}, false, pieces, b.pieceLength)
	other := b.set.queues[[20]byte{9}]
	again := other.connect(fast.receiver.id, func(...int) { t.Error("one more is offered of another torrent") })
	other.join(again, newBitmap(pieces))
	other.leave(again)
	if len(b.set.receivers) != peers {
		t.Errorf("%d receivers, want %d", len(b.set.receivers), peers)
	}
	// When what it has comes to nobody, it is offered the rest all the same.
	for range 40 {
		b.later(widenAfter)
		takes()
	}
	if b.widened == 0 {
		t.Error("nobody else takes anything, and it may have no more alone")
	}
	if open := b.open.next(0); open >= 0 {
		t.Errorf("%d is offered to nobody", open)
	}
	for _, c := range clients {
		b.leave(c.peer)
	}
	if b.set.alone != 0 || fast.receiver.alone != 0 || len(b.set.receivers) != 0 {
		t.Errorf("all have left, and %d bytes of %d receivers are counted", b.set.alone, len(b.set.receivers))
	}
}

// TestAloneOfRemoved: a torrent that is removed counts no more.
func TestAloneOfRemoved(t *testing.T) {
	b := newThriftyBench(t, 10)
	c, other := b.client(), b.client()
	c.take(-1)
	b.set.Remove(testHash)
	if b.set.alone != 0 || c.receiver.alone != 0 {
		t.Errorf("%d bytes are counted", b.set.alone)
	}
	b.leave(c.peer)
	b.leave(other.peer)
	if b.set.alone != 0 || len(b.set.receivers) != 0 {
		t.Errorf("%d bytes of %d receivers are counted", b.set.alone, len(b.set.receivers))
	}
}

// TestAloneHasAll: who is the only one has everything at once, and so has who is fast where
// second copies are given, too.
func TestAloneHasAll(t *testing.T) {
	const pieces = 100
	all := func(c *client) (taken int) {
		for range 4 * pieces {
			taken += len(c.offered)
			c.take(-1)
		}
		return taken
	}
	if taken := all(newThriftyBench(t, pieces).client()); taken != pieces {
		t.Errorf("a peer alone was offered %d of %d pieces", taken, pieces)
	}
	b := newBench(t, pieces)
	c := b.client()
	for range 9 {
		b.client()
	}
	if taken := all(c); taken < pieces/2 {
		t.Errorf("the fastest was offered %d of %d pieces", taken, pieces)
	}
}
