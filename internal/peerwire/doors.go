package peerwire

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// MaxGreeting bounds the connections that peers have made and that have not said
	// who they are: every member for a few builds at once. The engine gives each of
	// them four seconds.
	MaxGreeting = 1024
	// maxUnknownGreeting bounds those of them that come from addresses of which
	// nobody knows. A member behind NAT needs a round trip to say who it is.
	maxUnknownGreeting = 64
	// maxSilent bounds the connections that peers have made and that have not said
	// anything: spare ones of every member, twice. MaxSilentPerAddr bounds those of one
	// IP address, behind which several members may be, MaxUnknownSilent those of addresses
	// of which nobody knows. Who has to go loses a round trip, if it is a member's.
	maxSilent, MaxSilentPerAddr, MaxUnknownSilent = 1024, 64, 64
	// maxStrangers bounds the connections with peers that are no members, over all
	// builds, MaxStrangersPerAddr those of one IP address: ordinary clients that
	// --allow-peers lets in. Members do not count, and their places are never taken.
	maxStrangers, MaxStrangersPerAddr = 32, 8
	// maxSecuring bounds the connections whose peers are about to show a certificate: every
	// member at once. maxSecuringPerAddr bounds those of one IP address, maxUnknownSecuring
	// those of addresses of which nobody knows. Each has five seconds.
	maxSecuring, maxSecuringPerAddr, maxUnknownSecuring = 512, 64, 64
	// strangersBurst and strangersPerSecond bound how often peers of one IP address
	// that are no members may connect: a client asks again each minute or so.
	strangersBurst, strangersPerSecond = 32, 1
	// provingBurst and provingPerSecond bound how often peers of one IP address may fail to
	// prove who they are, or prove that they are left alone, before they are turned away
	// without being heard: a handshake of TLS costs both sides the same, and some of it goes on
	// so that a member behind the same address has its chance.
	provingBurst, provingPerSecond = 32, 4
	// maxStrangerAddrs bounds the addresses whose rate is remembered.
	maxStrangerAddrs = 1024
	// fullPause is the least time for which a peer is left alone that had no place; at most
	// twice as long.
	fullPause = 5 * time.Second
	// idleTwin is how long a member's connection must have been silent to give way to
	// a new one of the same member for the same build: who dials again has lost it.
	idleTwin = 10 * time.Second
)

var (
	errStranger = errors.New("neither its address nor its peer id is a member's")
	errCrowded  = errors.New("too many connections of peers that are no members")
	errRefused  = errors.New("the peer does not know this address")
	// ErrNoPlace is what Begin returns for a peer for which there is no place now: it is told
	// so, and leaves us alone for a while.
	ErrNoPlace = errors.New("there is no place for it at the moment")
	// ErrNoDestination is what Begin returns for a peer that may not have what it asks for.
	ErrNoDestination = errors.New("the build does not go to its bucket")
)

// RefusedID is the peer id of who answers a handshake only to say that the peer's
// address is not known, unwantedID of who says that the build does not go to its bucket,
// fullID of who has no place at the moment.
// Nobody's name has one of them.
var (
	RefusedID  = [20]byte([]byte(IDPrefix + "refused-addr"))
	unwantedID = [20]byte([]byte(IDPrefix + "refused-dest"))
	fullID     = [20]byte([]byte(IDPrefix + "refused-full"))
)

// doors admits the connections that peers make. Who is at the other end counts, not
// from where it comes: a member is known by its peer id, and has a place of its own.
// What may be no member's is bounded, and the idlest of it goes first.
type doors struct {
	mu sync.Mutex
	// silent are the connections that have not said anything, securing those that are to
	// show a certificate, greeting those that have not said who they are, in order.
	silent, securing, greeting []*Conn
	// strangers have said who they are, and are no members.
	strangers []*Conn
	rates     map[netip.Addr]*allowance // of strangers
	failures  map[netip.Addr]*allowance // to prove who they are
}

// wait takes a connection that was just made, and returns one that has to go for it; nil
// for none.
func (d *doors) wait(w *Conn) (out *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.securing = without(d.securing, w)
	d.silent, out = admitOne(d.silent, w, maxSilent, MaxUnknownSilent, MaxSilentPerAddr)
	return out
}

