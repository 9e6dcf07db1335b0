package handout

import (
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// line is several torrents of one seeder, whose peers are the same members.
type line struct {
	set     *Set
	now     time.Time
	benches []*bench
}

func newLine(t testing.TB, pieces int, places ...Place) *line {
	l := &line{now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	l.set = NewSet(Config{Now: func() time.Time { return l.now }})
	for i, place := range places {
		l.add(t, manifest.InfoHash{byte(i + 1)}, pieces, place)
	}
	return l
}

func (l *line) add(t testing.TB, infohash manifest.InfoHash, pieces int, place Place) *bench {
	l.set.Add(infohash, place, false, pieces, 256<<10)
	b := &bench{queue: l.set.queues[infohash], t: t}
	l.benches = append(l.benches, b)
	return b
}

func (l *line) tick() {
	l.now = l.now.Add(TickInterval)
	l.set.Tick()
}

// run has every client of every torrent take what it is offered, at most rate pieces a
// tick in all, first come first served, and give it to the others by the next tick. It
// returns when everybody had all of each torrent, in ticks.
func (l *line) run(t *testing.T, rate int, clients [][]*client) []int {
	t.Helper()
	done := make([]int, len(clients))
	type taken struct{ of, piece int }
	for ticks := 1; slices.Contains(done, 0); ticks++ {
		if ticks > 10_000 {
			t.Fatalf("not all handed out: %v", done)
		}
		left, trade := rate, []taken(nil)
		for moved := true; moved && left > 0; {
			moved = false
			for i, of := range clients {
				for _, c := range of {
					if len(c.offered) > 0 && left > 0 {
						trade = append(trade, taken{i, c.offered[0]})
						c.take(1)
						left--
						moved = true
					}
				}
			}
		}
		l.tick()
		for _, g := range trade {
			for _, c := range clients[g.of] {
				l.benches[g.of].have(c.peer, g.piece)
			}
		}
		for i, b := range l.benches {
			if done[i] == 0 && b.missing == 0 {
				done[i] = ticks
			}
		}
	}
	return done
}

func place(execution string, segment int) Place {
	return Place{Execution: execution, Segment: segment}
}

// Builds that are sent at once come one after the other, as fast as together.
func TestBuildsComeOneAfterTheOther(t *testing.T) {
	const builds, pieces, rate = 10, 200, 20
	var places []Place
	for i := range builds {
		places = append(places, place(string(rune('a'+i)), 0))
	}
	l := newLine(t, pieces, places...)
	clients := make([][]*client, builds)
	for i, b := range l.benches {
		for range 4 {
			clients[i] = append(clients[i], b.client())
		}
	}
	done := l.run(t, rate, clients)
	if !slices.IsSorted(done) {
		t.Errorf("not in order: %v", done)
	}
	var mean float64
	for _, at := range done {
		mean += float64(at) / builds
	}
	last := float64(done[builds-1])
	if ratio := mean / last; ratio > 0.65 {
		t.Errorf("the mean is %.2f of the last: %v", ratio, done)
	}
	if least := float64(builds*pieces) / rate; last > 1.15*least {
		t.Errorf("the last came after %.0f ticks, at full rate it is %.0f", last, least)
	}
}

// What is urgent overtakes what is under way.
func TestHighPriorityOvertakes(t *testing.T) {
	l := newLine(t, 2000, place("a", 0))
	clients := [][]*client{{l.benches[0].client(), l.benches[0].client()}}
	for range 20 {
		for _, c := range clients[0] {
			c.take(10)
		}
		l.tick()
	}
	urgent := l.add(t, manifest.InfoHash{9}, 100, Place{High: true, Execution: "z"})
	clients = append(clients, []*client{urgent.client(), urgent.client()})
	done := l.run(t, 20, clients)
	if alone := 100 / 20; done[1] > 2*alone+3 || done[0] < done[1] {
		t.Errorf("handed out after %d ticks, alone it takes %d; the large one after %d", done[1], alone, done[0])
	}
}

// Peers that take nothing of one build do not keep the next one back.
func TestFullWindowsHoldNobodyBack(t *testing.T) {
	l := newLine(t, 400, place("a", 0), place("b", 0))
	stuck := l.benches[0].client() // takes nothing
	clients := []*client{l.benches[1].client(), l.benches[1].client()}
	for range 400 {
		for _, c := range clients {
			c.take(10)
		}
		l.tick()
	}
	if l.benches[1].unowned > 0 {
		t.Errorf("%d pieces of the second build are not handed out, %d offers wait at the first", l.benches[1].unowned, len(stuck.offered))
	}
}

// A build whose turn is far is given a sign of life, so that nobody takes it for dead, and
// that costs next to nothing.
func TestSignOfLife(t *testing.T) {
	l := newLine(t, 4000, place("a", 0), place("b", 0), place("c", 0))
	var clients []*client
	for _, b := range l.benches {
		clients = append(clients, b.client())
	}
	const seconds, rate = 60, 40 // pieces a second
	last, longest := make([]time.Time, 3), make([]time.Duration, 3)
	for i := range last {
		last[i] = l.now
	}
	for range seconds * int(time.Second/TickInterval) {
		for i, c := range clients {
			n := len(c.offered)
			if c.take(rate / int(time.Second/TickInterval)); n > 0 {
				longest[i], last[i] = max(longest[i], l.now.Sub(last[i])), l.now
			}
		}
		l.tick()
	}
	for i, pause := range longest[1:] {
		if got := l.benches[i+1].stats().Handed; pause > signOfLife+time.Second || got < seconds/5-1 || got > 2*seconds/5 {
			t.Errorf("build %d was handed %d pieces, after pauses of up to %s", i+1, got, pause)
		}
	}
	if got := l.benches[0].stats().Handed; got < seconds*rate*9/10 {
		t.Errorf("the first was handed %d pieces", got)
	}
}

// First copies of a later build go before second ones of an earlier, but for a share
// for those whom nobody gives anything.
func TestFirstCopiesGoBeforeSecondOnes(t *testing.T) {
	l := newLine(t, 100, place("a", 0), place("b", 0))
	x, y := l.benches[0].client(), l.benches[0].client()
	later := l.benches[1].client()
	for l.benches[0].unowned > 0 { // x and y do not trade
		x.take(2)
		y.take(2)
		l.tick()
	}
	handed := l.benches[1].stats().Handed
	if handed == 0 {
		t.Error("nothing of the second build is handed out")
	}
	before := l.benches[0].stats().Second
	for range int(3 * stallAfter / TickInterval) {
		later.take(3)
		x.take(1)
		y.take(1)
		l.tick()
		if l.benches[1].unowned == 0 {
			break
		}
	}
	if l.benches[1].unowned > 0 {
		t.Fatalf("%d pieces of the second build are left", l.benches[1].unowned)
	}
	if seconds := l.benches[0].stats().Second - before; seconds > 30 {
		t.Errorf("%d second copies meanwhile", seconds)
	}
	for range 400 {
		x.take(-1)
		y.take(-1)
		later.take(-1)
		l.tick()
	}
	for name, c := range map[string]*client{"x": x, "y": y, "later": later} {
		if c.count != 100 {
			t.Errorf("%s has %d pieces", name, c.count)
		}
	}
}

// A torrent that two executions share has the earlier one's place.
func TestSharedTorrentHasTheEarlierPlace(t *testing.T) {
	l := newLine(t, 10, place("b", 0), place("c", 0))
	l.set.Add(manifest.InfoHash{2}, place("a", 0), true, 10, 256<<10)
	if q := l.set.order[0]; q != l.benches[1].queue || !q.lone {
		t.Errorf("first is %+v", q.place)
	}
	l.set.Add(manifest.InfoHash{2}, place("z", 0), false, 10, 256<<10)
	if q := l.set.order[0]; q != l.benches[1].queue || q.lone || len(l.set.order) != 2 {
		t.Errorf("first is %+v of %d", q.place, len(l.set.order))
	}
	l.set.Remove(manifest.InfoHash{2})
	if len(l.set.order) != 1 || l.set.order[0] != l.benches[0].queue {
		t.Errorf("%d are left", len(l.set.order))
	}
}

// What is made high goes before what is under way, and one of another torrent changes
// nothing.
func TestRaise(t *testing.T) {
	l := newLine(t, 100, place("a", 0), place("b", 0))
	l.benches[0].client().expect(0, 1, 2, 3, 4)
	second := l.benches[1].client()
	second.expect()
	l.set.Raise(manifest.InfoHash{9}, Place{High: true})
	l.set.Raise(manifest.InfoHash{2}, place("c", 0)) // a later one
	second.expect()
	l.set.Raise(manifest.InfoHash{2}, Place{High: true, Execution: "b"})
	if q := l.set.order[0]; q != l.benches[1].queue {
		t.Errorf("first is %+v", q.place)
	}
	second.expect(0, 1, 2, 3, 4)
}

func TestPlaces(t *testing.T) {
	inOrder := []Place{
		{High: true, Execution: "b", Segment: 0}, {High: true, Execution: "b", Segment: 1},
		{Execution: "a", Segment: 1}, {Execution: "a", Segment: 2}, {Execution: "b", Segment: 0},
	}
	if !slices.IsSortedFunc(inOrder, Place.Compare) || inOrder[0].Compare(inOrder[0]) != 0 {
		t.Error("not in order")
	}
}

// What a removed torrent had outstanding counts no longer, whatever its peers do.
func TestRemovedTorrentCountsNoLonger(t *testing.T) {
	l := newLine(t, 100, place("a", 0), place("b", 0))
	if !l.set.Idle() {
		t.Error("nobody is there, and somebody waits")
	}
	c := l.benches[0].client()
	if l.set.Idle() {
		t.Error("somebody waits, and nobody is seen to")
	}
	l.set.Remove(manifest.InfoHash{1})
	if l.set.outstanding != 0 {
		t.Errorf("%d bytes are outstanding", l.set.outstanding)
	}
	c.take(-1)
	l.benches[0].leave(c.peer)
	if l.set.outstanding != 0 {
		t.Errorf("%d bytes are outstanding", l.set.outstanding)
	}
	l.benches[1].client().expect(0, 1, 2, 3, 4)
}

// Where more of the build is to come, second copies wait a moment for that.
func TestSecondCopiesWaitForWhatIsToCome(t *testing.T) {
	for _, more := range []bool{false, true} {
		l := newLine(t, 8, Place{Execution: "a", More: more})
		b := l.benches[0]
		x, y := b.client(), b.client()
		for b.unowned > 0 { // x and y do not trade
			x.take(1)
			y.take(1)
			l.now = l.now.Add(time.Millisecond)
		}
		if second := b.stats().Second; (second > 0) == more {
			t.Errorf("more is to come: %v; %d second copies at once", more, second)
		}
		for waited := time.Duration(0); waited <= moreGrace+TickInterval; waited += TickInterval {
			l.tick()
		}
		if second := b.stats().Second; second == 0 {
			t.Errorf("more is to come: %v; no second copies after %s", more, moreGrace)
		}
	}
}
