package source

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/handout"
)

// Pulls share the way from their bucket, so they stand in a line, in the order in which
// their builds are handed out: each range that may be asked for goes to the first one that
// wants it. So the builds become readable one after the other instead of all at the end;
// and as soon as one has asked for all that it needs, the next one has the rest.
//
// A pull to which nothing comes keeps nobody back: it is passed over as long as that is so,
// and ended when others lack the memory that it holds. The next try of one that has stalled
// is doubtful: it stands behind all others, with one range, until a whole one has come.

const (
	// pullParallel is how many ranges of one bucket are asked for at a time, over all pulls.
	pullParallel = 6
	// maxPulls is how many builds are pulled at a time, maxBegun with those that others
	// have overtaken since they began, maxDoubtful how many of them are doubtful.
	maxPulls, maxBegun, maxDoubtful = 4, 16, 2
	// maxBlocks bounds the blocks in memory over all pulls: 48 MiB.
	maxBlocks = 12
	// silentAfter is how long nothing may come to a pull before others go before it. On the
	// slowest link worth using something comes each second, whoever shares it.
	silentAfter = 5 * time.Second
	// lookInterval is how often those who wait look whether somebody has become silent.
	lookInterval = time.Second
)

// line is where pulls wait for their turn and for their ranges. Its mutex is held for no
// I/O.
type line struct {
	mu      sync.Mutex
	turns   []*Turn // in order
	entered uint64
	free    [][]byte // blocks
	made    int
}

// Want says who asks for a turn to pull.
type Want struct {
	Place  handout.Place
	Bucket string
	// Stalled: in the try before this one nothing came any more.
	Stalled bool
}

// Turn is a pull's place in the line.
type Turn struct {
	line    *line
	want    Want
	entered uint64
	ready   chan struct{} // has a value when begun or block was just set
	heard   atomic.Int64  // Unix nanoseconds: when bytes came last, or it got what it waited for

	// Guarded by the line's mutex.
	begun    bool
	doubtful bool
	asks     bool   // for a range
	block    []byte // of the range that it may ask for
	ranges   int    // under way
	urgent   bool   // what is under way is waited for, and nothing is to share its link
	fail     context.CancelCauseFunc
}

// enter returns the turn of a pull that has not begun. It is to be ended.
func (l *line) enter(w Want) *Turn {
	t := &Turn{line: l, want: w, doubtful: w.Stalled, ready: make(chan struct{}, 1)}
	l.change(func() {
		l.entered++
		t.entered = l.entered
		l.insert(t)
	})
	return t
}

// Begin waits until the pull may begin.
func (t *Turn) Begin(ctx context.Context) error { return t.wait(ctx, func() {}) }

// High reports whether the pull goes before those that are not high.
func (t *Turn) High() bool {
	t.line.mu.Lock()
	defer t.line.mu.Unlock()
	return t.want.Place.High
}

// Raise has the pull go before those that are not high.
func (t *Turn) Raise() {
	t.line.change(func() {
		if i := slices.Index(t.line.turns, t); i >= 0 && !t.want.Place.High {
			t.line.take(t)
			t.want.Place.High = true
			t.line.insert(t)
		}
	})
}

// next waits until the next range may be asked for, and returns the block for it; late is
// called when that takes long. The range is to be done, and the block to be given back.
func (t *Turn) next(ctx context.Context, late func()) (b []byte, err error) {
	t.line.change(func() { t.asks = true })
	err = t.wait(ctx, late)
	t.line.change(func() {
		b = t.block
		t.asks, t.block = false, nil
		if err != nil && b != nil {
			<-t.ready
			t.ranges--
			t.line.free, b = append(t.line.free, b), nil
		}
	})
	return b, err
}

func (t *Turn) wait(ctx context.Context, late func()) error {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for {
		select {
		case <-t.ready:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
			late()
			t.line.change(func() {})
		}
	}
}

// hear notes that bytes have come.
func (t *Turn) hear() { t.heard.Store(time.Now().UnixNano()) }

// done notes that a range is not under way any more; whole, that all of it has come.
func (t *Turn) done(whole bool) {
	t.line.change(func() {
		t.ranges--
		if whole && t.doubtful {
			t.line.take(t)
			t.doubtful = false
			t.line.insert(t)
		}
	})
}

// setUrgent says whether what is under way is waited for, so that nobody behind this pull
// is to take a share of its link.
func (t *Turn) setUrgent(urgent bool) {
	t.line.change(func() { t.urgent = urgent })
}

