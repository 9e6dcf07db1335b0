package deployment

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
)

// ask gets the rosters of regions, and returns those that lack an agent's.
func (m *Machine) ask(regions []string) (lacking []string) {
	if m.rosters == nil {
		m.rosters = make(map[string]map[string][]uint32)
	}
	for _, name := range regions {
		agents := m.living[name]
		if len(agents) == 0 || slices.ContainsFunc(agents, func(a string) bool { _, ok := m.rosters[name][a]; return !ok }) {
			lacking = append(lacking, name)
		}
	}
	if len(lacking) > 0 && (m.askedAt.IsZero() || m.now.Sub(m.askedAt) >= askAgain) {
		m.askedAt = m.now
		m.act(AskRoster{})
	}
	return lacking
}

// roster are the hashes of a region's hosts, each once, in order, without those that are
// held: an agent may not have heard of that yet.
func (m *Machine) roster(region string) []uint32 {
	held := make(map[uint32]bool, len(m.s.Held))
	for _, host := range m.s.Held {
		held[uint32(goal.HashOf(m.s.Name, host))] = true
	}
	return slices.Compact(slices.Sorted(func(yield func(uint32) bool) {
		for _, hashes := range m.rosters[region] {
			for _, h := range hashes {
				if !held[h] && !yield(h) {
					return
				}
			}
		}
	}))
}

// open begins the next wave: it is checked, the rosters are taken, and the cuts are written.
func (m *Machine) open() {
	d := m.s.Current
	wave := d.Wave + 1
	taking := m.taking()
	if len(taking) == 0 || wave > len(d.Policy.Waves) {
		m.finish()
		return
	}
	if d.Policy.WaveCheck != "" && m.checked < wave {
		if !m.checking {
			m.checking = true
			m.act(Check{d.ID, wave, d.Policy.WaveCheck})
		}
		m.wait("asks whether wave %d may begin", wave)
		return
	}
	if lacking := m.ask(taking); len(lacking) > 0 {
		m.wait("waits for the agents of %s to name their hosts", strings.Join(lacking, ", "))
		return
	}
	if m.lacks(taking) {
		return
	}
	m.cut(wave, taking)
}

// lacks reports whether hosts are waited for that were there when rosters were taken before.
// An agent that was started again knows those alone that have come back to it, and a wave
// without the others would be over before they have switched. Those that are held are in no
// roster.
func (m *Machine) lacks(regions []string) bool {
	gone := 0
	for _, name := range regions {
		r := m.s.Current.Regions[name]
		gone += max(0, r.Roster-r.Held-len(m.roster(name)))
	}
	switch {
	case gone == 0:
		m.fewer = time.Time{}
		return false
	case m.fewer.IsZero():
		m.fewer = m.now
	case m.now.Sub(m.fewer) >= SilentFor:
		return false // they have gone
	}
	if m.now.Sub(m.askedAt) >= askAgain {
		m.rosters = nil // they are asked again
	}
	m.wait("waits at most %s for %s that an agent knew before", SilentFor, hosts(gone))
	return true
}

// noteHeld has a service's regions say how many hosts of their last rosters are held now.
func (m *Machine) noteHeld(s *Service) {
	for name, r := range s.Current.Regions {
		before, known := m.before[name]
		if !known { // a former seeder took it, and has counted
			r.Held = min(r.Held, len(s.Held))
		} else {
			r.Held = 0
			for _, host := range s.Held {
				if _, there := slices.BinarySearch(before, uint32(goal.HashOf(s.Name, host))); there {
					r.Held++
				}
			}
		}
		s.Current.Regions[name] = r
	}
}

// cut writes where a wave's share of the rosters lies. A cut never falls.
func (m *Machine) cut(wave int, regions []string) {
	m.change("", func(_ *Service, d *Deployment) {
		if d.Wave != wave || d.State != Wave {
			d.WaveAt, d.Baked = m.now.UTC(), 0
		}
		d.State, d.Wave, d.Reason = Wave, wave, ""
		share := d.Policy.Waves[wave-1]
		for _, name := range regions {
			hashes, r := m.roster(name), d.Regions[name]
			r.Open, r.Roster, r.Held, r.Unseen = true, len(hashes), 0, 0
			m.before[name] = hashes
			switch n := share.Of(len(hashes)); {
			case share.Whole():
				r.Cut = goal.Circle
			case n > 0:
				r.Cut = max(r.Cut, int64(hashes[n-1])+1)
			}
			r.Below = 0
			for _, h := range hashes {
				if int64(h) < r.Cut {
					r.Below++
				}
			}
			d.Regions[name] = r
		}
	})
}

func (m *Machine) hearCheck(e Checked) {
	d := m.s.Current
	if d == nil || d.ID != e.Deployment || d.Wave+1 != e.Wave || !m.checking {
		return
	}
	m.checking = false
	if e.Err == nil {
		m.checked = e.Wave
		return
	}
	if m.next == nil && (d.State == Gate || d.State == Wave) {
		m.change("", func(_ *Service, d *Deployment) {
			d.Before, d.State = d.State, Paused
			d.Reason = fmt.Sprintf("wave %d was not let begin: %v", e.Wave, e.Err)
		})
	}
}

