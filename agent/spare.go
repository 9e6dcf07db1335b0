package agent

import (
	"cmp"
	"hash/maphash"
	"slices"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// expectMore says with which members further segments are to come, so that a connection
// to each of them is there when one does.
func (a *Agent) expectMore(members []gossip.Member) {
	var destinations []string
	for _, b := range a.allBuilds() {
		if m := b.seen.Load().member; m != nil && m.expectsMore() {
			destinations = append(destinations, m.newest.Load().Destinations...)
		}
	}
	a.swarm.ExpectMore(peersOf(a.gossip.Name(), destinations, members))
}

// expectsMore reports whether there are segments that were not begun.
func (m *membership) expectsMore() bool { return len(m.all()) < m.known.NumSegments() }

// ownOrder makes the order of agents that of this process.
var ownOrder = maphash.MakeSeed()

// peersOf are the members that may hold pieces of what goes to destinations, but for self:
// the seeders, and the agents of all of them; none where there are no destinations. Not all
// may be connected to: seeders come first, then each agent has its own order.
func peersOf(self string, destinations []string, members []gossip.Member) (peers []peerwire.Peer) {
	if len(destinations) == 0 {
		return nil
	}
	type ranked struct {
		peerwire.Peer
		rank uint64
	}
	var all []ranked
	for _, m := range members {
		if m.Name == self || m.Role != gossip.Seeder && !slices.Contains(destinations, m.Bucket) {
			continue
		}
		p := ranked{Peer: peerwire.Peer{ID: peerwire.PeerID(m.Name), Addr: m.PeerAddr()}}
		if m.Role != gossip.Seeder {
			p.rank = max(1, maphash.String(ownOrder, self+"\x00"+m.Name))
		}
		all = append(all, p)
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return cmp.Compare(a.rank, b.rank) })
	for _, p := range all {
		peers = append(peers, p.Peer)
	}
	return peers
}
