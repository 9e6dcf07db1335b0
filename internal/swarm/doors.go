package swarm

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

const (
	// maxGreeting bounds the connections that peers have made and that have not said
	// who they are: every member for a few builds at once. The engine gives each of
	// them four seconds.
	maxGreeting = 1024
	// maxUnknownGreeting bounds those of them that come from addresses of which
	// nobody knows. A member behind NAT needs a round trip to say who it is.
	maxUnknownGreeting = 64
	// maxSilent bounds the connections that peers have made and that have not said
	// anything: spare ones of every member, twice. maxSilentPerAddr bounds those of one
	// IP address, behind which several members may be, maxUnknownSilent those of addresses
	// of which nobody knows. Who has to go loses a round trip, if it is a member's.
	maxSilent, maxSilentPerAddr, maxUnknownSilent = 1024, 64, 64
	// maxStrangers bounds the connections with peers that are no members, over all
	// builds, maxStrangersPerAddr those of one IP address: ordinary clients that
	// --allow-peers lets in. Members do not count, and their places are never taken.
	maxStrangers, maxStrangersPerAddr = 32, 8
	// strangersBurst and strangersPerSecond bound how often peers of one IP address
	// that are no members may connect: a client asks again each minute or so.
	strangersBurst, strangersPerSecond = 32, 1
	// maxStrangerAddrs bounds the addresses whose rate is remembered.
	maxStrangerAddrs = 1024
	// idleTwin is how long a member's connection must have been silent to give way to
	// a new one of the same member for the same build: who dials again has lost it.
	idleTwin = 10 * time.Second
)

var (
	errStranger = errors.New("neither its address nor its peer id is a member's")
	errCrowded  = errors.New("too many connections of peers that are no members")
	errRefused  = errors.New("the peer does not know this address")
)

// refusedID is the peer id of who answers a handshake only to say that the peer's
// address is not known. Nobody's name has it.
var refusedID = func() (id [20]byte) {
	copy(id[:], peerIDPrefix+"refused-addr")
	return id
}()

// doors admits the connections that peers make. Who is at the other end counts, not
// from where it comes: a member is known by its peer id, and has a place of its own.
// What may be no member's is bounded, and the idlest of it goes first.
type doors struct {
	mu sync.Mutex
	// silent are the connections that have not said anything, greeting those that have
	// not said who they are, in order.
	silent, greeting []*watched
	// strangers have said who they are, and are no members.
	strangers []*watched
	rates     map[netip.Addr]*allowance
}

// wait takes a connection that was just made, and returns one that has to go for it; nil
// for none.
func (d *doors) wait(w *watched) (out *watched) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent, out = admitOne(d.silent, w, maxSilent, maxUnknownSilent, maxSilentPerAddr)
	return out
}

// enter takes a connection that has begun to speak, and returns the one that has to go
// for it, which may be the same; nil for none.
func (d *doors) enter(w *watched) (out *watched) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent = without(d.silent, w)
	d.greeting, out = admitOne(d.greeting, w, maxGreeting, maxUnknownGreeting, maxGreeting)
	return out
}

// countSilent is how many connections have not said anything.
func (d *doors) countSilent() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.silent)
}

// admitOne adds a connection to a list. Where there are too many in all, of unknown
// addresses, or of the one, the oldest of the address that has most goes.
func admitOne(list []*watched, w *watched, most, mostUnknown, mostPerAddr int) (_ []*watched, out *watched) {
	list = append(list, w)
	unknown, perAddr := 0, make(map[netip.Addr]int)
	for _, g := range list {
		perAddr[g.from]++
		if !g.allowed {
			unknown++
		}
	}
	unknownOnly := unknown > mostUnknown
	if !unknownOnly && len(list) <= most && perAddr[w.from] <= mostPerAddr {
		return list, nil
	}
	at := -1
	for i, g := range list {
		if unknownOnly && g.allowed {
			continue
		}
		if at < 0 || perAddr[g.from] > perAddr[list[at].from] {
			at = i
		}
	}
	out = list[at]
	return slices.Delete(list, at, at+1), out
}

// leave forgets a connection.
func (d *doors) leave(w *watched) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent, d.greeting, d.strangers = without(d.silent, w), without(d.greeting, w), without(d.strangers, w)
}

