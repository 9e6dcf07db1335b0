// Package owner runs a state machine in one goroutine, which alone reads and changes
// its state. Whoever has something to say to it leaves an event, and neither waits nor
// is refused. What takes time is done by workers, which get what they need as arguments
// and report by events, too. So the machine needs no lock, and without I/O and a clock
// of its own a test can run it through any order of events.
package owner

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/survive"
)

// Machine is what an owner runs. E is its events.
type Machine[E any] interface {
	// Hear takes an event and begins what follows from it. It does not wait.
	Hear(now time.Time, e E)
	// Due is when Wake is to be called if nothing is heard before; zero for never.
	Due() time.Time
	Wake(now time.Time)
	// Over reports, when all that was told is heard, whether Run is to return.
	Over() bool
}

// Owner is the goroutine of one machine: who calls Run.
type Owner[E any] struct {
	mu     sync.Mutex // held for a few lines
	events []event[E]
	ready  chan struct{} // has a value when there are events

	// Of Run's goroutine alone.
	ctx     context.Context
	logger  *slog.Logger
	running map[string]context.CancelFunc
	workers sync.WaitGroup
}

// event is one that was told; worker names the one whose last word it is.
type event[E any] struct {
	told   E
	worker string
}

// New returns an owner that can be told things and is not Run yet. The logger hears of
// workers that panic.
func New[E any](logger *slog.Logger) *Owner[E] {
	return &Owner[E]{ready: make(chan struct{}, 1), logger: logger, running: make(map[string]context.CancelFunc)}
}

// Tell leaves an event. It never waits and is never refused; what is told after Run has
// returned is not heard any more.
func (o *Owner[E]) Tell(e E) { o.tell(event[E]{told: e}) }

func (o *Owner[E]) tell(e event[E]) {
	o.mu.Lock()
	o.events = append(o.events, e)
	o.mu.Unlock()
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// next takes the event that was told first; ok is false for none.
func (o *Owner[E]) next() (e event[E], ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.events) == 0 {
		o.events = nil
		return e, false
	}
	e, o.events = o.events[0], o.events[1:]
	return e, true
}

// Left returns what was told and not heard, for after a Run that a panic has ended:
// workers may have got something that is to be given back.
func (o *Owner[E]) Left() (left []E) {
	for e, ok := o.next(); ok; e, ok = o.next() {
		left = append(left, e.told)
	}
	return left
}

// Idle reports whether all that was told is heard, and no worker is running. To be
// asked by Run's goroutine.
func (o *Owner[E]) Idle() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.events) == 0 && len(o.running) == 0
}

// Run runs the machine until it is over or ctx ends. Then it ends the workers, waits for
// them, and has the machine hear what was told last.
func (o *Owner[E]) Run(ctx context.Context, m Machine[E]) {
	ctx, cancel := context.WithCancel(ctx)
	o.ctx = ctx
	defer func() {
		cancel()
		o.workers.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		o.hear(m)
		if m.Over() {
			return
		}
		if at := m.Due(); at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(at))
		}
		select {
		case <-ctx.Done():
			o.workers.Wait()
			o.hear(m)
			return
		case <-o.ready:
		case <-timer.C:
			m.Wake(time.Now())
		}
	}
}

func (o *Owner[E]) hear(m Machine[E]) {
	for e, ok := o.next(); ok; e, ok = o.next() {
		if e.worker != "" {
			o.running[e.worker]() // frees its context
			delete(o.running, e.worker)
		}
		m.Hear(time.Now(), e.told)
	}
}

// Work begins a worker of this name; there must be none. What f returns is its last
// word, told as an event; after a panic that is what fault makes of it. To be called by
// Run's goroutine.
func (o *Owner[E]) Work(name string, fault func(error) E, f func(ctx context.Context) E) {
	if o.running[name] != nil {
		panic("a second worker called " + name)
	}
	if o.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(o.ctx)
	o.running[name] = cancel
	o.workers.Go(func() {
		var last E
		if err := survive.Run(o.logger, func() error { last = f(ctx); return nil }); err != nil {
			last = fault(err)
		}
		o.tell(event[E]{last, name})
	})
}

// Ending reports whether the process ends: what fails then is no failure. To be asked by
// Run's goroutine.
func (o *Owner[E]) Ending() bool { return o.ctx.Err() != nil }

// Works reports whether a worker of this name is running, or its last word was not heard
// yet. To be asked by Run's goroutine.
func (o *Owner[E]) Works(name string) bool { return o.running[name] != nil }

// Cancel ends the context of the worker of this name, if there is one; its last word is
// still to come. To be called by Run's goroutine.
func (o *Owner[E]) Cancel(name string) {
	if cancel := o.running[name]; cancel != nil {
		cancel()
	}
}
