package peerwire

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// Reason says what a bad peer did.
type Reason string

// The reasons. Corrupt sent pieces, or an info dictionary,
// that fail their hash; Stalled took requests and
// sent nothing, or next to nothing; Garbage does not speak the protocol.
const (
	Corrupt Reason = "corrupt"
	Stalled Reason = "stalled"
	Garbage Reason = "garbage"
)

// Reasons are all of them.
var Reasons = []Reason{Corrupt, Stalled, Garbage}

const (
	// FirstBan is how long a bad peer is left alone at first; it doubles with
	// each time up to maxBan. The first is short: a process that hung for a
	// moment is welcome again before a large build is through.
	FirstBan, maxBan = time.Minute, time.Hour
	// vitalBan is how long a bad peer is left alone at most that others cannot stand in for.
	vitalBan = 10 * time.Second
	// forgiveAfter is how long a peer must behave before nothing is held against
	// it any more.
	forgiveAfter = time.Hour
	// strikeWindow is how close together the strikes must be that make a peer
	// bad. Two of a stalled peer are up to half a minute apart.
	strikeWindow = 2 * time.Minute
	// maxRemembered bounds the peers that something is held against.
	maxRemembered = 256
	// maxAddrs bounds the addresses whose owners are known; who is dialled is
	// named again every second.
	maxAddrs = 4096
)

// Offence is one kind of strike.
type Offence struct {
	Reason Reason
	// Limit is how many within two minutes make a peer bad.
	Limit int
	// Pause is how long the peer is left alone after one that does not.
	Pause time.Duration
}

var (
	// CorruptPiece: one sender of a whole piece that fails its hash leaves no doubt.
	CorruptPiece = Offence{Corrupt, 1, 0}
	// WrongInfo: an info dictionary of another length than the segment's borders give it,
	// or with another hash.
	WrongInfo = Offence{Corrupt, 1, 0}
	// Babble: a member's port may have been somebody else's a moment ago, and engines
	// have had messages that others took for an error.
	Babble = Offence{Garbage, 3, 0}
)

// who is a peer as far as it is known: by its certificate; without one by its id, which
// it may have borrowed; or by its IP address alone when it connected and did not say.
// Several members may share an address, so nobody is ever refused for that.
type who struct {
	identity identity.ID
	id       [20]byte
	ip       netip.Addr
}

// BadPeer is one that is left alone: neither dialled nor accepted. One that
// connected and said nothing intelligible is known by its IP address only: ID and
// Until are zero, and it is only named.
type BadPeer struct {
	ID [20]byte
	// Identity is its certificate's, zero without one; then ID is zero.
	Identity identity.ID
	// Name and Region are the member's, empty where it is unknown.
	Name, Region string
	Addr         string
	Reason       Reason
	Since, Until time.Time
	// Times is how often it was found to be bad, within the time remembered.
	Times int
}

// conduct remembers what peers did wrong. It calls nobody, so that the engine's
// callbacks may use it.
type conduct struct {
	now  func() time.Time
	wake chan struct{}
	// vital knows who is banned for vitalBan at most.
	vital func(who) bool

	mu      sync.Mutex
	records map[who]*record
	addrs   map[netip.AddrPort][20]byte // whom Named named there
	totals  map[Reason]int
	fresh   []who // to be disconnected
}

// record is what is held against one peer.
type record struct {
	BadPeer
	strikes int
	kind    Reason // of the strikes
	last    time.Time
	paused  time.Time // until when it is left alone without being called bad
	told    bool      // of this ban
}

func newConduct(now func() time.Time) *conduct {
	return &conduct{
		now:     now,
		wake:    make(chan struct{}, 1),
		vital:   func(who) bool { return false },
		records: make(map[who]*record),
		addrs:   make(map[netip.AddrPort][20]byte),
		totals:  make(map[Reason]int),
	}
}

// strike holds an offence against a peer. Who calls it leaves the rest to attend.
func (c *conduct) strike(w who, o Offence, at string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w == (who{}) {
		return // not an IP address
	}
	now := c.now()
	r := c.record(w, now)
	if now.Before(r.Until) || now.Before(r.paused) && o.Limit > 1 {
		return // its last words, or the same on another connection
	}
	if r.kind != o.Reason || now.Sub(r.last) > strikeWindow {
		r.strikes = 0
	}
	r.strikes++
	r.kind, r.last, r.Addr = o.Reason, now, at
	if r.strikes < o.Limit {
		c.pause(w, r, now.Add(o.Pause))
		return
	}
	r.strikes, r.told = 0, false
	r.Times++
	r.Reason, r.Since = o.Reason, now
	r.Until = now.Add(banFor(r.Times))
	if most := now.Add(vitalBan); c.vital(w) && most.Before(r.Until) {
		r.Until = most
	}
	c.totals[o.Reason]++
	c.tell(w)
}

