package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/survive"
)

const (
	// lookInterval is how often a service looks at what has changed that nobody tells it:
	// time, and how far its builds are.
	lookInterval = time.Second
	// healthInterval is how often a service that runs is asked whether it is healthy, and
	// sickAfter how many answers in a row say that it is not.
	healthInterval, sickAfter = 10 * time.Second, 3
	// maxJobs bounds what runs beside a service's goroutine: a switch, a release that is put
	// into place, a question to the check, and one that was asked before the switch.
	maxJobs = 4
)

// errRecalled is why a build is not started, whatever a goal says.
var errRecalled = errors.New("the build is recalled")

// service is the owner of one service: its goroutine alone decides what is done next, one
// thing at a time.
type service struct {
	host    *Host
	name    string
	release *release.Service
	wake    chan struct{}
	leaves  chan leave
	done    chan func() // of a job, when it has ended
	jobs    sync.WaitGroup
	seen    atomic.Pointer[view]

	// Of run's goroutine.
	job      *job // the switch under way; nil for none
	leave    leave
	places   bool               // a release is being put into its place
	unplaced map[string]failure // by executionId
	stuck    stuck
	health   *health
	served   bool // it has been ready
}

// stuck is why a switch that was due has not begun, or is not carried on; it is of one
// version of the goal.
type stuck struct {
	failure
	version int64
}

// job is a switch.
type job struct {
	to     string // executionId
	giveUp chan struct{}
	given  bool // up
}

// leave is when the service may switch. It ends with the stream that it came over: the next
// agent does not know of it, and may give it to others.
type leave struct {
	version int64
	until   time.Time
	by      *connected
}

// health is what the check has said since the last switch.
type health struct {
	asked time.Time
	runs  bool // a question
	good  bool // the last answer
	bad   int  // answers in a row
	err   error
}

// view is what others see of a service.
type view struct {
	state  hostwire.ServiceState
	wanted string // executionId of what is to run; empty for what runs
	ready  error  // why it is not
	// failed is the whole of why and what was printed, as far as it was kept.
	failed, output string
}

func newService(h *Host, name string, r *release.Service) *service {
	return &service{
		host: h, name: name, release: r, wake: make(chan struct{}, 1), leaves: make(chan leave, 4), done: make(chan func(), maxJobs),
		unplaced: make(map[string]failure), health: &health{},
	}
}

// mayLeave takes leave to switch. It does not wait: of more than a service has looked at,
// the agent says the last again.
func (s *service) mayLeave(m *hostwire.Leave, by *connected) {
	select {
	case s.leaves <- leave{m.Version, time.Now().Add(time.Duration(m.Seconds) * time.Second), by}:
	default:
	}
}

// run owns the service until ctx ends, and waits for what is under way.
func (s *service) run(ctx context.Context) {
	defer s.jobs.Wait()
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		s.step(ctx, time.Now())
		s.publish()
		select {
		case <-ctx.Done():
			return
		case s.leave = <-s.leaves:
		case f := <-s.done:
			f()
		case <-s.wake:
		case <-ticker.C:
		}
	}
}

// goal is the service's, and what the host is to run by it: nil for what it runs.
func (s *service) goal() (g *goal.Goal, wanted *goal.Build) {
	g = s.host.shelf.Goal(s.name)
	if region := s.host.where(); g != nil && region != "" {
		wanted = g.For(region, s.host.cfg.Name)
	}
	return g, wanted
}

// step begins what is due.
func (s *service) step(ctx context.Context, now time.Time) {
	g, wanted := s.goal()
	if j := s.job; j != nil && !j.given && (g == nil || wanted != nil && (wanted.ExecutionID != j.to || s.recalled(wanted))) {
		j.given = true
		close(j.giveUp)
	}
	switch {
	case s.job != nil:
	case s.release.Interrupted():
		if !s.stuck.waits(now) {
			s.resume(ctx)
		}
	case g != nil && s.due(g, wanted, now):
		s.activate(ctx, g, *wanted)
	}
	if g != nil && !s.places {
		for _, b := range []*goal.Build{wanted, &g.Target, g.Stable} {
			if b != nil && s.placeable(b, now) {
				s.place(ctx, *b)
				break
			}
		}
	}
	if s.job == nil {
		s.askHealth(ctx, now)
	}
}

