// Package admission bounds what anybody can do at a port: how many connections may be there
// that have not shown whose they are (Room), and how often somebody may try (Rates). Whose an
// address is is all that is known of them (Network), so bounds count by that, and who comes
// from elsewhere finds a place.
package admission

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/landfall-dist/landfall/internal/identity"
)

// networkBits is how much of an IPv6 address tells whose it is: one customer, and often one
// machine, has a network of that length (RFC 6177, RFC 7421).
const networkBits = 64

// Network is the part of an address that tells whose it is: with IPv4 all of it. Whoever has
// one address of the network has the others, too. It is invalid for an invalid one.
func Network(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(networkBits); err == nil {
			return p.Addr()
		}
	}
	return addr
}

// Origin is where a connection comes from: who has shown a certificate, or an address.
type Origin struct {
	Identity identity.ID
	Addr     netip.Addr
	// Known is set for who has a place beside everybody: with a certificate, or from where
	// members are.
	Known bool
}

// From is the origin of a connection that has shown nothing. Where known says that a member
// is at the address, it counts for itself, and else with all of its network.
func From(addr netip.Addr, known bool) Origin {
	if known {
		return Origin{Addr: addr.Unmap().WithZone(""), Known: true}
	}
	return Origin{Addr: Network(addr)}
}

// Of is the origin of a connection that has shown a certificate.
func Of(id identity.ID) Origin { return Origin{Identity: id, Known: true} }

// Room has a place for each of a bounded number of connections. Where there are too many, of
// all, of one origin, or of origins that are not known, the oldest of the origin that has most
// of them goes. It is safe for concurrent use.
type Room[G comparable] struct {
	// Most bounds all, PerOrigin those of one origin, Unknown those of origins that are not
	// known. 0 is no bound.
	Most, PerOrigin, Unknown int

	mu      sync.Mutex
	origins map[Origin][]place[G] // in the order in which they came
	guests  map[G]Origin
	unknown int
	came    int64
}

type place[G comparable] struct {
	guest G
	came  int64
}

// Enter gives a guest a place, another one where it has one already. It returns who has to go
// for that, which may be the guest itself; false for nobody.
func (r *Room[G]) Enter(guest G, from Origin) (out G, full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.guests == nil {
		r.origins, r.guests = make(map[Origin][]place[G]), make(map[G]Origin)
	}
	r.leave(guest)
	r.came++
	r.guests[guest] = from
	r.origins[from] = append(r.origins[from], place[G]{guest, r.came})
	if !from.Known {
		r.unknown++
	}
	switch {
	case r.Unknown > 0 && r.unknown > r.Unknown:
		from = r.fullest(true)
	case r.Most > 0 && len(r.guests) > r.Most:
		from = r.fullest(false)
	case r.PerOrigin == 0 || len(r.origins[from]) <= r.PerOrigin:
		return out, false
	}
	out = r.origins[from][0].guest
	r.leave(out)
	return out, true
}

// fullest is the origin of most guests, of several the one of the oldest. The caller holds mu.
func (r *Room[G]) fullest(unknown bool) (found Origin) {
	most, came := 0, int64(0)
	for o, here := range r.origins {
		if unknown && o.Known {
			continue
		}
		if len(here) > most || len(here) == most && here[0].came < came {
			found, most, came = o, len(here), here[0].came
		}
	}
	return found
}

// Leave takes a guest's place away, if it has one.
func (r *Room[G]) Leave(guest G) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leave(guest)
}

func (r *Room[G]) leave(guest G) {
	from, here := r.guests[guest]
	if !here {
		return
	}
	delete(r.guests, guest)
	if !from.Known {
		r.unknown--
	}
	of := r.origins[from]
	for i, p := range of {
		if p.guest == guest {
			of = slices.Delete(of, i, i+1)
			break
		}
	}
	if len(of) == 0 {
		delete(r.origins, from)
		return
	}
	r.origins[from] = of
}

// Has reports whether a guest has a place.
func (r *Room[G]) Has(guest G) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, here := r.guests[guest]
	return here
}

// Len is how many guests there are.
func (r *Room[G]) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.guests)
}