// banFor is how long a peer is left alone for the n-th time.
func banFor(n int) time.Duration {
	ban := FirstBan
	for ; n > 1 && ban < maxBan; n-- {
		ban *= 2
	}
	return min(ban, maxBan)
}

// leave leaves a peer alone for a while and holds nothing against it.
func (c *conduct) leave(w who, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	c.pause(w, c.record(w, now), now.Add(d))
}

func (c *conduct) pause(w who, r *record, until time.Time) {
	if until.After(r.paused) && until.After(c.now()) {
		r.paused = until
		c.tell(w)
	}
}

func (c *conduct) tell(w who) {
	c.fresh = append(c.fresh, w)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// delivered ends the doubts about a peer that stalled: it has sent a chunk.
func (c *conduct) delivered(w who) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.records[w]; ok && r.kind == Stalled {
		r.strikes = 0
	}
}

// record returns what is held against a peer. The caller holds mu.
func (c *conduct) record(w who, now time.Time) *record {
	if r, ok := c.records[w]; ok {
		if r.over(now) {
			*r = record{}
		}
		return r
	}
	if len(c.records) >= maxRemembered {
		c.forget(now)
	}
	r := &record{}
	c.records[w] = r
	return r
}

// over reports whether nothing is held against the peer any more.
func (r *record) over(now time.Time) bool { return now.Sub(r.end()) > forgiveAfter }

// end is when it was last in trouble.
func (r *record) end() time.Time {
	return slices.MaxFunc([]time.Time{r.last, r.Until, r.paused}, time.Time.Compare)
}

// forget drops what is over, at the least the oldest. The caller holds mu.
func (c *conduct) forget(now time.Time) {
	var oldest who
	var end time.Time
	for w, r := range c.records {
		switch {
		case r.over(now):
			delete(c.records, w)
		case end.IsZero() || r.end().Before(end):
			oldest, end = w, r.end()
		}
	}
	if len(c.records) >= maxRemembered {
		delete(c.records, oldest)
	}
}

// refused reports whether a peer is to be left alone now.
func (c *conduct) refused(w who) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.records[w]
	return ok && (c.now().Before(r.Until) || c.now().Before(r.paused))
}

// named notes who is to be found at an address.
func (c *conduct) named(peers []Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.addrs) > maxAddrs {
		clear(c.addrs)
	}
	for _, p := range peers {
		c.addrs[p.Addr] = p.ID
	}
}

// at is who was named for an address; zero for nobody.
func (c *conduct) at(addr string) [20]byte {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return [20]byte{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addrs[a]
}

// taken returns whom to disconnect since it was last asked, and those of them that
// were found to be bad, each once.
func (c *conduct) taken() (fresh []who, bad []BadPeer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh, c.fresh = c.fresh, nil
	for _, w := range fresh {
		if r := c.records[w]; r != nil && r.Times > 0 && !r.told {
			r.told = true
			bad = append(bad, c.view(w, r))
		}
	}
	return fresh, bad
}

// describe keeps what is known of a bad peer for as long as it is remembered: it
// may leave the cluster.
func (c *conduct) describe(id [20]byte, name, region string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.records[who{id: id}]; ok {
		r.Name, r.Region = cmp.Or(name, r.Name), cmp.Or(region, r.Region)
	}
}

// bad returns those that are left alone now, the newest first.
func (c *conduct) bad() []BadPeer {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	out := []BadPeer{}
	for w, r := range c.records {
		if now.Before(r.Until) {
			out = append(out, c.view(w, r))
		}
	}
	slices.SortFunc(out, func(a, b BadPeer) int {
		return cmp.Or(b.Since.Compare(a.Since), slices.Compare(a.ID[:], b.ID[:]), cmp.Compare(a.Addr, b.Addr))
	})
	return out
}

// view is a record as others see it. The caller holds mu.
func (c *conduct) view(w who, r *record) BadPeer {
	b := r.BadPeer
	b.ID, b.Identity = w.id, w.identity
	if w.identity != (identity.ID{}) {
		b.Name, b.Region = w.identity.Name, w.identity.Region
		return b
	}
	if w.ip.IsValid() {
		b.Addr, b.Until = w.ip.String(), time.Time{}
		return b
	}
	for addr, id := range c.addrs {
		if id == w.id {
			b.Addr = addr.String()
		}
	}
	return b
}

// total returns how often peers were found to be bad.
func (c *conduct) total(reason Reason) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.totals[reason]
}
