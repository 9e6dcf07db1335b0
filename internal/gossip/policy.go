package gossip

import (
	"net/netip"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/peerwire"
)

// indexAge is how long what follows from the members is used when no change of them
// was heard of.
const indexAge = time.Second

// indexed keeps what is made of the members until they change: peers ask for each
// connection.
func indexed[T any](g *Gossip, of func([]Member) T) func() T {
	var (
		mu    sync.Mutex
		epoch int64
		made  time.Time
		index T
	)
	return func() T {
		mu.Lock()
		defer mu.Unlock()
		if now := g.epoch.Load(); made.IsZero() || now != epoch || time.Since(made) > indexAge {
			epoch, made = now, time.Now()
			index = of(g.Members())
		}
		return index
	}
}

// PeerPolicy says from which addresses peers may connect that are no members: those
// of members, behind which there may be others, and those in the networks given.
func PeerPolicy(g *Gossip, allowed []netip.Prefix) func(netip.Addr) bool {
	addrs := indexed(g, func(members []Member) map[netip.Addr]bool {
		out := make(map[netip.Addr]bool, len(members))
		for _, m := range members {
			out[m.Addr] = true
		}
		return out
	})
	return func(addr netip.Addr) bool {
		addr = addr.Unmap()
		for _, p := range allowed {
			if p.Contains(addr) {
				return true
			}
		}
		return addrs()[addr]
	}
}

// MemberAt reports whether a member is at an address.
func MemberAt(g *Gossip) func(netip.Addr) bool { return PeerPolicy(g, nil) }

// knownAddrs reports whether a member is at an address, was there before a restart, or is named
// by --join.
func (g *Gossip) knownAddrs() func(netip.Addr) bool {
	addrs := indexed(g, func(members []Member) map[netip.Addr]bool {
		out := make(map[netip.Addr]bool, len(members))
		for _, m := range members {
			out[m.Addr] = true
		}
		for _, texts := range [][]string{*g.named.Load(), g.remembered.addresses()} {
			for _, text := range texts {
				if at, err := netip.ParseAddrPort(text); err == nil {
					out[at.Addr().Unmap()] = true
				}
			}
		}
		return out
	})
	return func(addr netip.Addr) bool { return addrs()[addr] }
}

// ByPeerID finds members by the peer ids that follow from their names.
func ByPeerID(members []Member, peerID func(name string) [20]byte) map[[20]byte]Member {
	out := make(map[[20]byte]Member, len(members))
	for _, m := range members {
		out[peerID(m.Name)] = m
	}
	return out
}

// PeerMembers finds the member with a peer id; the zero value is nobody's.
func PeerMembers(g *Gossip) func(id [20]byte) peerwire.Member {
	byID := indexed(g, func(members []Member) map[[20]byte]peerwire.Member {
		out := make(map[[20]byte]peerwire.Member, len(members))
		for id, m := range ByPeerID(members, peerwire.PeerID) {
			out[id] = peerwire.Member{Name: m.Name, ID: m.ID, Region: m.Region, Seeder: m.Role == Seeder, Buckets: []string{m.Bucket}, Certified: m.Cert != ""}
		}
		return out
	})
	return func(id [20]byte) peerwire.Member { return byID()[id] }
}
