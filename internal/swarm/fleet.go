package swarm

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

const (
	// DefaultPlaces is how many hosts a Fleet gives to at a time. They trade the rest: 8, 20
	// and 100 were simulated to be alike.
	DefaultPlaces = 16
	// maxOfHost bounds the connections of one host: one for each segment that is open, and as
	// many that are about to end.
	maxOfHost = 2 * maxOpenOfBuild
	// idlePlace is patience.place.
	idlePlace = 10 * time.Second
	// wholeStays is how long a connection stays whose host has all of the segment.
	wholeStays = 5 * time.Second
)

var (
	// ErrNoFleet says that the Swarm has no listener for hosts.
	ErrNoFleet   = errors.New("there is no listener for hosts")
	errNotHanded = errors.New("the segment is not handed to hosts")
)

// Fleet is a second listener, for hosts, which are no members: a connection by it sees only
// what is handed to it, piece by piece, and gets nothing of a segment that is not handed to
// hosts. What it says of its own pieces only tells what to hand to others; nothing is ever
// asked of it. Its places, and what is held against its peers, are its own: no host takes
// anything away from a member.
type Fleet struct {
	// Listener takes connections of hosts; the Swarm closes it.
	Listener net.Listener
	// Host is the host with a peer id (Member.Host is set); the zero value is nobody's. Who
	// has a certificate that is Mine need not be known by it. It must not call the Swarm.
	Host func(id [20]byte) peerwire.Member
	// Mine reports whether who has a certificate may be a host of this region; nil for
	// whoever is a host.
	Mine func(identity.ID) bool
	// Places is how many hosts it gives to at a time; 0 for DefaultPlaces.
	Places int
}

// fleet is a Fleet at work.
type fleet struct {
	swarm   *Swarm
	wire    *peerwire.Wire
	handout *handout.Set
	places  int

	mu    sync.Mutex // held for no I/O
	conns map[*peerwire.Conn]struct{}
}

// newFleet is called with what members' connections are made of.
func newFleet(s *Swarm, members peerwire.Config) *fleet {
	cfg := s.cfg.Fleet
	f := &fleet{swarm: s, places: cfg.Places, conns: make(map[*peerwire.Conn]struct{})}
	if f.places <= 0 {
		f.places = DefaultPlaces
	}
	f.handout = handout.NewSet(handout.Config{Logger: s.cfg.Logger, Thrifty: true, HangUp: wholeStays})
	wire := members
	wire.Listener, wire.Member, wire.Mine = cfg.Listener, cfg.Host, cfg.Mine
	if wire.Mine == nil {
		wire.Mine = func(id identity.ID) bool { return id.Kind == identity.Host }
	}
	wire.Proven = true
	wire.AllowPeer = func(netip.Addr) bool { return false }
	wire.Begin, wire.Wrap = f.begun, f.handout.Wrap
	s.wg.Go(func() { f.handout.Run(s.ctx) })
	f.wire = peerwire.New(s.ctx, wire)
	s.client.AddListener(f.wire.Listener())
	return f
}

// begun says what a host's connection is about, and whether there is a place for it.
func (f *fleet) begun(c *peerwire.Conn, infohash manifest.InfoHash) (peerwire.Torrent, error) {
	t, ok := f.swarm.Torrent(infohash)
	if !ok || !t.handed.Load() {
		return nil, errNotHanded
	}
	if !f.enter(c) {
		return nil, peerwire.ErrNoPlace
	}
	if !f.swarm.alongside(func() { <-c.Gone(); f.leave(c) }) {
		f.leave(c)
		return nil, errNotHanded
	}
	if err := f.swarm.makeRoom(t, 1, c.Gone()); err != nil {
		return nil, err
	}
	return t, t.reopen()
}

