package deployment

import (
	"fmt"
	"maps"
	"slices"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
)

// deploy begins a deployment, unless another one is under way.
func (m *Machine) deploy(e Deploy) error {
	if d := m.s.Current; d != nil && !d.Over() {
		return fmt.Errorf("%w: deployment %s of %s is %s: abort it, or roll back, first", ErrState, d.ID, d.Target.Key, d.State)
	}
	if m.recalled[e.Target.SHA256] {
		return fmt.Errorf("%w: %s is recalled", ErrState, e.Target.Key)
	}
	m.change(e.Ask, func(s *Service, d *Deployment) {
		s.Current = &Deployment{
			ID: e.ID, Kind: api.KindDeploy, Target: e.Target, Stable: s.Completed, Policy: e.Policy,
			State: Gate, Earlier: populated(d), By: e.By, Started: m.now.UTC(),
		}
	})
	return nil
}

// populated are the regions where a deployment has seen hosts.
func populated(d *Deployment) (out []string) {
	if d == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(d.Regions)) {
		if d.Regions[name].Roster > 0 {
			out = append(out, name)
		}
	}
	return out
}

// command does what the table of commands and states in docs/fleet.md says.
func (m *Machine) command(e Command) error {
	d := m.s.Current
	if d == nil {
		return fmt.Errorf("%w: nothing was deployed yet", ErrState)
	}
	refused := fmt.Errorf("%w: deployment %s is %s", ErrState, d.ID, d.State)
	running := d.State == Gate || d.State == Wave
	by := ""
	if e.By != "" {
		by = " by " + e.By
	}
	switch e.Kind {
	case api.CommandPause:
		if !running {
			return refused
		}
		m.change(e.Ask, func(_ *Service, d *Deployment) {
			d.Before, d.State, d.Reason = d.State, Paused, "paused"+by
		})
	case api.CommandResume:
		if d.State != Paused {
			return refused
		}
		m.change(e.Ask, func(_ *Service, d *Deployment) { d.State, d.Before, d.Reason = d.Before, "", "" })
	case api.CommandAbort:
		if !running && d.State != Paused {
			return refused
		}
		m.change(e.Ask, func(_ *Service, d *Deployment) { d.State, d.Reason = Stopped, "aborted"+by })
	case api.CommandSkip:
		if !running && d.State != Paused && d.State != GoingBack {
			return refused
		}
		r, ok := d.Regions[e.Region]
		switch {
		case !ok:
			return fmt.Errorf("%w: region %.80q is none of deployment %s, which has %v", ErrState, e.Region, d.ID, slices.Sorted(maps.Keys(d.Regions)))
		case r.Skipped:
			return fmt.Errorf("%w: region %s is skipped already", ErrState, e.Region)
		}
		m.change(e.Ask, func(_ *Service, d *Deployment) {
			r.Skipped = true
			d.Regions[e.Region] = r
		})
	case api.CommandRollback:
		return m.rollback(e, "rolled back"+by)
	case api.CommandHold:
		return m.holdHosts(e)
	case api.CommandRelease:
		return m.releaseHosts(e)
	default:
		return fmt.Errorf("%w: unknown command %.20q", ErrState, e.Kind)
	}
	return nil
}

// holdHosts has hosts stay with what they run, whatever the goal is.
func (m *Machine) holdHosts(e Command) error {
	held := slices.Compact(slices.Sorted(slices.Values(slices.Concat(m.s.Held, e.Hosts))))
	switch {
	case len(held) == len(m.s.Held):
		return fmt.Errorf("%w: held already: %v", ErrState, e.Hosts)
	case len(held) > goal.MaxHeld:
		return fmt.Errorf("%w: that would be %d held hosts, at most %d can be", ErrState, len(held), goal.MaxHeld)
	}
	m.change(e.Ask, func(s *Service, _ *Deployment) {
		s.Held = held
		m.noteHeld(s)
	})
	return nil
}

// releaseHosts has hosts follow the goal again.
func (m *Machine) releaseHosts(e Command) error {
	for _, h := range e.Hosts {
		if !slices.Contains(m.s.Held, h) {
			return fmt.Errorf("%w: host %.80q is not held", ErrState, h)
		}
	}
	m.change(e.Ask, func(s *Service, _ *Deployment) {
		s.Held = slices.DeleteFunc(slices.Clone(s.Held), func(h string) bool { return slices.Contains(e.Hosts, h) })
		m.noteHeld(s)
	})
	return nil
}

// rollback goes back to the stable build. One of a deployment that has ended is a
// deployment of its own.
func (m *Machine) rollback(e Command, reason string) error {
	d := m.s.Current
	switch {
	case d.Stable == nil:
		return fmt.Errorf("%w: there is no stable build to go back to: no deployment before this one has completed", ErrState)
	case m.recalled[d.Stable.SHA256]:
		return fmt.Errorf("%w: the stable build %s is recalled", ErrState, d.Stable.Key)
	case d.State == WentBack:
		return fmt.Errorf("%w: it has gone back already, to %s", ErrState, d.Stable.Key)
	case d.State == GoingBack && (!e.Now || d.Now):
		return fmt.Errorf("%w: it is going back already", ErrState)
	case d.State == GoingBack:
		m.goBack(e.Ask, d.Reason, true)
	case !d.Over():
		m.goBack(e.Ask, reason, e.Now)
	default:
		m.change(e.Ask, func(s *Service, d *Deployment) {
			regions := make(map[string]Region)
			for _, name := range populated(d) {
				regions[name] = Region{Landed: true, Open: true, Cut: goal.Circle, Roster: d.Regions[name].Roster}
			}
			s.Current = &Deployment{
				ID: e.ID, Kind: api.KindRollback, Target: *d.Stable, Stable: d.Stable, Policy: d.Policy,
				State: GoingBack, Reason: reason, Fixed: true, Regions: regions, Now: e.Now, By: e.By, Started: m.now.UTC(),
			}
		})
	}
	return nil
}
