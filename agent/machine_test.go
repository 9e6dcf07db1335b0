package agent

import (
	"context"
	"errors"
	"flag"
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/survive"
)

var (
	seedFlag      = flag.Uint64("machine.seed", 1, "seed of the schedules of events; 0 for one made of the time")
	schedulesFlag = flag.Uint64("machine.schedules", 10_000, "how many schedules of events")
	scheduleFlag  = flag.Uint64("machine.schedule", 0, "the only schedule to go through, with all that happens in it; 0 for all")
)

// Whatever happens in whatever order, the machine does nothing that it must not, and
// when the world is healthy again, a build that is wanted arrives and one that is over
// leaves nothing.
func TestAnyOrderOfEvents(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	first, last := uint64(1), *schedulesFlag
	if *scheduleFlag != 0 {
		first, last = *scheduleFlag, *scheduleFlag
	}
	begun, events := time.Now(), 0
	for i := first; i <= last; i++ {
		w := newWorld(seed, i)
		err := w.live()
		events += w.events
		if err != nil || *scheduleFlag != 0 {
			again := newWorld(seed, i)
			again.log = t.Logf
			again.live() //nolint:errcheck // the same again
		}
		if err != nil {
			t.Fatalf("%v\nagain with: go test ./agent -run %s -machine.seed %d -machine.schedule %d", err, t.Name(), seed, i)
		}
	}
	t.Logf("seed %d: %d events, %.0f a second", seed, events, float64(events)/time.Since(begun).Seconds())
}

// driven is a machine that a test tells what happens, one second after the other.
type driven struct {
	*machine
	at time.Time
}

func newDriven() *driven {
	d := &driven{newMachine(testBucket, 0, func(d time.Duration) time.Duration { return d }), time.Unix(1000, 0)}
	d.hear(0, announced{ann: &announce.Announcement{ExecutionID: worldID, ETag: "e", Size: 1, Expires: d.at.Add(time.Hour)}})
	return d
}

func (d *driven) hear(after time.Duration, e event) []action {
	d.at = d.at.Add(after)
	return d.step(d.at, e)
}

func (d *driven) does(t *testing.T, got []action, want ...action) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A build without progress gives its turn up when others wait for one; one that moves
// keeps it.
func TestMakeRoom(t *testing.T) {
	d := newDriven()
	d.does(t, d.hear(0, finished{work: awaitTurn}), say{what: "turn"}, begin{joinSwarm}, begin{readTable})
	d.does(t, d.hear(turnPatience, othersWait{}))
	d.hear(0, moved{})
	d.does(t, d.hear(turnPatience, othersWait{}))
	d.does(t, d.hear(1, othersWait{}), say{what: "yielded"}, cancel{joinSwarm}, cancel{readTable})
	d.does(t, d.hear(0, finished{work: readTable, err: context.Canceled}))
	d.does(t, d.hear(0, finished{work: joinSwarm}), begin{leaveSwarm})
	d.does(t, d.hear(0, finished{work: leaveSwarm}), releaseTurn{}, begin{awaitTurn})
}

// A build that waits for its next revision gives its turn up as soon as others wait for one,
// but not before all that was announced is in its upload; it has another turn when more comes.
func TestWaitingForTheSourceMakesRoom(t *testing.T) {
	d := newDriven()
	ann := announcementOf(t, false)
	record := &ledger.Record{ExecutionID: worldID}
	for _, e := range []event{
		announced{ann: ann}, finished{work: remember}, finished{work: remember}, finished{work: awaitTurn}, finished{work: joinSwarm},
		finished{work: readTable, record: record}, finished{work: findObject}, finished{work: openEntry},
	} {
		d.hear(0, e)
	}
	d.does(t, d.hear(0, finished{work: readTable, leads: true, record: record}), begin{land})
	n := ann.InfoHashes.Len()
	d.hear(0, caughtUp{true, n})
	_, last := ann.Layout().SegmentRange(n - 1)
	d.hear(0, landedBytes(ann.Size-last))
	d.does(t, d.hear(time.Second, othersWait{}))
	d.hear(0, landedBytes(ann.Size))
	d.does(t, d.hear(0, othersWait{}), say{what: "yielded"}, cancel{steer}, cancel{land})
	d.does(t, d.hear(0, finished{work: steer, err: context.Canceled}))
	d.does(t, d.hear(0, finished{work: land, err: context.Canceled}), begin{leaveSwarm})
	d.does(t, d.hear(0, finished{work: leaveSwarm}), releaseTurn{})
	if d.state != api.StateQueued || !d.waits || d.err != nil {
		t.Errorf("it is %s, waits for the source: %v, %v", d.state, d.waits, d.err)
	}
	d.does(t, d.hear(time.Second, othersWait{}))
	seal := *ann
	seal.SHA256 = "s"
	d.does(t, d.hear(0, announced{ann: &seal}), revised{}, begin{awaitTurn}, begin{remember})
}

