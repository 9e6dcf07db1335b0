package goal

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What a host is under its service's goal.
const (
	// Waiting hosts do not hold the target yet.
	Waiting = "waiting"
	// Ready hosts hold the target and run what they are to run.
	Ready = "ready"
	// Switching hosts have leave to switch.
	Switching = "switching"
	// Healthy hosts run the target, and their check says so.
	Healthy = "healthy"
	// Failed hosts were told to switch and could not, are unhealthy since, or were not heard
	// of for two minutes.
	Failed = "failed"
	// Absent hosts were not heard of before they were told to switch.
	Absent = "absent"
	// Sick hosts were unhealthy before they were told to switch.
	Sick = "sick"
)

const (
	// MaxFailures bounds the failures that one message about a service has.
	MaxFailures = 8
	// MaxOutput bounds the last lines of a hook in bytes, MaxError an error's text.
	MaxOutput, MaxError = 1 << 10, 512
	// MaxZones bounds the zones of a region that an agent counts apart, MaxZone a zone's name
	// in bytes.
	MaxZones, MaxZone = 16, 63
	// MaxHosts bounds the hosts of an agent, and of a roster.
	MaxHosts = 1_000_000
	// MaxHostsOfAgent bounds the hosts of one service that an agent answers with.
	MaxHostsOfAgent = 100_000
)

// Counts are what one agent tells seeders of the hosts that have a stream to it and run one
// service: at most once a second, when they have changed, else every ten seconds, also
// where there are none.
type Counts struct {
	Service string `json:"service"`
	// Version is the goal's that they are counted under.
	Version int64 `json:"version"`
	InStates
	// Below are those below the cut in whichever state, Out those of them that are absent,
	// sick, or held and not healthy. Below are all where there is no cut: the stable build is
	// the target.
	Below int `json:"below,omitempty"`
	Out   int `json:"out,omitempty"`
	// Silent are those of Failed that were not heard of for two minutes.
	Silent int `json:"silent,omitempty"`
	// Zones are the same hosts by zone: the MaxZones that have most, in order of name. None
	// where no host says that it is in one.
	Zones []Zone `json:"zones,omitempty"`
	// Failures are those that were not told before, at most MaxFailures.
	Failures []Failure `json:"failures,omitempty"`
}

// Zone are the hosts of one zone.
type Zone struct {
	Zone string `json:"zone"` // empty for hosts that are in none
	InStates
}

// InStates are how many hosts are in which state.
type InStates struct {
	// Hosts are all, each of which is in one of the states.
	Hosts     int `json:"hosts"`
	Waiting   int `json:"waiting,omitempty"`
	Ready     int `json:"ready,omitempty"`
	Switching int `json:"switching,omitempty"`
	Healthy   int `json:"healthy,omitempty"`
	Failed    int `json:"failed,omitempty"`
	Absent    int `json:"absent,omitempty"`
	Sick      int `json:"sick,omitempty"`
	// OnTarget are those that run the target now, healthy or not.
	OnTarget int `json:"onTarget,omitempty"`
	// HoldStable are those that run the stable build or hold it whole: going back fetches
	// nothing there.
	HoldStable int `json:"holdStable,omitempty"`
}

// Count counts a host in a state, which runs the target or does not, and holds the stable
// build or does not.
func (c *InStates) Count(state string, onTarget, holdsStable bool) {
	c.Hosts++
	if of := c.of(state); of != nil {
		*of++
	}
	if onTarget {
		c.OnTarget++
	}
	if holdsStable {
		c.HoldStable++
	}
}

func (c *InStates) of(state string) *int {
	switch state {
	case Waiting:
		return &c.Waiting
	case Ready:
		return &c.Ready
	case Switching:
		return &c.Switching
	case Healthy:
		return &c.Healthy
	case Failed:
		return &c.Failed
	case Absent:
		return &c.Absent
	case Sick:
		return &c.Sick
	}
	return nil
}

// numbers are all of it.
func (c *InStates) numbers() []*int {
	return []*int{&c.Hosts, &c.Waiting, &c.Ready, &c.Switching, &c.Healthy, &c.Failed, &c.Absent, &c.Sick, &c.OnTarget, &c.HoldStable}
}

