package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/survive"
)

const (
	worldID, newerID = "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", "01K0Z4V5QW8TQ0H6Q9M3N7R2XE"
	olderID          = "01K0Z4V5QW8TQ0H6Q9M3N7R2XC"
	otherBucket      = "region-b-builds"
	worldSegments    = 3
)

var (
	errAway   = errors.New("away")
	errFailed = fmt.Errorf("%w: failed", errEnded)
)

// world is all that a machine works in: its agent, the table, the bucket, the disk and
// the others, as far as a machine can tell. It does what the machine says, and checks it.
type world struct {
	rng  *rand.Rand
	now  time.Time
	m    *machine
	size int64
	// segments are those that the seeder has read from the source, so far.
	segments int
	high     bool // it goes before others
	expires  time.Time
	events   int
	log      func(format string, args ...any) // of all that happens; nil for none
	failure  error

	// The faults, and what others do.
	tableAway, bucketAway, sourceAway         bool
	full, noPeers, othersLead, othersHaveTurn bool
	refuses                                   bool // the bucket, for good
	healthy                                   bool // no fault is made any more

	// The process.
	workers map[work]*simulated
	turn    bool
	joined  bool
	entry   bool
	// The disk, the table and the bucket.
	kept, whole    bool
	table          *ledger.Record
	object, upload bool
	compared       bool // the object was found to be the build, after the seal
	inTable        bool // the arrival, or was before another execution came
	// uploading: the build is going up to the source, and the key is another execution's,
	// which it is again once that was broken off.
	uploading, brokenOff bool

	notices []event // that come to this agent, in this order
	// wanted is what the newest notice has said, or what the table has said since.
	wanted bool
	told   bool // anything at all, since the process began
	rounds int  // announcements that were heard

	// Since "heard" was said last.
	downloads, arrivals int
	landedHere          bool
	yielded             bool
	lives               int  // how often "heard" was said
	mayLand             bool // the table has just said so
	recording           bool // its object is complete, and the arrival is not written yet
}

// simulated is a worker of a kind.
type simulated struct {
	work      work
	round     int // of the announcement that was heard last
	life      int
	cancelled bool
	read      *ledger.Record // the table when it began
	sealed    bool           // the announcement was, then
	segments  int            // of the announcement
	high      bool
}

func newWorld(seed, schedule uint64) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, schedule)), now: time.Unix(1_800_000_000, 0), workers: make(map[work]*simulated),
		table: &ledger.Record{
			Key: ledger.Key{FileKey: "k", SourceBucket: testSource}, ExecutionID: worldID, Status: ledger.InProgress,
			Destinations: []string{testBucket, otherBucket}, Results: map[string]ledger.Result{}, SHA256: "s", SourceETag: "e",
		},
	}
	if w.segments = worldSegments; w.chance(0.4) {
		w.segments = 1
	}
	if w.chance(0.9) {
		w.size = 1000
	}
	if w.uploading = w.size > 0 && w.chance(0.3); w.uploading {
		w.table.SHA256, w.table.SourceETag, w.table.Uploading = "", "", true
	}
	w.expires = w.now.Add(7 * 24 * time.Hour)
	w.start()
	return w
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

func (w *world) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf(format, args...)
	}
}

func (w *world) note(format string, args ...any) {
	if w.log != nil {
		w.log(format, args...)
	}
}

// live goes through the schedule and says what was wrong.
func (w *world) live() error {
	w.announce()
	for range 50 + w.rng.IntN(300) {
		if w.failure == nil {
			w.move()
		}
	}
	if w.failure == nil {
		w.heal()
	}
	if w.failure == nil {
		w.atRest()
	}
	return w.failure
}

// start begins a process without a memory of its own.
func (w *world) start() {
	w.m = newMachine(testBucket, 30*time.Second, func(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) })
	clear(w.workers)
	if !w.healthy && w.chance(0.2) {
		w.m.noStore = errNotProbed
	}
	w.turn, w.joined, w.entry, w.compared = false, false, false, false
	w.downloads, w.arrivals, w.landedHere, w.yielded = 0, 0, false, false
}

