package fleet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// region is several agents, each with its machine, and hosts that have streams to them.
type region struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Time
	agents []*regionAgent
	hosts  []*regionHost
	post   []post
	starts int
	goal   *goal.Goal
	// lease is the row of the table.
	lease struct {
		version, term, hosts int64
		holder               *regionAgent
		id                   string
	}
}

// post is a tally on its way.
type post struct {
	from, to, text string
	at             time.Time
}

// nearKey names a list of hosts; whoever sees its agent has the newest.
type nearKey struct {
	from string
	list int
}

// regionAgent is one start of an agent.
type regionAgent struct {
	id, name string
	m        *machine
	cut      bool // from the others and the table
	term     int64
	version  int64
	seen     int64
	seenAt   time.Time
	warned   []string
	lists    map[int]bucket // of its hosts
	got      map[nearKey]bool
}

// regionHost does as a real one does.
type regionHost struct {
	r          *region
	name, zone string
	at         *regionAgent
	link       *regionLink
	back       time.Time // when it has a stream again
	state      hostwire.ServiceState
	leave      time.Time // until when it may begin to switch
	done       time.Time // when it has switched
	dead       bool
}

// regionLink is one stream of it.
type regionLink struct{ h *regionHost }

func (l *regionLink) put(_ string, e hostwire.Encoded) bool {
	m, _, err := hostwire.Read(strings.NewReader(string(e)))
	if err != nil {
		l.h.r.t.Fatal(err)
	}
	if leave, ok := m.(*hostwire.Leave); ok && l.h.link == l && leave.Version == l.h.r.goal.Version {
		l.h.leave = l.h.r.now.Add(leaveFor)
	}
	return true
}

func (l *regionLink) close(error) {}

func newRegion(t *testing.T, seed uint64, agents, hosts int, most goal.Share) *region {
	r := &region{t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: noon}
	r.goal = &goal.Goal{
		Service: "web", Version: 1, Target: goal.Build{ExecutionID: target}, Stable: &goal.Build{ExecutionID: stable},
		Regions: map[string]goal.Region{"region-a": {Open: true, Cut: goal.Circle}}, MaxUnavailable: most,
	}
	for i := range agents {
		r.start(fmt.Sprint("agent", i))
	}
	for i := range hosts {
		h := &regionHost{r: r, name: fmt.Sprint("host", i), zone: string(rune('a' + i%2))}
		h.state = hostwire.ServiceState{Service: "web", State: goal.Ready, Running: stable, Wants: target}
		r.hosts = append(r.hosts, h)
		h.join(r.agents[i%agents])
	}
	return r
}

func (r *region) start(id string) *regionAgent {
	r.starts++
	a := &regionAgent{id: id, name: fmt.Sprint(id, "-", r.starts), got: make(map[nearKey]bool)}
	a.m = newMachine("region-a", 1000, r.rng, func(message string, args ...any) {
		a.warned = append(a.warned, fmt.Sprint(append([]any{message}, args...)...))
	})
	a.m.now = r.now
	a.m.counter = newCounter(a.name, r.now)
	a.m.follow(r.goal, []byte("goal"))
	r.agents = append(r.agents, a)
	return a
}

// absent is the first agent that does not run.
func (r *region) absent() string {
	for i := 0; ; i++ {
		id := fmt.Sprint("agent", i)
		if !slices.ContainsFunc(r.agents, func(a *regionAgent) bool { return a.id == id }) {
			return id
		}
	}
}

// kill ends an agent: its hosts go to others within 30 s.
func (r *region) kill(a *regionAgent) {
	r.agents = slices.DeleteFunc(r.agents, func(other *regionAgent) bool { return other == a })
	for _, h := range r.hosts {
		if h.at == a {
			h.lose()
		}
	}
}

func (h *regionHost) join(a *regionAgent) {
	h.at, h.link = a, &regionLink{h}
	a.m.now = h.r.now
	a.m.join(&hostwire.Hello{Version: 1, Host: h.name, Start: start, Zone: h.zone, PeerPort: 7000, Services: []hostwire.ServiceState{h.state}},
		netip.MustParseAddr("10.0.0.1"), h.link)
}

// lose breaks its stream off, and leave to switch with it.
func (h *regionHost) lose() {
	if h.link != nil && slices.Contains(h.r.agents, h.at) {
		h.at.m.ended(h.at.m.hosts[h.name], h.link, h.r.rng.IntN(2) == 0)
	}
	h.at, h.link, h.leave = nil, nil, time.Time{}
	h.back = h.r.now.Add(time.Duration(h.r.rng.IntN(30)) * time.Second)
}