// wants reports whether the service waits for leave to switch.
func (s *service) wants(g *goal.Goal, wanted *goal.Build) bool {
	state := s.release.State()
	return g != nil && wanted != nil && wanted.ExecutionID != state.Running.ExecutionID && state.Version != g.Version &&
		s.release.Placed(wanted.ExecutionID) && !s.recalled(wanted) && !(s.stuck.version == g.Version && s.stuck.waits(time.Now()))
}

// recalled reports whether a build must not be started.
func (s *service) recalled(b *goal.Build) bool { return s.host.shelf.Recalled(b.SHA256) }

// due reports whether it has leave to do so now.
func (s *service) due(g *goal.Goal, wanted *goal.Build, now time.Time) bool {
	return s.wants(g, wanted) && s.leave.version == g.Version && now.Before(s.leave.until) && s.leave.by == s.host.link.at.Load()
}

// placeable reports whether a build is here whole, and is no release yet.
func (s *service) placeable(b *goal.Build, now time.Time) bool {
	if s.unplaced[b.ExecutionID].waits(now) {
		return false
	}
	if b.SHA256 == "" || s.release.Placed(b.ExecutionID) || s.recalled(b) {
		return false
	}
	held, ok := s.host.fetch.Known(b.ExecutionID)
	return ok && held.Progress().Whole
}

// begin does something beside the service's goroutine, which calls ended afterwards.
func (s *service) begin(do func() error, ended func(error)) {
	s.jobs.Go(func() {
		err := survive.Run(s.host.cfg.Logger, do)
		s.done <- func() { ended(err) } // there is room for all
	})
}

// place makes a release of a build whose bytes are the goal's.
func (s *service) place(ctx context.Context, b goal.Build) {
	h := s.host
	s.places = true
	s.begin(func() error {
		held, ok := h.fetch.Known(b.ExecutionID)
		if !ok {
			return errors.New("the build is not wanted any more")
		}
		if err := held.Verify(b.Size, b.SHA256); err != nil {
			if errors.Is(err, fetch.ErrWrongBuild) {
				h.stock.wrong(b.ExecutionID)
			}
			return err
		}
		from, err := held.Open()
		if err != nil {
			return err
		}
		defer from.Close()
		return s.release.Place(ctx, releaseOf(b), from)
	}, func(err error) {
		s.places = false
		if err == nil {
			h.cfg.Logger.Info("release is in its place", "service", s.name, "key", b.Key, "executionId", b.ExecutionID)
			delete(s.unplaced, b.ExecutionID)
			return
		}
		if ctx.Err() != nil {
			return
		}
		h.cfg.Logger.Warn("build is not in its place", "service", s.name, "key", b.Key, "executionId", b.ExecutionID, "error", err)
		f := s.unplaced[b.ExecutionID].more(err, h.cfg.again)
		if errors.Is(err, release.ErrRefused) { // for what it holds
			f.again = time.Time{}
		}
		if len(s.unplaced) >= maxRecipes {
			clear(s.unplaced)
		}
		s.unplaced[b.ExecutionID] = f
	})
}

func releaseOf(b goal.Build) release.Build {
	return release.Build{ExecutionID: b.ExecutionID, Key: b.Key, Size: b.Size}
}

// activate switches, and removes releases that are not kept.
func (s *service) activate(ctx context.Context, g *goal.Goal, b goal.Build) {
	j := &job{to: b.ExecutionID, giveUp: make(chan struct{})}
	s.leave, s.job = leave{}, j
	s.begin(func() error {
		return s.release.Activate(ctx, release.Order{Version: g.Version, Deployment: g.Deployment, To: releaseOf(b), GiveUp: j.giveUp})
	}, s.switched(ctx, g.Version))
}