func (w *world) announce() {
	w.notices = append(w.notices, announced{ann: w.announcement()})
}

// announcement is what the seeder says of the build now.
func (w *world) announcement() *announce.Announcement {
	ann := &announce.Announcement{
		ExecutionID: worldID, Key: "k", SourceBucket: testSource, Destinations: w.table.Destinations, Size: w.size, Expires: w.expires,
		InfoHashes: make([]byte, 20*w.segments),
	}
	if w.uploading {
		return ann
	}
	ann.ETag = "e"
	if w.segments == worldSegments || w.size == 0 {
		ann.SHA256 = "s"
	}
	w.high = w.high || w.chance(0.05)
	ann.High = w.high
	return ann
}

// sealed reports whether this agent has heard of all of the build.
func (w *world) sealed() bool { return w.m.ann != nil && w.m.ann.Sealed() }

// here has the pieces come of all that is announced.
func (w *world) here() {
	if w.sealed() {
		w.whole = true
		if w.workers[steer] != nil && w.chance(0.3) { // it was on its way when the seal was heard
			w.tell(caughtUp{true, w.m.ann.InfoHashes.Len() - 1})
		}
	} else if !w.m.waits && w.workers[steer] != nil {
		w.tell(caughtUp{true, w.m.ann.InfoHashes.Len()})
	}
}

// tell has the machine hear an event, does what it says, and checks that.
func (w *world) tell(e event) {
	w.events++
	switch e := e.(type) {
	case announced:
		w.wanted, w.told = true, true
		w.rounds++
	case ended:
		if w.m.ann == nil && (e.cause != errFailed || w.m.over != nil) {
			return // there is no build that it could be told
		}
		w.wanted, w.told = false, true
	}
	w.note("%s %T %+v", w.now.Format("15:04:05.000"), e, e)
	_, others := e.(othersWait)
	makesRoom := others && w.turn && w.m.waits && w.m.over == nil && !w.m.arrived && w.workers[land] == nil
	for _, a := range w.m.step(w.now, e) {
		w.note("    %T %+v", a, a)
		w.do(a)
	}
	if makesRoom && w.turn && !w.m.ending {
		w.fail("waits for the source and keeps its turn, for which others wait")
	}
	w.check()
	if w.m.done && w.chance(0.5) { // else something is in its mailbox already
		w.start()
	}
}

func (w *world) do(a action) {
	switch a := a.(type) {
	case begin:
		w.begin(a)
	case cancel:
		if w.workers[a.work] == nil {
			w.fail("nobody is at work to be cancelled: %s", a.work)
			return
		}
		w.workers[a.work].cancelled = true
		if a.work == land && w.recording && errors.Is(w.m.over, errEnded) {
			w.fail("an arrival is not recorded although the object is there: %v", w.m.over)
		}
	case releaseTurn:
		if !w.turn {
			w.fail("gave a turn back that it does not have")
		}
		if busy := w.busy(ofAttempt...); busy != "" || w.joined && !w.m.arrived {
			w.fail("gave its turn back with %q at work, in the swarm: %v", busy, w.joined)
		}
		w.turn, w.yielded = false, false
	case say:
		w.say(a)
	}
}

func (w *world) busy(kinds ...work) work {
	for _, k := range kinds {
		if w.workers[k] != nil {
			return k
		}
	}
	return ""
}

