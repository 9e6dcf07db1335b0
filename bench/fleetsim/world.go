package fleetsim

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/fleet"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm"
)

const (
	region, service = "region-a", "web"
	execution       = "01JD000000000000000000000B"
	started         = "01JD0000000000000000000001"
	hostPrefix      = "host-"
	// agentTick is how often agents tell what is new.
	agentTick = time.Second
	// rejoin is within which time a host whose agent has died asks another one.
	rejoin = 5 * time.Second
	// memberLost is when the other agents know that one is gone, in a wide network.
	memberLost = 30 * time.Second
	// idlePlace is how long a host may use its place at an agent for nothing.
	idlePlace = 10 * time.Second
	// streamLag is what a message down a stream takes.
	streamLag = 5 * time.Millisecond
	// warmUp is how long the hosts of the beginning are there before the goal.
	warmUp = 5 * time.Second
	// mostBounds ends a simulation that does not.
	mostBounds = 40
)

var epoch = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// segment is one of the build's, cut into items.
type segment struct {
	word, words  int // in a node's have
	items        int
	item, last   int64 // lengths in bytes
	infohash     manifest.InfoHash
	begins, ends time.Duration // of its way into the region
}

func (s *segment) length(g int) int64 {
	if g == s.items-1 {
		return s.last
	}
	return s.item
}

// host is what a host is beside its transfers.
type host struct {
	name         string
	slow, dying  bool
	late         bool
	from, done   time.Duration
	agent        int // -1 without a stream
	stream       *fleet.TrialHost
	neighbours   hostwire.Encoded        // said and not looked at yet
	peers        map[int32]time.Duration // named, or until when they are kept; 0 for named
	sources      map[int32]bool
	dirty        bool
	looked       int
	upMessages   int
	upBytes      int
	downMessages int
	downBytes    int
	segment      bool // has said that it has one
}

// agent is one of the region's.
type agent struct {
	id, name, url string
	peer          hostwire.Peer
	node          int32
	trial         *fleet.Trial
	set           *handout.Set
	gone          bool
	goneAt        time.Duration
	orders        map[int][]int // in which a segment's items come
	hungUp        []func()
	sent          int64 // bytes
	down, up      traffic
}

type traffic struct{ messages, bytes int64 }

type world struct {
	cfg      Config
	layout   *manifest.Layout
	segments []segment
	words    int
	depth    int
	nodes    []node
	hosts    []host
	agents   []agent
	hashes   announce.InfoHashes
	// announced is how many segments the agents know.
	announced int
	goal      *goal.Goal
	agenda    agenda
	now       time.Duration
	rng       *rand.Rand
	pool      []request
	free      int32
	toldNow   []int32 // hosts that a recipe was said to just now
	lack      int     // hosts that are not done and are to be
	result    Result
}

// Run simulates.
func Run(cfg Config) (*Result, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	w := newWorld(cfg)
	for w.lack > 0 {
		e, ok := w.agenda.next()
		if !ok || e.at > mostBounds*cfg.Bound() {
			break
		}
		w.now = e.at
		w.result.Events++
		w.do(e)
	}
	return w.sum(), nil
}

