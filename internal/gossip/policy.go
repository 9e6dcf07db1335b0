package gossip

import (
	"net/netip"
	"sync"
	"time"
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

// ByPeerID finds members by the peer ids that follow from their names.
func ByPeerID(members []Member, peerID func(name string) [20]byte) map[[20]byte]Member {
	out := make(map[[20]byte]Member, len(members))
	for _, m := range members {
		out[peerID(m.Name)] = m
	}
	return out
}

// PeerNames names the member with a peer id, and its region; empty for nobody's.
func PeerNames(g *Gossip, peerID func(name string) [20]byte) func(id [20]byte) (name, region string) {
	byID := indexed(g, func(members []Member) map[[20]byte]Member { return ByPeerID(members, peerID) })
	return func(id [20]byte) (name, region string) {
		m := byID()[id]
		return m.Name, m.Region
	}
}
