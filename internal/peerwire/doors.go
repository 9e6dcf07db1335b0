package peerwire

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/admission"
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
	// builds, MaxStrangersPerAddr those of one network: ordinary clients that
	// --allow-peers lets in. Members do not count, and their places are never taken.
	maxStrangers, MaxStrangersPerAddr = 32, 8
	// maxSecuring bounds the connections whose peers are about to show a certificate: every
	// member at once. maxSecuringPerAddr bounds those of one network, maxUnknownSecuring
	// those of addresses of which nobody knows. Each has five seconds.
	maxSecuring, maxSecuringPerAddr, maxUnknownSecuring = 512, 64, 64
	// strangersBurst and strangersPerSecond bound how often peers of one network
	// that are no members may connect: a client asks again each minute or so.
	strangersBurst, strangersPerSecond = 32, 1
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
// What may be no member's is bounded, by the network that it comes from, and the idlest of it
// goes first.
type doors struct {
	// silent are the connections that have not said anything, securing those that are to
	// show a certificate, greeting those that have not said who they are.
	silent, securing, greeting admission.Room[*Conn]
	rates                      admission.Rates[netip.Addr] // of strangers
	// failures to prove who they are, or proofs that they are left alone.
	failures *admission.Rates[netip.Addr]

	mu sync.Mutex
	// strangers have said who they are, and are no members.
	strangers []*Conn
}

func newDoors() *doors {
	return &doors{
		silent:   admission.Room[*Conn]{Most: maxSilent, PerOrigin: MaxSilentPerAddr, Unknown: MaxUnknownSilent},
		securing: admission.Room[*Conn]{Most: maxSecuring, PerOrigin: maxSecuringPerAddr, Unknown: maxUnknownSecuring},
		greeting: admission.Room[*Conn]{Most: MaxGreeting, Unknown: maxUnknownGreeting},
		rates:    admission.Rates[netip.Addr]{Burst: strangersBurst, PerSecond: strangersPerSecond, Most: maxStrangerAddrs},
		failures: admission.NewFailures(),
	}
}

// wait takes a connection that was just made, or whose peer has just proven who it is, and
// returns one that has to go for it; nil for none.
func (d *doors) wait(w *Conn) (out *Conn) {
	d.securing.Leave(w)
	out, _ = d.silent.Enter(w, w.origin())
	return out
}

// secure takes a connection that is to show a certificate.
func (d *doors) secure(w *Conn) (out *Conn) {
	d.silent.Leave(w)
	out, _ = d.securing.Enter(w, w.origin())
	return out
}

// enter takes a connection that has begun to speak, and returns the one that has to go
// for it, which may be the same; nil for none.
func (d *doors) enter(w *Conn) (out *Conn) {
	d.silent.Leave(w)
	out, _ = d.greeting.Enter(w, w.origin())
	return out
}

// count is how many connections there are of each kind.
func (d *doors) count() (silent, greeting, strangers int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.silent.Len(), d.greeting.Len(), len(d.strangers)
}

// origin is where a connection comes from: from whom, with a certificate, else from where.
func (c *Conn) origin() admission.Origin {
	if p := c.proven.Load(); p != nil {
		return admission.Of(p.ID)
	}
	return admission.Origin{Addr: c.from, Known: c.allowed}
}

// leave forgets a connection.
func (d *doors) leave(w *Conn) {
	d.silent.Leave(w)
	d.securing.Leave(w)
	d.greeting.Leave(w)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strangers = without(d.strangers, w)
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
func (d *doors) known(w *Conn) { d.greeting.Leave(w) }

// stranger ends the greeting of a peer that is no member, and returns the one that
// has to go for it, nil for none. isMember is asked again of those that are here:
// membership changes.
func (d *doors) stranger(w *Conn, isMember func(id [20]byte) bool, now time.Time) (out *Conn, err error) {
	d.greeting.Leave(w)
	if !d.rates.Take(w.from, w.atMember, now) {
		return nil, errCrowded
	}
	d.mu.Lock()
	defer d.mu.Unlock()
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
func (d *doors) failed(w *Conn, now time.Time) { d.failures.Take(w.from, w.atMember, now) }

// mayProve reports whether a peer may prove who it is.
func (d *doors) mayProve(w *Conn, now time.Time) bool {
	return d.failures.Left(w.from, w.atMember, now)
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
