package seeder

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/owner"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/survive"
)

const (
	// tickInterval is how often a deployment under way is looked at.
	tickInterval = time.Second
	// writeTimeout bounds one write of a goal.
	writeTimeout = 10 * time.Second
	// compositeAgain is when a build's composite SHA-256 is looked for again.
	compositeAgain = 5 * time.Second
	// serviceAgain is when a service is taken up again after a fault.
	serviceAgain = 5 * time.Second
)

// errEnding is the answer to commands that the seeder's end has overtaken.
var errEnding = errors.New("the seeder ends; look what came of it when it is back")

// service owns one service: it alone changes what the table says of it, runs the
// deployment's machine, and has goals sent. Commands, counts and rosters are events.
type service struct {
	*Seeder
	name   string
	owner  *owner.Owner[any]
	logger *slog.Logger

	// Of the owner's goroutine alone.
	m        *deployment.Machine
	goal     *goal.Goal // the newest of the table; nil for none
	asks     map[string]chan<- error
	asked    int
	answers  []answer // to be given when the view is up to date
	trouble  error    // why the table is not written yet
	odd      error    // why the service cannot be changed
	landed   map[string]bool
	target   target // what landed is about
	sha      string // the target's composite; empty while not known
	soughtAt time.Time
	ticked   time.Time // when what may have changed was looked at last
	failures failures
	apart    apart
	writing  *deployment.Publish // nil for nothing
	// looked is the version of hosts' goal for which the table was read again, since it is
	// greater than the table's.
	looked int64

	mu   sync.Mutex // held for a few lines
	view api.Service
}

// target is the execution that a deployment brings, which others may have brought before.
type target struct{ deployment, executionID string }

type answer struct {
	to  chan<- error
	err error
}

// What a service's owner is told, beside the events of its machine.
type (
	// request wants an answer: a deployment.Deploy or a deployment.Command.
	request struct {
		of     deployment.Event
		answer chan<- error // has room for it
		// withoutTable: what follows from it is sent before it is in the table.
		withoutTable bool
	}
	// hostsCounted is what an agent counts, and new failures.
	hostsCounted struct {
		deployment.Counted
		failures []goal.Failure
	}
	// wrote is how the write of a goal ended.
	wrote struct {
		goal *goal.Goal
		wire []byte
		err  error
		// ended: it was ended, and may be begun again.
		ended bool
		// apart is what was kept here and is not in the table; nil for what is there.
		apart *services.Copy
		// table is the service as somebody else has written it meanwhile; nil for nobody.
		table *services.Service
	}
	// writeDelayed says why a write is not done yet.
	writeDelayed struct{ err error }
	// composite is what was found out of a build.
	composite struct {
		executionID, sha string
		err              error
	}
	// checkedWave is the answer to a wave's check.
	checkedWave struct{ deployment.Checked }
	// logged says that failures were written, or what the table has of them.
	logged struct {
		of    logging
		hosts int
		rest  []services.Rest
		err   error
	}
	// recorded says that times were written, or not.
	recorded struct{ err error }
	// readAgain is the table, read since hosts follow a greater version than was known here.
	readAgain struct {
		newer int64
		table *services.Service
		err   error
	}
	// broken is a fault of a worker.
	broken struct{ err error }
)

// newService returns the owner of a service as the table has it; of nil of a new one.
func (s *Seeder) newService(name string, of *services.Service) *service {
	v := s.ownerOf(name)
	v.take(of)
	v.publish()
	return v
}

func (s *Seeder) ownerOf(name string) *service {
	logger := s.cfg.Logger.With("service", name)
	return &service{Seeder: s, name: name, owner: owner.New[any](logger), logger: logger, asks: make(map[string]chan<- error)}
}

// take begins with what the table has.
func (v *service) take(of *services.Service) {
	v.goal, v.odd, v.apart, v.writing = nil, nil, apart{}, nil
	v.owner.Tell(v.recalls.event())
	if of == nil {
		v.m = deployment.New(deployment.Service{Name: v.name})
		return
	}
	v.m, v.odd, v.apart.table = deployment.New(of.Service), of.Odd, of.Version
	v.send(of.Wire)
}

// send has agents get the goal that the table has.
func (v *service) send(wire []byte) {
	if wire == nil {
		return
	}
	doc, err := goal.Open(wire, v.cfg.Trust, time.Now())
	if g, ok := doc.(*goal.Goal); ok && err == nil && g.Service == v.name {
		v.goal = g
	} else {
		v.logger.Error("the goal in the table is not believed here, agents may refuse it: deploy again to have it signed anew", "error", err)
	}
	if err := v.gossip.SendGoal(v.name, wire); err != nil {
		v.logger.Error("goal not sent", "error", err)
	}
}