func (w *world) begin(b begin) {
	if w.workers[b.work] != nil {
		w.fail("a second worker begins to %s", b.work)
	}
	w.workers[b.work] = &simulated{work: b.work, round: w.rounds, life: w.lives, read: w.table.Clone(), sealed: w.sealed(), high: w.m.ann != nil && w.m.ann.High}
	if w.m.ann != nil {
		w.workers[b.work].segments = w.m.ann.InfoHashes.Len()
	}
	switch b.work {
	case joinSwarm, findObject, compare, openEntry, land:
		if !w.turn {
			w.fail("begins to %s without a turn", b.work)
		}
		if w.yielded {
			w.fail("begins to %s after it has yielded", b.work)
		}
		if !w.wanted {
			w.fail("begins to %s a build that is over", b.work)
		}
	case awaitTurn:
		if w.turn || !w.wanted {
			w.fail("waits for a turn; has one: %v, is wanted: %v", w.turn, w.wanted)
		}
	case remember, forget:
		if w.workers[remember] != nil && w.workers[forget] != nil {
			w.fail("remembers and forgets at the same time")
		}
		if w.wanted != (b.work == remember) {
			w.fail("begins to %s; wanted: %v", b.work, w.wanted)
		}
	}
	switch b.work {
	case joinSwarm:
		if w.joined {
			w.fail("joins a swarm that it is in")
		}
	case compare:
		if !w.joined || w.entry {
			w.fail("compares the object; in the swarm: %v, downloads: %v", w.joined, w.entry)
		}
	case openEntry, readSource:
		if w.workers[compare] != nil {
			w.fail("begins to %s what may be in the bucket", b.work)
		}
		if b.work == readSource && w.m.waits {
			w.fail("reads from the source what the seeder has not announced yet")
		}
		if b.work == readSource && w.m.ann.ETag == "" {
			w.fail("reads from the source what is going up there")
		}
		if !w.joined {
			w.fail("begins to %s outside of the swarm", b.work)
		}
	case land:
		if !w.mayLand {
			w.fail("lands and the table did not say that it may")
		}
		w.mayLand, w.recording = false, false
		if w.size > 0 && !w.entry {
			w.fail("lands what it does not have")
		}
		if busy := w.busy(discard, clearUploads); busy != "" {
			w.fail("lands while it is to %s", busy)
		}
	case leaveSwarm:
		if busy := w.busy(compare, openEntry, steer, readSource, land, joinSwarm); busy != "" || !w.joined {
			w.fail("leaves the swarm with %q at work; is in it: %v", busy, w.joined)
		}
	case forget:
		if len(w.workers) > 1 {
			w.fail("forgets with others at work: %v", slices.Collect(maps.Keys(w.workers)))
		}
	case giveUp:
		if w.m.hopeless == nil {
			w.fail("gives up for no reason")
		}
	}
}

func (w *world) say(s say) {
	switch s.what {
	case "heard":
		w.lives++
		w.downloads, w.arrivals, w.landedHere = 0, 0, false
	case "downloaded":
		w.downloads++
	case "yielded":
		w.yielded = true
	case "recorded":
		if w.arrivals++; w.arrivals > 1 {
			w.fail("recorded is said twice")
		}
		if w.landedHere && w.size > 0 && w.downloads == 0 {
			w.fail("recorded is said before downloaded")
		}
		if !w.inTable {
			w.fail("recorded is said, and the table does not have it")
		}
	case "stopped":
		if s.err == nil || w.arrivals > 0 {
			w.fail("stopped is said of a build that has arrived, or for no reason")
		}
	}
}

// check looks at what is so after every step.
func (w *world) check() {
	m := w.m
	if m.done {
		if len(w.workers) > 0 || w.turn || w.joined || w.kept {
			w.fail("done with workers %v, turn %v, in the swarm %v, on disk %v", slices.Collect(maps.Keys(w.workers)), w.turn, w.joined, w.kept)
		}
		if w.wanted {
			w.fail("done with a build that is wanted")
		}
		return
	}
	if o := w.workers[awaitTurn]; o != nil && m.ann.High && !o.high && !o.cancelled {
		w.fail("waits for a turn of those that do not go before others")
	}
	if m.waits && w.turn && w.yielded && len(w.workers) == 0 {
		w.fail("keeps the turn that it has yielded")
	}
	if len(w.workers) == 0 && m.due.IsZero() && (m.ann != nil || m.over != nil) && (m.noStore == nil || m.err == nil) && !m.waits {
		w.fail("nothing is at work and nothing is due")
	}
	if !m.due.IsZero() && !m.due.After(w.now) {
		w.fail("due at a time that has come")
	}
	waiting := m.ann != nil && m.over == nil && !m.arrived && w.busy(ofAttempt...) == ""
	if waiting && w.busy(leaveSwarm, discard, clearUploads) == "" && m.err == nil && !m.standby && !m.waits {
		w.fail("waits and does not say for what")
	}
	if (m.state == api.StateLanded) != m.arrived || m.state == api.StateFailed && m.over == nil {
		w.fail("state %s; arrived: %v, over: %v", m.state, m.arrived, m.over)
	}
	if m.arrived && m.over == nil && w.table.ExecutionID == worldID && !w.object {
		w.fail("believes that it has arrived, and the bucket does not have it")
	}
	if m.state == api.StateFailed && m.err == nil {
		w.fail("failed and does not say why")
	}
}

