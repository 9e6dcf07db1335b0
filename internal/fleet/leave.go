package fleet

import (
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	// leaveFor is how long after its leave has come a host may begin to switch.
	leaveFor = 30 * time.Second
	// lapseAfter is when a leave that was not used is given to others: the message may have
	// been on its way until its stream would have been lost.
	lapseAfter = leaveFor + hostwire.LostAfter
	// maxSwitching is how long a host that switches keeps others from it: hooks have limits
	// of their own, and what takes longer than this has none.
	maxSwitching = 30 * time.Minute
)

// leave is what a host has of leave to switch one service.
type leave struct {
	// asks: it is among those of its zone that ask.
	asks bool
	// given: it was told that it may switch, for this version of the goal, at that time, and
	// has neither begun nor said otherwise.
	given   bool
	version int64
	at      time.Time
	// switches: it has said that it does, since then. overdue: for longer than maxSwitching.
	switches, overdue bool
	since             time.Time
	// counted: it is one of those that may be unavailable at a time.
	counted bool
}

// wants reports whether a host is to have leave: it says what it would switch to, and that
// is what the goal has it run.
func (m *machine) wants(r *running) bool {
	g := r.service.goal
	if g == nil || r.host.link == nil || r.state.Wants == "" || r.leave.switches || r.state.Wants == r.state.Running {
		return false
	}
	build := g.For(m.region, r.host.name)
	return build != nil && build.ExecutionID == r.state.Wants && g.Leave(m.region, r.host.name, r.state.Running)
}

// heed does what follows for its leave from what a host has said.
func (m *machine) heed(r *running) {
	l := &r.leave
	switch {
	case r.state.State == goal.Switching:
		// Without leave, too: it may have got it from another agent, or of this one's former
		// start.
		if !l.switches {
			l.switches, l.since = true, m.now
		}
		l.given = false
		if !l.overdue {
			m.count(r)
		}
	case l.switches:
		l.switches, l.overdue = false, false
		m.release(r)
	case l.given && m.wants(r): // said before it heard of its leave
	default:
		l.given = false
		m.release(r)
	}
	m.ask(r)
}

// ask has a host that wants leave wait for it. One that has it for an earlier version gets
// it for this one.
func (m *machine) ask(r *running) {
	l := &r.leave
	if !m.wants(r) {
		return
	}
	if l.given {
		if l.version != r.service.goal.Version {
			m.give(r)
		}
		return
	}
	if !l.asks {
		l.asks = true
		r.zone.asking = append(r.zone.asking, r)
		m.countDue = true
	}
}

// count has a host be one of those that may be unavailable.
func (m *machine) count(r *running) {
	if !r.leave.counted {
		r.leave.counted = true
		r.service.switching++
		r.zone.switching++
	}
}

func (m *machine) release(r *running) {
	if r.leave.counted {
		r.leave.counted = false
		r.service.switching--
		r.zone.switching--
	}
}

func (m *machine) give(r *running) {
	l := &r.leave
	m.count(r)
	l.given, l.version, l.at = true, r.service.goal.Version, m.now
	m.stats.leaves++
	m.send(r.host, "leave/"+r.service.name, encode(&hostwire.Leave{Service: r.service.name, Version: l.version, Seconds: int(leaveFor / time.Second)}))
}

// grant gives leave to as many hosts as may be unavailable beside those that are: of the
// region and, so that no zone loses more than its share, of each zone, as the region's
// count has it. Without one it is of this agent's hosts. A host that lies about its zone
// gains nothing by it.
func (m *machine) grant(s *service) {
	if s.goal == nil {
		return
	}
	all := most(s.goal, len(s.hosts))
	for _, z := range s.zones {
		if len(z.asking) == 0 {
			continue
		}
		inZone := most(s.goal, z.hosts)
		if m.counter != nil && !s.goal.Now {
			all, inZone = len(s.hosts), m.counter.allows(s.name, z.name, m.now)
		}
		taken := 0
		for _, r := range z.asking {
			if m.wants(r) {
				if s.switching >= all || z.switching >= inZone {
					break
				}
				m.give(r)
			}
			r.leave.asks = false
			taken++
		}
		if z.asking = slices.Delete(z.asking, 0, taken); len(z.asking) == 0 {
			z.asking = nil
		}
	}
}

// tallies is how this agent's hosts stand, by service and zone.
func (m *machine) tallies() map[string]map[string]zoneTally {
	all := make(map[string]map[string]zoneTally)
	for _, s := range m.services {
		if s.goal == nil || len(s.hosts) == 0 {
			continue
		}
		zones := make(map[string]zoneTally, len(s.zones))
		for _, z := range s.zones {
			asking := 0
			for _, r := range z.asking {
				if m.wants(r) {
					asking++
				}
			}
			zones[z.name] = zoneTally{Held: z.switching, Asking: asking}
		}
		for _, r := range s.hosts {
			z, here := zones[r.zone.name], r.host.link != nil || r.leave.counted
			if r.leave.counted && r.host.link == nil {
				z.Lost++
			}
			if here {
				z.Here++
			}
			if here || m.now.Sub(r.host.lostAt) < silentFor {
				z.Known++
			}
			zones[r.zone.name] = z
		}
		all[s.name] = zones
	}
	return all
}

// recount takes part in the region's count, and gives leave as far as that allows.
func (m *machine) recount() (letters []told, do *errand) {
	m.countDue = false
	if m.counter == nil {
		return nil, nil
	}
	letters, do = m.counter.step(m.tallies(), func(service string) *goal.Goal {
		if s := m.services[service]; s != nil {
			return s.goal
		}
		return nil
	}, m.now)
	for _, s := range m.services {
		m.grant(s)
		if why, usual := m.counter.why(s.name, m.now); why != "" && !usual {
			m.warn("hosts wait for leave to switch", "service", s.name, "reason", why)
		}
	}
	return letters, do
}

// moved lets a host go that is lost here and has its stream to another agent of the region.
func (m *machine) moved(h *host) {
	for _, r := range h.services {
		if r.leave.counted && m.counter != nil {
			m.counter.moves(r.service.name, r.zone.name)
		}
	}
	m.forget(h)
}

// lapse takes leave back that was not used, and goes on without hosts that do not come to
// an end.
func (m *machine) lapse(s *service) {
	lapsed := false
	for _, r := range s.hosts {
		l := &r.leave
		switch {
		case r.host.link == nil: // it may switch, and missing deals with it
		case l.given && m.now.Sub(l.at) >= lapseAfter:
			l.given = false
			m.stats.leavesLapsed++
			m.warn("host has not used its leave to switch, others get it", "host", r.host.name, "service", s.name)
			m.release(r)
			m.ask(r)
			lapsed = true
		case l.switches && !l.overdue && m.now.Sub(l.since) >= maxSwitching:
			l.overdue = true
			m.warn("host has been switching for too long, others go on without it", "host", r.host.name, "service", s.name, "phase", r.state.Phase)
			m.release(r)
			lapsed = true
		}
	}
	if lapsed {
		m.grant(s)
	}
}
