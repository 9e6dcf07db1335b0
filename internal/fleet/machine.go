package fleet

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	// maxZones bounds the zones of one service that are told apart; hosts of further ones
	// are in otherZone. A region has a handful.
	maxZones  = 64
	otherZone = "other"
	// maxIdleServices bounds the services that hosts run and that have no goal here: their
	// names are the hosts' invention.
	maxIdleServices = 1000
	// silentFor is how long a host that was told to switch may be silent before that is a
	// failure, and seenFor how long after its last word a host is in the roster.
	silentFor, seenFor = 2 * time.Minute, time.Minute
	// keepNeighbour is how long a lost host stays its neighbours' neighbour: its swarm may
	// be well, and it comes back at once where it was the agent or the network that failed.
	keepNeighbour = time.Minute
	// movedAfter is how long a host is lost before it is let go to another agent that has it:
	// by then that one has told the others whether it switches.
	movedAfter = 10 * time.Second
	// forgetAfter is how long a lost host is counted.
	forgetAfter = 15 * time.Minute
	// sourcePlaces is how many hosts of a service get builds from agents; those trade the
	// rest. Agents give to as many at a time (swarm.DefaultPlaces), and a host that does is
	// told of all agents, since each segment is handed out by one of them.
	sourcePlaces = 16
)

var (
	errReplaced = errors.New("the host has opened another stream")
	errFull     = errors.New("this agent has as many hosts as it may have")
	errSlow     = errors.New("the host does not read what is sent to it")
)

// link is the stream of a host, as far as the machine needs it.
type link interface {
	put(name string, message hostwire.Encoded) bool
	close(why error)
}

// host is one machine, as it describes itself.
type host struct {
	name, start, zone string
	labels            map[string]string
	program           string // its version
	// addr is where its swarm listens; the zero value where it does not.
	addr netip.AddrPort
	link link // nil while it is lost
	// lostAt is when its stream broke; zero while there is one.
	lostAt   time.Time
	services []*running
	whole    map[string]bool // executionIds that it holds
	// neighboursDue: its neighbours are others than it was told, toldNeighbours what that was.
	neighboursDue  bool
	toldNeighbours *hostwire.Neighbours
}

// running is one service of a host.
type running struct {
	host    *host
	service *service
	state   hostwire.ServiceState // without output
	zone    *zone
	at      int   // in the service's list
	node    *node // nil once it is nobody's neighbour any more
	leave   leave
	// silent: that it is lost was told as a failure.
	silent bool
	// sourced: it gets builds from agents.
	sourced bool
	// far are neighbours that have their streams to other agents of the region.
	far    []hostwire.Peer
	hashed int64 // one more than its hash; 0 before it was asked for
}

// service is what is known of one.
type service struct {
	name  string
	goal  *goal.Goal       // nil for none
	wire  hostwire.Encoded // the goal's
	hosts map[string]*running
	list  []*running // the same, for one to be drawn of
	zones map[string]*zone
	graph *graph
	// sourced is how many of the hosts get builds from agents.
	sourced int
	// switching is how many hosts hold a place among those that may be unavailable.
	switching int
	counts    counting
}

// zone is the hosts of a service in one zone.
type zone struct {
	name             string
	hosts, switching int
	// asking are hosts that want leave, in the order in which they did.
	asking []*running
}

// machine is what is known of the hosts of one agent, and what follows from it. It has no
// clock, no lock and does nothing but leave messages: its owner tells it what happens.
type machine struct {
	region   string
	maxHosts int
	rng      *rand.Rand
	warn     func(message string, args ...any)
	// named is called when a host's start is here, and when it is not any more.
	named func(host, start string, here bool)

	hosts     map[string]*host
	connected int
	services  map[string]*service
	idle      int // services without a goal
	beat      hostwire.Encoded
	recalls   hostwire.Encoded
	// recallBeat is the beat of that list.
	recallBeat hostwire.Encoded
	welcome    hostwire.Encoded
	// sources are where the region's agents hand builds out.
	sources []hostwire.Peer
	recipes map[string]*recipe // by executionId
	// near are hosts of the region's other agents, by agent and list; nearOut the lists of
	// own hosts that have changed since they were told; ringsDue: one of either has.
	near     map[string]map[int][]near
	nearOut  map[int]bool
	ringsDue bool
	// counter is the region's count of hosts that switch; nil for none: then each agent
	// counts its own. countDue: something has changed in it.
	counter  *counter
	countDue bool
	// strayed are the hosts of agents that are gone and that nobody has yet, by agent.
	strayed map[string][]string
	// due are hosts whose neighbours have changed.
	due map[*host]struct{}
	// now is the time of the event that is worked on.
	now   time.Time
	stats stats
}

