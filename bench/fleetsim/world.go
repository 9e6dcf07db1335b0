package fleetsim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/fleet"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
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
	// progressEvents is after how many events progress is told: well below a second of one core.
	progressEvents = 1 << 16
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
	neighbours   hostwire.Encoded // said and not looked at yet
	peers        map[int32]bool
	sources      map[int32]bool
	dirty        bool
	looked       int
	upMessages   int
	upBytes      int
	downMessages int
	downBytes    int
	segment      bool // has one, and says so in its hello
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
	scratch   []int
	toldNow   []int32 // hosts that a recipe was said to just now
	lack      int     // hosts that are not done and are to be
	result    Result
}

// Run simulates until ctx ends. progress is called now and then with the simulation's
// time and how many hosts lack the build still.
func Run(ctx context.Context, cfg Config, progress func(now time.Duration, lack int)) (*Result, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	w := newWorld(cfg)
	for w.lack > 0 {
		if w.result.Events%progressEvents == 0 {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("simulating a region, %v of its time in: %w", w.now.Round(time.Millisecond), context.Cause(ctx))
			}
			progress(w.now, w.lack)
		}
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
		n.left, n.slotOf = make([]int16, len(w.segments)), make([]int8, len(w.segments))
		for s := range w.segments {
			n.left[s], n.slotOf[s] = int16(w.segments[s].items), -1
		}
		n.slots = make([]slot, fetch.MaxOpenSegments)
		for k := range n.slots {
			n.slots[k] = slot{
				segment: -1, asked: make([]uint64, (most+63)/64), sent: make([]uint64, (most+63)/64),
				has: make([]uint8, most), holder: make([]uint8, most), at: make([]time.Duration, most),
			}
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
		w.goOn(e.node)
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
