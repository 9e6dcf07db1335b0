package seeder

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// rereadInterval is how often the table is asked about a running execution
	// that no agent says has landed: their word can be lost.
	rereadInterval = 10 * time.Second
	// firstRetry and maxRetry bound the wait after a failed pull or write; it
	// doubles in between, with full jitter.
	firstRetry, maxRetry = time.Second, time.Minute
)

// machine is the state of one execution that is carried, from the queue to its end. It
// is told events and returns actions; its owner has them done and tells it what came of
// them (carry.go). It has no clock, and nothing in it waits.
type machine struct {
	timeout time.Duration // --arrival-timeout
	jitter  func(time.Duration) time.Duration

	record *ledger.Record // the newest known
	live   live           // what is shown beside it

	doing   doing
	working map[worker]bool // those whose last word is still to come
	actions []action        // of the present step
	// request is what came last of what the execution is carried for while it was
	// carried already, and nothing was done for it yet.
	request *asked
	// end is how it ends, while it is finishing; successor is the execution in place of
	// this one.
	end       end
	left      bool // what was held is given back
	successor string
	// notice is the reason that the end notice gives; noticed: this end's was sent, or could
	// not be. Nothing else begins meanwhile, which a late notice might end again.
	notice  string
	noticed bool

	// since is when the execution was accepted; or taken up again, after it had failed.
	since time.Time
	// arrived and failed are the destinations that it was said of; lastArrival is when
	// the last was seen in the table, zero for none in this run.
	arrived, failed map[string]bool
	lastArrival     time.Time
	// failures are those to be recorded.
	failures []failure
	// uploading: the build is going up to its source bucket, and the execution has not the
	// key yet; dropped: what the table and that bucket have of it is being removed, or gone.
	uploading, dropped bool
	// content is what was found in this run; nil before.
	content *content
	// handedOut counts the segments that are here and handed out, announcedSegments those
	// that were announced in this attempt.
	handedOut, announcedSegments int
	// announceAgainAt is when an announcement that has failed while the rest was on its way is
	// tried again; zero for not at all.
	announceAgainAt time.Time
	// maxPulled is how many bytes were pulled at most, pulling when that last grew or all
	// of them were here, when this run began, or a retry was asked for; later by what it has
	// waited for other pulls. queued is since when it does so; zero for not.
	maxPulled       int64
	pulling, queued time.Time
	// announced is when the destinations' time began: at the first announcement, or the
	// last that somebody asked for; retried is when that was.
	announced, retried time.Time
	// wait is how long it rests after the next failure, until when it rests now.
	wait  time.Duration
	until time.Time
	// rereadTable asks for the table to be read: an agent says that it has landed. nextReread
	// is when it is read without that.
	rereadTable bool
	nextReread  time.Time
	// moved is when the agents of a destination last made progress; complaints are, by
	// destination and agent, what is wrong there.
	moved      map[string]time.Time
	complaints map[string]map[string]string
	served     served
}

// errSpoilt is why another execution begins when one is sent again that was spoilt.
var errSpoilt = errors.New("what was announced of it is not what the source has")

// doing is what an execution is about.
type doing int

const (
	idle       doing = iota // nobody carries it
	fetching                // its bytes come here, and into the swarm
	announcing              // the cluster is told
	following               // the destinations are waited for
	failing                 // nothing more will come, and that is being recorded
	renewing                // it begins again, with the object as it is now
	resting                 // something has failed and is tried again later
	finishing               // its workers are waited for
)

// end is how an execution ends that was carried.
type end int

const (
	hasEnded  end = iota // nothing is left to wait for
	hasFailed            // nothing more will come, as the table says now
	wasFailed            // nothing more will come, as the table has said before
	replaced             // another execution has the key
	brokenOff            // its upload has not come to its end
)

func newMachine(r *ledger.Record, timeout time.Duration, jitter func(time.Duration) time.Duration) machine {
	m := machine{
		timeout: timeout, jitter: jitter, record: r, live: newLive(r), working: make(map[worker]bool),
		moved: make(map[string]time.Time), complaints: make(map[string]map[string]string), uploading: r.Uploading,
	}
	m.recall()
	return m
}

