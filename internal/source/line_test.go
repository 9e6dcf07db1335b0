package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/handout"
)

// standing is a pull in a line that asks for one range after the other.
type standing struct {
	*Turn
	ctx  context.Context
	fail context.CancelCauseFunc

	mu     sync.Mutex
	blocks [][]byte // of the ranges under way
}

// stand has a pull enter, which must be able to at once, and ask for as many ranges as it
// is given, one after the other.
func stand(t *testing.T, l *line, w Want) *standing {
	t.Helper()
	s := &standing{}
	s.ctx, s.fail = context.WithCancelCause(t.Context())
	begun := make(chan struct{})
	go func() {
		s.Turn = l.enter(w)
		if err := s.Begin(s.ctx); err != nil {
			t.Error(err)
		}
		s.reads(s.fail)
		close(begun)
	}()
	synctest.Wait()
	select {
	case <-begun:
	default:
		t.Fatalf("%+v may not begin", w.Place)
	}
	go func() {
		for {
			b, err := s.next(s.ctx, func() {})
			if err != nil {
				return
			}
			s.mu.Lock()
			s.blocks = append(s.blocks, b)
			s.mu.Unlock()
		}
	}()
	synctest.Wait()
	return s
}

// come has so many of the ranges that are under way come.
func (s *standing) come(n int) {
	for range n {
		s.hear()
		s.mu.Lock()
		b := s.blocks[0]
		s.blocks = s.blocks[1:]
		s.mu.Unlock()
		s.done(true)
		s.line.giveBack(b)
		synctest.Wait()
	}
}

// leave ends the pull.
func (s *standing) leave() {
	s.fail(nil)
	synctest.Wait()
	s.come(s.ranges())
	s.End()
	synctest.Wait()
}

// ranges are how many are under way.
func (s *standing) ranges() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.blocks)
}

func (s *standing) has(t *testing.T, ranges int) {
	t.Helper()
	if n := s.ranges(); n != ranges {
		t.Errorf("%+v has %d ranges under way, %d is right", s.want, n, ranges)
	}
}

func place(execution string) Want {
	return Want{Place: handout.Place{Execution: execution}, Bucket: "global-builds"}
}

func high(execution string) Want {
	return Want{Place: handout.Place{Execution: execution, High: true}, Bucket: "global-builds"}
}

// The first build of a bucket has all ranges, and the next one those that it does not ask
// for, whoever came first.
func TestRangesGoInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		second := stand(t, l, place("2"))
		second.has(t, pullParallel)
		first := stand(t, l, place("1"))
		first.has(t, 0)
		// Each range that comes makes room for one of the first's.
		for i := range pullParallel {
			second.come(1)
			first.has(t, i+1)
		}
		third := stand(t, l, place("3"))
		third.has(t, 0)
		first.come(2)
		first.has(t, pullParallel)
		second.has(t, 0)
		first.leave()
		second.has(t, pullParallel)
		third.has(t, 0)
		second.leave()
		third.has(t, pullParallel)
		third.leave()
		if n := len(l.turns); n != 0 || len(l.free) != l.made {
			t.Errorf("%d turns and %d blocks are not given back", n, l.made-len(l.free))
		}
	})
}

// A high one does not wait for what others have under way, and then they have nothing; of
// another bucket, one range each.
func TestHighGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		old := stand(t, l, place("1"))
		urgent := stand(t, l, high("2"))
		urgent.has(t, pullParallel)
		old.come(pullParallel)
		old.has(t, 0)
		urgent.has(t, pullParallel)
		elsewhere := place("0")
		elsewhere.Bucket = "others-builds"
		other := stand(t, l, elsewhere)
		other.has(t, 1)
		other.come(1)
		other.has(t, 1)
		later := stand(t, l, high("3"))
		later.has(t, 0)
		urgent.leave()
		later.has(t, pullParallel)
		later.leave()
		old.has(t, pullParallel)
		other.has(t, pullParallel)
		old.leave()
		other.leave()
	})
}

// While what a pull has under way is waited for, nobody behind it takes a share, unless
// nothing comes.
func TestUrgentRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		first, next := stand(t, l, place("1")), stand(t, l, place("2"))
		first.setUrgent(true)
		first.fail(nil) // it asks for no more
		synctest.Wait()
		first.come(pullParallel - 1)
		next.has(t, 0)
		elsewhere := place("3")
		elsewhere.Bucket = "others-builds"
		other := stand(t, l, elsewhere)
		other.has(t, pullParallel)
		other.leave()
		urgent := stand(t, l, high("4"))
		urgent.has(t, pullParallel)
		urgent.leave()
		next.has(t, 0)
		first.setUrgent(false)
		synctest.Wait()
		next.has(t, pullParallel-1)
		next.come(1)
		next.has(t, pullParallel-1)
		first.setUrgent(true)
		next.come(1)
		next.has(t, pullParallel-2)
		time.Sleep(silentAfter + lookInterval)
		next.hear()
		synctest.Wait()
		next.has(t, pullParallel)
		first.leave()
		next.leave()
	})
}