func newWorld(cfg Config) *world {
	w := &world{cfg: cfg, now: -warmUp, rng: rand.New(rand.NewPCG(cfg.Seed, 7)), pool: make([]request, 1)}
	w.layout, _ = manifest.NewLayout(manifest.Ramp, cfg.Size) // check has tried
	w.depth = min(250, max(2, deepest/cfg.Pieces))
	item := w.layout.PieceLength * int64(cfg.Pieces)
	for i := range w.layout.NumSegments() {
		offset, length := w.layout.SegmentRange(i)
		s := segment{word: w.words, items: int((length + item - 1) / item), item: item}
		s.last = length - int64(s.items-1)*item
		s.words = (s.items + 63) / 64
		w.words += s.words
		s.infohash = manifest.InfoHash(w.random(len(s.infohash)))
		if cfg.Inflow > 0 { // announced when the seeder has read it, which comes as fast
			s.begins, s.ends = seconds(float64(offset+length)/cfg.Inflow), seconds(float64(offset+2*length)/cfg.Inflow)
		}
		w.segments = append(w.segments, s)
		w.hashes = w.hashes.Append(s.infohash)
	}
	build := goal.Build{SourceBucket: "global-builds", Key: "web-2.0.0.zip", ExecutionID: execution, Size: cfg.Size}
	w.goal = &goal.Goal{Service: service, Version: 1, Deployment: execution, Target: build, MaxUnavailable: "10%", Regions: map[string]goal.Region{region: {Cut: 0}}, Issued: epoch}
	w.makeAgents()
	w.makeHosts()
	w.meet()
	for i := range w.segments {
		if w.segments[i].begins == 0 { // it is there
			w.announce(i)
			continue
		}
		w.agenda.add(event{at: w.segments[i].begins, kind: learns, item: int32(i)})
	}
	for i := range w.agents {
		w.agenda.add(event{at: w.upTo(agentTick), kind: ticks, node: int32(i)})
		w.agenda.add(event{at: w.upTo(handout.TickInterval), kind: measures, node: int32(i)})
	}
	if cfg.AgentDies {
		w.agenda.add(event{at: cfg.Bound() * 2 / 5, kind: dies, node: w.agents[w.rng.IntN(cfg.Agents)].node})
	}
	wire := w.random(700) // as long as a signed goal of few regions
	for i := range w.agents {
		w.agents[i].trial.Follow(epoch, w.goal, wire, w.recipe)
	}
	w.passTold()
	return w
}

func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) }

func (w *world) random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
	return b
}

func (w *world) makeAgents() {
	w.nodes = make([]node, w.cfg.Hosts+w.cfg.Agents)
	w.agents = make([]agent, w.cfg.Agents)
	for i := range w.agents {
		a := &w.agents[i]
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 255, 0, byte(i)}), 7090)
		a.id, a.node, a.url = fmt.Sprint("agent-", i), int32(w.cfg.Hosts+i), "https://"+addr.String()
		a.name = hostwire.NameOf(a.id, started)
		a.peer = hostwire.Peer{Name: a.name, ID: a.id, Addr: netip.AddrPortFrom(addr.Addr(), 7092)}
		a.orders = make(map[int][]int)
		// Twice as many as it has when another one is away.
		a.trial = fleet.NewTrial(region, max(fleet.DefaultMaxHosts, 2*w.cfg.Hosts), w.rng.Uint64())
		a.set = handout.NewSet(handout.Config{Thrifty: true, HangUp: 5 * time.Second, Now: func() time.Time { return epoch.Add(w.now) }})
		w.nodes[a.node] = node{up: 1e9 / w.cfg.Rate, zone: i % w.cfg.Zones, on: true}
	}
}

func (w *world) makeHosts() {
	w.hosts = make([]host, w.cfg.Hosts)
	bound := w.cfg.Bound()
	is := func(share float64) []bool { // so many of them, drawn
		of := make([]bool, w.cfg.Hosts)
		for i := range int(share*float64(w.cfg.Hosts) + 0.5) {
			of[i] = true
		}
		w.rng.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		return of
	}
	slow, dying, late := is(w.cfg.Slow), is(w.cfg.Dying), is(w.cfg.Late)
	most := 0
	for i := range w.segments {
		most = max(most, w.segments[i].items)
	}
	for i := range w.hosts {
		h, n := &w.hosts[i], &w.nodes[i]
		h.name, h.agent = fmt.Sprintf("%s%06d", hostPrefix, i), -1
		h.slow, h.dying, h.late = slow[i], dying[i], late[i] && !dying[i]
		rate := w.cfg.Rate
		if h.slow {
			rate *= slowShare
		}
		*n = node{up: 1e9 / rate, down: 1e9 / rate, zone: w.rng.IntN(w.cfg.Zones), have: make([]uint64, w.words), lacking: len(w.segments)}
		item := w.segments[0].item
		n.most = max(4*item, int64(rate*askedFor.Seconds()))
		n.left, n.slotOf = make([]int16, len(w.segments)), make([]int8, len(w.segments))
		for s := range w.segments {
			n.left[s], n.slotOf[s] = int16(w.segments[s].items), -1
		}
		n.slots = make([]slot, fetch.MaxOpenSegments)
		for k := range n.slots {
			n.slots[k] = slot{-1, make([]uint64, (most+63)/64), make([]uint8, most), make([]uint8, most), make([]time.Duration, most)}
		}
		switch {
		case h.dying:
			w.agenda.add(event{at: w.upTo(bound), kind: dies, node: int32(i)})
		default:
			w.lack++
		}
		if h.late {
			h.from = w.upTo(bound)
			w.agenda.add(event{at: h.from, kind: comes, node: int32(i)})
		}
	}
}