// stats count what has happened.
type stats struct {
	joined, lost, left, refused int64
	leaves, leavesLapsed        int64
	failures                    int64
}

func newMachine(region string, maxHosts int, rng *rand.Rand, warn func(string, ...any)) *machine {
	return &machine{
		region: region, maxHosts: maxHosts, rng: rng, warn: warn, named: func(string, string, bool) {},
		hosts: make(map[string]*host), services: make(map[string]*service), recipes: make(map[string]*recipe),
		due: make(map[*host]struct{}), near: make(map[string]map[int][]near), nearOut: make(map[int]bool), strayed: make(map[string][]string),
	}
}

func encode(m hostwire.Message) hostwire.Encoded {
	e, err := hostwire.Encode(m)
	if err != nil {
		panic(err) // it is of our own making
	}
	return e
}

// send leaves a message for a host.
func (m *machine) send(h *host, name string, e hostwire.Encoded) {
	if h.link != nil && e != nil && !h.link.put(name, e) {
		h.link.close(errSlow)
	}
}

// join takes in a host that has said hello.
func (m *machine) join(hello *hostwire.Hello, from netip.Addr, l link) {
	h := m.hosts[hello.Host]
	if h == nil {
		if len(m.hosts) >= m.maxHosts && !m.forgetLongestLost() {
			m.stats.refused++
			l.close(errFull)
			return
		}
		h = &host{name: hello.Host}
		m.hosts[h.name] = h
	} else if h.link != nil {
		if h.start != hello.Start {
			m.warn("host has opened another stream than the one it has; if two processes have its name, give one another", "host", h.name, "from", from.String())
		}
		h.link.close(errReplaced)
		m.connected--
	}
	m.stats.joined++
	m.connected++
	addr := netip.AddrPortFrom(from, hello.PeerPort)
	if hello.PeerPort == 0 {
		addr = netip.AddrPort{}
	}
	moved := h.addr != addr || h.start != hello.Start || h.zone != hello.Zone
	if h.start != hello.Start {
		if h.start != "" {
			m.named(h.name, h.start, false)
		}
		m.named(h.name, hello.Start, true)
	}
	h.start, h.zone, h.addr, h.link, h.lostAt = hello.Start, hello.Zone, addr, l, time.Time{}
	h.labels, h.program = hello.Labels, hello.Program
	h.whole = make(map[string]bool)
	for _, holds := range hello.Holds {
		if holds.Whole {
			h.whole[holds.ExecutionID] = true
		}
	}
	before := h.services
	h.services = nil
	for _, r := range before {
		if moved || !slices.ContainsFunc(hello.Services, func(s hostwire.ServiceState) bool { return s.Service == r.service.name }) {
			m.drop(r)
			continue
		}
		h.services = append(h.services, r)
	}
	m.send(h, "welcome", m.welcome)
	m.send(h, goal.Recalls, m.recalls) // before the goals, which it may forbid
	m.send(h, goal.RecallBeats, m.recallBeat)
	m.send(h, "beat", m.beat)
	for i := range hello.Services {
		m.runs(h, &hello.Services[i])
	}
	for _, r := range before {
		m.grant(r.service) // whose place may be free
	}
	m.tellsNear(h)
	h.neighboursDue, h.toldNeighbours = true, nil
	m.tellNeighbours(h)
}

// runs notes that a host which has just come runs a service.
func (m *machine) runs(h *host, state *hostwire.ServiceState) {
	s := m.service(state.Service)
	if s == nil {
		m.warn("a host's service is not counted: too many have no goal here", "host", h.name, "service", state.Service)
		return
	}
	r := s.hosts[h.name]
	if r == nil {
		name := h.zone
		if s.zones[name] == nil && len(s.zones) >= maxZones {
			name = otherZone
		}
		z := s.zones[name]
		if z == nil {
			z = &zone{name: name}
			s.zones[name] = z
		}
		z.hosts++
		r = &running{host: h, service: s, zone: z, at: len(s.list)}
		s.hosts[h.name] = r
		s.list = append(s.list, r)
		h.services = append(h.services, r)
	}
	if r.node == nil {
		r.node = s.graph.add(h, r.zone.name)
	}
	m.fillSources(s)
	m.send(h, "goal/"+s.name, s.wire)
	for _, id := range s.builds() {
		if !h.whole[id] {
			m.sendRecipe(h, id)
		}
	}
	// A leave has ended with the stream for which it was given.
	r.leave.given = false
	r.silent = false
	m.says(r, state)
	m.grant(s)
}