// step takes an event and returns what is to be done, in order.
func (m *machine) step(now time.Time, e event) []action {
	m.actions = nil
	switch e := e.(type) {
	case asked:
		m.ask(now, e)
	case known:
		m.know(now, e.record)
	case taken:
		m.successor = e.by
		m.finish(now, replaced)
	case retrying:
		m.live.sourceMissing, m.retried, m.pulling, m.wait = false, now, now, firstRetry
	case served:
		m.served = e
	case reported:
		m.report(now, e)
	case turned:
		m.turn(now, e.phase)
	case pulled:
		if e.bytes > m.maxPulled { // not what was there already
			m.maxPulled, m.pulling = e.bytes, now
		}
		m.live.pulled = e.bytes
	case handedOut:
		m.handedOut = max(m.handedOut, e.segments)
		if m.doing == fetching {
			m.work(mendWorker)
		}
		m.announceMore()
	case delayed:
		m.live.retryAt = e.until
	case done:
		m.ended(now, e)
	}
	switch m.doing {
	case fetching, renewing, resting:
		if !wanted(m.record) { // cancelled, or arrived all the same
			m.finish(now, hasEnded)
		}
	}
	return m.actions
}

// due is when wake is to be called; zero for never.
func (m *machine) due() time.Time {
	switch m.doing {
	case fetching:
		return m.announceAgainAt
	case resting:
		return m.until
	case following:
		return m.nextReread
	}
	return time.Time{}
}

// wake is step for the time that has come.
func (m *machine) wake(now time.Time) []action {
	m.actions = nil
	switch due := m.due(); {
	case due.IsZero() || now.Before(due):
	case m.doing == fetching:
		m.announceAgainAt = time.Time{}
		m.announceMore()
	case m.doing == resting:
		m.attempt(now)
	default:
		m.nextReread, m.rereadTable = now.Add(min(rereadInterval, m.timeout)), true
		m.follow(now)
	}
	return m.actions
}

func (m *machine) do(a action) { m.actions = append(m.actions, a) }

// work begins a worker, unless it is at work.
func (m *machine) work(w worker) {
	if !m.working[w] {
		m.working[w] = true
		m.do(begin{w})
	}
}

func (m *machine) ask(now time.Time, a asked) {
	switch {
	case m.doing == idle && m.successor != "":
	case m.doing == idle && a.why == asLate:
		m.work(rereadWorker)
	case m.doing == idle && m.working[endWorker]:
		m.keep(a)
	case m.doing == idle && a.why == asOver:
		if over(m.record) {
			m.sendNotice(endOf(m.record))
		}
	case m.doing == idle && wanted(m.record):
		m.begin(now, a)
	case m.doing == idle || a.why == asOver || a.why == asLate:
	default:
		m.keep(a)
		switch {
		case m.doing == following:
			m.follow(now)
		case m.doing == resting && a.why == asRetried:
			m.attempt(now)
		}
	}
}

// keep has something done when what is under way has ended: of all that was asked for
// meanwhile what asks for most.
func (m *machine) keep(a asked) {
	switch {
	case m.request == nil, m.request.why == asOver:
	case m.request.why == asRetried, a.why == asOver:
		return
	}
	m.request = &a
}

// sendNotice tells the cluster why the execution is over.
func (m *machine) sendNotice(reason string) {
	m.notice = reason
	m.work(endWorker)
}

func (m *machine) begin(now time.Time, a asked) {
	r := m.record
	sourceMissing, spoilt := m.live.sourceMissing, m.live.spoilt
	m.live = newLive(r)
	m.live.sourceMissing, m.live.spoilt, m.live.takenUp = sourceMissing, spoilt, now
	m.since, m.lastArrival, m.announced = now, time.Time{}, time.Time{}
	if r.Status == ledger.InProgress && (a.why == asAccepted || a.why == asResumed) {
		m.since = r.StartTime
	}
	m.recall()
	m.content, m.maxPulled, m.pulling, m.wait = nil, 0, now, firstRetry
	m.handedOut, m.announcedSegments = 0, 0
	m.do(begun{a})
	m.attempt(now)
}

