package fleet

import (
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	// reportAgain is how often a service is reported of which nothing has changed.
	reportAgain = 10 * time.Second
	// maxFailures bounds the failures of a service that were not reported yet; more are
	// counted alone.
	maxFailures = 1000
)

// counting is what seeders are told of a service.
type counting struct {
	dirty    bool // something has changed since now was counted
	now      goal.Counts
	reported time.Time
	told     goal.Counts // without failures
	failures []goal.Failure
	omitted  int // failures beyond maxFailures
}

// failed notes a failure, to be told at once.
func (m *machine) failed(r *running, f goal.Failure) {
	m.stats.failures++
	c := &r.service.counts
	if len(c.failures) >= maxFailures {
		c.omitted++
		return
	}
	c.failures = append(c.failures, f)
}

// told reports whether a host was told to switch: what goes wrong with it from then on is a
// failure.
func (r *running) told() bool {
	if r.leave.counted || r.leave.switches || r.state.State == goal.Failed {
		return true
	}
	g := r.service.goal
	return g != nil && r.state.Running == g.Target.ExecutionID
}

// held reports whether a host is to stay with what it runs.
func (r *running) held() bool {
	g := r.service.goal
	return g != nil && slices.Contains(g.Held, r.host.name)
}

// below reports whether a host is one of those that the goal has run the target.
func (m *machine) below(r *running) bool {
	g := r.service.goal
	if g == nil {
		return false
	}
	build := g.Named(m.region, r.host.name)
	return build != nil && build.ExecutionID == g.Target.ExecutionID
}

// stateOf is the state that a host is counted under: what it says, as far as that can be.
// What fails on a host before its turn, or on one that is held, is no failure of the target.
func (m *machine) stateOf(r *running) string {
	if lost := r.host.lostAt; !lost.IsZero() {
		switch {
		case !r.told() || r.held() || !m.below(r):
			return goal.Absent
		case r.silent:
			return goal.Failed
		}
	}
	g := r.service.goal
	switch said := r.state.State; said {
	case goal.Switching:
		return said
	case goal.Failed:
		if g != nil && (r.held() || !m.below(r)) {
			return goal.Sick // nobody tells it to switch any more, or yet
		}
		return said
	case goal.Sick:
		if g != nil && r.state.Running == g.Target.ExecutionID {
			return goal.Failed // it runs what it was told to
		}
		return said
	case goal.Ready:
		return said // it may have dropped the bytes for the release that it has made of them
	case goal.Healthy: // of the build before it is the last that was said: host's atRest
		if g == nil || r.state.Running == g.Target.ExecutionID {
			return said
		}
	}
	if g != nil && r.state.Error == "" && r.host.whole[g.Target.ExecutionID] {
		return goal.Ready
	}
	return goal.Waiting
}

// count counts a service's hosts.
func (m *machine) counted(s *service) goal.Counts {
	c := &s.counts
	if !c.dirty {
		return c.now
	}
	c.dirty = false
	n := goal.Counts{Service: s.name}
	target, stable := "", ""
	if s.goal != nil {
		n.Version, target = s.goal.Version, s.goal.Target.ExecutionID
		if s.goal.Stable != nil {
			stable = s.goal.Stable.ExecutionID
		}
	}
	zones := make(map[string]*goal.Zone)
	for _, r := range s.hosts {
		state := m.stateOf(r)
		z := zones[r.host.zone]
		if z == nil {
			z = &goal.Zone{Zone: r.host.zone}
			zones[z.Zone] = z
		}
		z.Count(state, target != "" && r.state.Running == target, stable != "" && (r.state.Running == stable || r.host.whole[stable]))
		if s.goal == nil {
			continue
		}
		if state == goal.Failed && r.silent {
			n.Silent++
		}
		if m.below(r) {
			n.Below++
			if state == goal.Absent || state == goal.Sick || state != goal.Healthy && r.held() {
				n.Out++
			}
		}
	}
	for _, z := range zones {
		n.InStates.Add(z.InStates)
	}
	if _, none := zones[""]; len(zones) > 1 || len(zones) == 1 && !none {
		for _, z := range zones {
			n.Zones = append(n.Zones, *z)
		}
		n.Zones = goal.Largest(n.Zones, goal.MaxZones)
	}
	c.now = n
	return n
}

// report is what seeders are to be told now: services whose counts have changed, that have
// failures, or of which nothing was told for reportAgain.
func (m *machine) report() (counts []goal.Counts) {
	for _, s := range m.services {
		if s.goal == nil {
			continue
		}
		c := &s.counts
		n := m.counted(s)
		if same(n, c.told) && len(c.failures) == 0 && m.now.Sub(c.reported) < reportAgain {
			continue
		}
		c.told, c.reported = n, m.now
		told := min(len(c.failures), goal.MaxFailures)
		n.Failures = slices.Clone(c.failures[:told])
		if c.failures = c.failures[told:]; len(c.failures) == 0 {
			c.failures = nil
		}
		if c.omitted > 0 && c.failures == nil {
			m.warn("failures were counted and not told one by one, there were too many at a time", "service", s.name, "failures", c.omitted)
			c.omitted = 0
		}
		counts = append(counts, n)
	}
	return counts
}