// secure takes a connection that is to show a certificate.
func (d *doors) secure(w *Conn) (out *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent = without(d.silent, w)
	d.securing, out = admitOne(d.securing, w, maxSecuring, maxUnknownSecuring, maxSecuringPerAddr)
	return out
}

// enter takes a connection that has begun to speak, and returns the one that has to go
// for it, which may be the same; nil for none.
func (d *doors) enter(w *Conn) (out *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent = without(d.silent, w)
	d.greeting, out = admitOne(d.greeting, w, MaxGreeting, maxUnknownGreeting, MaxGreeting)
	return out
}

// count is how many connections there are of each kind.
func (d *doors) count() (silent, greeting, strangers int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.silent), len(d.greeting), len(d.strangers)
}

// admitOne adds a connection to a list. Where there are too many in all, of unknown
// addresses, or of the one, the oldest of the address, or the identity, that has most goes.
func admitOne(list []*Conn, w *Conn, most, mostUnknown, mostPerAddr int) (_ []*Conn, out *Conn) {
	list = append(list, w)
	unknown, perAddr := 0, make(map[who]int)
	for _, g := range list {
		perAddr[g.origin()]++
		if !g.mayConnect() {
			unknown++
		}
	}
	unknownOnly := unknown > mostUnknown
	if !unknownOnly && len(list) <= most && perAddr[w.origin()] <= mostPerAddr {
		return list, nil
	}
	at := -1
	for i, g := range list {
		if unknownOnly && g.mayConnect() {
			continue
		}
		if at < 0 || perAddr[g.origin()] > perAddr[list[at].origin()] {
			at = i
		}
	}
	out = list[at]
	return slices.Delete(list, at, at+1), out
}

// origin is where a connection comes from: from whom, with a certificate, else from where.
func (c *Conn) origin() who {
	if p := c.proven.Load(); p != nil {
		return who{identity: p.ID}
	}
	return who{ip: c.from}
}

// mayConnect reports whether its peer has a certificate, or need not be a member.
func (c *Conn) mayConnect() bool { return c.allowed || c.proven.Load() != nil }

// leave forgets a connection.
func (d *doors) leave(w *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent, d.securing = without(d.silent, w), without(d.securing, w)
	d.greeting, d.strangers = without(d.greeting, w), without(d.strangers, w)
}