func without(list []*watched, w *watched) []*watched {
	for i, other := range list {
		if other == w {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

// known ends the greeting of a member.
func (d *doors) known(w *watched) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.greeting = without(d.greeting, w)
}

// stranger ends the greeting of a peer that is no member, and returns the one that
// has to go for it, nil for none. isMember is asked again of those that are here:
// membership changes.
func (d *doors) stranger(w *watched, isMember func(id [20]byte) bool, now time.Time) (out *watched, err error) {
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
	case sameAddr > maxStrangersPerAddr:
		out = d.idlest(w, func(s *watched) bool { return s.from == w.from })
	case len(d.strangers) > maxStrangers:
		out = d.idlest(w, func(*watched) bool { return true })
	}
	if out != nil {
		d.strangers = without(d.strangers, out)
	}
	return out, nil
}

// idlest is, of those that match but for the newcomer, the one with which nothing of a
// build has passed, else for the longest time; the oldest of several. The caller
// holds mu.
func (d *doors) idlest(newcomer *watched, match func(*watched) bool) (out *watched) {
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

// rate is the allowance of an address. The caller holds mu.
func (d *doors) rate(addr netip.Addr, now time.Time) *allowance {
	if d.rates == nil {
		d.rates = make(map[netip.Addr]*allowance)
	}
	a := d.rates[addr]
	if a == nil {
		if len(d.rates) >= maxStrangerAddrs {
			for other, r := range d.rates {
				if r.full(now) {
					delete(d.rates, other)
				}
			}
		}
		if len(d.rates) >= maxStrangerAddrs {
			addr = netip.Addr{} // one allowance for all further ones
		}
		if a = d.rates[addr]; a == nil {
			a = newAllowance(strangersBurst, strangersPerSecond, now)
			d.rates[addr] = a
		}
	}
	return a
}

// isMember reports whether a peer id is a member's. Where the members are not known,
// everybody may be one.
func (s *Swarm) isMember(id [20]byte) bool {
	if s.cfg.Member == nil {
		return true
	}
	name, _ := s.cfg.Member(id)
	return name != ""
}

// allows reports whether peers may connect from an address without being members.
func (s *Swarm) allows(addr netip.Addr) bool {
	return s.cfg.AllowPeer == nil || addr.IsValid() && s.cfg.AllowPeer(addr)
}

// admit decides about a connection whose handshake has come.
func (s *Swarm) admit(w *watched, key *connKey) error {
	if !w.inbound {
		if w.id == refusedID {
			s.toldRefused(w)
			return errRefused
		}
		return nil
	}
	if s.isMember(w.id) {
		s.counts.accepted.Add(1)
		s.doors.known(w)
		s.replaceTwin(w, key)
		return nil
	}
	if !w.allowed {
		s.doors.leave(w)
		s.refuse(w, key)
		return errStranger
	}
	out, err := s.doors.stranger(w, s.isMember, time.Now())
	if err != nil {
		s.counts.turnedAway.Add(1)
		s.warnCrowded(w)
		return err
	}
	s.counts.accepted.Add(1)
	if out != nil {
		s.counts.turnedAway.Add(1)
		s.warnCrowded(out)
		out.Close()
	}
	return nil
}

// replaceTwin closes an older connection of the same member for the same build that
// is dead, as far as one can see, or may be somebody else's.
func (s *Swarm) replaceTwin(w *watched, key *connKey) {
	s.conns.Range(func(k, v any) bool {
		other := v.(*watched)
		if other != w && other.inbound && other.id == w.id && k.(connKey).infohash == key.infohash &&
			(w.allowed && !other.allowed || time.Since(time.Unix(0, other.heard.Load())) >= idleTwin) {
			other.Close()
		}
		return true
	})
}

// refuse answers a handshake with one that says why, and says it here.
func (s *Swarm) refuse(w *watched, key *connKey) {
	s.counts.turnedAway.Add(1)
	if tcp, ok := w.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(-1) // or the answer may be lost
	}
	answer := append([]byte(pp.Protocol), make([]byte, 8)...)
	answer = append(append(answer, key.infohash[:]...), refusedID[:]...)
	_ = w.Conn.SetWriteDeadline(time.Now().Add(refusalTimeout))
	_, err := w.Conn.Write(answer)
	s.warnStranger(w, err == nil)
}
