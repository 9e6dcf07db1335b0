package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/owner"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/turns"
)

// reportAfterEnd is how many more times the end of a build is reported.
const reportAfterEnd = 10

// build is one execution at this agent: it owns the machine that decides, and has
// workers do what that says. Others tell it events and read what it has shown last.
type build struct {
	agent  *Agent
	id     string
	key    ledger.Key
	logger *slog.Logger // without what an announcement says
	owner  *owner.Owner[event]
	seen   atomic.Pointer[shown]
	// moving: an event says already that pieces have come.
	moving atomic.Bool

	over    bool // nothing is heard any more; guarded by the agent's mutex
	hasKey  bool // its source object is complete, and has an ETag; guarded as well
	reports int  // left to send after the end; of tick's goroutine

	// Of the owner's goroutine, until run returns.
	machine *machine
	span    *tracing.Span
	member  *membership // nil out of the swarm
	traffic swarm.Stats // of the memberships before
	job     *landing.Job
	object  *landing.Comparison // what the bucket has; nil where it was not compared
	turn    *turns.Slots        // where the turn is from that the machine has
	vacant  time.Time           // since when nobody lands it, as far as the table says; zero when somebody does
}

// newBuild returns the build of an execution, to be run.
func newBuild(a *Agent, id string, key ledger.Key) *build {
	logger := a.cfg.Logger.With("key", key.FileKey, "executionId", id)
	m := newMachine(a.cfg.Bucket.Name(), 0, rand.N[time.Duration])
	if a.cfg.Sources != nil {
		m.fallbackAfter = a.cfg.FallbackAfter
	}
	m.noStore = a.store.ready()
	return &build{agent: a, id: id, key: key, logger: logger, owner: owner.New[event](logger), reports: reportAfterEnd, machine: m}
}

// run works on the build until nothing is left to do, or ctx ends: then the next start
// goes on with it. Its error is a fault in the machine; what that held is given back.
func (b *build) run(ctx context.Context) error {
	m := b.machine
	err := survive.Run(b.logger, func() error { b.owner.Run(ctx, b); return nil })
	if err != nil {
		b.agent.mu.Lock()
		b.over = true
		b.agent.mu.Unlock()
		for _, e := range b.owner.Left() {
			if f, ok := e.(finished); ok {
				b.keep(f)
				m.hasTurn = m.hasTurn || f.work == awaitTurn && f.err == nil
			}
		}
		if m.over, m.err = err, err; !m.arrived {
			m.state = api.StateFailed
		}
		b.publish()
	}
	if m.over == nil && !m.arrived {
		b.log().Info("build is left, the next start goes on with it", "landedBytes", m.landed)
	}
	if m.arrived && !m.recorded {
		b.say(say{what: "recorded"}) // its download was to go on, for the others' sake
	}
	b.span.End(context.Canceled) // where it has not ended
	if b.member != nil {
		b.member.span.End(context.Canceled)
		b.member.leave()
	}
	if m.hasTurn {
		b.turn.Give()
	}
	return err
}

// Hear takes an event and has done what follows from it.
func (b *build) Hear(now time.Time, e event) {
	switch f := e.(type) {
	case moved:
		b.moving.Store(false)
	case finished:
		b.keep(f)
		if f.err != nil && b.owner.Ending() {
			return
		}
		if f.record != nil {
			if f.lander != nobody {
				b.vacant = time.Time{}
			} else if b.vacant.IsZero() {
				b.vacant = now
			}
			f.leads = b.agent.leads(f.record.ExecutionID, f.lander, now.Sub(b.vacant))
			e = f
		}
	}
	b.do(b.machine.step(now, e))
}

// Due is when Wake is to be called.
func (b *build) Due() time.Time { return b.machine.due }

// Wake has done what was due.
func (b *build) Wake(now time.Time) { b.do(b.machine.step(now, nil)) }

// Over reports whether nothing is left to do, and takes the build away from those who
// tell it events.
func (b *build) Over() bool {
	if !b.machine.done {
		return false
	}
	a := b.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if b.over = b.owner.Idle(); b.over && b.machine.ann == nil {
		delete(a.builds, b.id)
	}
	return b.over
}

// log is the build's, with its infohash once that is known: an end may come first.
func (b *build) log() *slog.Logger {
	if s := b.seen.Load(); s != nil {
		return b.logger.With("infohash", firstInfoHash(s.ann))
	}
	return b.logger
}

// move notes that pieces have come, or are coming.
func (b *build) move() {
	if b.moving.CompareAndSwap(false, true) {
		b.owner.Tell(moved{})
	}
}

