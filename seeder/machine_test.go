package seeder

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

var (
	machineSeed      = flag.Uint64("machine.seed", 0, "one random order of events for TestAnyOrderOfEvents; 0 for many")
	machineSchedules = flag.Int("machine.schedules", 400, "how many orders of events TestAnyOrderOfEvents tries")
)

// TestAnyOrderOfEvents tells machines events in random orders: a person's retries and cancels,
// agents that land, fail and fall silent, a table and a source that do not answer,
// crashes, another execution of the key. Whatever it was, nobody works twice or for
// nothing, nobody is failed early or told of twice, and when the trouble is over what can
// arrive does.
func TestAnyOrderOfEvents(t *testing.T) {
	begun, events, completed, tookOver, brokenUp := time.Now(), 0, 0, 0, 0
	first, last := uint64(1), uint64(*machineSchedules)
	if *machineSeed != 0 {
		first, last = *machineSeed, *machineSeed
	}
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s := newSim(t, seed)
			for range simSteps {
				s.step()
			}
			s.settle()
			switch {
			case s.taken:
				tookOver++
			case s.ended:
				brokenUp++
			case s.table.Status == ledger.InProgress:
				s.fail("nobody carries it, and destinations are pending")
			default:
				// A person's last word.
				s.retry()
				s.settle()
				if !s.taken && s.table.Status != ledger.Completed {
					s.fail("sent again, and %s", s.table.Status)
				}
				completed++
			}
			events += s.events
		})
	}
	t.Logf("%d events, %.0f a second; %d completed, %d superseded, %d uploads broken off", events, float64(events)/time.Since(begun).Seconds(), completed, tookOver, brokenUp)
}

// told is a machine that a test tells what happens.
type told struct {
	machine
	now time.Time
}

const toldTimeout = 30 * time.Minute

