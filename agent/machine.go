package agent

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// firstRetry and maxRetry bound the wait before what failed is tried again; it
	// doubles in between, with full jitter.
	firstRetry, maxRetry = time.Second, 30 * time.Second
	// standbyInterval is how often an agent that does not land reads whether the one
	// that does has recorded the arrival.
	standbyInterval = 5 * time.Second
	// endInterval is how often, in the mean, an agent that has landed reads whether
	// the execution is over: the notice of that can be lost.
	endInterval = 5 * time.Minute
	// turnPatience is how long a build may make no progress and keep its turn when
	// others wait for one.
	turnPatience = 30 * time.Second
	// sourceInterval is how often what is missing may be read from the source.
	sourceInterval = time.Second
)

// Why a build is over.
var (
	errSuperseded = fmt.Errorf("%w by a newer one", landing.ErrSuperseded)
	errEnded      = landing.ErrEnded // from outside
	errCancelled  = fmt.Errorf("%w: it was cancelled", landing.ErrEnded)
	errCompleted  = fmt.Errorf("%w: every destination has it", landing.ErrEnded)
	errExpired    = errors.New("its announcement has expired")
	errBrokenOff  = fmt.Errorf("%w: its upload to the source bucket was broken off", landing.ErrEnded)
)

// machine decides what is done for one execution at this agent. It has no I/O, no lock
// and no clock: step is told what has happened, and when, and returns what is to be done.
//
// An attempt begins with a turn and ends with it: it joins the swarm, finds out whether
// the build has arrived, downloads, and lands meanwhile. What fails is tried again.
type machine struct {
	bucket        string        // that builds land in
	fallbackAfter time.Duration // zero for never
	jitter        func(time.Duration) time.Duration

	now time.Time
	due time.Time // of the next Wake; zero for never
	out []action

	wire []byte
	// round counts announcements. What began in an earlier one knows nothing of the
	// newest: its word that all is over does not count.
	round   int
	running map[work]*worker

	hasTurn, inSwarm, infoKnown bool
	uploadLeft                  bool  // there may be one to discard
	noStore                     error // why nothing lands yet
	remembered, onDisk          bool
	done                        bool // nothing is left to do

	life
}

// life is what an announcement begins anew once the build was over.
type life struct {
	shown
	over     error // why nothing more is to be done; nil while the build is wanted
	cleared  bool
	ending   bool  // the attempt; another begins when nothing of it is left
	hopeless error // why the build cannot land here, until that is recorded
	checked  bool  // whether the bucket had it before this attempt
	compares bool  // what the bucket has is compared with what is announced
	alike    bool  // what the bucket has may be it; is said
	whole    bool
	complete bool // the object, in the bucket: what is left of the landing is to record it
	standby  bool // another agent is to land
	arrived  bool
	serves   bool           // another agent has landed; the download goes on, so that it can serve
	recorded bool           // is said
	record   *ledger.Record // as it was read last; nil before
	moved    time.Time      // when there last was progress

	attempts, landings, reads, clears retries
	tableAt                           time.Time
}

// worker is at work since an announcement.
type worker struct {
	round     int
	cancelled bool
}

// retries of what fails: when the next one is due.
type retries struct {
	at   time.Time
	wait time.Duration
}

func newMachine(bucket string, fallbackAfter time.Duration, jitter func(time.Duration) time.Duration) *machine {
	return &machine{bucket: bucket, fallbackAfter: fallbackAfter, jitter: jitter, running: make(map[work]*worker)}
}

// step takes an event, nil when it is due, and returns what is to be done.
func (m *machine) step(now time.Time, e event) []action {
	m.now, m.due, m.out = now, time.Time{}, nil
	m.take(e)
	switch {
	case m.over != nil:
		m.windUp()
	case m.arrived:
		m.seed()
	case m.ann != nil:
		m.pursue()
	}
	if m.over == nil && m.ann != nil && !m.remembered && !m.works(forget) {
		m.remembered, m.onDisk = m.begin(remember), true
	}
	return m.out
}