// run owns the service until ctx ends. After a fault of its own it returns another owner,
// which begins anew with what the table has.
func (v *service) run(ctx context.Context) (next *service) {
	err := survive.Run(v.logger, func() error { v.owner.Run(ctx, v); return nil })
	for _, e := range v.owner.Left() {
		if r, ok := e.(request); ok {
			v.answers = append(v.answers, answer{r.answer, err})
		}
	}
	for _, to := range v.asks {
		v.answers = append(v.answers, answer{to, err})
	}
	for _, a := range v.answers {
		a.to <- cmp.Or(a.err, errEnding)
	}
	if err == nil || !retry.Wait(ctx, serviceAgain) {
		return nil
	}
	if next = v.aheadOf(v.name); next == nil {
		next = v.reread(ctx)
	}
	if next == nil {
		return nil
	}
	v.services.put(next)
	next.owner.Tell(v.livingNow())
	return next
}

// reread returns another owner, of the service as the table has it; nil when ctx ends.
func (v *service) reread(ctx context.Context) *service {
	var of *services.Service
	again := retry.Policy{First: firstRetry, Max: maxRetry, Logger: v.logger, Level: slog.LevelWarn, Message: "service not read"}
	if again.Do(ctx, func() (err error) { of, err = v.cfg.Services.Service(ctx, v.name); return err }) != nil {
		return nil
	}
	return v.newService(v.name, of)
}

// Hear, Due, Wake and Over are for the owner.
func (v *service) Hear(now time.Time, e any) {
	switch e := e.(type) {
	case request:
		v.ask(now, e)
	case hostsCounted:
		v.failures.add(e.Region, v.m.Service().Current, e.failures)
		v.step(now, e.Counted)
		v.lookAgain()
		v.logFailures()
	case wrote:
		v.wrote(now, e)
	case writeDelayed:
		v.trouble = e.err
	case composite:
		v.found(now, e)
	case checkedWave:
		v.step(now, e.Checked)
	case logged:
		if e.err != nil && !v.owner.Ending() {
			v.logger.Warn("failures of hosts not logged in the table", "error", e.err)
		}
		if e.of.count { // 0 after an error: too many lines are better than none
			v.failures.counted(e.of, e.hosts, e.rest)
		}
		v.logFailures()
	case recorded:
		if e.err != nil && !errors.Is(e.err, services.ErrChanged) && !v.owner.Ending() {
			v.logger.Warn("for how long a deployment has waited and baked is not in the table, a restart would begin anew", "error", e.err)
		}
	case reconciled:
		v.reconciled(e)
	case behind:
		v.reconcile()
	case readAgain:
		v.readAgain(e)
	case broken:
		v.trouble = e.err
	case deployment.Event:
		v.step(now, e)
	}
	v.publish()
}

// Due is soon while something is under way.
func (v *service) Due() time.Time {
	if !v.m.Active() {
		return time.Time{}
	}
	return v.ticked.Add(tickInterval)
}

// Wake looks at what may have changed.
func (v *service) Wake(now time.Time) {
	v.ticked = now
	v.lookAtTarget(now)
	v.step(now, deployment.Tick{})
	v.publish()
}

// Over is never: a service stays.
func (v *service) Over() bool { return false }

func (v *service) ask(now time.Time, e request) {
	if v.odd != nil {
		e.answer <- fmt.Errorf("%w; mend or remove the item", v.odd)
		return
	}
	if e.withoutTable {
		v.setApart()
		defer v.apart.settle(v)
	}
	v.asked++
	id := strconv.Itoa(v.asked)
	v.asks[id] = e.answer
	last := ""
	if d := v.m.Service().Current; d != nil {
		last = d.ID
	}
	switch of := e.of.(type) {
	case deployment.Deploy:
		of.Ask, of.ID = id, executionid.New(now, last)
		e.of = of
	case deployment.Command:
		of.Ask, of.ID = id, executionid.New(now, last)
		e.of = of
	}
	v.step(now, e.of)
	v.lookAtTarget(now)
}

func (v *service) step(now time.Time, e deployment.Event) {
	for _, a := range v.m.Step(now, e) {
		v.act(a)
	}
}