// keep takes what a worker has got, or has given back.
func (b *build) keep(f finished) {
	switch got := f.got.(type) {
	case *membership:
		b.member = got
		got.revise(b.machine.ann) // which may be newer than what it has joined with
	case swarm.Stats:
		b.traffic = got
	case *turns.Slots:
		b.turn = got
	case *landing.Comparison:
		b.object = got
	}
	if f.work == leaveSwarm {
		b.member = nil
	}
	if f.arrived {
		b.object = nil
	}
}

func (b *build) publish() {
	last, s := b.seen.Load(), b.machine.shown
	if s.ann == nil {
		return
	}
	s.traffic, s.member = b.traffic, b.member
	b.seen.Store(&s)
	if s.member != nil && (last == nil || last.member == nil) {
		ask(b.agent.peersChanged) // more segments are expected
	}
	if s.state == api.StateLanded && last != nil && last.state != s.state {
		ask(b.agent.landedNow)
	}
}

func (b *build) do(actions []action) {
	b.publish()
	for _, a := range actions {
		switch a := a.(type) {
		case begin:
			f, span := b.worker(a.work), b.span
			last := finished{work: a.work}
			b.owner.Work(string(a.work), func(err error) event { last.err = err; return last }, func(ctx context.Context) event {
				f(span.In(ctx), &last)
				return last
			})
		case cancel:
			b.owner.Cancel(string(a.work))
		case releaseTurn:
			b.turn.Give()
		case revised:
			if b.member != nil {
				b.member.revise(b.machine.ann)
			}
		case say:
			b.say(a)
		}
	}
}

// worker returns what a worker does, with what it needs; f is to be its last word.
func (b *build) worker(w work) func(ctx context.Context, f *finished) {
	a, m, ann, member := b.agent, b.machine, b.machine.ann, b.member
	switch w {
	case awaitTurn:
		return func(ctx context.Context, f *finished) {
			of, err := a.awaitTurn(ctx, ann.High)
			if f.err = err; err == nil {
				f.got = of
			}
		}
	case joinSwarm:
		return func(ctx context.Context, f *finished) { b.join(ctx, ann, f) }
	case readTable:
		arrived := m.arrived
		return func(ctx context.Context, f *finished) { b.read(ctx, ann, arrived, f) }
	case findObject:
		job, record := b.newJob(), *m.record
		record.SHA256 = cmp.Or(record.SHA256, ann.SHA256) // which the table may not have yet
		if record.Headers == nil {
			record.Headers = ann.Headers
		}
		object := b.object
		return func(ctx context.Context, f *finished) { b.present(ctx, job, &record, ann.Layout(), object, f) }
	case compare:
		object := *b.object
		return func(ctx context.Context, f *finished) { b.compare(ctx, ann, object, f) }
	case openEntry:
		member.begun = time.Now()
		_, member.span = tracing.StartAt(b.span.In(context.Background()), member.joined, "swarm")
		return func(ctx context.Context, f *finished) { b.open(ctx, member, ann.Size, f) }
	case steer:
		return func(ctx context.Context, f *finished) { f.whole, f.err = b.steer(ctx, member) }
	case readSource:
		r := sourceRead{build: b, ann: ann, member: member, late: m.now.Sub(m.moved) - m.fallbackAfter, stalled: errors.Is(m.err, answers.ErrStalled)}
		return func(ctx context.Context, f *finished) { f.err = r.read(b.limited(member.span.In(ctx))) }
	case land:
		job := b.landing()
		return func(ctx context.Context, f *finished) { b.land(b.limited(ctx), job, f) }
	case giveUp:
		cause := m.hopeless
		return func(ctx context.Context, f *finished) { f.err = b.giveUp(ctx, cause) }
	case leaveSwarm:
		member.span.End(cmp.Or(m.err, context.Canceled))
		return func(_ context.Context, f *finished) { f.got = member.leave() }
	case seedCached:
		return func(context.Context, *finished) { a.seedCached(ann, b.log()) }
	case discard:
		job := b.job
		return func(ctx context.Context, _ *finished) {
			if err := job.Discard(ctx); err != nil {
				b.log().Warn("upload not removed; the next build of this key does it, or a lifecycle rule for unfinished uploads", "error", err)
			}
		}
	case clearUploads:
		discarded := b.job != nil && !b.job.Left()
		return func(ctx context.Context, f *finished) { f.err = b.clear(ctx, discarded, notedWithin) }
	case remember:
		wire := m.wire
		return func(context.Context, *finished) {
			if err := a.memory.keep(b.id, wire); err != nil {
				b.log().Warn("this build is taken up again after a restart only if a member still announces it", "error", err)
			}
		}
	case forget:
		return func(context.Context, *finished) {
			if err := errors.Join(a.memory.forget(b.id), a.cfg.Cache.ForgetPull(b.id, false)); err != nil {
				b.log().Warn("an execution that is over is looked at once more after a restart", "error", err)
			}
		}
	}
	panic("unknown kind of work: " + string(w))
}