// recall takes what the record says as said already.
func (m *machine) recall() {
	m.arrived, m.failed = make(map[string]bool), make(map[string]bool)
	for _, b := range m.record.Successful {
		m.arrived[b] = true
	}
	for _, b := range m.record.Failed {
		m.failed[b] = true
	}
}

// attempt begins anew, with what is there.
func (m *machine) attempt(now time.Time) {
	m.request, m.doing, m.left, m.noticed, m.live.retryAt = nil, fetching, false, false, time.Time{}
	m.announceAgainAt, m.queued = time.Time{}, time.Time{}
	if m.live.spoilt {
		m.doing, m.live.err = renewing, errSpoilt
		m.work(renewWorker)
		return
	}
	m.work(fetchWorker)
	m.announceMore()
}

func (m *machine) know(now time.Time, r *ledger.Record) {
	raised := r.High && !m.record.High
	m.record, m.uploading = r, r.Uploading
	if raised && m.doing != idle {
		m.do(raise{})
		m.announcedSegments = 0 // the agents are to hear of it
		m.announceMore()
	}
	switch m.doing {
	case idle:
	case following:
		if raised {
			m.announce()
			return
		}
		m.follow(now)
	default:
		m.news(now)
	}
}

func (m *machine) report(now time.Time, r reported) {
	if r.moved {
		m.moved[r.bucket] = now
	}
	if m.complaints[r.bucket] == nil {
		m.complaints[r.bucket] = make(map[string]string)
	}
	m.complaints[r.bucket][r.node] = r.complaint
	if r.news {
		m.rereadTable = true
		if m.doing == following {
			m.follow(now)
		}
	}
}

// ended takes a worker's last word.
func (m *machine) ended(now time.Time, d done) {
	delete(m.working, d.worker)
	if d.worker == leaveWorker {
		m.handedOut, m.announcedSegments = 0, 0
	}
	if m.doing == finishing {
		m.finished(now)
		return
	}
	switch d.worker {
	case fetchWorker:
		m.fetched(now, d)
	case announceWorker:
		m.announceEnded(now, d)
	case rereadWorker:
		switch m.doing {
		case idle:
			m.news(now)
		case following:
			m.follow(now)
		}
	case failWorker:
		m.recorded(now, d.err)
	case renewWorker:
		m.renewed(now, d.err)
	case endWorker: // of one that nobody carries
		if a := m.request; a != nil {
			m.request = nil
			m.ask(now, *a)
		}
	}
}

func (m *machine) fetched(now time.Time, d done) {
	m.live.err = d.err
	if d.err != nil && m.uploading { // nothing of it can be tried again
		m.finish(now, brokenOff)
		return
	}
	if d.err != nil {
		m.fail(now, d.err)
		return
	}
	if m.content == nil && !m.live.began.IsZero() {
		m.live.whole = now
	}
	m.content, m.pulling, m.live.sourceMissing = &d.content, now, false
	m.live.pulled = d.content.size
	m.work(mendWorker)
	m.announce()
}

// turn notes that it waits for others to be pulled, or does not any more: that is not to be
// stuck.
func (m *machine) turn(now time.Time, phase string) {
	m.live.phase = phase
	switch {
	case phase == api.PhaseQueued:
		m.queued = now
	case !m.queued.IsZero():
		if m.pulling = m.pulling.Add(now.Sub(m.queued)); m.pulling.After(now) {
			m.pulling = now
		}
		m.queued = time.Time{}
	}
	if (phase == api.PhasePulling || phase == api.PhaseUploading) && m.live.began.IsZero() {
		m.live.began = now
	}
}

// announceMore tells the cluster what has come since it was told last, while the rest is
// on its way here.
func (m *machine) announceMore() {
	if m.doing == fetching && m.handedOut > m.announcedSegments && m.announceAgainAt.IsZero() {
		m.work(announceWorker)
	}
}

