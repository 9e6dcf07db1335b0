package deployment

import (
	"maps"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
)

// State is the deployment's as people are told: Baking is a wave that is healthy.
func (m *Machine) State() string {
	d := m.s.Current
	if d == nil {
		return ""
	}
	if d.State == Wave && !m.healthy.IsZero() {
		return Baking
	}
	return d.State
}

// Waits is what it waits for, in words; empty for nothing.
func (m *Machine) Waits() []string {
	if m.next != nil {
		return []string{"waits for the table to be written"}
	}
	return m.waits
}

// Closed are the regions that keep the gate closed.
func (m *Machine) Closed() []string {
	d := m.s.Current
	if d == nil || d.Over() || d.State == GoingBack {
		return nil
	}
	return m.closed()
}

// Regions are those where the service has hosts, as far as known.
func (m *Machine) Regions() []string {
	all := make(map[string]bool)
	if d := m.s.Current; d != nil {
		for name := range d.Regions {
			all[name] = true
		}
	}
	for name, of := range m.counts {
		for _, c := range of {
			all[name] = all[name] || c.Hosts > 0
		}
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(name string) bool { return !all[name] })
}

// Counts are a region's, the newest of each agent that lives, and when the oldest of them
// came; zero where none did.
func (m *Machine) Counts(region string) (c goal.Counts, at time.Time) {
	c.Service = m.s.Name
	for agent, of := range m.counts[region] {
		if !slices.Contains(m.living[region], agent) {
			continue
		}
		c = add(c, of.Counts)
		if at.IsZero() || of.at.Before(at) {
			at = of.at
		}
	}
	return c, at
}

// Total are the counts of all regions, without zones: two regions may call theirs the same.
func (m *Machine) Total() (c goal.Counts) {
	c.Service, c.Version = m.s.Name, m.s.Version
	for _, name := range m.Regions() {
		of, _ := m.Counts(name)
		of.Zones = nil
		c = add(c, of)
	}
	return c
}

// Gates are the values of Policy.Gate.
func Gates() []string { return []string{api.GateAll, api.GateRegion, api.GateNone} }
