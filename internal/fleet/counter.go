package fleet

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	// allowedFor is how long an allowance holds after the tally that it follows was told, by
	// the clock of who told that.
	allowedFor = 10 * time.Second
	// tellAgain is how often tallies are told of a service whose hosts switch, and leaseAgain
	// how often the lease is written meanwhile. leaseFor is how long after such a write began
	// this process may count: others take the lease arrivals.Patience later.
	tellAgain, leaseAgain = 3 * time.Second, 3 * time.Second
	leaseFor              = arrivals.Patience - 2*time.Second
	_                     = uint(leaseFor - 2*leaseAgain) // one write may fail
	// leaseIdle is how long nobody wants to switch before the lease is given back.
	leaseIdle = 10 * time.Second
	// waitsLong is how long hosts wait for a count before that is said.
	waitsLong = 5 * time.Second
)

// counter is a region's count of hosts that switch, as one of its agents knows it. Each
// agent tells the others its tallies; the one that has the lease answers with how many of
// each agent's hosts may switch at a time. Leave is given by each agent by itself, within
// that. It has no clock and does nothing: the machine's owner tells it what happens, and
// does what step says.
//
// An agent that is gone keeps its part of the count until its hosts are at others, or for
// silentFor: they may be switching, and say so where they come. So does whatever there was
// before a lease that was not given back, until as many hosts are known again.
type counter struct {
	name     string // this agent's, as a member
	began    time.Time
	at       int64                // of the last tally
	members  []string             // this one and the region's others, in order
	gone     map[string]time.Time // members that are none any more
	services map[string]*shared
	// keeper is who counts by what was heard, of the greatest term.
	term   int64
	keeper string
	lease  lease
}

// lease is the own one.
type lease struct {
	term  int64
	until time.Time // by when it must have been written again
	wrote time.Time
	// before are the hosts that were known under the holder before, who did not give the lease
	// back; they are waited for, until settled.
	before  int64
	settled time.Time
	idle    time.Time // since when nobody wants to switch; zero while somebody does
	busy    bool      // something is asked of it
	other   string    // who has it else; empty for nobody that is known
	err     error     // the last try's
}

// shared is the count of one service.
type shared struct {
	heard map[string]*tally // by agent, this one's among them
	told  *tally            // this one's, as the others have it
	// allowed is how many of this agent's hosts may switch by zone, until then.
	allowed map[string]int
	heeds   counted
	until   time.Time
	// most is how many of the region's may at a time, and waits why none, or for whom places
	// are kept, as who counts says.
	most  int
	waits string
	since time.Time // a host waits
	// moved are places of hosts that have gone to other agents with them, since the tally of
	// movedAt: what is allowed by earlier ones is less by so much.
	moved   map[string]int
	movedAt int64
	// Of the keeper.
	number int64
	grants map[string]*grant
}

// told is a tally to be told to the region's other agents.
type told struct {
	service string
	text    []byte
}

// errand is what is to be done with the lease.
type errand struct {
	release bool
	hosts   int64
}

func newCounter(name string, now time.Time) *counter {
	return &counter{name: name, began: now, members: []string{name}, gone: make(map[string]time.Time), services: make(map[string]*shared)}
}

// of is the count of a service; nil where there are too many.
func (c *counter) of(service string) *shared {
	s := c.services[service]
	if s == nil && len(c.services) < goal.MaxServices {
		s = &shared{heard: make(map[string]*tally), grants: make(map[string]*grant), heeds: counted{Term: c.term}}
		c.services[service] = s
	}
	return s
}

// knows notes which agents the region has beside this one.
func (c *counter) knows(others []string, now time.Time) {
	others = slices.Sorted(slices.Values(others))
	members := append([]string{c.name}, others[:min(len(others), hostwire.MaxAgents-1)]...)
	slices.Sort(members)
	for _, name := range c.members {
		if !slices.Contains(members, name) {
			c.gone[name] = now
		}
	}
	c.members = members
	for name, since := range c.gone {
		if slices.Contains(members, name) {
			delete(c.gone, name)
		} else if now.Sub(since) >= silentFor {
			c.forget(name)
		}
	}
}

// isGone reports whether an agent was a member, and keeps its places.
func (c *counter) isGone(name string) bool { _, gone := c.gone[name]; return gone }