func (h *regionHost) says(state, running, wants string) {
	h.state.State, h.state.Running, h.state.Wants = state, running, wants
	if h.link != nil {
		s := h.state
		h.at.m.said(h.at.m.hosts[h.name], &s)
	}
}

func (h *regionHost) step() {
	switch r := h.r; {
	case h.dead:
		return
	case h.link == nil && !r.now.Before(h.back) && len(r.agents) > 0:
		h.join(r.agents[r.rng.IntN(len(r.agents))])
	case h.state.State == goal.Ready && r.now.Before(h.leave) && r.rng.IntN(3) == 0:
		h.done = r.now.Add(time.Duration(r.rng.IntN(20)) * time.Second)
		h.says(goal.Switching, stable, "")
	case h.state.State == goal.Switching && !r.now.Before(h.done):
		h.leave = time.Time{}
		h.says(goal.Healthy, target, "")
	}
}

// errand is what the table does.
func (r *region) errand(a *regionAgent, e errand) (h arrivals.Held, err error) {
	l := &r.lease
	if a.cut {
		return h, errors.New("no table")
	}
	if a.term > 0 && (l.id != a.name || l.version != a.version) {
		a.term = 0
	}
	switch {
	case e.release && a.term > 0:
		l.id, l.hosts = "", 0
		a.term = 0
		l.version++
		return h, nil
	case e.release:
		return h, nil
	case a.term > 0:
		l.hosts = e.hosts
		l.version++
		a.version = l.version
		return arrivals.Held{Term: a.term, Agent: a.id, Asked: r.now}, nil
	case l.id != "" && l.holder.id != a.id:
		if a.seen != l.version {
			a.seen, a.seenAt = l.version, r.now
		}
		if r.now.Sub(a.seenAt) < arrivals.Patience {
			return arrivals.Held{Agent: l.holder.id}, nil
		}
	}
	h = arrivals.Held{Term: l.term + 1, Agent: a.id, Taken: true, Asked: r.now}
	if l.id != "" {
		h.Hosts = l.hosts
	}
	l.term++
	l.version++
	l.id, l.holder, l.hosts = a.name, a, max(h.Hosts, e.hosts)
	a.term, a.version = l.term, l.version
	return h, nil
}

func (r *region) step(d time.Duration) {
	r.goOn(d)
	r.check()
}

// goOn is step without the check.
func (r *region) goOn(d time.Duration) {
	r.now = r.now.Add(d)
	for _, h := range r.hosts {
		if h.at != nil {
			h.at.m.now = r.now
		}
		h.step()
	}
	late := r.post[:0:0]
	for _, p := range r.post {
		i := slices.IndexFunc(r.agents, func(a *regionAgent) bool { return a.name == p.to })
		j := slices.IndexFunc(r.agents, func(a *regionAgent) bool { return a.name == p.from })
		switch {
		case i < 0 || j < 0:
		case r.now.Before(p.at) || r.agents[i].cut || r.agents[j].cut:
			late = append(late, p)
		default:
			t, err := decodeTally([]byte(p.text))
			if err != nil {
				r.t.Fatal(err)
			}
			r.agents[i].m.counter.hears(p.from, t)
		}
	}
	r.post = late
	for _, a := range r.agents {
		a.m.now = r.now
		var others []string
		for _, other := range r.agents {
			if other != a && !a.cut && !other.cut {
				others = append(others, other.name)
			}
		}
		a.m.counter.knows(others, r.now)
		a.m.forgetNear(others)
		a.m.tick()
		letters, do := a.m.recount()
		for _, l := range letters {
			for _, other := range r.agents {
				if other != a {
					r.post = append(r.post, post{a.name, other.name, string(l.text), r.now.Add(time.Duration(r.rng.IntN(3)) * 500 * time.Millisecond)})
				}
			}
		}
		if do != nil {
			h, err := r.errand(a, *do)
			a.m.counter.leased(h, err, r.now)
		}
		for list, text := range a.m.nearLists() {
			b, err := decodeBucket(text)
			if err != nil {
				r.t.Fatal(err)
			}
			if a.lists == nil {
				a.lists = make(map[int]bucket)
			}
			a.lists[list] = b
			for _, other := range r.agents {
				delete(other.got, nearKey{a.name, list})
			}
		}
	}
	for _, to := range r.agents {
		for _, from := range r.agents {
			if to == from {
				continue
			}
			for list, b := range from.lists {
				key := nearKey{from.name, list}
				switch {
				case to.cut || from.cut: // and forgotten
					delete(to.got, key)
				case !to.got[key]:
					to.m.hearsNear(from.name, b)
					to.got[key] = true
				}
			}
		}
	}
}