func (m *machine) take(e event) {
	switch e := e.(type) {
	case announced:
		m.announced(e)
	case ended:
		m.end(e.cause)
	case caughtUp:
		if m.waits = e.waits && m.ann != nil && e.segments >= m.ann.InfoHashes.Len() && !m.ann.Sealed(); !m.waits {
			m.moved = m.now // more was announced meanwhile, too
		}
		m.tableAt = m.now.Add(endInterval/2 + m.jitter(endInterval))
	case othersWait: // a build that makes no progress gives its turn to them
		switch {
		case !m.hasTurn || m.ending || m.over != nil || m.now.Sub(m.moved) <= turnPatience && !(m.waits && m.allLanded()):
		case m.arrived:
			m.serves = false
		default:
			m.say(say{what: "yielded"})
			m.ending, m.attempts.at = true, m.now
		}
	case contradicted:
		if m.ann != nil && m.over == nil && !m.arrived && m.hopeless == nil {
			m.hopeless, m.ending = e.err, true
		}
	case membersChanged:
		if m.standby {
			m.landings.at = m.now
		}
	case storeAway:
		if m.noStore != nil {
			m.noStore = e.err
		}
	case storeKnown:
		if m.noStore != nil && errors.Is(m.err, m.noStore) {
			m.err = nil
		}
		m.noStore = nil
	case moved:
		m.moved = m.now
		m.fromSource += e.fromSource
	case landedBytes:
		if int64(e) > m.landed {
			m.moved, m.err = m.now, nil // what was wrong before is over
		}
		m.landed = int64(e)
	case completed:
		m.complete = true
		m.times.reach(complete, m.now)
	case finished:
		m.finished(e)
	}
}

// allLanded reports whether nothing that was announced is on its way into the upload.
func (m *machine) allLanded() bool {
	layout, n := m.ann.Layout(), m.ann.InfoHashes.Len()
	if !m.works(land) || layout == nil || n == 0 {
		return true
	}
	offset, length := layout.SegmentRange(n - 1)
	return m.landed >= offset+length
}

func (m *machine) announced(e announced) {
	m.round++
	m.wire, m.remembered = e.wire, false
	if m.over == nil && m.ann != nil {
		if more := e.ann.InfoHashes.Len() > m.ann.InfoHashes.Len() || e.ann.Sealed() && !m.ann.Sealed(); more {
			m.moved, m.waits = m.now, false
		}
		if e.ann.High && !m.ann.High {
			m.cancel(awaitTurn) // there is another one for it
		}
		// Whoever announces it again believes in it: what has failed is tried at once.
		m.ann, m.hopeless = e.ann, nil
		m.attempts, m.landings, m.reads, m.retryAt = retries{}, retries{}, retries{}, time.Time{}
		m.out = append(m.out, revised{})
		return
	}
	if m.ann != nil && !m.arrived && m.state != api.StateFailed {
		m.say(say{what: "stopped", err: m.over})
	}
	m.cancel(clearUploads) // before it meets the new upload
	m.done = false
	m.life = life{shown: shown{ann: e.ann, started: m.now, state: api.StateQueued}, moved: m.now, ending: true}
	m.say(say{what: "heard"})
}

// end takes note of why the build is over; the first reason counts.
func (m *machine) end(cause error) {
	if m.over != nil {
		return
	}
	if m.over = cause; m.recording() {
		m.say(say{what: "late", err: cause})
	}
}

// recording reports whether the object is in the bucket and its arrival is being written,
// which the end of the execution does not stop: the table takes an arrival that is late.
func (m *machine) recording() bool {
	return m.complete && m.works(land) && (m.over == nil || errors.Is(m.over, errEnded))
}

