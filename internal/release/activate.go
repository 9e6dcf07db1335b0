package release

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/landfall-dist/landfall/internal/hook"
)

// Order is a switch that is wanted.
type Order struct {
	// Version is the goal's. There is one attempt at each, and none at one before.
	Version    int64
	Deployment string
	To         Build // must be placed
	// GiveUp, when it is closed, has the build put back that ran before, unless the service
	// is healthy by then: a later goal wants another one. A hook that runs is let end first.
	// It may be nil.
	GiveUp <-chan struct{} `json:"-"`
}

// Activate switches to a build and returns when the service is healthy with it, or runs
// the build before again, or neither: the State says which, and the error why it is not
// the first. When ctx ends first the switch is left to Resume, by the next process too.
func (s *Service) Activate(ctx context.Context, o Order) error {
	if err := checkID(o.To.ExecutionID); err != nil {
		return err
	}
	now := s.record()
	switch {
	case o.Version <= 0:
		return fmt.Errorf("version %d of a goal: expected at least 1", o.Version)
	case now.Version > 0 && !now.Phase.final():
		return fmt.Errorf("switch to %s is at %q and is to be resumed first", now.To.Key, now.Phase)
	case o.Version == now.Version: // an earlier one counts when nobody believes this one any more
		return fmt.Errorf("version %d: %w", o.Version, ErrAttempted)
	case !s.Placed(o.To.ExecutionID):
		return fmt.Errorf("%s: %w", o.To.Key, ErrNotPlaced)
	}
	id, err := s.pointed()
	if err != nil {
		return err
	}
	r := record{Version: o.Version, Deployment: o.Deployment, From: s.build(id, now), To: o.To, Phase: Before, Attempt: 1}
	if err := s.write(r); err != nil {
		return err // nothing has been done, nor attempted
	}
	return s.carryOn(ctx, r, o.GiveUp)
}

// Resume carries on the switch that was interrupted, if there is one, as Activate does:
// the phase that was interrupted is begun again. giveUp is an Order's.
func (s *Service) Resume(ctx context.Context, giveUp <-chan struct{}) error {
	r := s.record()
	if r.Version == 0 || r.Phase.final() {
		return nil
	}
	if err := r.Hook.End(ctx, s.cfg.Logger); err != nil {
		return fmt.Errorf("ending the command that the last host has left running: %w", err)
	}
	r.Hook = hook.Process{}
	r.Attempt++
	s.cfg.Logger.Warn("taking up an interrupted switch", "key", r.To.Key, "executionId", r.To.ExecutionID, "phase", r.Phase, "attempt", r.Attempt)
	switch {
	case r.Phase.back() && r.Attempt > 2*MaxAttempts:
		r = r.failed(fmt.Errorf("%s was interrupted %d times", r.Phase, MaxAttempts), "")
	case !r.Phase.back() && r.Attempt > MaxAttempts:
		r = r.failed(fmt.Errorf("%s was interrupted, %d attempts in all", r.Phase, MaxAttempts), "")
	}
	return s.carryOn(ctx, r, giveUp)
}

// note writes a record. Going back matters more than that it is written: who finds an
// earlier phase in the journal has an old or a new build all the same.
func (s *Service) note(r record) error {
	err := s.write(r)
	if err != nil && r.Phase.back() {
		s.cfg.Logger.Error("switch not written to its journal, the old build is put back nevertheless", "phase", r.Phase, "error", err)
		s.set(r)
		err = nil
	}
	return err
}

