package seeder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	simSteps    = 400 // of trouble in one order of events
	simCalm     = 4000
	simSegments = 3
	simTimeout  = 10 * time.Minute
)

// sim is the world around one machine: a table, agents, people, a source, and a clock.
// It goes wrong at random, and does for the machine what its owner does.
type sim struct {
	t   *testing.T
	rng *rand.Rand
	now time.Time

	// uploading: the build is going up, and the table has the execution of another object
	// under the key, and this one beside it, as pending says. ended: of the upload nothing is
	// left.
	uploading, pending, ended bool

	table *ledger.Record // as it is
	taken bool           // by another execution
	index *ledger.Record // as this process knows it

	owned     bool
	m         machine
	mailbox   []event
	running   map[worker][]failure // and what is to be recorded
	cancelled map[worker]bool
	// announced while agents know of it.
	announced bool
	// here are the segments that this process has, whole says that it has all of them;
	// telling are those that the announcement under way is of.
	here, telling int
	whole, seals  bool
	noticed       bool // the end notice of this run was sent
	// tellsHigh: the announcement under way says that it goes before others; knowHigh: the
	// agents know.
	tellsHigh, knowHigh bool
	calm                bool // nothing goes wrong any more
	events              int

	// What the properties need.
	carried  bool            // between begun and concluded
	owes     bool            // was asked for something, and has done nothing since
	holds    bool            // what was fetched, or left by a pull
	said     map[string]bool // arrivals of this run
	moved    map[string]time.Time
	told     time.Time // the last announcement that begins the destinations' time
	retried  time.Time
	concerns []string // the last actions, for a failure
}

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		running: make(map[worker][]failure), cancelled: make(map[worker]bool), moved: make(map[string]time.Time),
	}
	r := &ledger.Record{
		Key: ledger.Key{FileKey: "build.zip", SourceBucket: "global"}, ExecutionID: "1", Status: ledger.InProgress,
		StartTime: s.now, Size: 100, SourceETag: "etag", Results: make(map[string]ledger.Result), Version: 1,
	}
	for i := range 1 + s.rng.IntN(4) {
		r.Destinations = append(r.Destinations, string(rune('a'+i)))
	}
	if s.uploading = s.rng.IntN(3) == 0; s.uploading {
		s.pending = true
		r.Uploading, r.SourceETag = true, ""
	}
	s.table, s.index = r, r
	s.ask(map[bool]string{true: asUploaded, false: asAccepted}[s.uploading])
	return s
}

func (s *sim) fail(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\nstate %d, working %v, record %+v\nthe last actions:\n%s", fmt.Sprintf(format, args...), s.m.doing, s.m.working,
		s.index, strings.Join(s.concerns[max(0, len(s.concerns)-30):], "\n"))
}

// write changes the table, as the ledger does; the writer knows the record then.
func (s *sim) write(change func(r *ledger.Record)) {
	r := s.table.Clone()
	change(r)
	switch {
	case len(r.Unfinished()) == 0:
		r.Status = ledger.Completed
	case len(r.Pending()) > 0:
		r.Status = ledger.InProgress
	case slices.ContainsFunc(r.Unfinished(), func(b string) bool { return !r.Cancelled(b) }):
		r.Status = ledger.Failed
	default:
		r.Status = ledger.Cancelled
	}
	r.Version++
	s.table = r
}

// put has the process know the table's record.
func (s *sim) put() {
	if s.taken {
		s.mail(taken{"2"})
		return
	}
	s.index = s.table
	s.mail(known{s.table})
}

func (s *sim) mail(e event) {
	if s.owned {
		s.mailbox = append(s.mailbox, e)
	}
}

func (s *sim) ask(why string) {
	if s.taken || s.ended {
		return
	}
	if !s.owned {
		s.owned, s.mailbox, s.running = true, nil, make(map[worker][]failure)
		s.m = newMachine(s.index, simTimeout, func(wait time.Duration) time.Duration { return wait/2 + time.Millisecond })
	}
	s.mail(asked{why: why, trace: context.Background()})
}