func without(list []*Conn, w *Conn) []*Conn {
	for i, other := range list {
		if other == w {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

// known ends the greeting of a member.
func (d *doors) known(w *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.greeting = without(d.greeting, w)
}

// stranger ends the greeting of a peer that is no member, and returns the one that
// has to go for it, nil for none. isMember is asked again of those that are here:
// membership changes.
func (d *doors) stranger(w *Conn, isMember func(id [20]byte) bool, now time.Time) (out *Conn, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.greeting = without(d.greeting, w)
	if !d.rate(w.from, now).take(1, now) {
		return nil, errCrowded
	}
	kept := d.strangers[:0]
	for _, s := range d.strangers {
		if !isMember(s.id) {
			kept = append(kept, s)
		}
	}
	clear(d.strangers[len(kept):])
	d.strangers = append(kept, w)
	sameAddr := 0
	for _, s := range d.strangers {
		if s.from == w.from {
			sameAddr++
		}
	}
	switch {
	case sameAddr > MaxStrangersPerAddr:
		out = d.idlest(w, func(s *Conn) bool { return s.from == w.from })
	case len(d.strangers) > maxStrangers:
		out = d.idlest(w, func(*Conn) bool { return true })
	}
	if out != nil {
		d.strangers = without(d.strangers, out)
	}
	return out, nil
}

// idlest is, of those that match but for the newcomer, the one with which nothing of a
// build has passed, else for the longest time; the oldest of several. The caller
// holds mu.
func (d *doors) idlest(newcomer *Conn, match func(*Conn) bool) (out *Conn) {
	for _, s := range d.strangers {
		if s == newcomer || !match(s) {
			continue
		}
		if out == nil || s.useful.Load() < out.useful.Load() {
			out = s
		}
	}
	return out
}

// failed notes that a peer has not proven who it is, or that it is left alone.
func (d *doors) failed(w *Conn, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures == nil {
		d.failures = make(map[netip.Addr]*allowance)
	}
	rateOf(d.failures, w.from, provingBurst, provingPerSecond, now).take(1, now)
}

// mayProve reports whether a peer may prove who it is.
func (d *doors) mayProve(w *Conn, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.failures[w.from]
	if a == nil && len(d.failures) >= maxStrangerAddrs {
		a = d.failures[netip.Addr{}]
	}
	if a == nil {
		return true
	}
	a.refill(now)
	return a.left >= 1
}

// rate is the allowance of strangers of an address. The caller holds mu.
func (d *doors) rate(addr netip.Addr, now time.Time) *allowance {
	if d.rates == nil {
		d.rates = make(map[netip.Addr]*allowance)
	}
	return rateOf(d.rates, addr, strangersBurst, strangersPerSecond, now)
}

// rateOf is the allowance of an address, a new one where it has none.
func rateOf(rates map[netip.Addr]*allowance, addr netip.Addr, burst, perSecond float64, now time.Time) *allowance {
	a := rates[addr]
	if a == nil {
		if len(rates) >= maxStrangerAddrs {
			for other, r := range rates {
				if r.full(now) {
					delete(rates, other)
				}
			}
		}
		if len(rates) >= maxStrangerAddrs {
			addr = netip.Addr{} // one allowance for all further ones
		}
		if a = rates[addr]; a == nil {
			a = newAllowance(burst, perSecond, now)
			rates[addr] = a
		}
	}
	return a
}

// isMember reports whether a peer id is a member's. Where the members are not known,
// everybody may be one.
func (w *Wire) isMember(id [20]byte) bool {
	return w.cfg.Member == nil || w.Member(id).Name != ""
}

// allows reports whether peers may connect from an address without being members.
func (w *Wire) allows(addr netip.Addr) bool {
	return w.cfg.AllowPeer == nil || addr.IsValid() && w.cfg.AllowPeer(addr)
}

// admit decides about a connection whose handshake has come.
func (w *Wire) admit(c *Conn, infohash manifest.InfoHash) error {
	if !c.inbound && (c.id == RefusedID || c.id == unwantedID) {
		return w.toldRefused(c)
	}
	if !c.inbound && c.id == fullID {
		w.conduct.leave(c.expected(), fullPause+rand.N(fullPause))
		return ErrNoPlace
	}
	if !c.inbound && (c.peer == nil || w.isMember(c.id)) {
		return nil
	}
	if w.isMember(c.id) || w.cfg.Proven && c.peer != nil {
		w.doors.known(c)
		w.replaceTwin(c, infohash)
		return nil
	}
	if !c.allowed || c.peer != nil {
		w.doors.leave(c)
		w.warnStranger(c, w.refuse(c, infohash, RefusedID))
		return errStranger
	}
	out, err := w.doors.stranger(c, w.isMember, time.Now())
	if err != nil {
		w.warnCrowded(c)
		return err
	}
	if out != nil {
		w.Counts.TurnedAway.Add(1)
		w.warnCrowded(out)
		out.Close()
	}
	return nil
}

// replaceTwin closes an older connection of the same member for the same torrent that
// is dead, as far as one can see, or may be somebody else's.
func (w *Wire) replaceTwin(c *Conn, infohash manifest.InfoHash) {
	for of, other := range w.Conns() {
		if other != c && other.inbound && other.id == c.id && of == infohash &&
			(c.allowed && !other.allowed || time.Since(time.Unix(0, other.heard.Load())) >= idleTwin) {
			other.Close()
		}
	}
}

// refuse answers a handshake with one that says why, and reports whether it could.
func (w *Wire) refuse(c *Conn, infohash manifest.InfoHash, why [20]byte) (told bool) {
	if tcp, ok := c.socket.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(-1) // or the answer may be lost
	}
	answer := append([]byte(pp.Protocol), make([]byte, 8)...)
	answer = append(append(answer, infohash[:]...), why[:]...)
	_ = c.SetWriteDeadline(time.Now().Add(refusalTimeout))
	_, err := c.write(answer)
	return err == nil
}
