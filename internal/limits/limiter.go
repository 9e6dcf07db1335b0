// Package limits owns how fast bytes may pass, in each direction over all builds
// together, and lets them pass no faster. What is limited asks here before it goes on;
// a change is heard by whoever waits.
package limits

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// slicesPerSecond is into how many slices a second's bytes are cut. Who waits gets a
	// slice at a time, in turn: a peer that shares a slow link with hundreds of others
	// hears from it every few seconds, and takes it for slow and not for dead.
	slicesPerSecond = 32
	// minSlice and maxSlice bound a slice, in bytes: a smaller one is mostly overhead, and
	// of larger ones nobody is faster.
	minSlice, maxSlice = 2 << 10, 64 << 10
	// burstsPerSecond says how much may pass at once after nothing did: a quarter of a
	// second's bytes, so that timers that are late on a busy machine cost little, and the
	// limit holds within a tenth over three seconds.
	burstsPerSecond = 4
)

// Limiter lets bytes of one direction pass at a rate. It is safe for concurrent use; nil
// lets everything pass.
type Limiter struct {
	// turn is whose turn it is to wait for the next slice; the others queue for it, first
	// come first served.
	turn   chan struct{}
	state  atomic.Pointer[state]
	waited atomic.Int64 // nanoseconds, of all who waited
}

// state is what holds until the next change.
type state struct {
	rate         int64 // bytes/s; 0 for no limit
	slice, burst int
	tokens       *rate.Limiter // nil for no limit
	changed      chan struct{} // closed by the next change
}

func newState(perSecond int64) *state {
	s := &state{rate: perSecond, slice: math.MaxInt, changed: make(chan struct{})}
	if perSecond > 0 {
		s.slice = int(max(minSlice, min(maxSlice, perSecond/slicesPerSecond)))
		s.burst = int(max(int64(s.slice), perSecond/burstsPerSecond))
		s.tokens = rate.NewLimiter(rate.Limit(perSecond), s.burst)
		s.tokens.AllowN(time.Now(), s.burst) // a change gives nothing away
	}
	return s
}

func newLimiter() *Limiter {
	l := &Limiter{turn: make(chan struct{}, 1)}
	l.state.Store(newState(0))
	return l
}

// set changes the rate, in bytes/s; 0 is no limit. Calls of it are not to overlap.
func (l *Limiter) set(perSecond int64) {
	if old := l.state.Load(); old.rate != perSecond {
		l.state.Store(newState(perSecond))
		close(old.changed)
	}
}

// Rate is the limit in bytes/s; 0 for none.
func (l *Limiter) Rate() int64 {
	if l == nil {
		return 0
	}
	return l.state.Load().rate
}

// Waited is how long bytes were held back so far, the times of all who waited beside each
// other added up.
func (l *Limiter) Waited() time.Duration {
	if l == nil {
		return 0
	}
	return time.Duration(l.waited.Load())
}

// Slice is how many bytes at most are to pass between two calls of Take or Wait.
func (l *Limiter) Slice() int {
	if l == nil {
		return math.MaxInt
	}
	return l.state.Load().slice
}

// Take waits until n more bytes may pass. The error is the context's, when that ends
// first. Who watches the context (OnWait) hears of it if it takes time.
func (l *Limiter) Take(ctx context.Context, n int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !l.wait(ctx.Done(), n, watchers(ctx)) {
		return ctx.Err()
	}
	return nil
}

// Wait is Take for who has no context; false when done is closed first.
func (l *Limiter) Wait(done <-chan struct{}, n int) bool { return l.wait(done, n, nil) }

// Charge counts n bytes that pass in any case: what comes after them waits for it.
func (l *Limiter) Charge(n int) {
	if l == nil {
		return
	}
	s := l.state.Load()
	for ; s.rate > 0 && n > 0; n -= s.burst {
		s.tokens.ReserveN(time.Now(), min(n, s.burst))
	}
}

func (l *Limiter) wait(done <-chan struct{}, n int, w *watcher) bool {
	if l.Rate() == 0 {
		return true
	}
	var begun time.Time
	hold := func() { // called before the first wait
		if begun.IsZero() {
			begun = time.Now()
			w.hear(true)
		}
	}
	defer func() {
		if !begun.IsZero() {
			l.waited.Add(int64(time.Since(begun)))
			w.hear(false)
		}
	}()
	for n > 0 {
		s := l.state.Load()
		if s.rate == 0 {
			return true
		}
		select {
		case l.turn <- struct{}{}:
		default:
			hold()
			select {
			case l.turn <- struct{}{}:
			case <-s.changed:
				continue
			case <-done:
				return false
			}
		}
		part := min(n, s.slice)
		passed, ended := s.pass(done, part, hold)
		<-l.turn
		if ended {
			return false
		}
		if passed {
			n -= part
		}
	}
	return true
}

// pass waits for n bytes, as who has the turn; passed is false after a change.
func (s *state) pass(done <-chan struct{}, n int, hold func()) (passed, ended bool) {
	now := time.Now()
	r := s.tokens.ReserveN(now, n)
	delay := r.DelayFrom(now)
	if delay <= 0 {
		return true, false
	}
	hold()
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true, false
	case <-s.changed: // its tokens are of the past
		return false, false
	case <-done:
		r.Cancel() // nobody else has reserved: all of it goes back
		return false, true
	}
}