// Add adds other hosts.
func (c *InStates) Add(more InStates) {
	others := more.numbers()
	for i, n := range c.numbers() {
		*n += *others[i]
	}
}

func (c *InStates) check() error {
	for _, n := range c.numbers() {
		if *n < 0 || *n > MaxHosts {
			return fmt.Errorf("%w: %d hosts", ErrInvalid, *n)
		}
	}
	return nil
}

func (z *Zone) check() error {
	if len(z.Zone) > MaxZone {
		return fmt.Errorf("%w: a zone's name of %d bytes, at most %d", ErrInvalid, len(z.Zone), MaxZone)
	}
	if err := z.InStates.check(); err != nil {
		return fmt.Errorf("zone %.80q: %w", z.Zone, err)
	}
	return nil
}

// JoinZones are the zones of either, each once, in order of name.
func JoinZones(a, b []Zone) []Zone {
	if len(a) == 0 || len(b) == 0 {
		return append(a, b...)
	}
	out := slices.Concat(a, b)
	slices.SortStableFunc(out, func(x, y Zone) int { return strings.Compare(x.Zone, y.Zone) })
	n := 0
	for _, z := range out[1:] {
		if to := &out[n]; to.Zone == z.Zone {
			to.Add(z.InStates)
			continue
		}
		n++
		out[n] = z
	}
	return out[:n+1]
}

// Largest are the zones with most hosts, not more than so many, in order of name.
func Largest(zones []Zone, most int) []Zone {
	if len(zones) > most {
		slices.SortFunc(zones, func(a, b Zone) int { return cmp.Or(cmp.Compare(b.Hosts, a.Hosts), strings.Compare(a.Zone, b.Zone)) })
		zones = zones[:most]
	}
	slices.SortFunc(zones, func(a, b Zone) int { return strings.Compare(a.Zone, b.Zone) })
	return zones
}

// Failure is why a host does not run what it should.
type Failure struct {
	Host    string `json:"host"`
	Version int64  `json:"version"` // of the goal
	Phase   string `json:"phase,omitempty"`
	Error   string `json:"error,omitempty"`
	// Output is a hook's last lines.
	Output string    `json:"output,omitempty"`
	At     time.Time `json:"at"`
}

// Check reports what is wrong with counts from the network.
func (c *Counts) Check() error {
	if err := CheckService(c.Service); err != nil {
		return err
	}
	if err := c.InStates.check(); err != nil {
		return fmt.Errorf("counts of %s: %w", c.Service, err)
	}
	for _, n := range []int{c.Below, c.Out, c.Silent} {
		if n < 0 || n > MaxHosts {
			return fmt.Errorf("%w: counts of %s: %d hosts", ErrInvalid, c.Service, n)
		}
	}
	if len(c.Failures) > MaxFailures {
		return fmt.Errorf("%w: %d failures of %s, at most %d", ErrInvalid, len(c.Failures), c.Service, MaxFailures)
	}
	if len(c.Zones) > MaxZones {
		return fmt.Errorf("%w: %d zones of %s, at most %d", ErrInvalid, len(c.Zones), c.Service, MaxZones)
	}
	for i := range c.Zones {
		if i > 0 && c.Zones[i-1].Zone >= c.Zones[i].Zone {
			return fmt.Errorf("%w: the zones of %s are not in order", ErrInvalid, c.Service)
		}
		if err := c.Zones[i].check(); err != nil {
			return err
		}
	}
	for i := range c.Failures {
		f := &c.Failures[i]
		if err := CheckName("host", f.Host); err != nil {
			return err
		}
		f.Phase, f.Error, f.Output = first(f.Phase, 32), first(f.Error, MaxError), last(f.Output, MaxOutput)
	}
	return nil
}

// first is the beginning of a text, last its end: of at most n bytes, whole characters.
func first(s string, n int) string { return strings.ToValidUTF8(s[:min(n, len(s))], "") }

func last(s string, n int) string { return strings.ToValidUTF8(s[max(0, len(s)-n):], "") }