// service is what is known of one; nil where there are too many.
func (m *machine) service(name string) *service {
	s := m.services[name]
	if s == nil {
		if m.idle >= maxIdleServices {
			return nil
		}
		s = m.newService(name)
		m.idle++
	}
	return s
}

func (m *machine) newService(name string) *service {
	s := &service{name: name, hosts: make(map[string]*running), zones: make(map[string]*zone)}
	s.graph = newGraph(m.rng, m.neighboursOf)
	m.services[name] = s
	return s
}

// builds are the executions that a service's hosts hold by its goal.
func (s *service) builds() []string {
	if s.goal == nil {
		return nil
	}
	ids := []string{s.goal.Target.ExecutionID}
	if stable := s.goal.Stable; stable != nil && stable.ExecutionID != ids[0] {
		ids = append(ids, stable.ExecutionID)
	}
	return ids
}

// said notes that a host's service stands otherwise than before.
func (m *machine) said(h *host, state *hostwire.ServiceState) {
	i := slices.IndexFunc(h.services, func(r *running) bool { return r.service.name == state.Service })
	if i < 0 {
		return // it said in its hello which it runs
	}
	r := h.services[i]
	m.says(r, state)
	m.grant(r.service)
}

// says takes over what a host says of a service.
func (m *machine) says(r *running, state *hostwire.ServiceState) {
	before := r.state
	r.state = *state
	if state.State != goal.Failed {
		r.state.Output = "" // which 10,000 hosts need not keep here
	}
	r.service.counts.dirty = true
	// A host that waits to try again under a later version says once more how the last try went.
	if state.State == goal.Failed && (before.State != goal.Failed || before.Attempt != state.Attempt || before.Phase != state.Phase || before.Error != state.Error) {
		m.failed(r, goal.Failure{Host: r.host.name, Version: state.Goal, Phase: state.Phase, Error: state.Error, Output: state.Output, At: m.now.UTC()})
	}
	m.heed(r)
}

// holds notes which builds a host has.
func (m *machine) holds(h *host, holds *hostwire.Holds) {
	if h.whole[holds.ExecutionID] != holds.Whole {
		for _, r := range h.services {
			r.service.counts.dirty = true
		}
	}
	if !holds.Whole {
		delete(h.whole, holds.ExecutionID)
		return
	}
	if len(h.whole) < hostwire.MaxHolds || h.whole[holds.ExecutionID] {
		h.whole[holds.ExecutionID] = true
	}
}

// ended notes that a host's stream has ended: in order, and it is gone, or it is lost.
func (m *machine) ended(h *host, l link, inOrder bool) {
	if h.link != l {
		return // it has another one
	}
	h.link = nil
	m.connected--
	// One that switches does so without a stream, too.
	if inOrder && !slices.ContainsFunc(h.services, func(r *running) bool { return r.leave.counted }) {
		m.stats.left++
		m.forget(h)
		return
	}
	m.stats.lost++
	h.lostAt = m.now
	m.tellsNear(h)
	for _, r := range h.services {
		r.service.counts.dirty = true
		m.noSource(r)
		m.fillSources(r.service)
	}
}

// forget takes a host out.
func (m *machine) forget(h *host) {
	for _, r := range h.services {
		m.drop(r)
		m.grant(r.service)
		m.fillSources(r.service)
	}
	m.named(h.name, h.start, false)
	m.tellsNear(h)
	delete(m.hosts, h.name)
	delete(m.due, h)
}