// A fault in what runs beside a build ends the attempt, and is tried again.
func TestFaultBesideABuild(t *testing.T) {
	d := newDriven()
	d.hear(0, finished{work: awaitTurn})
	d.hear(0, finished{work: joinSwarm})
	d.hear(0, finished{work: readTable, record: &ledger.Record{ExecutionID: worldID}})
	d.hear(0, finished{work: findObject})
	d.does(t, d.hear(0, finished{work: openEntry}), begin{steer}, begin{readTable})
	d.does(t, d.hear(0, finished{work: readTable, leads: true, record: &ledger.Record{ExecutionID: worldID}}), begin{land})
	fault := &survive.Panic{Value: "on purpose"}
	delay := firstRetry + firstRetry/10
	d.does(t, d.hear(0, finished{work: steer, err: fault}), say{"failed", fault, delay}, cancel{land})
	d.does(t, d.hear(0, finished{work: land, err: context.Canceled}), begin{leaveSwarm})
	d.does(t, d.hear(0, finished{work: leaveSwarm}), releaseTurn{})
	if d.err != error(fault) || !d.due.Equal(d.retryAt) {
		t.Errorf("shows %v; due at %s, tried again at %s", d.err, d.due, d.retryAt)
	}
	d.does(t, d.hear(delay, nil), begin{awaitTurn})
}

// What has failed is tried at once when the build is announced again, as for a retry.
func TestAnnouncedAgainIsTriedAtOnce(t *testing.T) {
	d := newDriven()
	record := &ledger.Record{ExecutionID: worldID}
	d.hear(0, finished{work: remember})
	d.hear(0, finished{work: awaitTurn})
	d.hear(0, finished{work: joinSwarm})
	d.hear(0, finished{work: readTable, record: record})
	d.hear(0, finished{work: findObject})
	d.hear(0, finished{work: openEntry})
	d.hear(0, finished{work: readTable, leads: true, record: record})
	denied := errors.New("access denied")
	d.does(t, d.hear(0, finished{work: land, err: denied}), say{"failed", denied, firstRetry + firstRetry/10})
	d.does(t, d.hear(0, announced{ann: d.ann}), revised{}, begin{readTable}, begin{remember})
	d.does(t, d.hear(0, finished{work: readTable, leads: true, record: record}), begin{land})
}

// Uploads that were removed for an earlier end say nothing about a later one.
func TestClearsAgainAfterALaterEnd(t *testing.T) {
	d := newDriven()
	d.hear(0, finished{work: remember})
	d.does(t, d.hear(0, ended{errCancelled}), cancel{awaitTurn})
	d.does(t, d.hear(0, finished{work: awaitTurn, err: context.Canceled}), say{what: "stopped", err: errCancelled}, begin{clearUploads})
	d.does(t, d.hear(0, announced{ann: d.ann}), cancel{clearUploads}, say{what: "heard"}, begin{awaitTurn}, begin{remember})
	d.does(t, d.hear(0, finished{work: clearUploads}))
	d.does(t, d.hear(0, ended{errCancelled}), cancel{awaitTurn})
	d.does(t, d.hear(0, finished{work: awaitTurn, err: context.Canceled}), say{what: "stopped", err: errCancelled}, begin{clearUploads})
}

// What was said of an earlier revision does not hold for a later one: nothing is waited
// for that has come.
func TestCaughtUpWithAnEarlierRevision(t *testing.T) {
	d := newDriven()
	d.hear(0, finished{work: awaitTurn})
	seal := *d.ann
	seal.InfoHashes, seal.SHA256 = make([]byte, 40), "s"
	d.hear(0, announced{ann: &seal})
	if d.hear(0, caughtUp{true, 1}); d.waits {
		t.Error("waits for the source, and the seal is here")
	}
	more := seal
	more.SHA256 = ""
	d = newDriven()
	d.hear(0, announced{ann: &more})
	if d.hear(0, caughtUp{true, 1}); d.waits {
		t.Error("waits for the source, and one of two segments is here")
	}
	if d.hear(0, caughtUp{true, 2}); !d.waits {
		t.Error("does not wait for the source, and all that was announced is here")
	}
}