// arrive is a successful write of the arrival.
func (w *world) arrive(agent string) ledger.Result {
	if w.uploading {
		w.fail("its arrival is recorded, and it has not the key")
	}
	r := ledger.Result{Success: true, Timestamp: w.now, Agent: agent}
	if !slices.Contains(w.table.Successful, testBucket) {
		w.table.Successful = append(w.table.Successful, testBucket)
		w.table.Failed = slices.DeleteFunc(w.table.Failed, func(b string) bool { return b == testBucket })
		w.table.Results[testBucket] = r
		w.settle()
	}
	w.object, w.inTable = true, true
	return w.table.Results[testBucket]
}

func (w *world) failed(r ledger.Result) {
	if !slices.Contains(w.table.Failed, testBucket) {
		w.table.Failed = append(w.table.Failed, testBucket)
	}
	w.table.Results[testBucket] = r
	w.settle()
}

func (w *world) settle() {
	w.table.Status = ledger.InProgress
	switch {
	case len(w.table.Unfinished()) == 0:
		w.table.Status = ledger.Completed
	case w.table.Cancelled(testBucket):
		w.table.Status = ledger.Cancelled
	case len(w.table.Failed) > 0:
		w.table.Status = ledger.Failed
	}
}

// fence is what the table answers to a landing.
func (w *world) fence() error {
	switch {
	case w.tableAway:
		return errAway
	case w.table.ExecutionID != worldID:
		return landing.ErrSuperseded
	case w.table.Cancelled(testBucket):
		return landing.ErrEnded
	}
	return nil
}

// mayEnd reports whether a worker can have its last word now.
func (w *world) mayEnd(o *simulated) bool {
	if o.cancelled {
		return true
	}
	switch o.work {
	case awaitTurn:
		return !w.othersHaveTurn
	case openEntry:
		return !w.noPeers || w.whole
	case steer:
		return w.whole
	case land:
		return w.whole && !w.uploading || w.size == 0 || !w.healthy && w.rng.IntN(50) == 0 || w.fence() != nil || w.refuses || w.bucketAway
	}
	return true
}

// end has a worker say its last word, as the world is now.
func (w *world) end(o *simulated) {
	f := finished{work: o.work}
	switch {
	case o.cancelled && (w.chance(0.7) || o.work == openEntry && w.noPeers || o.work == land && !w.whole && w.size > 0):
		f.err = context.Canceled
		if o.work == steer && w.whole {
			f.err, f.whole = nil, &origins{}
		}
	case !w.healthy && w.chance(0.02) && !slices.Contains([]work{leaveSwarm, remember, forget}, o.work):
		f.err = &survive.Panic{Value: "fault"}
	default:
		w.succeed(o, &f)
	}
	delete(w.workers, o.work)
	if o.work == readTable {
		w.mayLand = f.err == nil && f.leads
	}
	if o.work == steer && f.whole == nil {
		w.downloads++ // nobody can say so any more
	}
	// What the table says is over stays so until it is announced again.
	says := o.work == readTable && f.err == nil && (f.record.ExecutionID != worldID || f.record.Cancelled(testBucket) || f.record.Hopeless(testBucket) ||
		w.m.arrived && f.record.Status != ledger.InProgress)
	says = says || o.work == giveUp && f.err == nil ||
		(o.work == land || o.work == findObject || o.work == giveUp) && (errors.Is(f.err, landing.ErrSuperseded) || errors.Is(f.err, landing.ErrEnded))
	if says && o.round == w.rounds {
		w.wanted = false
	}
	w.tell(f)
}