func same(a, b goal.Counts) bool {
	a.Failures, b.Failures = nil, nil
	return a.Service == b.Service && a.Version == b.Version && a.Hosts == b.Hosts && a.Waiting == b.Waiting && a.Ready == b.Ready &&
		a.Switching == b.Switching && a.Healthy == b.Healthy && a.Failed == b.Failed && a.Absent == b.Absent && a.Sick == b.Sick &&
		a.OnTarget == b.OnTarget && a.HoldStable == b.HoldStable && a.Below == b.Below && a.Out == b.Out && a.Silent == b.Silent && slices.Equal(a.Zones, b.Zones)
}

// roster is the hashes of a service's hosts that were seen of late, in order. Those that
// are held are in none: no wave has them switch.
func (m *machine) roster(name string) []uint32 {
	s := m.services[name]
	if s == nil {
		return nil
	}
	var held []string
	if s.goal != nil {
		held = s.goal.Held
	}
	hashes := make([]uint32, 0, len(s.hosts))
	for _, r := range s.hosts {
		if lost := r.host.lostAt; !lost.IsZero() && m.now.Sub(lost) > seenFor || slices.Contains(held, r.host.name) {
			continue
		}
		hashes = append(hashes, uint32(goal.HashOf(name, r.host.name)))
	}
	slices.Sort(hashes)
	return hashes
}

// list is a service's hosts in a state, all for the empty one, whose names come after one in
// their order, and not more than most; all is how many there are in that state, rest how many
// come after the last.
func (m *machine) list(name, state, after string, most int) (all, rest int, hosts []api.HostView) {
	s := m.services[name]
	if s == nil {
		return 0, 0, nil
	}
	var found []*running
	for _, r := range s.hosts {
		if state == "" || m.stateOf(r) == state {
			if all++; r.host.name > after {
				found = append(found, r)
			}
		}
	}
	slices.SortFunc(found, func(a, b *running) int { return strings.Compare(a.host.name, b.host.name) })
	for _, r := range found[:min(len(found), most)] {
		seen := r.host.lostAt
		if seen.IsZero() {
			seen = m.now
		}
		seen = seen.UTC()
		hosts = append(hosts, api.HostView{
			Host: r.host.name, Region: m.region, Zone: r.host.zone, Labels: r.host.labels, Program: r.host.program, State: m.stateOf(r), Running: r.state.Running, Version: r.state.Goal,
			Held:  r.held(),
			Phase: r.state.Phase, Error: r.state.Error, Output: r.state.Output, SeenAt: &seen,
		})
	}
	return all, len(found) - len(hosts), hosts
}

// recipe is what hosts were told of a build.
type recipe struct {
	told  hostwire.Recipe
	whole hostwire.Encoded // told, for who comes later
}

// sendRecipe tells a host what the others were told of a build.
func (m *machine) sendRecipe(h *host, id string) {
	if r := m.recipes[id]; r != nil {
		m.send(h, recipeName(id, 0), r.whole)
	}
}

func recipeName(id string, from int) string {
	if from == 0 {
		return "recipe/" + id
	}
	return "recipe/" + id + "/" + string(rune(from))
}

// cook tells hosts what is known newly of the builds of their services' goals.
func (m *machine) cook(look func(executionID string) (hostwire.Recipe, bool)) {
	wanted := make(map[string][]*service)
	for _, s := range m.services {
		for _, id := range s.builds() {
			wanted[id] = append(wanted[id], s)
		}
	}
	for id := range m.recipes {
		if wanted[id] == nil {
			delete(m.recipes, id)
		}
	}
	for id, services := range wanted {
		before := m.recipes[id]
		if before != nil && before.told.Sealed {
			continue
		}
		now, ok := look(id)
		if !ok {
			continue
		}
		more := &now
		if before != nil {
			if more = now.More(&before.told); more == nil {
				continue
			}
		}
		whole, err := hostwire.Encode(&now)
		if err != nil {
			m.warn("hosts are not told of a build, which is not as one can be", "executionId", id, "error", err)
			continue
		}
		e := whole
		if more.From > 0 {
			e = encode(more)
		}
		m.recipes[id] = &recipe{now, whole}
		for _, s := range services {
			for _, r := range s.hosts {
				if !r.host.whole[id] {
					m.send(r.host, recipeName(id, more.From), e)
				}
			}
		}
	}
}