// finished takes the last word of a worker.
func (m *machine) finished(f finished) {
	begun := m.running[f.work]
	stale := begun.round < m.round
	delete(m.running, f.work)
	newer := errors.Is(f.err, landing.ErrSuperseded)
	over := newer || errors.Is(f.err, errEnded)
	if begun.cancelled && f.err != nil && !over {
		return // it was told to end
	}
	switch f.work {
	case awaitTurn:
		if m.hasTurn = f.err == nil; m.hasTurn {
			m.moved = m.now
			m.times.reach(turn, m.now)
			m.say(say{what: "turn"})
		}
	case joinSwarm:
		m.inSwarm = f.err == nil
	case openEntry:
		m.infoKnown = f.err == nil
		if errors.Is(f.err, cache.ErrNoSpace) {
			m.state = api.StateQueued
		}
	case steer:
		if f.whole != nil {
			m.whole, m.came = true, *f.whole
			m.times.reach(whole, m.now)
			if m.state == api.StateDownloading { // another agent may have landed it meanwhile
				m.state = api.StateLanding
			}
			m.say(say{what: "downloaded"})
		}
		m.serves = m.serves && f.err == nil
	case readTable:
		m.read(f, stale)
	case readSource:
		if f.err == nil {
			m.reads = retries{at: m.now.Add(min(sourceInterval, m.fallbackAfter))}
		} else {
			m.retry(&m.reads, f.err)
		}
	case findObject, land, giveUp:
		switch {
		case f.arrived:
			m.uploadLeft = m.uploadLeft && f.work != land
			m.arrive(f.result)
		case over && stale: // the table is read again
		case newer:
			m.end(errSuperseded)
		case over:
			m.end(errCancelled)
		case f.comparable:
			m.compares = true
		case f.alike && stale: // it is looked at once more
		case f.alike:
			m.awaitSeal()
		case f.work == findObject:
			m.checked = true
			m.complain(f.err, 0)
		case errors.Is(f.err, landing.ErrHeld): // another one of this bucket's does
			m.standby, m.landings = true, retries{at: m.now.Add(standbyInterval)}
		case f.work == land && !bucket.Permanent(f.err): // the download goes on, and the upload stays
			m.retry(&m.landings, f.err)
		case f.work == land:
			m.fail(f.err)
		case f.err != nil:
			m.retry(&m.attempts, f.err)
		case !stale: // else another attempt finds it in the table, or that it is wanted again
			m.end(fmt.Errorf("%w: %w", errEnded, m.hopeless))
		}
		if f.work == giveUp {
			m.hopeless = nil
		}
	case compare:
		m.compared(f, stale)
	case leaveSwarm:
		m.inSwarm, m.infoKnown, m.whole = false, false, false
	case discard:
		m.uploadLeft = false
	case forget:
		m.onDisk = false
	case clearUploads:
		if m.cleared = f.err == nil && !stale; f.err != nil {
			m.retry(&m.clears, f.err)
		}
	}
	switch f.work {
	case awaitTurn, joinSwarm, compare, openEntry, steer:
		m.fail(f.err)
	}
}

// compared takes what has come of comparing the bucket's object.
func (m *machine) compared(f finished, stale bool) {
	switch {
	case f.err != nil || m.over != nil || m.arrived || m.ending:
	case f.agrees && f.segments < m.ann.InfoHashes.Len(), f.alike && stale: // more was announced meanwhile
	case f.agrees && m.ann.Sealed(): // it is the build
		m.compares = false
		m.begin(findObject)
	case f.agrees, f.alike:
		m.awaitSeal()
	default: // the build is fetched
		m.compares, m.checked = false, true
	}
}

// awaitSeal has nothing fetched before the seal, or the next segment, says that the object
// in the bucket is not the build.
func (m *machine) awaitSeal() {
	if !m.alike {
		m.alike = true
		m.say(say{what: "alike"})
	}
	m.waits, m.ending = true, true
	m.tableAt = m.now.Add(endInterval/2 + m.jitter(endInterval))
}

// read takes what the table says of the execution.
func (m *machine) read(f finished, stale bool) {
	if m.over != nil {
		return
	}
	if m.arrived {
		m.tableAt = m.now.Add(endInterval/2 + m.jitter(endInterval))
		if over := f.err == nil && (f.record.ExecutionID != m.ann.ExecutionID || f.record.Status != ledger.InProgress); over && stale {
			m.tableAt = m.now
		} else if over {
			m.end(errCompleted)
		}
		return
	}
	m.standby = false
	if f.err == nil {
		if over := m.overIn(f.record); over != nil {
			if !stale { // else it is read again
				m.end(over)
			}
			return
		}
		m.record = f.record
	}
	switch {
	case errors.Is(f.err, ledger.ErrNotFound) && m.ann.ETag == "" && !stale: // it was noted before it was announced
		m.end(errBrokenOff)
	case m.ending: // the next attempt reads it again
	case f.err == nil && slices.Contains(f.record.Successful, m.bucket):
		m.serves = m.infoKnown
		m.arrive(f.record.Results[m.bucket])
	case !m.hasTurn, m.works(land): // it was read while the source was waited for
		m.tableAt = m.now.Add(endInterval/2 + m.jitter(endInterval))
	case f.err != nil && m.checked:
		m.retry(&m.landings, f.err)
	case f.err != nil:
		// The download does without the table; only the landing waits for it.
		m.checked = true
		m.complain(f.err, 0)
	case !m.checked:
		m.begin(findObject)
	case f.leads:
		m.complete, m.uploadLeft = false, m.begin(land)
	default:
		m.standby = true
		m.landings = retries{at: m.now.Add(standbyInterval)}
	}
}

