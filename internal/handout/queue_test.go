package handout

import (
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a queue with a clock that stands still unless it is moved.
type bench struct {
	*queue
	t   testing.TB
	now time.Time
	ids byte
}

func newBench(t testing.TB, pieces int) *bench {
	b := &bench{t: t, now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	return b.of(NewSet(Config{Now: func() time.Time { return b.now }}), pieces)
}

// newThriftyBench is newBench of a thrifty Set.
func newThriftyBench(t testing.TB, pieces int) *bench {
	b := &bench{t: t, now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	return b.of(NewSet(Config{Thrifty: true, Now: func() time.Time { return b.now }}), pieces)
}

func (b *bench) of(set *Set, pieces int) *bench {
	set.Add(testHash, Place{}, false, pieces, 256<<10)
	b.queue = set.queues[testHash]
	return b
}

// connect has somebody who was not here before connect.
func (b *bench) connect(offer func(pieces ...int)) *peer {
	b.ids++
	return b.queue.connect([20]byte{b.ids}, offer)
}

// client is a peer under test and what it was offered.
type client struct {
	*peer
	b       *bench
	offered []int
}

func (b *bench) client(has ...int) *client {
	b.t.Helper()
	c := &client{b: b}
	c.peer = b.connect(func(pieces ...int) { c.offered = append(c.offered, pieces...) })
	if c.peer == nil {
		b.t.Fatal("refused")
	}
	start := newBitmap(b.pieces)
	for _, i := range has {
		start.set(i)
	}
	b.join(c.peer, start)
	return c
}

// full connects a peer that has everything.
func (b *bench) full() *client {
	c := &client{b: b}
	c.peer = b.connect(func(...int) {})
	b.join(c.peer, fullBitmap(b.pieces))
	return c
}

// take verifies the first n pieces offered, all with n < 0.
func (c *client) take(n int) {
	take := c.offered
	if n >= 0 {
		take = take[:min(n, len(take))]
	}
	c.offered = slices.Clone(c.offered[len(take):])
	for _, i := range take {
		c.b.have(c.peer, i)
	}
}

// later moves the clock in ticks.
func (b *bench) later(d time.Duration) {
	for range int(d / TickInterval) {
		b.now = b.now.Add(TickInterval)
		b.set.Tick()
	}
}

func (c *client) expect(pieces ...int) {
	c.b.t.Helper()
	if !slices.Equal(c.offered, pieces) {
		c.b.t.Errorf("offered %v, want %v", c.offered, pieces)
	}
}

func TestEachPieceGoesToOnePeerInOrder(t *testing.T) {
	b := newBench(t, 100)
	x, y := b.client(), b.client()
	x.expect(0, 1, 2, 3, 4)
	y.expect(5, 6, 7, 8, 9)
	x.take(2)
	x.expect(2, 3, 4, 10, 11)
	if s := b.stats(); s.Owned != 2 || s.Handed != 12 || s.Second != 0 || s.Peers != 2 {
		t.Errorf("%+v", s)
	}
}

func TestWhatOthersTradeIsNotOffered(t *testing.T) {
	b := newBench(t, 12)
	x, y := b.client(), b.client()
	b.have(x.peer, 5) // got from y, which does not say so first
	b.have(x.peer, 11)
	b.have(x.peer, 11) // again changes nothing
	b.have(x.peer, 12) // is not in the torrent
	b.have(x.peer, -1)
	y.expect(5, 6, 7, 8, 9)
	x.take(-1)
	x.expect(10)
}

func TestSecondPhase(t *testing.T) {
	b := newBench(t, 10)
	x, y := b.client(), b.client()
	x.take(-1)
	x.expect() // y still has to announce its own
	y.take(-1)
	// All have an owner: two at a time, each lacks what the other has.
	x.expect(5, 6)
	y.expect(0, 1)
	x.take(-1)
	x.expect(7, 8)
	if s := b.stats(); s.Second != 6 {
		t.Errorf("%+v", s)
	}
}

func TestSecondPhasePrefersTheRarest(t *testing.T) {
	b := newBench(t, 4)
	for _, has := range [][]int{{0, 1, 2, 3}, {0, 1, 3}, {0, 3}} {
		p := b.connect(nil)
		for _, i := range has {
			b.own(p, i) // does not join, so is not offered anything
		}
	}
	b.client().expect(2, 1)
}

func TestSecondPhaseServesLaggardsFirst(t *testing.T) {
	b := newBench(t, 100)
	b.full()
	var ahead []*client
	for n := range minSecond { // each has more than the one before
		has := make([]int, 50+n)
		for i := range has {
			has[i] = i
		}
		ahead = append(ahead, b.client(has...))
	}
	b.set.rate = 1 // so that no more than minSecond may be outstanding
	for _, c := range ahead[minSecond/2:] {
		c.take(-1)
	}
	behind := b.client()
	behind.expect()
	ahead[minSecond/2-1].take(-1)
	if b.outstanding >= minSecond {
		t.Fatalf("%d outstanding", b.outstanding)
	}
	b.set.taken = 0 // so that it stays so
	b.later(TickInterval)
	if len(behind.offered) == 0 {
		t.Error("who is behind is not served")
	}
	if b.outstanding > minSecond {
		t.Errorf("%d outstanding, %d allowed", b.outstanding, minSecond)
	}
}

func TestDisconnectGivesPiecesBack(t *testing.T) {
	b := newBench(t, 100)
	x, y := b.client(), b.client()
	x.take(2)
	b.leave(x.peer)
	b.leave(x.peer)   // again changes nothing
	b.have(x.peer, 3) // was on its way
	b.join(x.peer, newBitmap(100))
	y.take(1)
	// What x had, verified or not, is open again, and comes first.
	y.expect(6, 7, 8, 9, 0)
	if s := b.stats(); s.Peers != 1 || s.Owned != 1 || s.Requeued != 5 {
		t.Errorf("%+v", s)
	}
}

func TestFinishedPeerThatLeavesCountsForAWhile(t *testing.T) {
	b := newBench(t, 1000)
	b.leave(b.full().peer)
	y := b.client()
	y.expect(0, 1) // others will bring the rest
	for at := time.Duration(0); at < goneGrace; at += time.Second {
		if s := b.stats(); s.Handed != 0 || len(y.offered) > secondWindow {
			t.Fatalf("after %v %v are offered: %+v", at, y.offered, s)
		}
		y.take(-1)
		for range 3 { // they do, from the other end
			b.have(y.peer, 999-y.count)
		}
		b.later(time.Second)
	}
	b.later(TickInterval)
	y.take(-1)
	if s := b.stats(); s.Handed == 0 {
		t.Errorf("after the grace %v are offered: %+v", y.offered, s)
	}
}

func TestFinishedPeerThatLeftIsForgottenWhenOneStalls(t *testing.T) {
	b := newBench(t, 100)
	b.client()
	b.leave(b.full().peer)
	b.client().expect(5, 6) // second phase
	b.later(stallAfter + time.Second)
	before := b.stats().Handed
	b.client()
	if s := b.stats(); s.Handed == before {
		t.Errorf("nothing is handed out: %+v", s)
	}
}

func TestLateJoinerTakesPart(t *testing.T) {
	b := newBench(t, 100)
	x := b.client()
	x.take(3)
	late := b.client(50, 51)
	late.expect(8, 9, 10, 11, 12)
	if s := b.stats(); s.Owned != 5 {
		t.Errorf("%+v", s)
	}
	b.later(TickInterval)
	if b.set.rate != 3*256<<10/TickInterval.Seconds() {
		t.Errorf("rate %.0f counts what was there before", b.set.rate)
	}
}

func TestPeerThatSaysNothingIsOfferedInTheEnd(t *testing.T) {
	b := newBench(t, 10)
	var offered []int
	b.connect(func(pieces ...int) { offered = append(offered, pieces...) })
	if b.later(helloTimeout / 2); len(offered) != 0 {
		t.Error("offered before it could say what it has")
	}
	if b.later(helloTimeout); len(offered) == 0 {
		t.Error("nothing offered")
	}
}

func TestStalledPiecesGoToOthers(t *testing.T) {
	b := newBench(t, 30)
	stuck, live := b.client(), b.client()
	for range 10 {
		live.take(-1)
	}
	live.expect() // the rest is outstanding at the other
	stuck.expect(0, 1, 2, 3, 4)
	b.later(stallAfter + time.Second)
	if len(live.offered) == 0 {
		t.Fatal("nothing of the stuck one's is offered")
	}
	for range 10 {
		live.take(-1)
		b.later(TickInterval)
	}
	if live.count != 30 {
		t.Errorf("%d of 30 pieces: the stuck one's are not all offered again", live.count)
	}
	stuck.expect(0, 1, 2, 3, 4) // and nothing new
	for range 30 {              // it comes to life again
		stuck.take(-1)
		b.later(time.Second)
	}
	if stuck.count != 30 || stuck.stalled {
		t.Errorf("came to life and has %d of 30 pieces", stuck.count)
	}
}

func TestStalledPeerGetsNothingNew(t *testing.T) {
	b := newBench(t, 1000)
	stuck := b.client()
	b.later(stallAfter + time.Second)
	b.set.rate = 100e6
	b.fillAll(true)
	stuck.expect(0, 1, 2, 3, 4)
	stuck.take(1)
	if len(stuck.offered) < 100 {
		t.Errorf("alive again and offered only %v", stuck.offered)
	}
}

// TestSecondPhaseOpensUp for one whom the others give nothing.
func TestSecondPhaseOpensUp(t *testing.T) {
	b := newBench(t, 10_000)
	b.full()
	x := b.client()
	for range int(5 * time.Second / TickInterval) {
		for range 10 {
			x.take(-1)
		}
		b.later(TickInterval)
	}
	if len(x.offered) < 16*secondWindow {
		t.Errorf("%d are offered to one that has all from the seeder", len(x.offered))
	}
	last := b.pieces
	for range 3 { // the others wake up
		for range 4 * len(x.offered) {
			last--
			b.have(x.peer, last)
		}
		x.take(-1)
		b.later(time.Second)
	}
	if x.count == b.pieces {
		t.Fatal("has everything")
	}
	if len(x.offered) > secondWindow {
		t.Errorf("%d are offered to one that the others serve", len(x.offered))
	}
}

// TestSecondPhaseDoesNotWaitForOneSlowPeer that has the last first copies.
func TestSecondPhaseDoesNotWaitForOneSlowPeer(t *testing.T) {
	b := newBench(t, 20)
	slow, x := b.client(), b.client()
	for range 10 {
		x.take(-1)
	}
	b.later(TickInterval)
	y := b.client()
	y.expect() // neither open pieces nor an owner for each
	b.later(tailPatience + time.Second)
	y.expect(5, 6) // and not what the slow one is about to have
	slow.expect(0, 1, 2, 3, 4)
}

// TestFrozenPeerHoldsTheTailBackBriefly: when nothing else is open its pieces go to
// others well before stallAfter, and those of a peer that is only slow do not.
func TestFrozenPeerHoldsTheTailBackBriefly(t *testing.T) {
	b := newBench(t, 40)
	b.client() // takes nothing that it is offered
	live := b.client()
	for range int(stallAfter/TickInterval) - 1 {
		live.take(-1)
		b.later(TickInterval)
	}
	if live.count != b.pieces {
		t.Errorf("%d of %d pieces", live.count, b.pieces)
	}
	b = newBench(t, 40)
	slow, live := b.client(), b.client()
	for range 5 { // 2 s a piece
		live.take(-1)
		b.later(2 * time.Second)
		slow.take(1)
	}
	if s := b.stats(); s.Requeued > 0 {
		t.Errorf("%d offers were taken back from a slow peer: %v", s.Requeued, slow.offered)
	}
}

func TestSlowPeerIsNotRobbed(t *testing.T) {
	b := newBench(t, 1000)
	slow := b.client()
	for range 10 { // 8 s a piece, one after the other
		b.later(8 * time.Second)
		slow.take(1)
	}
	if s := b.stats(); s.Requeued > initialWindow-1 {
		t.Errorf("%d offers were taken back", s.Requeued)
	}
	before := b.stats().Requeued
	for range 10 { // its pace is known now
		b.later(8 * time.Second)
		slow.take(1)
	}
	if s := b.stats(); s.Requeued > before {
		t.Errorf("%d more offers were taken back", s.Requeued-before)
	}
}

// TestManyPeersAreNotRobbed: a seeder needs more than stallAfter to give each of
// very many peers their first pieces, without any of them being slow.
func TestManyPeersAreNotRobbed(t *testing.T) {
	const peers, perTick = 1000, 25 // 25 MB/s
	b := newBench(t, 20_000)
	var all []*client
	for range peers {
		all = append(all, b.client())
	}
	for n := 0; n < 120*perTick; n++ {
		all[n%peers].take(1)
		if n%perTick == 0 {
			b.later(TickInterval)
		}
	}
	if s := b.stats(); s.Requeued > 0 {
		t.Errorf("%d offers were taken back", s.Requeued)
	}
}

func TestWindowFollowsTheRate(t *testing.T) {
	b := newBench(t, 500_000)
	x := b.client()
	for range 40 { // as fast as they come, ten times a tick
		for range 10 {
			x.take(-1)
		}
		b.later(TickInterval)
	}
	if w := b.window(b.set.budget()); w != maxWindow {
		t.Errorf("window is %d pieces at %.0f MB/s", w, b.set.rate/1e6)
	}
	for range 100 { // 4 pieces a second
		x.take(1)
		b.later(TickInterval)
	}
	if w := b.window(b.set.budget()); w > 2*minWindow {
		t.Errorf("window is %d pieces at %.0f MB/s", w, b.set.rate/1e6)
	}
}

func TestWindowIsSharedAmongPeers(t *testing.T) {
	b := newBench(t, 10_000)
	for range 8 {
		b.client()
	}
	b.full() // needs no share
	b.set.rate = 100 * 256 << 10
	if w := b.window(b.set.budget()); w != 60/8 {
		t.Errorf("window is %d pieces", w)
	}
}

func TestLargePiecesBeginWithFewer(t *testing.T) {
	s := NewSet(Config{})
	q := newQueue(s, Place{}, 100, 128<<20)
	s.insert(q)
	q.connect([20]byte{}, func(...int) {})
	if w := q.window(s.budget()); w != minWindow {
		t.Errorf("window is %d pieces", w)
	}
}

func TestTooManyPeersAreRefused(t *testing.T) {
	b := newBench(t, 1)
	first := b.client()
	for range maxPeers - 1 {
		b.connect(func(...int) {})
	}
	if b.connect(func(...int) {}) != nil {
		t.Error("one more was taken in")
	}
	b.leave(first.peer)
	if b.connect(func(...int) {}) == nil {
		t.Error("refused though one has left")
	}
}

// BenchmarkQueueHave is one announcement among 1,000 peers and 40,000 pieces, as
// a build of 10 GiB has, at a seeder of 100 MB/s: "offered" are first copies,
// "traded" is what peers had from each other.
func BenchmarkQueueHave(b *testing.B) {
	const peers, pieces = 1000, 40_000
	fresh := func() (*bench, []*client) {
		q := newBench(b, pieces)
		q.set.rate = 100e6
		all := make([]*client, peers)
		for i := range all {
			all[i] = q.client()
		}
		return q, all
	}
	b.Run("offered", func(b *testing.B) {
		q, all := fresh()
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			if q.unowned == 0 {
				b.StopTimer()
				q, all = fresh()
				b.StartTimer()
			}
			for len(all[n%peers].offered) == 0 {
				n++ // the last pieces are with few
			}
			c := all[n%peers]
			next := c.offered[0]
			c.offered = c.offered[:copy(c.offered, c.offered[1:])]
			q.have(c.peer, next)
		}
	})
	b.Run("traded", func(b *testing.B) {
		q, all := fresh()
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			if n == peers*pieces {
				b.StopTimer()
				q, all = fresh()
				n = 0
				b.StartTimer()
			}
			q.have(all[n%peers].peer, n/peers)
		}
	})
}

// BenchmarkQueueTick is the work of each tick with 1,000 peers.
func BenchmarkQueueTick(b *testing.B) {
	q := newBench(b, 40_000)
	for range 1000 {
		q.client()
	}
	b.ReportAllocs()
	for b.Loop() {
		q.set.Tick()
	}
}