func (s *Service) record() record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// carryOn does what is left of a switch, phase by phase.
func (s *Service) carryOn(ctx context.Context, r record, giveUp <-chan struct{}) error {
	for !r.Phase.final() {
		var output string
		err := s.note(r)
		if err == nil {
			s.reached(string(r.Phase))
			output, err = s.perform(ctx, &r, giveUp)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("switch to %s interrupted at %q: %w", r.To.Key, r.Phase, context.Cause(ctx))
		}
		r.Hook = hook.Process{}
		if err != nil {
			s.cfg.Logger.Warn("phase of a switch has failed", "key", r.To.Key, "executionId", r.To.ExecutionID, "phase", r.Phase, "attempt", r.Attempt, "error", err, "output", output)
			r = r.failed(err, output)
			continue
		}
		if output != "" && r.Error == "" {
			r.Output = output
		}
		r.Phase = r.Phase.next(false)
		if r.Phase == BackExec && r.From.ExecutionID == "" {
			r.Phase = Failed // nothing ran before, so there is nothing to start
		}
	}
	if err := s.write(r); err != nil {
		s.cfg.Logger.Error("end of a switch not written to its journal, the next start tries its last phase again", "phase", r.Phase, "error", err)
		s.set(r)
	}
	s.reached(string(r.Phase))
	if r.Phase == Done {
		s.cfg.Logger.Info("switched", "key", r.To.Key, "executionId", r.To.ExecutionID, "version", r.Version, "attempt", r.Attempt)
		return nil
	}
	return fmt.Errorf("switch to %s: %s: %s", r.To.Key, r.Phase, r.Error)
}

// failed is the record after its phase has failed.
func (r record) failed(err error, output string) record {
	reason := fmt.Sprintf("%s: %v", r.Phase, err)
	if r.Error != "" {
		reason = r.Error + "; then " + reason
	} else {
		r.Output = output
	}
	r.Error = cut(reason, maxError)
	r.Phase = r.Phase.next(true)
	return r
}

// cut shortens a text to n bytes, at the border of a character.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// perform does a record's phase and returns the end of what it printed.
func (s *Service) perform(ctx context.Context, r *record, giveUp <-chan struct{}) (output string, err error) {
	if !r.Phase.back() {
		select {
		case <-giveUp:
			return "", ErrGivenUp
		default:
		}
	}
	switch r.Phase {
	case Before:
		return s.runHook(ctx, s.cfg.Before, r)
	case Switch:
		return "", s.point(r.To.ExecutionID)
	case Exec, BackExec:
		return s.runHook(ctx, s.cfg.Exec, r)
	case Check:
		return s.untilHealthy(ctx, *r, giveUp)
	case Back:
		return "", s.point(r.From.ExecutionID)
	case BackCheck:
		return s.untilHealthy(ctx, *r, nil)
	}
	return "", errors.New("internal fault: not a phase to be performed")
}

// environment is what hooks are told of a switch, beside the host's own environment but
// for its flags.
func (s *Service) environment(r record) []string {
	build, previous := r.To, r.From
	if r.Phase.back() {
		build, previous = previous, build
	}
	if r.Version == 0 {
		build = r.running // without a journal
	}
	before := ""
	if previous.ExecutionID != "" {
		before = s.Path(previous.ExecutionID)
	}
	return append(hook.Environment(),
		"LANDFALL_SERVICE="+s.cfg.Service,
		"LANDFALL_BUILD="+build.Key,
		"LANDFALL_PATH="+s.Path(build.ExecutionID),
		"LANDFALL_PREVIOUS="+before,
		"LANDFALL_DEPLOYMENT="+r.Deployment,
		"LANDFALL_PHASE="+string(r.Phase),
		"LANDFALL_ATTEMPT="+strconv.Itoa(r.Attempt),
	)
}

// runHook runs a command of the configuration within its time. Before it begins it is in the
// journal, so that the next host finds it if this one is killed.
func (s *Service) runHook(ctx context.Context, command string, r *record) (output string, err error) {
	if command == "" {
		return "", nil
	}
	s.cfg.Logger.Info("running a hook", "phase", r.Phase, "key", r.To.Key, "attempt", r.Attempt)
	return hook.Hook{
		Args: hook.Shell(command), Dir: s.dir, Env: s.environment(*r), Limit: s.cfg.HookTimeout,
		Started: func(p hook.Process) error {
			r.Hook = p
			return s.note(*r)
		},
	}.Run(ctx)
}