func (s *sim) hear() {
	if len(s.mailbox) == 0 {
		return
	}
	e := s.mailbox[0]
	s.mailbox = s.mailbox[1:]
	switch e := e.(type) {
	case done:
		delete(s.running, e.worker)
		if e.worker == announceWorker && e.err == nil && e.sealed {
			s.owes = false
			if s.m.announced.IsZero() {
				s.told = s.now
			}
		}
		delete(s.cancelled, e.worker)
	case reported:
		if e.moved {
			s.moved[e.bucket] = s.now
		}
	case retrying:
		s.retried = s.now
	case asked:
		s.owes = s.owes || e.why != asOver && e.why != asLate
	}
	s.events++
	s.perform(s.m.step(s.now, e))
	if s.m.doing == following {
		if s.uploading {
			s.fail("it waits for the destinations, and its build is still going up")
		}
		s.owes = false
		if !s.seals {
			s.fail("it waits for the destinations, and the build is not sealed")
		}
		if s.m.record.High && !s.knowHigh {
			s.fail("it goes before others, and the agents do not know")
		}
	}
	if s.m.doing == fetching && s.m.handedOut > s.m.announcedSegments && s.running[announceWorker] == nil && s.m.due().IsZero() {
		s.fail("%d segments are here, %d are announced, and nobody is told", s.m.handedOut, s.m.announcedSegments)
	}
	if slices.Contains([]doing{fetching, renewing, resting}, s.m.doing) && !wanted(s.m.record) {
		s.fail("it goes on though nobody waits for it")
	}
}

// rest lets the owner go when there is nothing to do for it.
func (s *sim) rest() {
	if s.owned && s.m.doing == idle && len(s.mailbox) == 0 && len(s.running) == 0 {
		s.owned = false
		if s.carried {
			s.fail("its owner has gone, and it was not concluded")
		}
		if s.owes && wanted(s.index) && !s.taken && !s.ended && !s.m.live.sourceMissing {
			s.fail("its owner has gone, and what it was asked for was not done")
		}
		s.owes = false
		if over(s.index) != (s.m.live.phase == api.PhaseEnded) && !s.taken && !s.ended && s.m.live.takenUp != (time.Time{}) {
			s.fail("nobody carries it, and it is shown as %s with status %s", s.m.live.phase, s.index.Status)
		}
	}
}

// perform does what the owner does, and holds the machine to its promises.
func (s *sim) perform(actions []action) {
	for _, a := range actions {
		s.concerns = append(s.concerns, fmt.Sprintf("%s %T %v", s.now.Format("15:04:05.000"), a, a))
		switch a := a.(type) {
		case begin:
			s.begin(a.worker)
		case cancel:
			s.cancelled[a.worker] = true
		case begun:
			if s.carried {
				s.fail("begun twice")
			}
			s.carried, s.said, s.told = true, make(map[string]bool), time.Time{}
			for _, b := range s.m.record.Successful {
				s.said[b] = true
			}
		case sayArrived:
			if s.said[a.bucket] {
				s.fail("%s arrives twice", a.bucket)
			}
			s.said[a.bucket] = true
		case concluded:
			if !s.carried || s.holds || len(s.running) > 0 {
				s.fail("concluded; carried: %v, holds something: %v, at work: %v", s.carried, s.holds, s.running)
			}
			if a.end != replaced && a.end != wasFailed && !s.noticed {
				s.fail("concluded, and the agents were not told")
			}
			if s.carried = false; s.uploading {
				if s.pending {
					s.fail("concluded, and the table has the upload still")
				}
				s.ended, s.uploading = true, false
			}
		}
	}
}