func (w *world) succeed(o *simulated, f *finished) {
	switch o.work {
	case awaitTurn:
		w.turn = true
	case joinSwarm:
		w.joined = true
	case readTable:
		if f.leads = !w.othersLead; w.tableAway {
			f.err = errAway
		} else if f.record = o.read; w.chance(0.5) {
			f.record = w.table.Clone()
		}
		if f.err == nil && !w.m.arrived && f.record.ExecutionID == worldID && slices.Contains(f.record.Successful, testBucket) && !w.object {
			if f.record = f.record.Without(testBucket); w.bucketAway { // it looks there before it believes that
				f.record, f.err = nil, errAway
			}
		}
	case findObject:
		if f.err = w.fence(); f.err == nil && w.bucketAway {
			f.err = errAway
		} else if f.err == nil && w.size > 0 && !w.compared && w.chance(0.5) { // what there is, whatever it is
			f.comparable = true
		} else if f.err == nil && w.object && !o.sealed {
			f.alike = true
		} else if f.err == nil && w.object {
			f.arrived, f.result = true, w.arrive("a")
		}
	case compare:
		f.segments = o.segments
		switch {
		case w.bucketAway:
			f.err = errAway
		case w.noPeers:
			f.alike = w.object && !o.sealed && w.chance(0.5)
		default:
			f.agrees = w.object || !o.sealed && w.chance(0.5)
			w.compared = f.agrees && o.sealed
		}
	case openEntry:
		if w.full {
			f.err = cache.ErrNoSpace
		} else {
			w.entry = true
		}
	case steer:
		if w.whole {
			f.whole = &origins{}
		} else {
			f.err = context.Canceled
		}
	case readSource:
		if w.sourceAway {
			f.err = errAway
		} else {
			w.tell(moved{1})
			w.here()
		}
	case land:
		if f.err = w.fence(); f.err != nil {
			w.upload = w.upload && errors.Is(f.err, errAway)
			return
		}
		can := w.whole && !w.uploading || w.size == 0 || w.refuses || w.bucketAway
		if !w.recording && (!can || !w.healthy && w.chance(0.1)) { // another agent has taken it
			f.err, w.othersLead = landing.ErrHeld, true
			return
		}
		w.upload = true
		switch {
		case w.bucketAway:
			f.err = errAway
		case w.refuses:
			f.err = bucket.ErrHeaders
		default:
			if !w.recording {
				w.tell(landedBytes(w.size))
				w.tell(completed{})
			}
			f.arrived, f.result = true, w.arrive("a")
			w.upload, w.landedHere = false, o.life == w.lives
		}
	case giveUp:
		if f.err = w.fence(); f.err == nil && !slices.Contains(w.table.Successful, testBucket) {
			w.failed(ledger.Result{Error: bucket.ErrHeaders.Error(), Final: true})
		} else if errors.Is(f.err, landing.ErrEnded) {
			f.err = nil
		}
	case leaveSwarm:
		w.joined, w.entry = false, false
	case discard:
		w.upload = w.upload && w.bucketAway
	case clearUploads:
		switch {
		case w.tableAway || w.bucketAway:
			f.err = errAway
		case w.brokenOff, w.table.ExecutionID == worldID && slices.Contains(w.table.Failed, testBucket):
			w.upload = false
		}
	case remember:
		w.kept = true
	case forget:
		w.kept = false
	}
}

