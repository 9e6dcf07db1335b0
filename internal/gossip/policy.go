package gossip

import "net/netip"

// PeerPolicy says whose peers may connect: the members', and those in the
// networks given.
func PeerPolicy(g *Gossip, allowed []netip.Prefix) func(netip.Addr) bool {
	return func(addr netip.Addr) bool {
		addr = addr.Unmap()
		for _, p := range allowed {
			if p.Contains(addr) {
				return true
			}
		}
		for _, m := range g.Members() {
			if m.Addr == addr {
				return true
			}
		}
		return false
	}
}
