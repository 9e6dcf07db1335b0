package deployment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/goal"
)

const (
	// CountsAge is how old the counts of an agent may be: it says them every ten seconds.
	CountsAge = 25 * time.Second
	// SilentFor is how long a host below the cut of which no agent knows counts for nothing,
	// before it counts as failed.
	SilentFor = 2 * time.Minute
	// maxCounted bounds the regions that are counted; those without an agent make room.
	maxCounted = 2 * goal.MaxRegions
	// askAgain is when agents that have not answered with a roster are asked again.
	askAgain = 3 * time.Second
	// gatherFor is how long a deployment looks for its regions: one whose agents have not
	// answered by then is one of them.
	gatherFor = 10 * time.Second
	// maxAgents bounds the agents of one region that are remembered.
	maxAgents = 1000
	// recordEvery is how often the table is told for how long things have lasted, or each
	// hundredth of a longer time: a seeder that is killed forgets no more.
	recordEvery = 10 * time.Second
	// maxNewer bounds how far ahead of the clock a version that agents say hosts follow may lie
	// to be counted: half of what a goal's may, so that there is room for those that follow.
	maxNewer = executionid.MaxAhead / 2
	// maxHeld bounds the commands that wait for a write.
	maxHeld = 100
)

// ErrState is wrapped by errors about a command that the state does not allow.
var ErrState = errors.New("not possible now")

// Machine is one service: its newest deployment, and the decisions about it.
type Machine struct {
	now  time.Time // of this step
	out  []Action
	s    Service  // as the table has it
	next *Service // as it is being written; nil for no change
	asks []string // commands that are answered when it is written
	held []Event  // commands that came meanwhile

	living   map[string][]string
	meeting  time.Time                     // until then more may be met
	counts   map[string]map[string]counted // by region and agent
	landed   map[string]bool               // of the target, by region
	sha      string                        // the target's composite
	recalled map[string]bool               // builds that must run nowhere, by their composites
	newer    int64                         // the greatest version that hosts follow, beyond the table's
	lost     string                        // why the target will not land any more
	resumed  bool                          // the times below go on from what the table says
	recorded time.Time                     // when the table was told of them
	since    time.Time                     // as if it had waited for its gate since then without a break
	gather   time.Time                     // when it began to look for its regions
	healthy  time.Time                     // since when the wave is, as if without a break
	baked    time.Duration                 // for how long it was, while it is not known to be
	missing  map[string]time.Time          // since when hosts of a roster are unaccounted for, by region
	rosters  map[string]map[string][]uint32
	before   map[string][]uint32 // the regions' last rosters; none that a former seeder took
	askedAt  time.Time           // for rosters; zero while none are wanted
	fewer    time.Time           // since when rosters are shorter than those of before
	checking bool
	checked  int // the wave whose check was passed
	waits    []string
}

// counted are counts and when they came.
type counted struct {
	goal.Counts
	at time.Time
}

// New takes a service up as the table has it.
func New(s Service) *Machine {
	m := &Machine{s: s, counts: make(map[string]map[string]counted)}
	m.forget()
	return m
}

// forget begins a deployment with nothing known of it.
func (m *Machine) forget() {
	m.landed, m.sha, m.lost, m.gather = make(map[string]bool), "", "", time.Time{}
	m.checked, m.before = 0, make(map[string][]uint32)
	if d := m.s.Current; d != nil {
		for name, r := range d.Regions {
			m.landed[name] = r.Landed
		}
		m.sha, m.checked = d.Target.SHA256, d.Wave
	}
	m.forgetWave()
}

// forgetWave begins a wave, or takes one up, with nothing known of it but the times that the
// table has.
func (m *Machine) forgetWave() {
	m.healthy, m.missing, m.rosters, m.askedAt, m.checking = time.Time{}, make(map[string]time.Time), nil, time.Time{}, false
	m.fewer, m.resumed = time.Time{}, false
}

// resume has times go on from what the table says.
func (m *Machine) resume() {
	d := m.s.Current
	m.resumed, m.recorded, m.since, m.baked = true, m.now, m.now.Add(-lasted(d.Waited)), lasted(d.Baked)
	for name, r := range d.Regions {
		if unseen := lasted(r.Unseen); unseen > 0 {
			m.missing[name] = m.now.Add(-unseen)
		}
	}
}

// lasted is for how long the table says that something has lasted, within bounds.
func lasted(d time.Duration) time.Duration { return min(max(d, 0), MaxTime) }