// overIn is why nothing is to be done for the build, by its item in the table; nil when
// it is wanted.
func (m *machine) overIn(r *ledger.Record) error {
	switch {
	case r.ExecutionID < m.ann.ExecutionID: // it stood beside the key's execution, and does not any more
		return errBrokenOff
	case r.ExecutionID != m.ann.ExecutionID:
		return errSuperseded
	case r.Cancelled(m.bucket): // the notice of it was lost, or comes yet
		return errCancelled
	case r.Hopeless(m.bucket):
		return fmt.Errorf("%w: it cannot land here: %s", errEnded, r.Results[m.bucket].Error)
	}
	return nil
}

func (m *machine) arrive(r ledger.Result) {
	m.arrived = true
	m.state, m.err, m.landed, m.landedAt, m.landedBy = api.StateLanded, nil, m.ann.Size, r.Timestamp, r.Agent
	m.times.reach(recorded, m.now)
}

// fail ends the attempt after an error; nil changes nothing.
func (m *machine) fail(err error) {
	switch {
	case err == nil || m.over != nil || m.arrived || m.ending:
		return
	case bucket.Permanent(err):
		m.hopeless = err
	default:
		m.retry(&m.attempts, err)
	}
	m.ending = true
}

// retry shows a failure, and has it tried again after a while.
func (m *machine) retry(r *retries, err error) {
	wait := max(r.wait, firstRetry)
	delay := m.jitter(wait) + firstRetry/10
	r.at, r.wait = m.now.Add(delay), min(2*wait, maxRetry)
	m.complain(err, delay)
}

// complain shows a failure of a build that is to come yet; nil is none.
func (m *machine) complain(err error, delay time.Duration) {
	if err != nil && m.over == nil && !m.arrived {
		m.err, m.retryAt = err, m.now.Add(delay)
		m.say(say{what: "failed", err: err, delay: delay})
	}
}

// pursue goes on with a build that is wanted and has not arrived.
func (m *machine) pursue() {
	if m.ending {
		if !m.quit(false) {
			return
		}
		m.ending, m.checked, m.compares, m.standby, m.landings, m.reads = false, false, false, false, retries{}, retries{}
	}
	switch {
	case m.hopeless != nil, m.works(giveUp):
		m.begin(giveUp)
		return
	case !m.hasTurn && m.waits && !m.inSwarm:
		// The next revision begins another attempt. Until then the table alone may say that
		// nothing more comes.
		if m.state = api.StateQueued; m.reached(m.tableAt) {
			m.begin(readTable)
		}
		return
	case !m.hasTurn:
		if m.reached(m.attempts.at) {
			// The seeder's clock stands still for a queued build, so one that fails
			// again and again must not seem so.
			if m.err == nil {
				m.state = api.StateQueued
			}
			m.begin(awaitTurn)
		}
		return
	}
	// The peers are met while the table is asked: over long distances both take several
	// round trips.
	swarms := m.ann.Size > 0
	if swarms && !m.inSwarm {
		m.begin(joinSwarm)
	}
	switch {
	case m.checked, m.works(findObject):
	case !m.compares:
		m.begin(readTable)
	case m.inSwarm:
		m.begin(compare)
	}
	if !m.checked || swarms && !m.inSwarm {
		return
	}
	if swarms {
		if !m.infoKnown && m.begin(openEntry) {
			m.state = api.StateDownloading
			m.say(say{what: "downloading"})
		}
		m.fallBack()
		if !m.infoKnown {
			return
		}
		if !m.whole {
			m.begin(steer)
		}
	}
	// It lands when this agent leads its bucket, and otherwise waits until the one that
	// does has recorded the arrival, or is gone: the table says which.
	switch {
	case m.noStore != nil:
		m.err = m.noStore
	case m.works(land), m.works(discard), m.works(clearUploads):
		if m.waits && m.reached(m.tableAt) { // which says so when nothing more comes
			m.begin(readTable)
		}
	case m.reached(m.landings.at):
		m.begin(readTable)
	}
}