// enter takes in a connection, if its host has a place, or one is free, or another host has
// not used its own for a while.
func (f *fleet) enter(c *peerwire.Conn) bool {
	now := time.Now()
	f.mu.Lock()
	used, conns := make(map[string]time.Time), 0 // when something passed last, by host
	for other := range f.conns {
		if at := other.Useful(); at.After(used[other.Peer()]) {
			used[other.Peer()] = at
		}
		if other.Peer() == c.Peer() {
			conns++
		}
	}
	in, idlest := conns < maxOfHost, ""
	if conns == 0 && len(used) >= f.places {
		for host, at := range used {
			if now.Sub(at) >= f.swarm.patience.place && (idlest == "" || at.Before(used[idlest])) {
				idlest = host
			}
		}
		in = idlest != ""
	}
	var out []*peerwire.Conn
	for other := range f.conns {
		if idlest != "" && other.Peer() == idlest {
			out = append(out, other)
			delete(f.conns, other)
		}
	}
	if in {
		f.conns[c] = struct{}{}
	}
	f.mu.Unlock()
	for _, other := range out {
		other.Close()
	}
	return in
}

func (f *fleet) leave(c *peerwire.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// hosts is how many have a place.
func (f *fleet) hosts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	hosts := make(map[string]struct{})
	for c := range f.conns {
		hosts[c.Peer()] = struct{}{}
	}
	return len(hosts)
}

// HandToHosts hands the segment to hosts, in its place among all that are: each piece to one
// of them, as it is here. So many other agents do it before this one, as handout.Set.Grow has
// it. Again it changes the place, to the earlier one, and how many those are. It fails before
// the info dictionary is here.
func (t *Torrent) HandToHosts(place handout.Place, others int) error {
	f := t.swarm.fleet
	if f == nil {
		return ErrNoFleet
	}
	e := t.entryNow()
	if e == nil {
		return errNotHanded
	}
	shape := e.Shape()
	f.handout.Grow(t.fetch.InfoHash, place, others, shape.NumPieces(), shape.PieceLength)
	if t.handed.Swap(true) { // from now on, tell says what comes
		return nil
	}
	whole := e.Whole() // and may be cold
	var here []int
	for i := range shape.NumPieces() {
		if whole || e.Complete(i) {
			here = append(here, i)
		}
	}
	f.handout.Here(t.fetch.InfoHash, true, here...)
	return nil
}

// KeepFromHosts ends HandToHosts; hosts that are connected are disconnected.
func (t *Torrent) KeepFromHosts() {
	f := t.swarm.fleet
	if f == nil || !t.handed.Swap(false) {
		return
	}
	f.handout.Remove(t.fetch.InfoHash)
	for of, c := range f.wire.Conns() {
		if of == t.fetch.InfoHash {
			c.Close()
		}
	}
}

// conn finds the connection that the engine has with an address for a torrent, and whether
// a host has made it.
func (s *Swarm) conn(remote string, infohash manifest.InfoHash) (c *peerwire.Conn, host bool) {
	if c = s.wire.Conn(remote, infohash); c != nil || s.fleet == nil {
		return c, false
	}
	c = s.fleet.wire.Conn(remote, infohash)
	return c, c != nil
}

// unheard has the engine not hear what a host says that it has, so that nothing is ever
// asked of one; it is called under the engine's lock.
func (s *Swarm) unheard(c *torrent.PeerConn, msg *pp.Message) {
	if s.fleet == nil || msg.Keepalive {
		return
	}
	switch msg.Type {
	case pp.Have, pp.Bitfield, pp.HaveAll, pp.AllowedFast, pp.Suggest:
		if x := s.exchange(&c.Peer); x != nil && x.host {
			*msg = pp.Message{Keepalive: true}
		}
	}
}

// FleetStats are counters of what was handed to hosts since the start, in pieces but for
// Hosts, which are connected now.
type FleetStats struct {
	Hosts int
	handout.Totals
}

// Fleet returns the counters; zero without a listener for hosts.
func (s *Swarm) Fleet() FleetStats {
	if s.fleet == nil {
		return FleetStats{}
	}
	return FleetStats{s.fleet.hosts(), s.fleet.handout.Totals()}
}