func (v *service) act(a deployment.Action) {
	switch a := a.(type) {
	case deployment.Publish:
		v.beginWrite(a, nil)
	case deployment.Record:
		if v.apart.on || v.owner.Works("record") {
			return
		}
		v.owner.Work("record", func(err error) any { return recorded{err} }, func(ctx context.Context) any {
			ctx, cancel := context.WithTimeout(ctx, writeTimeout)
			defer cancel()
			return recorded{v.cfg.Services.Record(ctx, v.name, &a.Deployment, a.Version)}
		})
	case deployment.Answer:
		if to := v.asks[a.Ask]; to != nil {
			v.answers = append(v.answers, answer{to, a.Err})
			delete(v.asks, a.Ask)
		}
	case deployment.AskRoster:
		v.gossip.AskRoster(v.name)
	case deployment.Check:
		name := "check " + a.Deployment + strconv.Itoa(a.Wave)
		if v.owner.Works(name) {
			return
		}
		answer := func(err error) any {
			return checkedWave{deployment.Checked{Deployment: a.Deployment, Wave: a.Wave, Err: err}}
		}
		v.owner.Work(name, answer, func(ctx context.Context) any { return answer(waveChecks(v.cfg.WaveChecks).ask(ctx, v.name, a)) })
	case deployment.Notice:
		v.tell(a)
	}
}

// beginWrite has a goal written, which may be signed already.
func (v *service) beginWrite(a deployment.Publish, wire []byte) {
	v.writing = &a
	write := v.write
	if v.apart.on {
		table := v.apart.table
		write = func(ctx context.Context, a deployment.Publish, wire []byte) wrote {
			return v.keepApart(ctx, a, wire, table)
		}
	}
	v.owner.Work("write", func(err error) any { return wrote{goal: a.Goal, err: err} }, func(ctx context.Context) any { return write(ctx, a, wire) })
}