func (s *sim) begin(w worker) {
	switch {
	case s.running[w] != nil:
		s.fail("a second worker: %s", w)
	case !s.carried && w != rereadWorker && w != endWorker:
		s.fail("%s works, and nobody carries the execution", w)
	}
	if s.running[endWorker] != nil && w != rereadWorker {
		s.fail("%s begins while the end notice is being signed, which may end it again", w)
	}
	s.running[w] = s.m.failures
	if s.running[w] == nil {
		s.running[w] = []failure{}
	}
	alone := []worker{fetchWorker, renewWorker}
	for _, other := range alone {
		if slices.Contains(alone, w) && other != w && s.running[other] != nil {
			s.fail("%s begins beside %s", w, other)
		}
	}
	switch w {
	case leaveWorker:
		s.holds, s.here, s.whole = false, 0, false
	case endWorker:
		if len(s.running) > 1 && s.carried { // else the table is looked at
			s.fail("its end is told while %v work", slices.Collect(maps.Keys(s.running)))
		}
		if s.uploading && !s.pending {
			s.fail("its end is told when the table did not have the upload any more: a crash before would leave it announced")
		}
		if wanted(s.m.record) && len(s.m.record.Pending()) > 0 && s.m.end == hasEnded {
			s.fail("its end is told while destinations are pending")
		}
	case dropWorker:
		if !s.noticed {
			s.fail("what the upload has left is removed before its end is told")
		}
	case fetchWorker:
		s.owes, s.holds, s.noticed = false, true, false
		if !wanted(s.m.record) {
			s.fail("fetched though nobody waits for it")
		}
	case announceWorker:
		if s.telling, s.seals = s.here, s.whole; s.here == 0 {
			s.fail("announces nothing")
		}
		s.tellsHigh = s.m.record.High
		if s.m.successor != "" {
			s.fail("announced after it was superseded")
		}
	case failWorker, renewWorker:
		s.owes = s.owes && w == failWorker // another execution is begun for it
		if s.uploading {
			s.fail("%s begins, and the key is another execution's", w)
		}
		for _, f := range s.m.failures {
			if !strings.HasPrefix(f.reason, "no progress") || s.m.doing != following {
				continue
			}
			for _, since := range []time.Time{s.told, s.retried, s.moved[f.bucket]} {
				if s.now.Sub(since) < simTimeout {
					s.fail("%s fails for want of progress %s after there was some", f.bucket, s.now.Sub(since))
				}
			}
		}
	}
}

var errPasses = errors.New("connection reset")