// resume carries on the switch that was interrupted.
func (s *service) resume(ctx context.Context) {
	state := s.release.State()
	j := &job{to: state.To.ExecutionID, giveUp: make(chan struct{})}
	s.job = j
	s.begin(func() error { return s.release.Resume(ctx, j.giveUp) }, s.switched(ctx, state.Version))
}

// switched looks at how a switch to what a version of the goal says has ended.
func (s *service) switched(ctx context.Context, version int64) func(error) {
	return func(err error) {
		s.job = nil
		if ctx.Err() != nil {
			return // the next start goes on
		}
		s.health = &health{asked: time.Now()}
		state := s.release.State()
		if err != nil && (s.release.Interrupted() || state.Version != version) {
			f := s.stuck.failure
			if s.stuck.version != version {
				f = failure{}
			}
			s.stuck = stuck{f.more(err, s.host.cfg.again), version}
			s.host.cfg.Logger.Error("switch has not begun, or cannot be carried on, trying again", "service", s.name, "version", version, "try", s.stuck.times, "error", err)
			return
		}
		s.stuck = stuck{}
		s.host.metrics.switches.WithLabelValues(s.name, string(state.Phase)).Inc()
		if err != nil {
			s.host.cfg.Logger.Error("service does not run what its goal says", "service", s.name, "executionId", state.To.ExecutionID, "runs", state.Running.ExecutionID, "phase", state.Phase, "error", err)
		}
		if err := s.prune(); err != nil {
			s.host.cfg.Logger.Warn("old releases not removed", "service", s.name, "error", err)
		}
	}
}

// prune removes releases that are neither kept nor named by the goal.
func (s *service) prune() error {
	g := s.host.shelf.Goal(s.name)
	if g == nil {
		return nil
	}
	needed := []string{g.Target.ExecutionID}
	if g.Stable != nil {
		needed = append(needed, g.Stable.ExecutionID)
	}
	return s.release.Prune(needed...)
}

// askHealth asks whether what runs is healthy, when that is due.
func (s *service) askHealth(ctx context.Context, now time.Time) {
	q := s.health
	if s.host.cfg.hooksOf(s.name).Check == "" || q.runs || now.Sub(q.asked) < s.host.cfg.health || s.release.State().Running.ExecutionID == "" {
		return
	}
	q.runs, q.asked = true, now
	s.begin(func() error { return s.release.Healthy(ctx) }, func(err error) {
		// After a switch it is another one that counts.
		q.runs, q.good, q.err = false, err == nil, err
		switch {
		case ctx.Err() != nil:
		case err == nil:
			q.bad = 0
		default:
			if q.bad++; q.bad == sickAfter && q == s.health {
				s.host.cfg.Logger.Warn("service is not healthy", "service", s.name, "error", err)
			}
		}
	})
}

// publish says how the service stands.
func (s *service) publish() {
	v := s.view()
	s.served = s.served || v.ready == nil
	if before := s.seen.Swap(&v); before == nil || before.state != v.state {
		s.host.link.say(v.state)
	}
}