// write signs a goal and puts it into the table, however long that takes.
func (v *service) write(ctx context.Context, a deployment.Publish, wire []byte) wrote {
	out := wrote{goal: a.Goal, wire: wire}
	again := retry.Policy{
		First: firstRetry, Max: maxRetry, Logger: v.logger, Level: slog.LevelWarn, Message: "goal not written, it is tried again",
		Settled: func(err error) bool { return errors.Is(err, services.ErrChanged) || errors.Is(err, goal.ErrInvalid) },
		Failed:  func(_ int, err error) { v.owner.Tell(writeDelayed{err}) },
	}
	out.err = again.Do(ctx, func() (err error) {
		if out.wire == nil {
			if out.wire, err = goal.Sign(ctx, v.cfg.Signer, a.Goal); err != nil {
				return fmt.Errorf("signing the goal of %s: %w", v.name, err)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		return v.cfg.Services.Write(ctx, a.Service, out.wire, a.Before)
	})
	if out.err != nil && ctx.Err() != nil {
		out.ended = true
		return out
	}
	if out.err == nil {
		v.keepCopy(services.Copy{Service: a.Service, Wire: out.wire, Table: a.Service.Version})
	}
	if !errors.Is(out.err, services.ErrChanged) {
		return out
	}
	again.Settled = nil
	var table *services.Service
	if err := again.Do(ctx, func() (err error) { table, err = v.cfg.Services.Service(ctx, v.name); return err }); err != nil {
		return out
	}
	switch {
	case table == nil: // somebody has removed it
		table = &services.Service{Service: deployment.Service{Name: v.name}}
	case bytes.Equal(table.Wire, out.wire): // an answer was lost
		return wrote{goal: a.Goal, wire: out.wire}
	}
	out.table = table
	return out
}

// lookAgain reads the table where hosts follow a goal that is newer than was known of it:
// another seeder has written it, or it was restored from an old copy.
func (v *service) lookAgain() {
	newer := v.m.Newer()
	if newer == 0 || newer == v.looked || v.apart.on || v.writing != nil || v.owner.Works("read again") {
		return
	}
	v.owner.Work("read again", func(err error) any { return readAgain{newer: newer, err: err} }, func(ctx context.Context) any {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		table, err := v.cfg.Services.Service(ctx, v.name)
		v.keepRead(table)
		return readAgain{newer, table, err}
	})
}

func (v *service) readAgain(e readAgain) {
	switch {
	case e.err != nil: // the next counts have it read again
	case v.apart.on || v.writing != nil: // which finds out
	case e.table != nil && e.table.Version > v.apart.table:
		v.replaceBy(e.table)
	default:
		v.looked = e.newer
	}
}

// wrote has a goal sent once it is in the table.
func (v *service) wrote(now time.Time, e wrote) {
	if v.owner.Ending() && e.err != nil {
		return
	}
	if v.apart.on && e.ended && v.writing != nil { // it was not to wait for the table
		v.beginWrite(*v.writing, e.wire)
		return
	}
	v.trouble, v.writing = nil, nil
	written := deployment.Written{Version: e.goal.Version, Err: e.err}
	switch {
	case e.table != nil:
		v.logger.Warn("the service was changed by somebody else meanwhile, perhaps another seeder", "version", e.table.Version)
		v.odd, v.apart.table = e.table.Odd, e.table.Version
		written.Table = &e.table.Service
		v.send(e.table.Wire)
	case e.err != nil:
		v.logger.Error("goal not written", "error", e.err)
		v.trouble = e.err
	default:
		v.goal = e.goal
		if err := v.gossip.SendGoal(v.name, e.wire); err != nil {
			v.logger.Error("goal not sent", "error", err)
		}
		if v.apart.table = e.goal.Version; e.apart != nil {
			v.apart.table, v.apart.ahead, v.apart.instead = e.apart.Table, e.apart, nil
			v.logger.Error("goal sent WITHOUT the table, which does not have it: it is written there as soon as that can be", "version", e.goal.Version, "table", e.apart.Table)
			v.reconcile()
		}
		d := v.m.Service().Current
		v.logger.Info("goal written and sent", "version", e.goal.Version, "deployment", e.goal.Deployment, "key", e.goal.Target.Key,
			"before", stateOf(d), "by", e.goal.By)
		defer v.services.beatSoon()
	}
	v.step(now, written)
	v.apart.settle(v)
	v.lookAtTarget(now)
}

func stateOf(d *deployment.Deployment) string {
	if d == nil {
		return ""
	}
	return d.State
}

// lookAtTarget tells the machine where the build that it brings has landed.
func (v *service) lookAtTarget(now time.Time) {
	d := v.m.Service().Current
	if d == nil || d.Over() || d.State == deployment.GoingBack {
		return
	}
	id := d.Target.ExecutionID
	if of := (target{d.ID, id}); v.target != of {
		v.target, v.landed, v.sha, v.soughtAt = of, make(map[string]bool), d.Target.SHA256, time.Time{}
	}
	r, ok := v.index.get(id)
	switch {
	case ok && r.Status == ledger.Cancelled:
		v.step(now, deployment.Lost{ExecutionID: id, Reason: "its execution was cancelled"})
	case ok:
		for _, region := range v.services.landedIn(r) {
			if !v.landed[region] {
				v.landed[region] = true
				v.step(now, deployment.Landed{ExecutionID: id, Region: region, SHA256: v.sha})
			}
		}
	case v.isLoaded():
		reason := "its execution is not in the table any more"
		if next, ok := v.index.successor(id); ok {
			reason = "its execution was superseded by " + next
		}
		v.step(now, deployment.Lost{ExecutionID: id, Reason: reason})
	}
	if ok && v.sha == "" && r.SHA256 != "" && !v.owner.Works("composite") && now.Sub(v.soughtAt) >= compositeAgain {
		v.soughtAt = now
		v.owner.Work("composite", func(err error) any { return composite{executionID: id, err: err} }, func(ctx context.Context) any {
			sha, err := v.compositeOf(ctx, r)
			return composite{id, sha, err}
		})
	}
}

func (v *service) found(now time.Time, e composite) {
	switch {
	case e.executionID != v.target.executionID:
	case e.err != nil:
		if !v.owner.Ending() {
			v.logger.Warn("the build's composite SHA-256 was not found out yet", "executionId", e.executionID, "error", e.err)
		}
	case e.sha != "":
		v.sha = e.sha
		v.step(now, deployment.Landed{ExecutionID: e.executionID, SHA256: e.sha})
	}
}

// tell says how a deployment has ended.
func (v *service) tell(n deployment.Notice) {
	d := n.Deployment
	level := slog.LevelInfo
	if d.State != deployment.Done {
		level = slog.LevelWarn
	}
	event := map[string]string{deployment.Stopped: notify.DeploymentStopped, deployment.WentBack: notify.DeploymentWentBack}[d.State]
	if v.cfg.Notify != nil && event != "" {
		v.cfg.Notify.Send(notify.OfDeployment(event, v.name, d.ID, d.Target, d.Reason, n.At))
	}
	v.logger.Log(context.Background(), level, "deployment has ended", "deployment", d.ID, "key", d.Target.Key, "state", d.State, "reason", d.Reason)
}

func (v *service) logFailures() {
	if v.owner.Works("log") {
		return
	}
	l, ok := v.failures.next()
	if !ok {
		return
	}
	v.owner.Work("log", func(err error) any { return logged{of: l, err: err} }, func(ctx context.Context) any {
		out := logged{of: l}
		if l.count {
			out.hosts, out.rest, out.err = v.cfg.Services.Logged(ctx, l.region, l.deployment)
			return out
		}
		out.err = errors.Join(v.cfg.Services.LogFailures(ctx, l.region, l.deployment, l.list), v.cfg.Services.LogRest(ctx, l.region, l.deployment, l.rest))
		return out
	})
}