// work ends one of the workers, well or not.
func (s *sim) work(w worker) {
	if slices.ContainsFunc(s.mailbox, func(e event) bool { d, ok := e.(done); return ok && d.worker == w }) {
		return // it has ended, and that is not heard yet
	}
	d := done{worker: w}
	trouble := !s.calm && s.rng.IntN(3) == 0
	if s.cancelled[w] && s.rng.IntN(4) > 0 {
		d.err = context.Canceled
		s.mail(d)
		return
	}
	switch w {
	case fetchWorker:
		if s.rng.IntN(3) == 0 {
			s.mail(turned{[]string{api.PhaseQueued, api.PhasePulling}[s.rng.IntN(2)]})
			s.mail(pulled{s.rng.Int64N(100)})
		}
		if s.here < simSegments && s.rng.IntN(3) > 0 && !s.cancelled[w] { // one more, and it goes on
			s.here++
			s.mail(handedOut{s.here})
			return
		}
		switch {
		case s.uploading && trouble:
			d.err = []error{errPasses, bucket.ErrExists, bucket.ErrNotFound, bucket.ErrChanged, ledger.ErrOvertaken}[s.rng.IntN(5)]
		case s.taken && s.rng.IntN(2) == 0:
			d.err = ledger.ErrSuperseded
		case trouble:
			d.err = []error{errPasses, errPasses, bucket.ErrNotFound, bucket.ErrChanged, bucket.ErrChecksum}[s.rng.IntN(5)]
		default:
			d.content = content{size: 100, infohash: "infohash", sha256: "sha256"}
			if s.uploading { // it takes the key
				s.uploading, s.pending = false, false
				s.write(func(r *ledger.Record) { r.Uploading, r.SourceETag = false, "etag" })
				s.put()
			}
			for s.here < simSegments {
				s.here++
				s.mail(handedOut{s.here})
			}
			s.whole = true
		}
	case announceWorker:
		if trouble {
			d.err = errPasses
			break
		}
		d.segments, d.sealed, d.high = s.telling, s.seals, s.tellsHigh
		s.announced, s.knowHigh = true, s.tellsHigh
	case rereadWorker:
		if !trouble || s.m.doing == finishing {
			s.put()
		}
	case failWorker:
		for _, f := range s.running[w] {
			if s.taken {
				d.err = ledger.ErrSuperseded
				break
			}
			if trouble && s.rng.IntN(2) == 0 {
				d.err = errPasses
				break
			}
			if !slices.Contains(s.index.Pending(), f.bucket) || slices.Contains(s.table.Successful, f.bucket) {
				continue
			}
			s.write(func(r *ledger.Record) {
				if !slices.Contains(r.Failed, f.bucket) {
					r.Failed = append(slices.Clone(r.Failed), f.bucket)
				}
				r.Results[f.bucket] = ledger.Result{Error: f.reason, Final: f.final, Timestamp: s.now}
			})
			s.put()
		}
	case renewWorker:
		switch {
		case trouble:
			d.err = []error{errPasses, bucket.ErrNotFound}[s.rng.IntN(2)]
		case s.rng.IntN(2) == 0:
			s.mail(delayed{s.now.Add(time.Minute)})
			fallthrough
		default:
			s.taken = true
			s.mail(taken{"2"})
		}
	case mendWorker:
		if !s.cancelled[w] {
			return // it stays
		}
	case endWorker:
		s.noticed, s.announced, s.knowHigh = true, false, false
	case dropWorker:
		if trouble {
			return // it is tried again
		}
		s.pending = false
	}
	s.mail(d)
}

// retry is what a person asks for; cancel too.
func (s *sim) retry() {
	if s.uploading || s.ended || s.taken || s.index.Status == ledger.Completed {
		return
	}
	s.mail(retrying{})
	if len(s.table.Failed) > 0 {
		s.write(func(r *ledger.Record) {
			for _, b := range r.Failed {
				delete(r.Results, b)
			}
			r.Failed = nil
		})
	}
	s.put()
	s.ask(asRetried)
}

func (s *sim) cancel() {
	if s.uploading || s.ended { // its worker is told, and breaks it off
		return
	}
	for _, b := range s.index.Unfinished() {
		if s.taken || slices.Contains(s.table.Successful, b) {
			continue
		}
		s.write(func(r *ledger.Record) {
			if !slices.Contains(r.Failed, b) {
				r.Failed = append(slices.Clone(r.Failed), b)
			}
			r.Results[b] = ledger.Result{Error: ledger.CancelledError, Timestamp: s.now}
		})
		s.put()
	}
}

// raise is a publish of high priority that joins.
func (s *sim) raise() {
	if s.taken || s.table.High || s.table.Status != ledger.InProgress {
		return
	}
	s.write(func(r *ledger.Record) { r.High = true })
	s.put()
	s.ask(asAccepted)
}

// agent lands a build, or says something of it.
func (s *sim) agent() {
	b := s.table.Destinations[s.rng.IntN(len(s.table.Destinations))]
	report := reported{bucket: b, node: b, moved: s.calm || s.rng.IntN(2) == 0}
	if !s.calm && s.rng.IntN(4) == 0 {
		report.complaint = "AccessDenied"
	}
	switch n := s.rng.IntN(6); {
	case s.uploading || s.taken || !s.announced || slices.Contains(s.table.Successful, b) || s.table.Cancelled(b) || s.table.Hopeless(b):
		return
	case n == 0 && !s.calm:
		s.write(func(r *ledger.Record) {
			if !slices.Contains(r.Failed, b) {
				r.Failed = append(slices.Clone(r.Failed), b)
			}
			r.Results[b] = ledger.Result{Error: "EntityTooLarge", Final: true, Timestamp: s.now}
		})
		report.news = true
	case n <= 2:
		s.write(func(r *ledger.Record) {
			r.Successful = append(slices.Clone(r.Successful), b)
			r.Failed = slices.DeleteFunc(slices.Clone(r.Failed), func(f string) bool { return f == b })
			r.Results[b] = ledger.Result{Success: true, Timestamp: s.now}
		})
		report.news = s.rng.IntN(3) > 0 // its word can be lost
	}
	s.mail(report)
}