// check holds what is unavailable to what may be: those that switch, or may begin to.
func (r *region) check() {
	r.t.Helper()
	all := 0
	zones := make(map[string]int)
	for _, h := range r.hosts {
		if h.state.State == goal.Switching || h.state.State == goal.Ready && r.now.Before(h.leave) {
			all++
			zones[h.zone]++
		}
	}
	inZone := most(r.goal, len(r.hosts)/2)
	if all > most(r.goal, len(r.hosts)) || zones["a"] > inZone || zones["b"] > inZone {
		r.t.Fatalf("%s: %d switch, %v by zone", r.now.Sub(noon), all, zones)
	}
}

func (r *region) done() (n int) {
	for _, h := range r.hosts {
		if h.state.Running == target || h.dead {
			n++
		}
	}
	return n
}

// run goes on until all have switched, and returns how long that took.
func (r *region) run(atMost time.Duration, each func()) time.Duration {
	r.t.Helper()
	for r.done() < len(r.hosts) {
		if r.now.Sub(noon) > atMost {
			var why []string
			for _, a := range r.agents {
				why = append(why, fmt.Sprintf("%s: %q %+v", a.name, a.m.view().Waits["web"], a.m.counter.lease))
			}
			r.t.Fatalf("%d of %d have switched:\n%s", r.done(), len(r.hosts), strings.Join(why, "\n"))
		}
		r.step(500 * time.Millisecond)
		if each != nil {
			each()
		}
	}
	return r.now.Sub(noon)
}

// A region's agents let no more switch together than may, and all do in the end.
func TestRegionCountsTogether(t *testing.T) {
	for name, c := range map[string]struct {
		agents, hosts int
		most          goal.Share
	}{
		"one agent":        {1, 20, "10%"},
		"three":            {3, 30, "20%"},
		"fewer than one":   {3, 6, "10%"},
		"one at a time":    {3, 9, "1"},
		"all":              {3, 30, "100%"},
		"agents, no hosts": {5, 2, "50%"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 7, c.agents, c.hosts, c.most)
			took := r.run(time.Hour, nil)
			// When nobody wants to switch the lease is given back, and nothing is told any more.
			for range 60 {
				r.step(500 * time.Millisecond)
			}
			if r.lease.id != "" || len(r.post) != 0 {
				t.Errorf("%s has the lease, %d tallies are on their way", r.lease.id, len(r.post))
			}
			for _, a := range r.agents {
				if len(a.warned) != 0 {
					t.Errorf("%s: %q", a.name, a.warned)
				}
			}
			t.Logf("%d hosts in %s", c.hosts, took)
		})
	}
}

// So they do while agents are killed and started, cut off, and hosts move and die.
func TestRegionCountsThroughFaults(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRegion(t, seed, 3, 30, "20%")
			quiet := noon.Add(5 * time.Minute)
			r.run(time.Hour, func() {
				if !r.now.Before(quiet) {
					for _, a := range r.agents {
						a.cut = false
					}
					for len(r.agents) < 3 {
						r.start(r.absent())
					}
					return
				}
				switch r.rng.IntN(60) {
				case 0:
					if len(r.agents) > 0 {
						a := r.agents[r.rng.IntN(len(r.agents))]
						if r.kill(a); r.rng.IntN(2) == 0 {
							r.start(a.id)
						}
					}
				case 1:
					if len(r.agents) > 0 {
						a := r.agents[r.rng.IntN(len(r.agents))]
						a.cut = !a.cut
					}
				case 2, 3, 4:
					r.hosts[r.rng.IntN(len(r.hosts))].lose()
				case 5:
					if h := r.hosts[r.rng.IntN(len(r.hosts))]; h.state.State != goal.Switching && r.rng.IntN(3) == 0 {
						h.lose()
						h.dead = true
					}
				case 6:
					if len(r.agents) < 3 {
						r.start(r.absent())
					}
				}
			})
		})
	}
}

