package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// maxSenders bounds the peers that are counted, over the life of a download.
const maxSenders = 256

// senders counts what came from whom over the life of a download: the engine's own
// counters end with each connection.
type senders map[[20]byte]*sender

type sender struct {
	// before came over connections that are gone; last is the counter of the
	// present one, in bytes of the build.
	before, last int64
	measured     int64   // the total when the rate was
	rate         float64 // bytes/s
	// member is its id, once it was known; after a restart it comes as another peer.
	member string
}

// measure takes in the counters of the connections that there are, and how fast they
// have grown in the time since the last measure.
func (s senders) measure(peers []swarm.Peer, elapsed time.Duration) {
	s.count(peers)
	for _, from := range s {
		from.rate = smoothed(from.rate, from.total()-from.measured, elapsed)
		from.measured = from.total()
	}
}

// count takes in the counters.
func (s senders) count(peers []swarm.Peer) {
	now := make(map[[20]byte]int64, len(peers))
	for _, p := range peers {
		now[p.ID] += p.Downloaded
		if s[p.ID] == nil && len(s) < maxSenders {
			s[p.ID] = &sender{}
		}
	}
	for id, from := range s {
		if now[id] < from.last {
			from.before += from.last
		}
		from.last = now[id]
	}
}

func (s *sender) total() int64 { return s.before + s.last }

// links names the senders that are members, or were.
func (s senders) links(names map[[20]byte]gossip.Member) []gossip.Link {
	of := make(map[string]gossip.Link)
	for id, from := range s {
		if m, ok := names[id]; ok {
			from.member = m.ID
		}
		if from.member != "" && from.total() > 0 {
			l := of[from.member]
			of[from.member] = gossip.Link{ID: from.member, Bytes: l.Bytes + from.total(), Rate: l.Rate + int64(from.rate)}
		}
	}
	return slices.Collect(maps.Values(of))
}

// smoothed is a rate in bytes/s after so many more bytes.
func smoothed(rate float64, bytes int64, elapsed time.Duration) float64 {
	return rate + rateWeight*(float64(bytes)/max(elapsed.Seconds(), 0.001)-rate)
}
