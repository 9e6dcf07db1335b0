// Package deployment decides how a service gets from one build to another: when the gate
// opens, which hosts switch with which wave, when the next wave follows, when it stops or
// goes back. Machine is a state machine without I/O, locks or a clock of its own: Step
// takes an event and returns what follows; whoever runs it writes goals into the table,
// sends them, and says what agents count.
package deployment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
)

// States of a deployment. Baking is Wave whose hosts are all healthy.
const (
	Gate      = api.DeploymentGate
	Wave      = api.DeploymentWave
	Baking    = api.DeploymentBaking
	Paused    = api.DeploymentPaused
	GoingBack = api.DeploymentBack
	Done      = api.DeploymentDone
	Stopped   = api.DeploymentStopped
	WentBack  = api.DeploymentWentBack
)

// What a policy says where nobody says otherwise.
const (
	DefaultWaves          = "1%,10%,100%"
	DefaultBake           = 2 * time.Minute
	DefaultMaxFailed      = goal.Share("1%")
	DefaultMaxUnavailable = goal.Share("10%")
	DefaultGate           = api.GateAll
)

const (
	// maxWaves bounds the waves of one deployment.
	maxWaves = 20
	// MaxTime bounds the times of a policy.
	MaxTime = 30 * 24 * time.Hour
	// maxWaveCheck bounds the URL or the program's name that is asked before a wave, in bytes.
	maxWaveCheck = 1 << 10
)

// ErrPolicy is wrapped by errors about a policy that cannot be followed.
var ErrPolicy = errors.New("policy")

// Policy is how a deployment goes.
type Policy struct {
	// Waves are the shares of a region's hosts that run the target one after the other; the
	// last is all of them.
	Waves []goal.Share `json:"waves"`
	// Bake is how long a wave has to be healthy before the next begins.
	Bake time.Duration `json:"bake"`
	// MaxFailed is the share of the hosts below the cut that may have failed.
	MaxFailed goal.Share `json:"maxFailed"`
	// MaxUnavailable is as in goal.Goal.
	MaxUnavailable goal.Share `json:"maxUnavailable"`
	// Gate is one of api's.
	Gate string `json:"gate"`
	// GateTimeout stops a deployment that still waits for a region then; 0 for never.
	GateTimeout time.Duration `json:"gateTimeout,omitempty"`
	// WaveCheck is a URL, or the name of a program, that is asked before each wave; empty for
	// neither.
	WaveCheck string `json:"waveCheck,omitempty"`
	// AutoRollback goes back to the stable build where it would stop for failures.
	AutoRollback bool `json:"autoRollback,omitempty"`
}

// Complete puts the defaults where nothing is said, appends the wave of all hosts where the
// last is another, and reports what is wrong: an error that wraps ErrPolicy.
func (p *Policy) Complete() error {
	if len(p.Waves) == 0 {
		p.Waves = []goal.Share{"1%", "10%", "100%"}
	}
	if p.MaxFailed == "" {
		p.MaxFailed = DefaultMaxFailed
	}
	if p.MaxUnavailable == "" {
		p.MaxUnavailable = DefaultMaxUnavailable
	}
	if p.Gate == "" {
		p.Gate = DefaultGate
	}
	for _, w := range p.Waves {
		if err := w.Check(); err != nil {
			return fmt.Errorf("%w: wave %w", ErrPolicy, err)
		}
		if w.Of(goal.MaxHosts) == 0 {
			return fmt.Errorf("%w: a wave of no hosts", ErrPolicy)
		}
	}
	if !p.Waves[len(p.Waves)-1].Whole() {
		p.Waves = append(slices.Clip(p.Waves), "100%")
	}
	if err := p.MaxFailed.Check(); err != nil {
		return fmt.Errorf("%w: most failed: %w", ErrPolicy, err)
	}
	if err := p.MaxUnavailable.Check(); err != nil {
		return fmt.Errorf("%w: most unavailable: %w", ErrPolicy, err)
	}
	switch {
	case len(p.Waves) > maxWaves:
		return fmt.Errorf("%w: %d waves, at most %d", ErrPolicy, len(p.Waves), maxWaves)
	case p.MaxUnavailable.Of(goal.MaxHosts) == 0:
		return fmt.Errorf("%w: no host may be unavailable, so none could ever switch", ErrPolicy)
	case p.Bake < 0 || p.Bake > MaxTime:
		return fmt.Errorf("%w: baking for %s, expected 0 to %s", ErrPolicy, p.Bake, MaxTime)
	case p.GateTimeout < 0 || p.GateTimeout > MaxTime:
		return fmt.Errorf("%w: waiting %s for the gate, expected 0 to %s", ErrPolicy, p.GateTimeout, MaxTime)
	case p.Gate != api.GateAll && p.Gate != api.GateRegion && p.Gate != api.GateNone:
		return fmt.Errorf("%w: gate %.20q, expected %s, %s or %s", ErrPolicy, p.Gate, api.GateAll, api.GateRegion, api.GateNone)
	case len(p.WaveCheck) > maxWaveCheck:
		return fmt.Errorf("%w: wave check of %d bytes, at most %d", ErrPolicy, len(p.WaveCheck), maxWaveCheck)
	}
	return nil
}