// putTimes says in a deployment for how long things have lasted.
func (m *Machine) putTimes(d *Deployment) {
	if !m.resumed {
		return
	}
	if d.Policy.GateTimeout > 0 && (d.State == Gate || d.State == Wave) {
		d.Waited = m.now.Sub(m.since)
	}
	if d.Baked = m.baked; !m.healthy.IsZero() {
		d.Baked = m.now.Sub(m.healthy)
	}
	for name, r := range d.Regions {
		if r.Unseen = 0; !m.missing[name].IsZero() {
			r.Unseen = m.now.Sub(m.missing[name])
		}
		d.Regions[name] = r
	}
}

// record has the table told, now and then, for how long things have lasted.
func (m *Machine) record() {
	of := m.s.Current
	every := recordEvery
	if len(m.missing) == 0 {
		every = max(every, of.Policy.Bake/100, of.Policy.GateTimeout/100)
	}
	if m.now.Sub(m.recorded) < every {
		return
	}
	m.recorded = m.now
	next := m.s.clone()
	d := next.Current
	m.putTimes(d)
	if d.Waited != of.Waited || d.Baked != of.Baked || !maps.Equal(d.Regions, of.Regions) {
		m.s = next
		m.act(Record{Deployment: *d, Version: m.s.Version})
	}
}

// Service is as the table has it. Nobody may change it.
func (m *Machine) Service() Service { return m.s }

// Active reports whether time alone can bring something about.
func (m *Machine) Active() bool {
	return m.next != nil || len(m.held) > 0 || m.s.Current != nil && !m.s.Current.Over()
}

// Step takes an event and returns what follows.
func (m *Machine) Step(now time.Time, e Event) []Action {
	m.now, m.out = now, nil
	switch e := e.(type) {
	case Deploy:
		m.hold(e, e.Ask)
	case Command:
		m.hold(e, e.Ask)
	case Living:
		m.living, m.meeting = e.Agents, e.Until
	case Landed:
		if d := m.s.Current; d != nil && e.ExecutionID == d.Target.ExecutionID {
			if e.Region != "" {
				m.landed[e.Region] = true
			}
			if m.sha == "" {
				m.sha = e.SHA256
			}
		}
	case Lost:
		if d := m.s.Current; d != nil && e.ExecutionID == d.Target.ExecutionID {
			m.lost = e.Reason
		}
	case Counted:
		m.count(e)
	case Roster:
		if m.rosters != nil && len(e.Hashes) <= goal.MaxHostsOfAgent {
			if m.rosters[e.Region] == nil {
				m.rosters[e.Region] = make(map[string][]uint32)
			}
			if len(m.rosters[e.Region]) < maxAgents {
				m.rosters[e.Region][e.Agent] = e.Hashes
			}
		}
	case Checked:
		m.hearCheck(e)
	case Recalled:
		m.recalled = e.SHA256
	case Written:
		m.written(e)
	case Tick:
	}
	m.decide()
	return m.out
}

func (m *Machine) act(a Action) { m.out = append(m.out, a) }

func (m *Machine) hold(e Event, ask string) {
	if len(m.held) >= maxHeld {
		m.act(Answer{ask, fmt.Errorf("%w: %d commands wait for the table already", ErrState, len(m.held))})
		return
	}
	m.held = append(m.held, e)
}

func (m *Machine) count(e Counted) {
	of := m.counts[e.Region]
	if of == nil {
		if len(m.counts) >= maxCounted {
			maps.DeleteFunc(m.counts, func(region string, _ map[string]counted) bool { return len(m.living[region]) == 0 })
		}
		if len(m.counts) >= maxCounted {
			return
		}
		of = make(map[string]counted)
		m.counts[e.Region] = of
	}
	for agent, c := range of {
		if m.now.Sub(c.at) > 10*CountsAge {
			delete(of, agent)
		}
	}
	if len(of) < maxAgents {
		of[e.Agent] = counted{e.Counts, m.now}
	}
	if v := e.Counts.Version; (m.next == nil || v > m.next.Version) && v <= m.now.Add(maxNewer).Unix() {
		m.newer = max(m.newer, v)
	}
}

// Newer is the version of the goal that hosts follow where that is greater than the table's,
// which was restored from an old copy then; else 0. The next goal is newer than both.
func (m *Machine) Newer() int64 {
	if m.newer <= m.s.Version {
		return 0
	}
	return m.newer
}