// move makes one of the things happen that can.
func (w *world) move() {
	var can []*simulated
	for _, k := range slices.Sorted(maps.Keys(w.workers)) {
		if w.mayEnd(w.workers[k]) {
			can = append(can, w.workers[k])
		}
	}
	switch n := w.rng.IntN(20); {
	case n < 9 && len(can) > 0:
		o := can[w.rng.IntN(len(can))]
		if o.work == land && !o.cancelled && !w.recording && !w.uploading && w.fence() == nil && !w.bucketAway && !w.refuses && w.chance(0.5) {
			w.recording, w.object = true, true
			w.tell(landedBytes(w.size))
			w.tell(completed{})
			return
		}
		w.end(o)
	case n < 11 && len(w.notices) > 0:
		e := w.notices[0]
		w.notices = w.notices[1:]
		w.tell(e)
	case n < 14:
		w.pass(time.Duration(w.rng.Int64N(int64(20 * time.Second))))
	case n < 15 && w.joined && !w.noPeers:
		if w.entry && w.chance(0.3) {
			w.here()
		}
		w.tell(moved{})
	case n < 16 && w.chance(0.02) && w.m.ann != nil:
		w.tell(contradicted{announce.ErrContradiction})
	case n < 16:
		w.tell(othersWait{})
	case n < 17:
		w.operate()
	case n < 18 && !w.healthy:
		w.trouble()
	case n < 19:
		w.tell(storeAway{errNotProbed})
	}
}

// pass lets time go by, at most until something is due.
func (w *world) pass(most time.Duration) {
	w.now = w.now.Add(most)
	if !w.m.due.IsZero() && !w.m.due.After(w.now) {
		if w.chance(0.9) {
			w.now = w.m.due
		}
		w.tell(nil)
	}
}

func (w *world) trouble() {
	switch w.rng.IntN(10) {
	case 0:
		w.tableAway = !w.tableAway
	case 1:
		w.bucketAway = !w.bucketAway
	case 2:
		w.sourceAway = !w.sourceAway
	case 3:
		w.tell(storeKnown{})
	case 4:
		w.full = !w.full
	case 5:
		w.noPeers = !w.noPeers
	case 6:
		w.othersHaveTurn = !w.othersHaveTurn && !w.turn
	case 7:
		w.othersLead = !w.othersLead
		w.tell(membersChanged{})
	case 8:
		w.refuses = w.chance(0.2)
	case 9: // the process is killed and starts again
		w.start()
		w.told, w.wanted = false, false
		if w.notices = nil; w.table.ExecutionID == worldID && w.table.Status == ledger.InProgress {
			w.announce() // by the seeder, to who comes back
		}
		if w.kept {
			w.notices = slices.Insert(w.notices, 0, event(announced{ann: w.announcement()}))
			w.tell(w.notices[0])
			w.notices = w.notices[1:]
		}
	}
}

// operate does what a person or the seeder does.
func (w *world) operate() {
	mine := w.table.ExecutionID == worldID
	notice := func(e event) {
		if w.chance(0.7) { // else it is lost
			w.notices = append(w.notices, e)
		}
	}
	arrived := slices.Contains(w.table.Successful, testBucket)
	switch n := w.rng.IntN(12); {
	case w.uploading && n == 0:
		w.breakOff(notice)
	case w.uploading && n == 1:
		w.seal()
	case w.uploading && n < 6:
		w.segments = min(w.segments+1, worldSegments)
		w.announce()
	case w.uploading:
	case !mine:
		if n == 0 { // an old member brings it once more
			w.announce()
		}
	case n < 3 && w.table.Status == ledger.InProgress:
		if w.segments < worldSegments && w.chance(0.5) {
			w.segments++
		}
		w.announce()
	case n < 5 && !arrived && w.table.Status == ledger.InProgress:
		w.failed(ledger.Result{Error: ledger.CancelledError})
		notice(ended{errFailed})
	case n < 6 && !arrived && w.table.Status == ledger.InProgress:
		w.failed(ledger.Result{Error: "no progress"})
		notice(ended{errFailed})
	case n < 9 && len(w.table.Failed) > 0:
		delete(w.table.Results, testBucket)
		w.table.Failed = nil
		w.settle()
		w.announce()
	case n < 10 && w.chance(0.2):
		w.table = &ledger.Record{ExecutionID: newerID, Status: ledger.InProgress, Destinations: w.table.Destinations, Results: map[string]ledger.Result{}}
		w.object = false
		notice(ended{errSuperseded})
	case n == 10 && w.othersLead && !arrived && w.table.Status == ledger.InProgress:
		w.arrive("b")
	case n == 11 && w.chance(0.1) && !arrived && !w.object && w.table.Status == ledger.InProgress: // somebody lies
		w.arrive("c")
		w.object = false
	case n == 11 && w.chance(0.3) && !slices.Contains(w.table.Successful, otherBucket):
		w.table.Successful = append(w.table.Successful, otherBucket)
		if w.settle(); w.table.Status == ledger.Completed {
			notice(ended{errCompleted})
		}
	}
}