func newTold() *told {
	v := &told{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	r := &ledger.Record{
		Key: ledger.Key{FileKey: "k", SourceBucket: "global"}, ExecutionID: "1", Status: ledger.InProgress, Size: 100,
		Destinations: []string{"a"}, Results: make(map[string]ledger.Result), Version: 1, StartTime: v.now,
	}
	v.machine = newMachine(r, toldTimeout, func(d time.Duration) time.Duration { return d })
	v.hear(asked{asAccepted, context.Background()})
	return v
}

func (v *told) hear(e event) []action { return v.step(v.now, e) }

// announced has the bytes here and the cluster told.
func (v *told) announced() {
	v.hear(done{worker: fetchWorker, content: content{size: 100, infohash: "infohash", sha256: "sha256"}})
	v.hear(done{worker: announceWorker, segments: 1, sealed: true})
}

func (v *told) write(change func(r *ledger.Record)) {
	r := v.record.Clone()
	change(r)
	r.Version++
	v.hear(known{r})
}

func failedA(r *ledger.Record) {
	r.Failed, r.Status = []string{"a"}, ledger.Failed
	r.Results["a"] = ledger.Result{Error: "no progress"}
}

// A retry has all its time, whatever the execution is about when it comes.
func TestRetryHasItsTime(t *testing.T) {
	for name, before := range map[string]func(v *told){
		"while it fails": func(v *told) {
			v.write(failedA)
			v.hear(retrying{})
			v.write(func(r *ledger.Record) { r.Failed, r.Status = nil, ledger.InProgress })
			v.hear(asked{asRetried, context.Background()})
			v.hear(done{worker: failWorker})
		},
		"while it rests": func(v *told) {
			v.hear(done{worker: failWorker, err: errPasses})
			v.hear(retrying{})
			v.hear(asked{asRetried, context.Background()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newTold()
			v.now = v.now.Add(toldTimeout + time.Minute)
			if v.hear(done{worker: fetchWorker, err: errPasses}); v.doing != failing {
				t.Fatalf("it is in state %d after its time", v.doing)
			}
			before(v)
			if v.doing != fetching || v.live.retryAt.After(v.now) {
				t.Errorf("state %d, shown as tried again at %s", v.doing, v.live.retryAt)
			}
			v.now = v.now.Add(time.Second)
			if v.hear(done{worker: fetchWorker, err: errPasses}); v.doing != resting {
				t.Errorf("a second after the retry it is in state %d: %v", v.doing, v.failures)
			}
		})
	}
}

// What cannot be fetched any more once it was announced has its time, too, and then fails.
func TestFetchThatFailsForEver(t *testing.T) {
	v := newTold()
	v.announced()
	v.now = v.now.Add(toldTimeout + time.Minute)
	v.wake(v.now)
	v.hear(done{worker: failWorker, err: errPasses})
	for tries := 0; v.doing != failing; tries++ {
		if v.now = v.due(); v.now.IsZero() || tries > 100 {
			t.Fatalf("state %d after %d tries", v.doing, tries)
		}
		v.wake(v.now)
		v.hear(done{worker: fetchWorker, err: errPasses})
	}
}

// What an execution has waited for others to be pulled does not count against it; all that
// it was tried does, however often it was its turn.
func TestWaitingForTheSourceIsNotStuck(t *testing.T) {
	v := newTold()
	v.hear(turned{api.PhaseQueued})
	v.now = v.now.Add(3 * toldTimeout)
	v.hear(turned{api.PhasePulling})
	v.hear(pulled{10})
	v.hear(turned{api.PhaseQueued}) // another one has gone before it
	v.now = v.now.Add(3 * toldTimeout)
	v.hear(pulled{20}) // which was under way
	v.hear(turned{api.PhasePulling})
	if v.pulling.After(v.now) {
		t.Errorf("it has moved at %s, now is %s", v.pulling, v.now)
	}
	begun := v.now
	for {
		if v.hear(done{worker: fetchWorker, err: errPasses}); v.doing == failing {
			break
		}
		if v.now = v.due(); v.doing != resting || v.now.After(begun.Add(2*toldTimeout)) {
			t.Fatalf("state %d %s after it was its turn, live error %v", v.doing, v.now.Sub(begun), v.live.err)
		}
		v.wake(v.now)
		v.hear(turned{api.PhaseQueued})
		v.hear(turned{api.PhasePulling})
	}
	if tried := v.now.Sub(begun); tried < toldTimeout {
		t.Errorf("it was tried for %s only", tried)
	}
}

// What was wrong is not shown any more when it has ended well, nor that its object is
// gone when it is back.
func TestNothingIsShownForEver(t *testing.T) {
	v := newTold()
	v.hear(done{worker: fetchWorker, err: bucket.ErrNotFound})
	v.hear(done{worker: failWorker, err: errPasses})
	v.now = v.due()
	v.wake(v.now)
	if v.announced(); v.doing != following || v.live.sourceMissing || v.live.err != nil {
		t.Errorf("state %d, gone: %v, error: %v", v.doing, v.live.sourceMissing, v.live.err)
	}
	v.now = v.now.Add(toldTimeout + time.Minute)
	v.wake(v.now)
	v.hear(done{worker: failWorker, err: errPasses})
	v.hear(done{worker: rereadWorker})
	v.write(func(r *ledger.Record) { r.Successful, r.Status = []string{"a"}, ledger.Completed })
	v.hear(done{worker: mendWorker})
	v.hear(done{worker: leaveWorker})
	v.hear(done{worker: endWorker})
	if v.doing != idle || v.live.err != nil || v.live.phase != api.PhaseEnded {
		t.Errorf("state %d, error: %v, phase %s", v.doing, v.live.err, v.live.phase)
	}
}

// An execution reads the table once more before it says that nothing more will come.
func TestLastLook(t *testing.T) {
	v := newTold()
	v.hear(served{since: map[string]time.Time{"a": v.now.Add(5 * time.Second)}})
	v.announced()
	v.now = v.now.Add(toldTimeout + 2*time.Second)
	v.wake(v.now) // a is late, and its agents have come later
	v.hear(done{worker: rereadWorker})
	v.write(failedA)
	v.hear(done{worker: failWorker})
	v.now = v.due()
	if actions := v.wake(v.now); v.doing != following || slices.Contains(actions, action(cancel{rereadWorker})) {
		t.Errorf("state %d after %v", v.doing, actions)
	}
	if v.hear(done{worker: rereadWorker}); v.doing != finishing {
		t.Errorf("state %d after the last look", v.doing)
	}
}

// An execution that has ended hears that a destination has landed after all.
func TestLateArrival(t *testing.T) {
	v := newTold()
	v.write(failedA)
	v.machine = newMachine(v.record, toldTimeout, jitter)
	if actions := v.hear(asked{asLate, context.Background()}); !slices.Equal(actions, []action{begin{rereadWorker}}) {
		t.Fatalf("%v", actions)
	}
	v.write(func(r *ledger.Record) { r.Successful, r.Failed, r.Status = []string{"a"}, nil, ledger.Completed })
	if actions := v.hear(done{worker: rereadWorker}); v.doing != idle || !slices.Equal(actions, []action{sayArrived{"a"}}) {
		t.Errorf("state %d, %v", v.doing, actions)
	}
}

// Whoever has taken the key is named, also when the table is being read already.
func TestSuccessorIsNamed(t *testing.T) {
	v := newTold()
	v.announced()
	v.now = v.now.Add(toldTimeout + time.Minute)
	v.wake(v.now) // the table is read, and a fails
	actions := v.hear(done{worker: failWorker, err: ledger.ErrSuperseded})
	if v.doing != finishing || slices.Contains(actions, action(cancel{rereadWorker})) {
		t.Errorf("state %d after %v", v.doing, actions)
	}
}

// What is asked for while the end notice is signed, which may take long, begins after that,
// and what asks for most of it.
func TestNoticeGoesFirst(t *testing.T) {
	v := newTold()
	v.write(failedA)
	v.machine = newMachine(v.record, toldTimeout, jitter)
	if actions := v.hear(asked{asOver, context.Background()}); !slices.Equal(actions, []action{begin{endWorker}}) {
		t.Fatalf("%v", actions)
	}
	for _, why := range []string{asRetried, asAwaited, asOver} {
		if actions := v.hear(asked{why, context.Background()}); len(actions) > 0 {
			t.Errorf("%s: %v", why, actions)
		}
	}
	v.hear(retrying{})
	v.write(func(r *ledger.Record) { r.Failed, r.Status = nil, ledger.InProgress })
	again := asked{asRetried, context.Background()}
	if actions := v.hear(done{worker: endWorker}); v.doing != fetching || !slices.Equal(actions, []action{begun{again}, begin{fetchWorker}}) {
		t.Errorf("state %d, %v", v.doing, actions)
	}
}