// Without an answer nobody switches, and it is said for what is waited.
func TestWaitForTheCountIsSaid(t *testing.T) {
	r := newRegion(t, 1, 2, 10, "50%")
	said := func(a *regionAgent) string {
		return a.m.view().Waits["web"]
	}
	for _, a := range r.agents {
		a.cut = true
	}
	for range 20 {
		r.step(time.Second)
	}
	for _, a := range r.agents {
		if !strings.Contains(said(a), "no table") || len(a.warned) == 0 {
			t.Errorf("%s: %q, %q", a.name, said(a), a.warned)
		}
	}
	if r.done() != 0 {
		t.Errorf("%d have switched", r.done())
	}
	// One reaches the table and the other not: it counts alone.
	r.agents[0].cut = false
	for end := r.now.Add(3 * time.Minute); r.now.Before(end); {
		r.step(time.Second)
	}
	if n := r.done(); n != 5 || !strings.Contains(said(r.agents[1]), "no table") {
		t.Errorf("%d have switched, %q", n, said(r.agents[1]))
	}
	r.agents[1].cut = false
	r.run(time.Hour, nil)

	// A roll-back that may take the service down asks nobody.
	r = newRegion(t, 1, 2, 10, "50%")
	for _, a := range r.agents {
		a.cut = true
	}
	r.goal = &goal.Goal{Service: "web", Version: 2, Target: r.goal.Target, Stable: r.goal.Stable, Regions: r.goal.Regions, MaxUnavailable: "10%", Now: true}
	for _, a := range r.agents {
		a.m.follow(r.goal, []byte("goal"))
	}
	r.run(time.Minute, nil)
}

// What a host waits for is said while others switch, too: for the usual, and for who is gone
// while it may be switching.
func TestWaitForPlacesIsSaid(t *testing.T) {
	r := newRegion(t, 1, 2, 10, "20%")
	first, second := r.agents[0], r.agents[1]
	seen := make(map[string]bool)
	goOn := func() {
		t.Helper()
		if r.now.Sub(noon) > 10*time.Minute {
			t.Fatalf("%d of %d have switched, said: %v", r.done(), len(r.hosts), seen)
		}
		r.goOn(500 * time.Millisecond)
		seen[first.m.view().Waits["web"]] = true
	}
	usual := "as many switch as may at a time: of the region 2, of each zone its share"
	var lost *regionHost
	for lost == nil || !seen[usual] {
		goOn()
		for _, h := range r.hosts {
			if h.at == second && h.state.State == goal.Switching {
				lost = h
			}
		}
	}
	if len(first.warned) != 0 {
		t.Errorf("warned of the usual: %q", first.warned)
	}
	r.kill(second)
	lost.dead = true
	for r.done() < len(r.hosts) {
		goOn()
	}
	if !seen["1 hosts of "+second.name+", which is gone, may be switching: until they are back, at most 2m0s"] || len(first.warned) == 0 {
		t.Errorf("said: %v, warned: %q", seen, first.warned)
	}
}