// written has what was written hold from now on.
func (m *Machine) written(e Written) {
	if m.next == nil || m.next.Version != e.Version {
		return
	}
	next, asks := m.next, m.asks
	m.next, m.asks = nil, nil
	for _, ask := range asks {
		m.act(Answer{ask, e.Err})
	}
	if e.Err != nil {
		if e.Table != nil {
			m.s = *e.Table
			m.forget()
		}
		return
	}
	before := m.s.Current
	m.s = *next
	d := m.s.Current
	switch {
	case before == nil || before.ID != d.ID:
		m.forget()
	case before.Wave != d.Wave || before.State != d.State:
		m.forgetWave()
	default:
		m.rosters, m.askedAt = nil, time.Time{}
	}
	if d.Over() && (before == nil || before.ID != d.ID || !before.Over()) {
		m.act(Notice{*d, m.now})
	}
}

// change has the service written as it is after f, and answers ask then.
func (m *Machine) change(ask string, f func(s *Service, d *Deployment)) {
	next := m.s.clone()
	if d := next.Current; d != nil {
		m.putTimes(d)
	}
	f(&next, next.Current)
	d := next.Current
	for name, r := range d.Regions {
		r.Landed = m.landed[name]
		d.Regions[name] = r
	}
	if d.Target.SHA256 == "" && m.s.Current != nil && m.s.Current.ID == d.ID {
		d.Target.SHA256 = m.sha
	}
	if d.Over() && d.Ended.IsZero() {
		d.Ended = m.now.UTC()
		total := m.Total()
		d.Counts = &total
	}
	next.Version = goal.NextVersion(m.now, max(m.s.Version, m.newer))
	m.next = &next
	if ask != "" {
		m.asks = append(m.asks, ask)
	}
	m.act(Publish{Service: next.clone(), Goal: next.goal(next.Version, m.now), Before: m.s.Version})
}

// decide goes on as far as it can without a write.
func (m *Machine) decide() {
	for m.next == nil && len(m.held) > 0 {
		e := m.held[0]
		m.held = m.held[1:]
		var ask string
		var err error
		switch e := e.(type) {
		case Deploy:
			ask, err = e.Ask, m.deploy(e)
		case Command:
			ask, err = e.Ask, m.command(e)
		}
		if err != nil {
			m.act(Answer{ask, err})
		}
	}
	if m.next != nil || m.s.Current == nil {
		return
	}
	m.waits = nil
	d := m.s.Current
	if !m.resumed && (d.State == Gate || d.State == Wave || d.State == GoingBack) { // in no other does time run
		m.resume()
	}
	if (d.State == Gate || d.State == Wave || d.State == Paused) && m.sha != "" && m.recalled[m.sha] {
		m.end(Stopped, "the build is recalled")
		return
	}
	if len(d.Regions) > 0 && len(m.regions()) == 0 && (d.State == Gate || d.State == Wave) {
		m.end(Stopped, "all of its regions are skipped")
		return
	}
	switch d.State {
	case Gate:
		m.gate()
	case Wave:
		m.wave()
	case GoingBack:
		m.back()
	default:
		return
	}
	if m.next == nil {
		m.record()
	}
}

func (m *Machine) wait(format string, args ...any) {
	if len(m.waits) < 10 {
		m.waits = append(m.waits, fmt.Sprintf(format, args...))
	}
}

// gate waits until hosts may switch.
func (m *Machine) gate() {
	d := m.s.Current
	if !d.Fixed {
		m.fix()
		return
	}
	closed := m.closed()
	if m.timedOut(closed) {
		return
	}
	missing := len(closed) > 0 && d.Policy.Gate == api.GateAll ||
		len(closed) > 0 && d.Policy.Gate == api.GateRegion && len(closed) == len(m.regions())
	switch {
	case missing:
		m.wait("waits for the build to land in %s", strings.Join(closed, ", "))
	case m.sha == "":
		m.wait("waits for the build to be known whole")
	default:
		m.open()
	}
}

// closed are the regions where the build has to land and has not.
func (m *Machine) closed() (out []string) {
	if m.s.Current.Policy.Gate == api.GateNone {
		return nil
	}
	for _, name := range m.regions() {
		if !m.landed[name] {
			out = append(out, name)
		}
	}
	return out
}