// drop takes a service of a host out.
func (m *machine) drop(r *running) {
	s := r.service
	m.release(r)
	m.noSource(r)
	s.counts.dirty = true
	if r.node != nil {
		s.graph.remove(r.node)
		r.node = nil
	}
	delete(s.hosts, r.host.name)
	last := len(s.list) - 1
	s.list[r.at] = s.list[last]
	s.list[r.at].at = r.at
	s.list[last] = nil
	s.list = s.list[:last]
	r.zone.hosts--
	r.zone.asking = slices.DeleteFunc(r.zone.asking, func(other *running) bool { return other == r })
	r.leave.asks = false
	if r.zone.hosts == 0 {
		maps.DeleteFunc(s.zones, func(_ string, z *zone) bool { return z == r.zone })
	}
	if len(s.hosts) == 0 && s.goal == nil {
		delete(m.services, s.name)
		m.idle--
	}
}

// forgetLongestLost makes room for another host.
func (m *machine) forgetLongestLost() bool {
	var oldest *host
	for _, h := range m.hosts {
		if h.link == nil && (oldest == nil || h.lostAt.Before(oldest.lostAt)) {
			oldest = h
		}
	}
	if oldest == nil {
		return false
	}
	m.forget(oldest)
	return true
}

// follow takes a new goal and passes it down at once.
func (m *machine) follow(g *goal.Goal, wire []byte) {
	s := m.services[g.Service]
	switch {
	case s == nil:
		s = m.newService(g.Service)
	case s.goal == nil:
		m.idle--
	case s.goal.Version >= g.Version:
		return
	}
	s.goal, s.wire = g, encode(&hostwire.Goal{Wire: wire})
	s.counts.dirty = true
	for _, r := range s.hosts {
		m.send(r.host, "goal/"+s.name, s.wire)
		for _, id := range s.builds() {
			if !r.host.whole[id] {
				m.sendRecipe(r.host, id)
			}
		}
		m.ask(r)
	}
	m.grant(s)
}

// unfollow has a service have no goal: what it had is believed no more. Hosts know by themselves
// whom they trust.
func (m *machine) unfollow(name string) {
	s := m.services[name]
	if s == nil || s.goal == nil {
		return
	}
	s.goal, s.wire = nil, nil
	s.counts.dirty = true
	if m.idle++; len(s.hosts) == 0 {
		delete(m.services, name)
		m.idle--
	}
}

// beats passes a beat down; nil for that there is none any more.
func (m *machine) beats(wire []byte) {
	if m.beat = nil; wire == nil {
		return
	}
	m.beat = encode(&hostwire.Beat{Wire: wire})
	for _, h := range m.hosts {
		m.send(h, "beat", m.beat)
	}
}

// recall passes the list of recalled builds down, or its beat; nil for that there is none any
// more.
func (m *machine) recall(name string, wire []byte) {
	var message hostwire.Encoded
	if wire != nil {
		message = encode(&hostwire.Goal{Wire: wire})
	}
	if name == goal.Recalls {
		m.recalls = message
	} else {
		m.recallBeat = message
	}
	for _, h := range m.hosts {
		m.send(h, name, message)
	}
}

// tick does what is due once a second.
func (m *machine) tick() {
	var lost []*host
	for _, h := range m.hosts {
		if h.link == nil && m.now.Sub(h.lostAt) >= movedAfter {
			lost = append(lost, h)
		}
	}
	slices.SortFunc(lost, func(a, b *host) int { return strings.Compare(a.name, b.name) })
	for _, h := range lost {
		switch lost := m.now.Sub(h.lostAt); {
		case lost >= forgetAfter:
			m.forget(h)
		case lost >= movedAfter && m.elsewhere(h.name):
			m.moved(h)
		case lost >= keepNeighbour:
			m.missing(h, lost)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.services)) {
		s := m.services[name]
		m.lapse(s)
		s.graph.repair()
	}
	m.rings()
	for h := range m.due {
		m.tellNeighbours(h)
	}
	clear(m.due)
}

// missing deals with a host that has been lost for a while.
func (m *machine) missing(h *host, lost time.Duration) {
	for _, r := range h.services {
		if r.node != nil {
			r.service.graph.remove(r.node)
			r.node = nil
			m.tellsNear(h)
		}
		if lost < silentFor || r.silent {
			continue
		}
		r.silent = true
		r.service.counts.dirty = true
		if r.told() && r.state.State != goal.Failed {
			m.failed(r, goal.Failure{Host: h.name, Version: r.state.Goal, Phase: r.state.Phase, Error: fmt.Sprintf("not heard of for %s", silentFor), At: m.now.UTC()})
		}
		r.leave.given = false
		m.release(r)
		m.grant(r.service)
	}
}