// late lands a build that has failed; the agent's word may come when nobody carries it.
func (s *sim) late() {
	if s.taken || s.owned || s.table.Status != ledger.Failed {
		return
	}
	b := s.table.Failed[0]
	s.write(func(r *ledger.Record) {
		r.Successful, r.Failed = append(slices.Clone(r.Successful), b), r.Failed[1:]
		r.Results[b] = ledger.Result{Success: true, Timestamp: s.now}
	})
	s.said = make(map[string]bool)
	for _, b := range s.index.Successful {
		s.said[b] = true
	}
	s.ask(asLate)
}

// pass lets time pass; not much of it before an owner hears what it was told.
func (s *sim) pass(d time.Duration) {
	if len(s.mailbox) > 0 {
		d = min(d, time.Second)
	}
	s.now = s.now.Add(d)
	if s.owned && len(s.mailbox) == 0 {
		if due := s.m.due(); !due.IsZero() && !s.now.Before(due) {
			s.events++
			s.perform(s.m.wake(s.now))
		}
	}
}

// crash loses all that is not in the table; the next start reads it.
func (s *sim) crash() {
	if s.uploading { // the next start ends it, without a machine
		s.ended, s.uploading, s.pending = true, false, false
	}
	s.here, s.whole, s.noticed = 0, false, false
	s.owned, s.carried, s.owes, s.mailbox, s.running, s.cancelled = false, false, false, nil, make(map[worker][]failure), make(map[worker]bool)
	if s.index = s.table; s.index.Status == ledger.InProgress && !s.ended {
		s.ask(asResumed)
	}
}

func (s *sim) step() {
	switch n := s.rng.IntN(100); {
	case n < 40:
		s.hear()
	case n < 60:
		if running := slices.Sorted(maps.Keys(s.running)); len(running) > 0 {
			s.work(running[s.rng.IntN(len(running))])
		}
	case n < 69:
		s.agent()
	case n < 70:
		s.late()
	case s.calm:
		s.pass(time.Duration(s.rng.Int64N(int64(10 * time.Second))))
	case n < 85:
		s.pass(time.Duration(s.rng.Int64N(int64(30 * time.Second))))
	case n < 88:
		s.pass(time.Duration(s.rng.Int64N(int64(simTimeout))))
	case n < 91:
		s.retry()
	case n < 93:
		s.cancel()
	case n < 97:
		by, come := served{since: make(map[string]time.Time)}, make(map[string]bool)
		for _, b := range s.table.Destinations {
			if s.rng.IntN(2) == 0 {
				by.since[b], come[b] = s.now, true
			}
		}
		s.mail(by)
		if lacks(s.index, come) {
			s.ask(asAwaited)
		}
	case n < 98 && s.rng.IntN(2) == 0:
		s.raise()
	case n < 98:
		s.ask(asOver)
	case n < 99:
		s.crash()
	case s.rng.IntN(10) == 0 && !s.uploading && !s.ended:
		if s.taken = true; s.rng.IntN(2) == 0 { // by this seeder, or by another process
			s.mail(taken{"2"})
		}
	}
	s.rest()
}

// settle runs until nothing is left to do, without trouble.
func (s *sim) settle() {
	s.calm = true
	for range simCalm {
		if s.step(); !s.owned {
			return
		}
	}
	s.fail("it has not come to an end, though nothing goes wrong")
}