// meet has the hosts of the beginning be there, and the agents know them.
func (w *world) meet() {
	for i := range w.hosts {
		if !w.hosts[i].late {
			w.join(int32(i))
		}
	}
	for w.now < -agentTick {
		w.now += agentTick
		for i := range w.agents {
			w.tick(i)
		}
	}
	w.now = 0
	for i := range w.hosts {
		if h := &w.hosts[i]; !h.late {
			w.follow(h)
			h.downMessages, h.downBytes, h.upMessages, h.upBytes = 0, 0, 0, 0
		}
	}
	for i := range w.hosts {
		if !w.hosts[i].late {
			w.dial(int32(i))
			w.agenda.add(event{at: w.upTo(lookInterval), kind: looks, node: int32(i)})
		}
	}
	for i := range w.agents {
		w.agents[i].down, w.agents[i].up = traffic{}, traffic{}
	}
}

// do does what an event says.
func (w *world) do(e event) {
	switch e.kind {
	case sent:
		w.hasSent(e.node)
	case received:
		w.receive(e.node, uint8(e.edge), e.item)
	case comes:
		w.join(e.node)
	case rejoins:
		if !w.nodes[e.node].gone {
			w.join(e.node)
		}
	case dies:
		w.die(e.node)
	case missed:
		w.leave(e.node)
	case loses:
		if h := &w.hosts[e.node]; h.agent >= 0 && !w.agents[h.agent].gone {
			h.stream.Lose(epoch.Add(w.now))
		}
	case told:
		if n := &w.nodes[e.node]; int(e.item) > n.known {
			n.known = int(e.item)
			w.openMore(e.node)
		}
	case looks:
		w.look(e.node)
	case arrives:
		w.arrive(int(e.node), e.item)
	case learns:
		w.announce(int(e.item))
	case ticks:
		if a := &w.agents[e.node]; !a.gone {
			w.tick(int(e.node))
			w.agenda.add(event{at: w.now + agentTick, kind: ticks, node: e.node})
		}
	case measures:
		if a := &w.agents[e.node]; !a.gone {
			a.set.Tick()
			for _, hangUp := range a.hungUp {
				hangUp()
			}
			a.hungUp = a.hungUp[:0]
			w.agenda.add(event{at: w.now + handout.TickInterval, kind: measures, node: e.node})
		}
	}
}

// join has a host open a stream to the first agent of its order that is there.
func (w *world) join(i int32) {
	h := &w.hosts[i]
	if n := &w.nodes[i]; !n.on {
		if n.on = true; w.now >= 0 {
			w.agenda.add(event{at: w.now + w.upTo(lookInterval), kind: looks, node: i})
		}
	}
	h.agent = -1
	var best [sha256.Size]byte
	for k := range w.agents {
		if sum := sha256.Sum256([]byte(h.name + "\x00" + w.agents[k].url)); !w.agents[k].gone && (h.agent < 0 || bytes.Compare(sum[:], best[:]) < 0) {
			h.agent, best = k, sum
		}
	}
	hello := &hostwire.Hello{
		Version: hostwire.Version, Host: h.name, Start: started, Zone: fmt.Sprint("zone-", w.nodes[i].zone), PeerPort: 7093,
		Services: []hostwire.ServiceState{{Service: service, State: goal.Healthy, Running: "01JD000000000000000000000A"}},
	}
	if h.segment {
		hello.Holds = []hostwire.Holds{{ExecutionID: execution, Segments: 1, Whole: w.nodes[i].lacking == 0}}
	}
	w.says(h, hello)
	addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	h.stream = w.agents[h.agent].trial.Join(epoch.Add(w.now), hello, addr, func(name string, e hostwire.Encoded) { w.said(i, name, e) })
	w.passTold()
}

// says counts what a host says.
func (w *world) says(h *host, m hostwire.Message) {
	e, err := hostwire.Encode(m)
	if err != nil {
		panic(err) // it is of our own making
	}
	h.upMessages++
	h.upBytes += len(e)
	a := &w.agents[h.agent]
	a.up.messages++
	a.up.bytes += int64(len(e))
}