// view is how the service stands.
func (s *service) view() view {
	g, wanted := s.goal()
	r := s.release.State()
	running := r.Running.ExecutionID
	v := view{state: hostwire.ServiceState{Service: s.name, Running: running}}
	if g != nil {
		v.state.Goal = g.Version
	}
	if wanted != nil {
		v.wanted = wanted.ExecutionID
	}
	fail := func(state, phase string, err, output string) {
		v.state.State, v.state.Phase, v.state.Attempt = state, hostwire.Line(phase), r.Attempt
		v.state.Error, v.state.Output = hostwire.Line(err), hostwire.Tail(output)
		v.failed, v.output = err, output
	}
	switching := s.job != nil || s.release.Interrupted()
	differs := wanted != nil && wanted.ExecutionID != running
	ended := r.Phase == release.Failed || r.Phase == release.Broken
	sick := s.health.bad >= sickAfter
	phase, lack := s.lack(g, wanted, differs)
	beyond := s.host.link.beyond(s.name, v.state.Goal)
	switch {
	case s.job == nil && s.stuck.err != nil && settled(s.stuck.err) && (s.release.Interrupted() || differs && s.stuck.version == g.Version):
		fail(goal.Failed, s.stuckAt(r), s.stuck.err.Error(), r.Output)
	case switching:
		v.state.State, v.state.Phase, v.state.Attempt = goal.Switching, string(r.Phase), r.Attempt
	case beyond != nil:
		fail(goal.Failed, "goal", beyond.Error(), "")
	case ended && differs && r.To.ExecutionID == wanted.ExecutionID && r.Deployment == g.Deployment:
		fail(goal.Failed, string(r.Phase), r.Error, r.Output)
	case r.Phase == release.Broken && !s.health.good:
		fail(goal.Failed, string(r.Phase), r.Error, r.Output)
	case differs && lack != nil && settled(lack):
		fail(goal.Failed, phase, lack.Error(), "") // it is to run what it cannot hold
	case g != nil && running == g.Target.ExecutionID:
		v.state.State = goal.Healthy
		if sick {
			fail(goal.Failed, "check", s.health.err.Error(), "")
		}
	case sick:
		fail(goal.Sick, "check", s.health.err.Error(), "")
	case g != nil && s.release.Placed(g.Target.ExecutionID):
		v.state.State = goal.Ready
		if s.stuck.err != nil && differs && s.stuck.version == g.Version {
			fail(goal.Ready, s.stuckAt(r), s.stuck.err.Error(), "")
		}
	default:
		v.state.State = goal.Waiting
		if lack != nil {
			fail(goal.Waiting, phase, lack.Error(), "")
		}
	}
	if !switching && s.wants(g, wanted) {
		v.state.Wants = wanted.ExecutionID
	}
	v.ready = s.notReady(v, g, wanted, switching)
	return v
}

// stuckAt is the phase before, or in, which a switch is stuck.
func (s *service) stuckAt(r release.State) string {
	if s.release.Interrupted() {
		return string(r.Phase)
	}
	return "begin"
}

// lack is why the build that is to run, or else the target, is not in its place, and at
// what that has failed; nil while it is on its way.
func (s *service) lack(g *goal.Goal, wanted *goal.Build, differs bool) (phase string, err error) {
	if g == nil {
		return "", nil
	}
	b := &g.Target
	if differs {
		b = wanted
	}
	id := b.ExecutionID
	if s.recalled(b) {
		return "recall", errRecalled
	}
	if s.release.Placed(id) {
		return "", nil
	}
	var fetching error
	if b, ok := s.host.fetch.Known(id); ok {
		fetching = b.Progress().Err
	}
	switch placing := s.unplaced[id].err; {
	case placing != nil && (fetching == nil || !errors.Is(placing, fetch.ErrLost)):
		return "place", placing
	case fetching != nil:
		return "fetch", fetching
	}
	return "fetch", s.host.stock.unusable(id)
}

// notReady is why nobody should send the service work: it has not run a build that a goal
// names since the daemon began, is in the midst of a switch, or is not healthy; nil else. One
// that waits for its turn, or cannot do what it is told, goes on with its work meanwhile.
func (s *service) notReady(v view, g *goal.Goal, wanted *goal.Build, switching bool) error {
	var why string
	running := v.state.Running
	switch {
	case g == nil && !(s.served && running != ""):
		why = cmp.Or(v.failed, "no goal has come yet")
	case s.host.where() == "":
		why = "no agent has said yet which region this is"
	case switching && v.failed != "":
		why = v.failed
	case switching:
		why = "it is switching"
	case running != "" && (s.served || wanted == nil || running == g.Target.ExecutionID || g.Stable != nil && running == g.Stable.ExecutionID):
		switch {
		case s.health.bad >= sickAfter:
			why = s.health.err.Error()
		case s.release.State().Phase == release.Broken && !s.health.good:
			why = v.failed
		default:
			return nil
		}
	case v.failed != "":
		why = v.failed
	case v.state.Wants != "":
		why = wanted.Key + " is here, and waits for leave to be switched to"
	case wanted != nil:
		why = wanted.Key + " is not here yet"
	default:
		why = "no build runs yet"
	}
	return fmt.Errorf("service %s: %s", s.name, why)
}