func FuzzDecodeTally(f *testing.F) {
	f.Add([]byte(`{"s":"web","t":1,"z":{"a":{"n":3,"h":1,"w":2}},"h":{"k":1,"n":2},"c":{"k":1,"n":3,"a":{"x":{"t":1,"z":{"a":1}}}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := decodeTally(text)
		if err != nil {
			return
		}
		c := newCounter("a", noon)
		c.knows([]string{"b"}, noon)
		c.hears("b", got)
		c.step(map[string]map[string]zoneTally{"web": {"a": {Here: 1, Asking: 1}}}, func(string) *goal.Goal { return nil }, noon.Add(time.Second))
	})
}

// What an agent tells is bounded.
func TestTalliesAreBounded(t *testing.T) {
	zones := make([]string, 0, maxZones+2)
	for i := range maxZones + 2 {
		zones = append(zones, fmt.Sprintf(`"z%d":{"n":1}`, i))
	}
	agents := make([]string, 0, hostwire.MaxAgents+1)
	for i := range hostwire.MaxAgents + 1 {
		agents = append(agents, fmt.Sprintf(`"a%d":{"t":1}`, i))
	}
	for what, text := range map[string]string{
		"length":         `{"s":"web"` + strings.Repeat(" ", MaxTally) + `}`,
		"service":        `{"s":"a/b"}`,
		"zones":          `{"s":"web","z":{` + strings.Join(zones, ",") + `}}`,
		"hosts":          fmt.Sprintf(`{"s":"web","z":{"a":{"n":%d}}}`, goal.MaxHosts+1),
		"negative":       `{"s":"web","z":{"a":{"h":-1}}}`,
		"zone's name":    `{"s":"web","z":{"` + strings.Repeat("a", hostwire.MaxLabel+1) + `":{"n":1}}}`,
		"time":           fmt.Sprintf(`{"s":"web","t":%d}`, int64(maxTallied)+1),
		"term":           `{"s":"web","c":{"k":0}}`,
		"great term":     fmt.Sprintf(`{"s":"web","c":{"k":%d}}`, int64(maxTallied)),
		"heeded":         `{"s":"web","h":{"k":-1}}`,
		"agents":         `{"s":"web","c":{"k":1,"a":{` + strings.Join(agents, ",") + `}}}`,
		"allowed":        fmt.Sprintf(`{"s":"web","c":{"k":1,"a":{"x":{"t":1,"z":{"a":%d}}}}}`, goal.MaxHosts+1),
		"at a time":      `{"s":"web","c":{"k":1,"m":-1}}`,
		"reason's bytes": `{"s":"web","c":{"k":1,"e":"` + strings.Repeat("a", goal.MaxOutput+1) + `"}}`,
		"no JSON":        `{`,
	} {
		if _, err := decodeTally([]byte(text)); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	// The longest that an agent makes is one.
	c := newCounter("a", noon)
	own := map[string]zoneTally{}
	for i := range maxZones + 1 {
		own[fmt.Sprintf("%0*d", hostwire.MaxLabel, i)] = zoneTally{Here: 1000, Held: 100, Asking: 900}
	}
	for i := range hostwire.MaxAgents - 1 {
		name := fmt.Sprintf("%0*d", 100, i)
		c.members = append(c.members, name)
	}
	g := &goal.Goal{Service: "web", MaxUnavailable: "50%"}
	c.leased(arrivals.Held{Term: 1, Taken: true, Asked: noon}, nil, noon)
	for _, name := range c.members[1:] {
		c.hears(name, &tally{Service: "web", At: 1, Zones: own, Heeds: counted{Term: 1}})
	}
	for i := range 3 {
		letters, _ := c.step(map[string]map[string]zoneTally{"web": own}, func(string) *goal.Goal { return g }, noon.Add(time.Duration(i)*time.Second))
		if len(letters) == 0 {
			continue
		}
		got, err := decodeTally(letters[0].text)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, a := range got.Counts.Agents {
			n += len(a.Zones)
		}
		if n != maxAllowed {
			t.Errorf("%d zones are allowed, expected %d", n, maxAllowed)
		}
		t.Logf("%d bytes", len(letters[0].text))
	}
	for i := range 2 * goal.MaxServices {
		c.hears(c.members[1], &tally{Service: fmt.Sprint("s", i), At: 2})
	}
	if len(c.services) > goal.MaxServices {
		t.Errorf("%d services", len(c.services))
	}
}

// A host that lies about its zone has no more of them switch together, nor has one that says
// it switches.
func TestLiesGainNoLeave(t *testing.T) {
	r := newRegion(t, 3, 1, 0, "10%")
	for i := range 30 {
		h := &regionHost{r: r, name: fmt.Sprint("host", i), zone: fmt.Sprint("zone", i%3)}
		h.state = hostwire.ServiceState{Service: "web", State: goal.Ready, Running: stable, Wants: target}
		r.hosts = append(r.hosts, h)
		if i%3 == 0 {
			h.zone = fmt.Sprint("made-up-", i) // a zone of its own may lose one host
		}
		h.join(r.agents[0])
	}
	for range 1000 {
		switching := 0
		for _, h := range r.hosts {
			if h.state.State == goal.Switching || h.state.State == goal.Ready && r.now.Before(h.leave) {
				switching++
			}
		}
		if switching > 3 {
			t.Fatalf("%d of 30 switch", switching)
		}
		if r.done() == len(r.hosts) {
			break
		}
		r.goOn(500 * time.Millisecond)
	}
	if r.done() != len(r.hosts) {
		t.Errorf("%d of %d have switched", r.done(), len(r.hosts))
	}
	// One that says for ever that it switches has its one place, and the others go on.
	r = newRegion(t, 4, 1, 20, "10%")
	liar := r.hosts[0]
	liar.says(goal.Switching, stable, "")
	liar.dead = true
	liar.state.State = goal.Failed // which the region's test does not count
	r.run(time.Hour, nil)
}