// seal has the upload come to its end.
func (w *world) seal() {
	w.uploading, w.segments = false, worldSegments
	w.table.Uploading, w.table.SourceETag = false, "e"
	w.announce()
}

// breakOff has the upload end before it is complete: what had the key has it still.
func (w *world) breakOff(notice func(event)) {
	w.uploading, w.brokenOff = false, true
	w.table = &ledger.Record{ExecutionID: olderID, Status: ledger.InProgress, Destinations: w.table.Destinations, Results: map[string]ledger.Result{}}
	notice(ended{errFailed})
}

// heal ends all faults and lets everything come to rest.
func (w *world) heal() {
	w.healthy = true
	w.tableAway, w.bucketAway, w.sourceAway, w.full, w.noPeers, w.othersHaveTurn, w.refuses = false, false, false, false, false, false, false
	w.tell(storeKnown{})
	if w.uploading && w.chance(0.5) {
		w.breakOff(func(e event) { w.notices = append(w.notices, e) })
	} else if w.uploading {
		w.seal()
	}
	w.segments = worldSegments
	switch { // an exchange of all that is known brings what was lost
	case w.table.ExecutionID == worldID && w.table.Status == ledger.InProgress:
		w.announce()
	case w.m.ann != nil && w.m.over == nil && w.table.ExecutionID == worldID && !w.sealed():
		w.notices = append(w.notices, ended{errFailed})
	}
	if w.othersLead {
		w.othersLead = false
		w.tell(membersChanged{})
	}
	until := w.now.Add(2 * endInterval)
	for i := 0; w.failure == nil && (w.now.Before(until) || len(w.workers) > 0 && !w.m.waits); i++ {
		if i > 10_000 {
			w.fail("does not come to rest")
			return
		}
		var can []*simulated
		for _, k := range slices.Sorted(maps.Keys(w.workers)) {
			if w.mayEnd(w.workers[k]) {
				can = append(can, w.workers[k])
			}
		}
		switch {
		case len(w.notices) > 0:
			e := w.notices[0]
			w.notices = w.notices[1:]
			w.tell(e)
		case len(can) > 0:
			w.end(can[w.rng.IntN(len(can))])
		case w.entry && !w.whole && (w.sealed() || !w.m.waits && w.workers[steer] != nil):
			w.here()
			w.tell(moved{})
		case w.m.due.IsZero():
			w.now = until
		default:
			w.pass(w.m.due.Sub(w.now))
		}
	}
}

// atRest checks what has come of everything.
func (w *world) atRest() {
	mine, m := w.table.ExecutionID == worldID, w.m
	arrived := slices.Contains(w.table.Successful, testBucket)
	if !w.told {
		return
	}
	switch {
	case mine && w.table.Status == ledger.InProgress && !slices.Contains(w.table.Failed, testBucket):
		if !arrived || w.wanted && (w.arrivals != 1 || !w.kept || m.done) {
			w.fail("wanted and has not arrived: in the table %v, recorded is said %d times, on disk %v, done %v", arrived, w.arrivals, w.kept, m.done)
		}
	case mine && w.table.Status == ledger.Failed && !w.table.Hopeless(testBucket):
		// The table alone does not end it: it may arrive after all.
	default:
		if m.ann != nil && !m.done {
			w.fail("over by the table (%s, %s) and not here", w.table.ExecutionID, w.table.Status)
		}
		if mine && !arrived && w.upload {
			w.fail("the upload of a build that is over is left")
		}
		if w.brokenOff && w.upload && m.over != nil && errors.Is(m.over, errEnded) {
			w.fail("the upload of a build that was broken off is left")
		}
	}
	if w.turn && !m.waits {
		w.fail("has its turn at rest")
	}
}