// Region is a deployment in one region.
type Region struct {
	// Landed is set when the build has.
	Landed bool `json:"landed,omitempty"`
	// Open, Cut and Skipped are as in goal.Region.
	Open    bool  `json:"open,omitempty"`
	Cut     int64 `json:"cut,omitempty"`
	Skipped bool  `json:"skipped,omitempty"`
	// Roster is how many hosts there were when the cut was made, Below how many of them
	// are below it.
	Roster int `json:"roster,omitempty"`
	Below  int `json:"below,omitempty"`
	// Held is how many hosts of the roster are held since: no wave waits for them.
	Held int `json:"held,omitempty"`
	// Unseen is for how long hosts of the roster have been unaccounted for.
	Unseen time.Duration `json:"unseen,omitempty"`
}

// Deployment is one change of what a service runs, as the table keeps it.
type Deployment struct {
	ID   string `json:"deploymentId"` // ULID
	Kind string `json:"kind"`         // api.KindDeploy or api.KindRollback
	// Target is what it brings; Stable the build that a deployment completed with before,
	// nil for none.
	Target goal.Build  `json:"target"`
	Stable *goal.Build `json:"stable,omitempty"`
	Policy Policy      `json:"policy"`
	State  string      `json:"state"`
	// Before is the state that a paused one goes on with.
	Before string `json:"before,omitempty"`
	// Reason is why it is paused, has stopped or has gone back.
	Reason string `json:"reason,omitempty"`
	// Fixed is set when its regions are known, and do not change any more.
	Fixed   bool              `json:"fixed,omitempty"`
	Regions map[string]Region `json:"regions,omitempty"`
	// Earlier are regions where the service had hosts in the deployment before.
	Earlier []string `json:"earlier,omitempty"`
	// Wave is which one is open, from 1; 0 before the first.
	Wave int `json:"wave,omitempty"`
	// Now lifts the limit of unavailable hosts of a roll-back.
	Now     bool      `json:"now,omitempty"`
	By      string    `json:"by,omitempty"`
	Started time.Time `json:"started"`
	WaveAt  time.Time `json:"waveAt,omitzero"`
	// Waited is for how long it has waited for its gate, Baked for how long its wave has been
	// healthy. Both, and a region's Unseen, stand still while no seeder runs.
	Waited time.Duration `json:"waited,omitempty"`
	Baked  time.Duration `json:"baked,omitempty"`
	Ended  time.Time     `json:"ended,omitzero"`
	// Counts are of all regions when it ended.
	Counts *goal.Counts `json:"counts,omitempty"`
}

// Names are those of its regions, in order.
func (d *Deployment) Names() []string {
	names := slices.AppendSeq(make([]string, 0, len(d.Regions)), maps.Keys(d.Regions))
	slices.Sort(names)
	return names
}

// Over reports whether nothing more happens by itself.
func (d *Deployment) Over() bool {
	return d.State == Done || d.State == Stopped || d.State == WentBack
}

// Service is what the table keeps of a service.
type Service struct {
	Name string
	// Version is that of the newest goal; 0 before the first.
	Version int64
	// Completed is the build that a deployment completed with last; nil for none.
	Completed *goal.Build
	// Current is the newest deployment; nil before the first.
	Current *Deployment
	// Held are hosts that stay with what they run, in order.
	Held []string
}

// clone shares nothing that is changed in place.
func (s Service) clone() Service {
	if s.Current != nil {
		d := *s.Current
		d.Regions = maps.Clone(d.Regions)
		s.Current = &d
	}
	return s
}

// goal is what hosts are told of it.
func (s *Service) goal(version int64, now time.Time) *goal.Goal {
	d := s.Current
	g := &goal.Goal{
		Service: s.Name, Version: version, Deployment: d.ID, Target: d.Target, Stable: d.Stable,
		MaxUnavailable: d.Policy.MaxUnavailable, By: d.By, Issued: now.UTC(),
		Paused: d.State == Paused || d.State == Stopped, Held: s.Held,
	}
	switch d.State {
	case GoingBack, WentBack: // everywhere, through no gate and no wave
		g.Target, g.Done, g.Now = *d.Stable, true, d.Now
		return g
	case Done:
		g.Done = true
	}
	g.Regions = make(map[string]goal.Region, len(d.Regions))
	for name, r := range d.Regions {
		g.Regions[name] = goal.Region{Open: r.Open, Cut: r.Cut, Skipped: r.Skipped}
	}
	return g
}