// forget lets go of the places of an agent that is gone: its hosts are at others.
func (c *counter) forget(name string) {
	delete(c.gone, name)
	for _, s := range c.services {
		delete(s.heard, name)
		delete(s.grants, name)
	}
}

// known is how many hosts these agents know.
func (s *shared) known(agents []string) (n int) {
	for _, name := range agents {
		if t := s.heard[name]; t != nil {
			for _, z := range t.Zones {
				n += z.Known
			}
		}
	}
	return n
}

// hears takes a tally of another agent.
func (c *counter) hears(from string, t *tally) {
	if !slices.Contains(c.members, from) || from == c.name {
		return
	}
	s := c.of(t.Service)
	if s == nil {
		return
	}
	if last := s.heard[from]; last != nil && last.At >= t.At {
		return // a later one has come before it
	}
	s.heard[from] = t
	k := t.Counts
	if k == nil || k.Term < c.term || k.Term == c.lease.term {
		return
	}
	if k.Term > c.term {
		c.follows(k.Term, from)
	}
	if from != c.keeper || k.Term <= c.lease.term {
		return
	}
	// What others may is known in case that this agent counts when they are gone.
	for name, a := range k.Agents {
		s.grants[name] = newGrant(a.Zones)
	}
	a, ok := k.Agents[c.name]
	if s.most, s.waits = k.Most, k.Waits; !ok {
		return
	}
	if a.Seen >= s.movedAt {
		s.moved = nil
	}
	s.allowed, s.heeds = a.Zones, k.counted
	if until := c.began.Add(time.Duration(a.Seen)*time.Microsecond + allowedFor); a.Seen <= c.at && until.After(s.until) {
		s.until = until
	}
}

// follows goes by the count of a later term: nothing that was allowed before holds.
func (c *counter) follows(term int64, keeper string) {
	c.term, c.keeper = term, keeper
	if term > c.lease.term {
		c.lease.term = 0
	}
	for _, s := range c.services {
		s.allowed, s.heeds, s.until = nil, counted{Term: term}, time.Time{}
	}
}

// leased takes what has become of an errand.
func (c *counter) leased(h arrivals.Held, err error, now time.Time) {
	l := &c.lease
	l.busy, l.err = false, err
	if err != nil {
		return
	}
	if l.other = h.Agent; h.Term == 0 {
		l.term = 0
		return
	}
	l.other, l.until, l.wrote = "", h.Asked.Add(leaseFor), h.Asked
	if h.Term == l.term {
		return
	}
	l.term, l.idle, l.before, l.settled = h.Term, time.Time{}, h.Hosts, now.Add(silentFor)
	if h.Hosts == 0 {
		l.settled = now
	}
	c.follows(h.Term, c.name)
	l.term = h.Term
	for _, s := range c.services {
		s.number = 0
		maps.DeleteFunc(s.grants, func(name string, _ *grant) bool { return slices.Contains(c.members, name) })
	}
}

// keeps reports whether this agent counts.
func (c *counter) keeps(now time.Time) bool { return c.lease.term > 0 && now.Before(c.lease.until) }

// allows is how many hosts of a service may switch in a zone of this agent's.
func (c *counter) allows(service, zone string, now time.Time) int {
	s := c.services[service]
	if s == nil || !now.Before(s.until) {
		return 0
	}
	return max(0, s.allowed[zone]-s.moved[zone])
}

// moves notes that a host has gone to another agent, and its place with it.
func (c *counter) moves(service, zone string) {
	if s := c.services[service]; s != nil {
		if s.moved == nil {
			s.moved = make(map[string]int)
		}
		s.moved[zone]++
		s.movedAt = c.at + 1
	}
}

// why says why hosts of a service that want to switch have waited for long; empty where they
// have not. It is usual when as many switch as may.
func (c *counter) why(service string, now time.Time) (reason string, usual bool) {
	s := c.services[service]
	if s == nil || s.since.IsZero() || now.Sub(s.since) < waitsLong {
		return "", false
	}
	switch l := &c.lease; {
	case l.err != nil && !now.Before(s.until):
		return "who counts the region's hosts that switch cannot be found out: " + l.err.Error(), false
	case s.waits != "":
		return s.waits, false
	case now.Before(s.until):
		return fmt.Sprintf("as many switch as may at a time: of the region %d, of each zone its share", s.most), true
	case l.other != "":
		return l.other + ", which counts the region's hosts that switch, has not answered", false
	}
	return "nobody counts the region's hosts that switch yet", false
}