// reads has fail end the pull when others lack what it holds and nothing comes to it.
func (t *Turn) reads(fail context.CancelCauseFunc) {
	t.line.mu.Lock()
	defer t.line.mu.Unlock()
	t.fail = fail
}

// End gives the turn back. Nothing is under way any more.
func (t *Turn) End() { t.line.change(func() { t.line.take(t) }) }

// giveBack takes a block that is not needed any more.
func (l *line) giveBack(b []byte) {
	l.change(func() { l.free = append(l.free, b[:cap(b)]) })
}

// change changes something, and gives those who wait what they can have then.
func (l *line) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	l.serve(time.Now())
}

// compare orders turns. Those that are doubtful come last, and one after the other, so
// that none of them keeps the next one back for ever.
func (t *Turn) compare(o *Turn) int {
	switch {
	case t.doubtful != o.doubtful && o.doubtful:
		return -1
	case t.doubtful != o.doubtful:
		return 1
	case t.doubtful:
		return cmp.Compare(t.entered, o.entered)
	}
	return cmp.Or(t.want.Place.Compare(o.want.Place), cmp.Compare(t.entered, o.entered))
}

// silent reports whether nothing comes to it, though it has what it asked for.
func (t *Turn) silent(now time.Time) bool {
	waits := t.asks && t.ranges == 0
	return t.begun && !waits && now.UnixNano()-t.heard.Load() >= int64(silentAfter)
}

// insert takes in a turn. The caller holds mu, as of all that follows.
func (l *line) insert(t *Turn) {
	at, _ := slices.BinarySearchFunc(l.turns, t, (*Turn).compare)
	l.turns = slices.Insert(l.turns, at, t)
}

func (l *line) take(t *Turn) {
	if i := slices.Index(l.turns, t); i >= 0 {
		l.turns = slices.Delete(l.turns, i, i+1)
	}
}

// serve gives those who wait what they can have, in order.
func (l *line) serve(now time.Time) {
	before, blocks := 0, true
	for _, t := range l.turns {
		if !t.begun && l.mayBegin(t, before) {
			t.begun = true
			t.heard.Store(now.UnixNano())
			t.ready <- struct{}{}
		}
		if blocks && t.asks && t.block == nil && l.mayAsk(t, now) {
			if t.block = l.takeBlock(); t.block != nil {
				if t.ranges++; t.ranges == 1 {
					t.heard.Store(now.UnixNano())
				}
				t.ready <- struct{}{}
			} else {
				blocks = false // the next one is for this turn
				if !t.silent(now) {
					l.endSilent(now)
				}
			}
		}
		if !t.silent(now) {
			before++
		}
	}
}

// mayBegin reports whether a turn may begin that so many others go before.
func (l *line) mayBegin(t *Turn, before int) bool {
	begun, doubtful := 0, 0
	for _, o := range l.turns {
		if o.begun {
			begun++
			if o.doubtful {
				doubtful++
			}
		}
	}
	if t.doubtful {
		return doubtful < maxDoubtful
	}
	return before < maxPulls && begun < maxBegun
}

// mayAsk reports whether one more range may be under way for a turn. A high one does not
// wait for those of others to come, of whatever bucket.
func (l *line) mayAsk(t *Turn, now time.Time) bool {
	if t.doubtful {
		return t.ranges == 0
	}
	under, most := t.ranges, pullParallel
	for _, o := range l.turns {
		switch {
		case o == t || o.doubtful || o.silent(now):
		case o.urgent && o.want.Bucket == t.want.Bucket && o.compare(t) < 0:
			return false
		case o.want.Bucket == t.want.Bucket && (o.want.Place.High || !t.want.Place.High):
			under += o.ranges
		case o.want.Place.High && !t.want.Place.High && o.ranges > 0:
			most = 1 // they may share a link, and the bucket may be a slow one
		}
	}
	return under < most
}

// takeBlock returns a block; nil when all there may be are in use.
func (l *line) takeBlock() []byte {
	if n := len(l.free); n > 0 {
		b := l.free[n-1]
		l.free = l.free[:n-1]
		return b
	}
	if l.made == maxBlocks {
		return nil
	}
	l.made++
	return make([]byte, blockLength)
}

// endSilent ends the last pull to which nothing comes, for the blocks that it has.
func (l *line) endSilent(now time.Time) {
	for _, t := range slices.Backward(l.turns) {
		if t.fail != nil && t.ranges > 0 && t.silent(now) {
			t.fail(fmt.Errorf("%w: nothing came for %s, and others wait", answers.ErrStalled, silentAfter))
			t.fail = nil
			return
		}
	}
}