// wave watches the hosts below the cut.
func (m *Machine) wave() {
	d := m.s.Current
	taking, closed := m.taking(), m.closed()
	if m.timedOut(closed) {
		return
	}
	if len(taking) == 0 && len(closed) > 0 { // those that had it were skipped
		m.wait("waits for the build to land in %s", strings.Join(closed, ", "))
		return
	}
	if m.now.Before(m.meeting) { // hosts of agents that are not met yet are not lost
		m.wait("agents are still being met")
		return
	}
	below, failed, silent, settled, known := 0, 0, 0, true, true
	for _, name := range taking {
		c := m.look(name)
		below, failed, silent = below+max(c.below, d.Regions[name].Below), failed+c.failed, silent+c.silent
		settled = settled && c.settled
		known = known && c.known
		if c.known && c.alive > 0 && c.healthy == 0 && c.failed >= c.alive {
			m.turn(fmt.Sprintf("all of the %s switched in %s have failed%s", hosts(c.failed), name, ofThem(c.silent)))
			return
		}
	}
	if most := d.Policy.MaxFailed.Within(below); failed > most {
		m.turn(fmt.Sprintf("%s of %d have failed%s, at most %d may", hosts(failed), below, ofThem(silent), most))
		return
	}
	if m.join(taking) {
		return
	}
	switch {
	case settled && m.healthy.IsZero():
		m.healthy = m.now.Add(-m.baked)
	case !settled && known: // counts that are unknown alone turn nothing back
		m.healthy, m.baked = time.Time{}, 0
	}
	switch {
	case !settled || m.healthy.IsZero():
	case m.now.Sub(m.healthy) < d.Policy.Bake:
		m.wait("the wave has been healthy for %s of %s", m.now.Sub(m.healthy).Truncate(time.Second), d.Policy.Bake)
	case d.Wave < len(d.Policy.Waves):
		m.open()
	case len(closed) > 0:
		m.wait("waits for the build to land in %s", strings.Join(closed, ", "))
	default:
		m.finish()
	}
}

// join lets hosts of a region where the build has landed meanwhile switch: as many as of
// the others.
func (m *Machine) join(taking []string) bool {
	d := m.s.Current
	var come []string
	for _, name := range taking {
		if !d.Regions[name].Open {
			come = append(come, name)
		}
	}
	if len(come) == 0 {
		return false
	}
	if lacking := m.ask(come); len(lacking) > 0 {
		m.wait("waits for the agents of %s to name their hosts", strings.Join(lacking, ", "))
		return false
	}
	m.cut(d.Wave, come)
	return true
}

// seen is what is known of a region's hosts that are to run the target.
type seen struct {
	// known: every agent that lives has counted them under the newest goal, of late.
	known                         bool
	below, alive, healthy, failed int
	// silent are those of failed that were not heard of.
	silent int
	// settled: each of them is healthy, or counts as failed or as out.
	settled bool
}

// look sums up what a region's agents count, and says what it waits for.
func (m *Machine) look(name string) (s seen) {
	d := m.s.Current
	roster := d.Regions[name].Below
	if d.State == GoingBack { // all of them are to run it
		roster = max(roster, d.Regions[name].Roster)
	}
	agents := m.living[name]
	var c goal.Counts
	s.known = len(agents) > 0
	for _, agent := range agents {
		of, ok := m.counts[name][agent]
		if !ok || of.Version != m.s.Version || m.now.Sub(of.at) > CountsAge {
			s.known = false
			continue
		}
		c = add(c, of.Counts)
	}
	s.below, s.alive, s.healthy, s.failed, s.silent = c.Below, c.Below-c.Out, c.Healthy, c.Failed, min(c.Silent, c.Failed)
	switch {
	case len(agents) == 0:
		m.wait("no agent of %s is there", name)
	case !s.known:
		m.wait("waits for the agents of %s to count their hosts", name)
	}
	if !s.known {
		return s
	}
	unseen := roster - c.Below
	if unseen <= 0 {
		delete(m.missing, name)
	} else {
		if m.missing[name].IsZero() {
			m.missing[name] = m.now
		}
		if m.now.Sub(m.missing[name]) < SilentFor {
			m.wait("not heard of in %s: %s", name, hosts(unseen))
			return s
		}
		s.failed, s.silent = s.failed+unseen, s.silent+unseen
	}
	s.settled = c.Healthy+c.Failed+c.Out >= c.Below
	if !s.settled {
		m.wait("still to switch in %s: %s", name, hosts(c.Below-c.Healthy-c.Failed-c.Out))
	}
	return s
}

func hosts(n int) string {
	if n == 1 {
		return "1 host"
	}
	return fmt.Sprintf("%d hosts", n)
}

// ofThem says how many of those that have failed were not heard of.
func ofThem(silent int) string {
	if silent == 0 {
		return ""
	}
	return fmt.Sprintf(", %d of them not heard of", silent)
}

func add(a, b goal.Counts) goal.Counts {
	a.InStates.Add(b.InStates)
	a.Below += b.Below
	a.Out += b.Out
	a.Silent += b.Silent
	a.Zones = goal.JoinZones(a.Zones, b.Zones)
	return a
}