// A pull that is made a high one goes before others from then on, begun or not.
func TestRaised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		old, young := stand(t, l, place("1")), stand(t, l, place("2"))
		young.has(t, 0)
		young.Raise()
		synctest.Wait()
		young.has(t, pullParallel)
		young.leave()
		var others []*standing
		for i := range maxPulls - 1 {
			others = append(others, stand(t, l, place(fmt.Sprint("3", i))))
		}
		late, begun := l.enter(place("4")), make(chan error, 1)
		go func() { begun <- late.Begin(t.Context()) }()
		synctest.Wait()
		select {
		case <-begun:
			t.Fatal("one too many has begun")
		default:
		}
		late.Raise()
		if err := <-begun; err != nil {
			t.Error(err)
		}
		late.End()
		for _, s := range append(others, old) {
			s.leave()
		}
	})
}

// A slow bucket keeps no other one back.
func TestBucketsBesideEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		slow := stand(t, l, place("1"))
		elsewhere := place("2")
		elsewhere.Bucket = "others-builds"
		other := stand(t, l, elsewhere)
		other.has(t, pullParallel)
		slow.leave()
		other.leave()
	})
}

// A pull to which nothing comes is passed over, and ended when others lack its blocks. The
// next try has one range, until that has come.
func TestSilentPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		silent := stand(t, l, place("1"))
		next := stand(t, l, place("2"))
		time.Sleep(silentAfter - lookInterval)
		synctest.Wait()
		next.has(t, 0)
		time.Sleep(2 * lookInterval)
		synctest.Wait()
		next.has(t, pullParallel)
		if silent.ctx.Err() != nil {
			t.Error("it was ended though there are blocks")
		}
		silent.hear() // it has its place again
		next.come(1)
		next.has(t, pullParallel-1)
		silent.has(t, pullParallel)

		time.Sleep(2 * silentAfter) // there are no more blocks now, and another one comes
		third := stand(t, l, place("3"))
		if err := context.Cause(next.ctx); !errors.Is(err, answers.ErrStalled) {
			t.Errorf("the last that is silent has ended with %v", err)
		}
		next.leave()
		third.has(t, pullParallel)

		again := place("2")
		again.Stalled = true
		next = stand(t, l, again)
		next.has(t, 0) // there is no block for it
		third.hear()
		silent.leave()
		third.has(t, pullParallel)
		next.has(t, 1)
		third.come(1)
		next.has(t, 1)
		next.come(1)
		next.has(t, 0) // for the third has all there may be
		third.come(2)
		next.has(t, 2) // it has its place again
		third.leave()
		next.leave()
		if n := len(l.turns); n != 0 || len(l.free) != l.made {
			t.Errorf("%d turns and %d blocks are not given back", n, l.made-len(l.free))
		}
	})
}

// Few pulls begin; one that goes before them begins all the same, as long as there are not
// too many.
func TestWhoBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		var begun []string
		enter := func(w Want) (leave func()) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				turn := l.enter(w)
				defer turn.End()
				if turn.Begin(ctx) != nil {
					return
				}
				begun = append(begun, w.Place.Execution)
				if _, err := turn.next(ctx, func() {}); err == nil { // it never comes
					for ctx.Err() == nil {
						turn.hear()
						time.Sleep(time.Second)
					}
					<-ctx.Done()
					turn.done(false)
				}
			}()
			synctest.Wait()
			return func() {
				cancel()
				<-ended
				synctest.Wait()
			}
		}
		var leave []func()
		for i := range maxPulls + 1 {
			leave = append(leave, enter(place(fmt.Sprintf("5%02d", i))))
		}
		if len(begun) != maxPulls {
			t.Errorf("%d begin, %d is right", len(begun), maxPulls)
		}
		for i := range maxBegun {
			leave = append(leave, enter(place(fmt.Sprintf("%03d", 499-i))))
		}
		if len(begun) != maxBegun {
			t.Errorf("%d begin, %d is right", len(begun), maxBegun)
		}
		leave[0]()
		if got := begun[len(begun)-1]; got != "484" {
			t.Errorf("%s begins when another one has ended, 484 goes first", got)
		}
		for _, f := range slices.Backward(leave[1:]) {
			f()
		}
	})
}

// Doubtful ones keep nobody back, and none of them the next one.
func TestDoubtful(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(line)
		doubtful := func(execution string) Want {
			w := place(execution)
			w.Stalled = true
			return w
		}
		first, second := stand(t, l, doubtful("2")), stand(t, l, doubtful("1"))
		first.has(t, 1)
		second.has(t, 1)
		entered := make(chan *Turn)
		for _, name := range []string{"4", "3"} {
			go func() {
				turn := l.enter(doubtful(name))
				if err := turn.Begin(t.Context()); err != nil {
					t.Error(err)
				}
				entered <- turn
			}()
			synctest.Wait()
		}
		good := stand(t, l, place("5"))
		good.has(t, pullParallel)
		first.leave()
		if turn := <-entered; turn.want.Place.Execution != "4" {
			t.Errorf("%s begins, 4 has waited for longer", turn.want.Place.Execution)
		} else {
			turn.End()
		}
		(<-entered).End()
		second.leave()
		good.leave()
	})
}