// said takes what an agent says to a host.
func (w *world) said(i int32, name string, e hostwire.Encoded) {
	h := &w.hosts[i]
	h.downMessages++
	h.downBytes += len(e)
	if h.agent >= 0 {
		w.agents[h.agent].down.messages++
		w.agents[h.agent].down.bytes += int64(len(e))
	}
	switch kind, _, _ := strings.Cut(name, "/"); kind {
	case "neighbours":
		h.neighbours = e
	case "recipe":
		w.toldNow = append(w.toldNow, i)
	}
}

// passTold has the hosts that were told of segments hear of it, in an order that does not
// depend on that of a map.
func (w *world) passTold() {
	slices.Sort(w.toldNow)
	for _, i := range w.toldNow {
		w.agenda.add(event{at: w.now + streamLag, kind: told, node: i, item: int32(w.announced)})
	}
	w.toldNow = w.toldNow[:0]
}

func (w *world) recipe(string) (hostwire.Recipe, bool) {
	return hostwire.Recipe{
		ExecutionID: execution, Key: w.goal.Target.Key, Size: w.cfg.Size, Scheme: manifest.Ramp, PieceLength: w.layout.PieceLength, PartLength: w.layout.PartLength,
		InfoHashes: w.hashes[:w.announced*len(manifest.InfoHash{})], Sealed: w.announced == len(w.segments),
	}, w.announced > 0
}

// members are the agents that an agent takes to be there.
func (w *world) members() (of []int) {
	for i := range w.agents {
		if a := &w.agents[i]; !a.gone || w.now-a.goneAt < memberLost {
			of = append(of, i)
		}
	}
	return of
}

// tick is an agent's, once a second.
func (w *world) tick(i int) {
	a := &w.agents[i]
	var urls, others []string
	var sources []hostwire.Peer
	for _, k := range w.members() {
		urls, sources = append(urls, w.agents[k].url), append(sources, w.agents[k].peer)
		if k != i {
			others = append(others, w.agents[k].name)
		}
	}
	a.trial.Tick(epoch.Add(w.now), urls, sources, others, w.recipe, func(_ int, hosts []byte) {
		for k := range w.agents {
			if k != i && !w.agents[k].gone {
				if err := w.agents[k].trial.HearNear(a.name, hosts); err != nil {
					panic(err) // it is of our own making
				}
			}
		}
	})
	w.passTold()
	for s := range w.announced {
		w.grow(i, s)
	}
}

// rank is an agent's place in the order of a segment, as agent.rendezvousRank has it.
func (w *world) rank(i, segment int) (before int) {
	hash := func(k int) []byte {
		sum := sha256.Sum256([]byte(w.segments[segment].infohash.String() + "\x00" + w.agents[k].id))
		return sum[:]
	}
	for _, k := range w.members() {
		if k != i && bytes.Compare(hash(k), hash(i)) > 0 {
			before++
		}
	}
	return before
}

// grow has an agent hand a segment to hosts.
func (w *world) grow(i, segment int) {
	s := &w.segments[segment]
	place := handout.Place{Execution: execution, Segment: segment, More: segment < len(w.segments)-1}
	w.agents[i].set.Grow(s.infohash, place, w.rank(i, segment), s.items, s.item)
}

// announce has the agents learn of a segment, whose items come from now on.
func (w *world) announce(segment int) {
	w.announced = segment + 1
	for i := range w.agents {
		if a := &w.agents[i]; !a.gone {
			w.grow(i, segment)
			a.orders[segment] = w.rng.Perm(w.segments[segment].items)
			w.comesIn(i, segment, 0)
		}
	}
}

// comesIn has the next items of a segment come to an agent.
func (w *world) comesIn(i, segment, next int) {
	s := &w.segments[segment]
	if next >= s.items {
		delete(w.agents[i].orders, segment)
		return
	}
	at := s.begins + (s.ends-s.begins)*time.Duration(next+1)/time.Duration(s.items)
	w.agenda.add(event{at: at, kind: arrives, node: int32(i), item: itemOf(segment, next)})
}

func (w *world) arrive(i int, item int32) {
	a := &w.agents[i]
	if a.gone {
		return
	}
	segment, next := int(item>>16), int(item&0xffff)
	a.set.Here(w.segments[segment].infohash, true, a.orders[segment][next])
	w.comesIn(i, segment, next+1)
}

