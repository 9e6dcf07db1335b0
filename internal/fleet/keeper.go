package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/landfall-dist/landfall/internal/goal"
)

// maxNamed is how many agents a reason names.
const maxNamed = 4

// grant is what the keeper has allowed an agent.
type grant struct {
	now map[string]int // by zone
	// most is the greatest that the agent may go by, as long as it does not heed number.
	most   map[string]int
	number int64
}

// newGrant is one that its agent goes by already.
func newGrant(zones map[string]int) *grant {
	g := &grant{now: zones, most: make(map[string]int, len(zones))}
	maps.Copy(g.most, zones)
	return g
}

// said is what the keeper tells of a count.
func (c *counter) said(s *shared) *allowances {
	out := &allowances{counted: counted{c.lease.term, s.number}, Most: s.most, Waits: s.waits}
	for name, g := range s.grants {
		if t := s.heard[name]; t != nil && slices.Contains(c.members, name) {
			if out.Agents == nil {
				out.Agents = make(map[string]allowance)
			}
			out.Agents[name] = allowance{t.At, g.now}
		}
	}
	return out
}

// waitsFor says what the keeper lacks; empty for nothing.
func (c *counter) waitsFor(s *shared, g *goal.Goal) string {
	var silent []string
	for _, name := range c.members {
		if t := s.heard[name]; name != c.name && (t == nil || t.Heeds.Term != c.lease.term) {
			silent = append(silent, name)
		}
	}
	switch l := &c.lease; {
	case g == nil:
		return "the agent that counts the region's hosts has no goal of the service"
	case len(silent) > 0:
		return fmt.Sprintf("%s has not told its hosts", strings.Join(silent, ", "))
	case l.before > 0:
		return fmt.Sprintf("%d hosts were known before, they may be switching: until they are back, at most %s", l.before, silentFor)
	}
	return ""
}

// kept says for whom places are kept; empty for nobody.
func (c *counter) kept(s *shared) string {
	var gone []string
	held, lost := 0, 0
	for _, name := range slices.Sorted(maps.Keys(s.heard)) {
		for _, z := range s.heard[name].Zones {
			if !slices.Contains(c.members, name) {
				held += z.Held
			} else {
				lost += z.Lost
			}
		}
		if c.isGone(name) && len(gone) < maxNamed {
			gone = append(gone, name)
		}
	}
	switch {
	case held > 0:
		return fmt.Sprintf("%d hosts of %s, which is gone, may be switching: until they are back, at most %s", held, strings.Join(gone, ", "), silentFor)
	case lost > 0:
		return fmt.Sprintf("%d hosts without a stream may be switching: until they are back, at most %s", lost, silentFor)
	}
	return ""
}

// count says, as the keeper, how many of each agent's hosts may switch.
func (c *counter) count(s *shared, g *goal.Goal) {
	if s.waits = c.waitsFor(s, g); s.waits != "" {
		s.most = 0
		return
	}
	total, zones := 0, make(map[string]int)
	for _, name := range c.members { // hosts of those that are gone come to these
		for zone, z := range s.heard[name].Zones {
			zones[zone] += z.Here
			total += z.Here
		}
	}
	// What each agent may go by, at most: what was allowed, until it says that it heeds less.
	for _, name := range c.members {
		r := s.grants[name]
		if r == nil {
			r = newGrant(nil)
			s.grants[name] = r
		}
		if s.heard[name].Heeds.Number >= r.number {
			r.most = newGrant(r.now).most
		}
	}
	taken, takenIn, pairs := 0, make(map[string]int), 0
	take := func(zone string, n int) { taken += n; takenIn[zone] += n }
	for name, t := range s.heard {
		r := s.grants[name]
		for zone, z := range t.Zones {
			held := z.Held
			if r != nil {
				held = max(held, r.most[zone])
			}
			take(zone, held)
		}
		if r != nil {
			for zone, n := range r.most {
				if _, there := t.Zones[zone]; !there {
					take(zone, n)
				}
			}
		}
	}
	all := most(g, total)
	inZone := make(map[string]int, len(zones))
	for zone, hosts := range zones {
		inZone[zone] = most(g, hosts)
	}
	s.most, s.waits = all, c.kept(s)
	next := make(map[string]map[string]int)
	for _, name := range c.members {
		next[name] = make(map[string]int)
		for zone, n := range s.grants[name].now {
			// Back goes what is not used, and, where there are fewer hosts than before, what is
			// above the share.
			z := s.heard[name].Zones[zone]
			keep := min(n, z.Held+z.Asking)
			if taken > all || takenIn[zone] > inZone[zone] {
				keep = min(n, z.Held)
			}
			if keep > 0 {
				next[name][zone] = keep
				pairs++
			}
		}
	}
	// A part of what is left to who has the fewest, again and again.
	for {
		var agent, where string
		fewest, open := 0, 0
		for _, name := range c.members {
			for zone, z := range s.heard[name].Zones {
				n := max(next[name][zone], z.Held)
				switch {
				case z.Asking == 0, z.Held+z.Asking <= next[name][zone], takenIn[zone] >= inZone[zone]:
					continue
				case next[name][zone] == 0 && pairs >= maxAllowed:
					continue
				case agent == "" || n < fewest || n == fewest && (name < agent || name == agent && zone < where):
					agent, where, fewest = name, zone, n
				}
				open++
			}
		}
		if agent == "" {
			break
		}
		// What it has counts in already, and so does what it may still go by.
		z, left := s.heard[agent].Zones[where], all-taken
		has := max(s.grants[agent].most[where], z.Held)
		to := min(fewest+max(1, left/(4*open)), z.Held+z.Asking, has+min(left, inZone[where]-takenIn[where]))
		if to <= fewest {
			break
		}
		take(where, max(0, to-has))
		if next[agent][where] == 0 {
			pairs++
		}
		next[agent][where] = to
	}
	for _, name := range c.members {
		if r := s.grants[name]; !maps.Equal(r.now, next[name]) {
			r.now = next[name]
			for zone, n := range r.now {
				r.most[zone] = max(r.most[zone], n)
			}
			r.number = s.number + 1
		}
	}
	for _, name := range c.members {
		if s.grants[name].number > s.number {
			s.number++
			break
		}
	}
	s.allowed, s.heeds, s.until, s.moved = s.grants[c.name].now, counted{c.lease.term, s.number}, c.lease.until, nil
}

// most is how many of so many hosts may switch at a time. A share that is less than one host
// would keep all where they are.
func most(g *goal.Goal, hosts int) int {
	if g.Now {
		return hosts
	}
	return max(1, g.MaxUnavailable.Of(hosts))
}