// fallBack reads from the source when nothing has come from any peer for too long.
func (m *machine) fallBack() {
	// Until its upload is complete, the source has another object or none.
	if m.fallbackAfter > 0 && m.ann.ETag != "" && !m.waits && m.reached(m.moved.Add(m.fallbackAfter)) && m.reached(m.reads.at) {
		m.begin(readSource)
	}
}

// quit ends an attempt, with its place in the swarm unless it stays, and reports whether
// nothing of it is left.
func (m *machine) quit(stays bool) bool {
	left := false
	for _, w := range ofAttempt {
		m.cancel(w)
		left = left || m.works(w)
	}
	switch {
	case left:
		return false
	case m.inSwarm && !stays:
		m.begin(leaveSwarm)
		return false
	case m.hasTurn:
		m.hasTurn = false
		m.out = append(m.out, releaseTurn{})
	}
	return true
}

// seed goes on with a build that has arrived: in the swarm until every destination has
// it, or its announcement holds no longer. The table says so too, for the notice of the
// end may never come when the seeder is gone.
func (m *machine) seed() {
	if !m.recorded {
		if m.serves && !m.whole && !m.waits {
			m.begin(steer)
			m.fallBack()
			return
		}
		if !m.quit(m.infoKnown) {
			return
		}
		if !m.inSwarm {
			m.begin(seedCached)
		}
		m.sayRecorded()
		m.tableAt = m.now.Add(endInterval/2 + m.jitter(endInterval))
	}
	switch {
	case m.reached(m.ann.Expires):
		m.end(errExpired)
		m.windUp()
	case m.reached(m.tableAt):
		m.begin(readTable)
	}
}

func (m *machine) sayRecorded() {
	m.recorded = true
	m.say(say{what: "recorded"})
}

// windUp ends what is at work for a build that is over, and removes what it has left.
func (m *machine) windUp() {
	switch {
	case m.recording():
		return
	case !m.quit(false):
		return
	case m.uploadLeft && !m.arrived:
		m.begin(discard)
		return
	}
	switch {
	case m.ann == nil, m.recorded, m.state == api.StateFailed:
	case m.arrived:
		m.sayRecorded()
	case errors.Is(m.over, errCompleted): // another agent of this bucket has landed it
		m.arrive(ledger.Result{Timestamp: m.now})
		m.sayRecorded()
	default:
		m.state, m.err = api.StateFailed, m.over
		m.say(say{what: "stopped", err: m.over})
	}
	switch {
	case !m.arrived && errors.Is(m.over, errEnded) && !m.cleared:
		if m.reached(m.clears.at) {
			m.begin(clearUploads)
		}
	case len(m.running) > 0:
	case m.onDisk:
		m.begin(forget)
	default:
		m.done = true
	}
}

// begin has a worker begin, unless one of its kind is at work.
func (m *machine) begin(w work) bool {
	if m.works(w) {
		return false
	}
	m.running[w] = &worker{round: m.round}
	m.out = append(m.out, begin{w})
	return true
}

func (m *machine) works(w work) bool { return m.running[w] != nil }

func (m *machine) cancel(w work) {
	if o := m.running[w]; o != nil && !o.cancelled {
		o.cancelled = true
		m.out = append(m.out, cancel{w})
	}
}

func (m *machine) say(s say) { m.out = append(m.out, s) }

// reached reports whether a time has come; if not, it is due.
func (m *machine) reached(at time.Time) bool {
	if !m.now.Before(at) {
		return true
	}
	if m.due.IsZero() || at.Before(m.due) {
		m.due = at
	}
	return false
}