// die has a node stop. An agent's process ends, which its peers see; a host's machine is
// silent.
func (w *world) die(i int32) {
	n := &w.nodes[i]
	n.gone = true
	if k := int(i) - w.cfg.Hosts; k >= 0 {
		w.agents[k].gone, w.agents[k].goneAt = true, w.now
		w.leave(i)
		for j := range w.hosts {
			if h := &w.hosts[j]; h.agent == k && !w.nodes[j].gone {
				h.agent = -1
				w.agenda.add(event{at: w.now + w.upTo(rejoin), kind: rejoins, node: int32(j)})
			}
		}
		return
	}
	w.agenda.add(event{at: w.now + silentAfter, kind: missed, node: i})
	w.agenda.add(event{at: w.now + hostwire.LostAfter, kind: loses, node: i})
}

// leave has a node's neighbours give it up.
func (w *world) leave(i int32) {
	for _, e := range slices.Clone(w.nodes[i].live) {
		w.part(i, e)
	}
}

// look is what a host does twice a second.
func (w *world) look(i int32) {
	n, h := &w.nodes[i], &w.hosts[i]
	if n.gone {
		return
	}
	if h.looked++; h.looked%2 == 1 {
		w.dial(i)
	}
	if n.lacking > 0 {
		w.askAgain(i)
	}
	w.agenda.add(event{at: w.now + lookInterval, kind: looks, node: i})
}

// dial connects a host with those that it was told of.
func (w *world) dial(i int32) {
	h, n := &w.hosts[i], &w.nodes[i]
	if h.neighbours != nil {
		w.follow(h)
	}
	for k := range h.sources {
		w.dialAgent(i, k)
	}
	if !h.dirty {
		return
	}
	h.dirty = false
	others := make([]int32, 0, len(h.peers))
	for other, until := range h.peers {
		if until > 0 && until <= w.now {
			delete(h.peers, other)
			continue
		}
		others = append(others, other)
	}
	slices.Sort(others)
	for _, e := range slices.Clone(n.live) {
		if ed := &n.edges[e]; ed.agent == nil && !slices.Contains(others, ed.to) {
			w.part(i, e)
		}
	}
	for _, other := range others {
		o := &w.hosts[other]
		if _, mutual := o.peers[i]; !mutual || !w.nodes[other].on || w.nodes[other].gone {
			h.dirty = true // asks again
			continue
		}
		if !slices.ContainsFunc(n.live, func(e uint8) bool { return n.edges[e].to == other }) {
			w.connect(i, other, nil)
		}
	}
}

// follow reads whom a host was told of.
func (w *world) follow(h *host) {
	m, _, err := hostwire.Read(bytes.NewReader(h.neighbours))
	if err != nil {
		panic(err) // it is of our own making
	}
	h.neighbours, h.dirty = nil, true
	peers := make(map[int32]time.Duration)
	for _, p := range m.(*hostwire.Neighbours).Peers {
		peers[w.numberOf(p.ID)] = 0
	}
	h.peers = peers
	h.sources = make(map[int32]bool)
	for _, p := range m.(*hostwire.Neighbours).Sources {
		k := slices.IndexFunc(w.agents, func(a agent) bool { return a.id == p.ID })
		h.sources[int32(k)] = true
	}
}

func (w *world) numberOf(name string) int32 {
	n, err := strconv.Atoi(strings.TrimPrefix(name, hostPrefix))
	if err != nil {
		panic(err) // it is of our own making
	}
	return int32(n)
}

// dialAgent connects a host with an agent, if that has a place for it.
func (w *world) dialAgent(i, k int32) {
	a := &w.agents[k]
	n, an := &w.nodes[i], &w.nodes[a.node]
	if a.gone {
		return
	}
	at := slices.IndexFunc(n.live, func(e uint8) bool { return n.edges[e].to == a.node })
	if at < 0 {
		if len(an.live) >= swarm.DefaultPlaces {
			idlest := slices.MinFunc(an.live, func(x, y uint8) int { return cmp.Compare(w.usedAt(an, x), w.usedAt(an, y)) })
			if w.now-w.usedAt(an, idlest) < idlePlace {
				return
			}
			w.part(a.node, idlest)
		}
		if !w.connect(i, a.node, &source{make([]uint64, w.words), make(map[int]*handout.Link), w.now}) {
			return
		}
		at = len(n.live) - 1
	}
	for _, s := range n.slots {
		if s.segment >= 0 {
			w.link(i, n.live[at], int(s.segment))
		}
	}
}