// timedOut stops a deployment when what it waits for has not come in time, or cannot.
func (m *Machine) timedOut(closed []string) bool {
	d := m.s.Current
	if len(closed) == 0 && m.sha != "" {
		return false
	}
	where := strings.Join(closed, ", ")
	if where == "" {
		where = "any region"
	}
	switch {
	case m.lost != "":
		m.end(Stopped, fmt.Sprintf("the build will not land in %s: %s", where, m.lost))
		return true
	case d.Policy.GateTimeout > 0 && m.now.Sub(m.since) >= d.Policy.GateTimeout:
		m.end(Stopped, fmt.Sprintf("the build has not landed in %s within %s", where, d.Policy.GateTimeout))
		return true
	}
	return false
}

// regions are those of the deployment that are not skipped, in order.
func (m *Machine) regions() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(m.s.Current.Regions)) {
		if !m.s.Current.Regions[name].Skipped {
			out = append(out, name)
		}
	}
	return out
}

// taking are those of regions where hosts may switch.
func (m *Machine) taking() (out []string) {
	d := m.s.Current
	for _, name := range m.regions() {
		if d.Policy.Gate == api.GateNone || m.landed[name] || d.Regions[name].Open {
			out = append(out, name)
		}
	}
	return out
}

// fix finds out in which regions the service has hosts.
func (m *Machine) fix() {
	if m.gather.IsZero() {
		m.gather = m.now
	}
	if m.now.Before(m.meeting) {
		m.wait("agents are still being met")
		return
	}
	late := m.now.Sub(m.gather) >= gatherFor
	all := slices.Sorted(maps.Keys(m.living))
	if lacking := m.ask(all); !late && (len(lacking) > 0 || len(all) == 0) {
		m.wait("asks the regions' agents which hosts they have")
		return
	}
	m.change("", func(_ *Service, d *Deployment) {
		d.Fixed, d.Regions = true, make(map[string]Region)
		for _, name := range d.Earlier {
			d.Regions[name] = Region{}
		}
		for _, name := range all {
			hashes := m.roster(name)
			if len(hashes) > 0 || len(m.rosters[name]) < len(m.living[name]) {
				d.Regions[name] = Region{Roster: len(hashes)}
				m.before[name] = hashes
			}
		}
		for len(d.Regions) > goal.MaxRegions { // a cluster has no more destinations
			delete(d.Regions, slices.Sorted(maps.Keys(d.Regions))[len(d.Regions)-1])
		}
	})
}

// back waits until no host has to go back any more.
func (m *Machine) back() {
	d := m.s.Current
	if m.now.Before(m.meeting) {
		m.wait("agents are still being met")
		return
	}
	failed, silent, settled := 0, 0, true
	all := make(map[string]bool)
	for name, r := range d.Regions {
		if r.Roster > 0 && !r.Skipped {
			all[name] = true
		}
	}
	for name := range m.living {
		all[name] = all[name] || !d.Regions[name].Skipped
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !all[name] {
			continue
		}
		c := m.look(name)
		settled = settled && c.settled
		failed, silent = failed+c.failed-c.silent, silent+c.silent
	}
	if !settled {
		return
	}
	reason := d.Reason
	if failed > 0 {
		reason += fmt.Sprintf("; %s failed to go back", hosts(failed))
	}
	if silent > 0 { // they may have been switched off long ago
		reason += "; not heard of: " + hosts(silent)
	}
	m.end(WentBack, strings.TrimPrefix(reason, "; "))
}

// turn ends what goes wrong.
func (m *Machine) turn(reason string) {
	if d := m.s.Current; d.Policy.AutoRollback && d.Stable != nil {
		m.goBack("", reason, false)
		return
	}
	m.end(Stopped, reason)
}

func (m *Machine) end(state, reason string) {
	m.change("", func(s *Service, d *Deployment) {
		d.State, d.Reason = state, reason
		if state == WentBack {
			s.Completed = d.Stable
		}
	})
}

func (m *Machine) goBack(ask, reason string, now bool) {
	m.change(ask, func(_ *Service, d *Deployment) {
		d.State, d.Reason, d.Now = GoingBack, reason, now
		for name, r := range d.Regions {
			r.Unseen = 0
			d.Regions[name] = r
		}
	})
}

// finish has all hosts run the target.
func (m *Machine) finish() {
	m.change("", func(s *Service, d *Deployment) {
		d.State, d.Reason = Done, ""
		total := 0
		for name, r := range d.Regions {
			if !r.Skipped {
				r.Open, r.Cut = true, goal.Circle
			}
			total += r.Roster
			d.Regions[name] = r
		}
		if total == 0 {
			d.Reason = "the service has 0 hosts"
		}
		target := d.Target
		target.SHA256 = m.sha
		s.Completed = &target
	})
}