func (m *machine) announce() {
	m.doing, m.announceAgainAt = announcing, time.Time{}
	m.work(announceWorker)
}

// announceEnded follows an announcement.
func (m *machine) announceEnded(now time.Time, d done) {
	switch {
	case m.doing == fetching && d.err != nil:
		m.live.err, m.announceAgainAt = d.err, now.Add(m.jitter(firstRetry))
		m.do(complain{d.err, m.announceAgainAt.Sub(now)})
		return
	case m.doing == fetching:
		if m.live.err = nil; d.high == m.record.High {
			m.announcedSegments = max(m.announcedSegments, d.segments)
		}
		m.announceMore()
		return
	case m.doing != announcing:
		return
	case d.err != nil:
		m.fail(now, d.err)
		return
	case !d.sealed || d.high != m.record.High: // it was begun before all was here, or said
		m.work(announceWorker)
		return
	}
	if m.announced.IsZero() {
		m.announced = now
	}
	m.live.announced, m.live.phase = m.announced, api.PhaseDistributing
	m.doing, m.nextReread = following, now.Add(min(rereadInterval, m.timeout))
	m.follow(now)
}

// follow does what is to be done while the destinations are waited for.
func (m *machine) follow(now time.Time) {
	m.news(now)
	again := m.request != nil && m.request.why == asRetried
	m.request = nil // what is under way is followed anyway
	if again {
		m.announced, m.pulling = time.Time{}, now
		m.announce()
		return
	}
	if m.rereadTable && !m.working[rereadWorker] {
		m.rereadTable = false
		m.work(rereadWorker)
	}
	waiting, late := m.late(now)
	if len(late) > 0 && !m.working[failWorker] {
		m.failures = late
		m.work(failWorker)
	}
	if waiting == 0 && !m.working[failWorker] && !m.working[rereadWorker] && len(m.record.Pending()) == 0 {
		m.finish(now, hasEnded)
	}
}

// late counts the destinations still waited for, and returns those that have made no
// progress for too long. One that has failed already is waited for as well, as long as
// its agents move, or have come not long ago: it may arrive after all.
func (m *machine) late(now time.Time) (waiting int, late []failure) {
	for _, b := range m.record.Unfinished() {
		if m.record.Cancelled(b) || m.record.Hopeless(b) {
			continue
		}
		moved := m.announced
		for _, t := range []time.Time{m.retried, m.moved[b]} {
			if t.After(moved) {
				moved = t
			}
		}
		if now.Sub(moved) < m.timeout {
			waiting++
			continue
		}
		if now.Sub(m.served.since[b]) < m.timeout {
			waiting++
		}
		if slices.Contains(m.record.Failed, b) {
			continue
		}
		reason := fmt.Sprintf("no progress for %s", m.timeout)
		if said := m.complaint(b); said != "" {
			reason += ": " + said
		} else if m.served.since[b].IsZero() {
			reason += ": " + m.served.whyNot(b)
		}
		late = append(late, failure{bucket: b, reason: reason})
	}
	return waiting, late
}

// complaint is what is wrong at a destination, as the first of its agents that says so
// has it.
func (m *machine) complaint(bucket string) string {
	of := m.complaints[bucket]
	for _, node := range slices.Sorted(maps.Keys(of)) {
		if of[node] != "" {
			return of[node]
		}
	}
	return ""
}

// news says of each destination once that it has arrived or failed, whoever wrote that.
func (m *machine) news(now time.Time) {
	r := m.record
	for _, b := range r.Successful {
		if !m.arrived[b] {
			m.arrived[b], m.lastArrival = true, now
			m.do(sayArrived{b})
		}
	}
	maps.DeleteFunc(m.failed, func(b string, _ bool) bool { return !slices.Contains(r.Failed, b) }) // sent again
	for _, b := range r.Failed {
		if !m.failed[b] && !r.Cancelled(b) {
			m.failed[b] = true
			m.do(sayFailed{b})
		}
	}
}