func (w *world) usedAt(an *node, e uint8) time.Duration {
	ed := &an.edges[e]
	return w.nodes[ed.to].edges[ed.back].agent.useful
}

// link has an agent hand a segment to a host.
func (w *world) link(i int32, e uint8, segment int) {
	n := &w.nodes[i]
	src := n.edges[e].agent
	if src.links[segment] != nil {
		return
	}
	a := &w.agents[int(n.edges[e].to)-w.cfg.Hosts]
	seg := &w.segments[segment]
	hangUp := func() {
		if l := src.links[segment]; l != nil {
			delete(src.links, segment)
			l.Leave()
		}
	}
	l, _ := a.set.Connect(seg.infohash, peerwire.PeerID(hostwire.NameOf(w.hosts[i].name, started)), func(items ...int) {
		at := int(n.slotOf[segment])
		for _, g := range items {
			if src.offered[seg.word+g/64]>>(g%64)&1 != 0 {
				continue
			}
			src.offered[seg.word+g/64] |= 1 << (g % 64)
			if at >= 0 {
				n.slots[at].has[g]++
			}
		}
		if at >= 0 && n.edges[e].on {
			w.update(i, e, at)
		}
	}, func() { a.hungUp = append(a.hungUp, hangUp) })
	if l == nil {
		return
	}
	src.links[segment] = l
	var has []int
	for g := range seg.items {
		if n.have[seg.word+g/64]>>(g%64)&1 != 0 {
			has = append(has, g)
		}
	}
	l.Has(has...)
}

// openMore opens the oldest segments that a host knows and lacks.
func (w *world) openMore(i int32) {
	n := &w.nodes[i]
	open := 0
	for s := n.first; s < n.known; s++ {
		switch {
		case n.left[s] == 0:
			if s == n.first {
				n.first++
			}
			continue
		case n.slotOf[s] < 0:
			if open >= len(n.slots) {
				return
			}
			w.open(i, s)
		}
		if open++; open >= len(n.slots) {
			return
		}
	}
}

func (w *world) open(i int32, segment int) {
	n := &w.nodes[i]
	at := slices.IndexFunc(n.slots, func(s slot) bool { return s.segment < 0 })
	s := &n.slots[at]
	s.segment = int16(segment)
	n.slotOf[segment] = int8(at)
	clear(s.asked)
	clear(s.has)
	seg := &w.segments[segment]
	for _, e := range n.live {
		ed := &n.edges[e]
		ed.conns[at] = conn{}
		for k, word := range w.has(ed)[seg.word : seg.word+seg.words] {
			for ; word != 0; word &= word - 1 {
				s.has[k*64+bits.TrailingZeros64(word)]++
			}
		}
	}
	for _, e := range n.live {
		if n.edges[e].agent != nil {
			w.link(i, e, segment)
		}
		w.update(i, e, at)
	}
}

// whole closes a segment that a host has all of.
func (w *world) whole(i int32, segment, at int) {
	n, h := &w.nodes[i], &w.hosts[i]
	n.slots[at].segment = -1
	n.slotOf[segment] = -1
	n.lacking--
	for e := range n.edges {
		n.edges[e].conns[at] = conn{}
	}
	if !h.segment || n.lacking == 0 {
		holds := &hostwire.Holds{ExecutionID: execution, Segments: len(w.segments) - n.lacking, Whole: n.lacking == 0}
		h.segment = true
		if h.agent >= 0 {
			w.says(h, holds)
			h.stream.Holds(epoch.Add(w.now), holds)
		}
	}
	if n.lacking > 0 {
		w.openMore(i)
		return
	}
	if h.agent >= 0 {
		w.says(h, &hostwire.State{ServiceState: hostwire.ServiceState{Service: service, Goal: 1, State: goal.Ready, Running: "01JD000000000000000000000A"}})
	}
	h.done = w.now
	if !h.dying {
		w.lack--
	}
}

// traffic counts what a node sends.
func (w *world) traffic(from, to int32, bytes int64) {
	if w.nodes[from].zone != w.nodes[to].zone {
		w.result.AcrossZones += bytes
	}
	if k := int(from) - w.cfg.Hosts; k >= 0 {
		w.agents[k].sent += bytes
		w.result.Agents += bytes
	}
}
