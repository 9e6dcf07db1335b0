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
	return func(id [20]byte) (name, region string) {
		m := ByPeerID(g.Members(), peerID)[id]
		return m.Name, m.Region
	}
}