// step takes how this agent's hosts stand, and returns what the other agents are to be told,
// and what is to be done with the lease; nil for nothing.
func (c *counter) step(own map[string]map[string]zoneTally, goals func(service string) *goal.Goal, now time.Time) (letters []told, do *errand) {
	c.at = max(c.at+1, now.Sub(c.began).Microseconds())
	for service := range own {
		c.of(service)
	}
	all := int64(0)
	asks, idle := false, len(c.gone) == 0
	names := slices.Sorted(maps.Keys(c.services))
	for _, service := range names {
		s := c.services[service]
		s.heard[c.name] = &tally{Service: service, At: c.at, Zones: own[service], Heeds: s.heeds}
		all += int64(s.known(c.members))
	}
	if l := &c.lease; l.before > 0 && (all >= l.before && len(c.gone) == 0 || !now.Before(l.settled)) {
		l.before = 0
	}
	for _, service := range names {
		s := c.services[service]
		if c.keeps(now) {
			c.count(s, goals(service))
		}
		mine := s.heard[c.name]
		mine.Heeds = s.heeds
		if c.keeps(now) {
			mine.Counts = c.said(s)
		}
		active := s.active()
		idle = idle && !active
		asks = asks || asksIn(mine) && !now.Before(s.until)
		switch {
		case !c.lacks(mine, now):
			s.since = time.Time{}
		case s.since.IsZero():
			s.since = now
		}
		if s.told == nil || active && c.at-s.told.At >= tellAgain.Microseconds() || differs(s.told, mine) {
			s.told = mine
			if text, err := json.Marshal(mine); err == nil && len(text) <= MaxTally {
				letters = append(letters, told{service, text})
			}
		}
		if len(own[service]) == 0 && !active && goals(service) == nil {
			delete(c.services, service)
		}
	}
	return letters, c.errand(asks, idle, all, now)
}

// errand is what is to be done with the lease.
func (c *counter) errand(asks, idle bool, all int64, now time.Time) *errand {
	l := &c.lease
	if !idle || asks {
		l.idle = time.Time{}
	} else if l.idle.IsZero() {
		l.idle = now
	}
	switch {
	case l.busy:
		return nil
	case l.term > 0 && !l.idle.IsZero() && now.Sub(l.idle) >= leaseIdle && l.before == 0:
		l.term, l.busy = 0, true
		return &errand{release: true}
	case l.term > 0 && now.Sub(l.wrote) >= leaseAgain, l.term == 0 && asks:
		l.busy = true
		return &errand{hosts: max(1, all, l.before)}
	}
	return nil
}

// active reports whether a host switches, or wants to, or may.
func (s *shared) active() bool {
	for _, t := range s.heard {
		for _, z := range t.Zones {
			if z.Held > 0 || z.Asking > 0 {
				return true
			}
		}
	}
	for _, g := range s.grants {
		if len(g.now) > 0 || len(g.most) > 0 {
			return true
		}
	}
	return false
}

// lacks reports whether a host of this agent's waits for a place.
func (c *counter) lacks(own *tally, now time.Time) bool {
	for zone, z := range own.Zones {
		if z.Asking > 0 && z.Held >= c.allows(own.Service, zone, now) {
			return true
		}
	}
	return false
}

func asksIn(t *tally) bool {
	for _, z := range t.Zones {
		if z.Asking > 0 {
			return true
		}
	}
	return false
}

// differs reports whether the others have to be told at once.
func differs(a, b *tally) bool {
	if !maps.Equal(a.Zones, b.Zones) || a.Heeds != b.Heeds || (a.Counts == nil) != (b.Counts == nil) {
		return true
	}
	if a.Counts == nil {
		return false
	}
	return a.Counts.counted != b.Counts.counted || a.Counts.Most != b.Counts.Most || a.Counts.Waits != b.Counts.Waits || len(a.Counts.Agents) != len(b.Counts.Agents)
}
