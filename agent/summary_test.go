package agent

import (
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/swarm"
)

func TestOrigins(t *testing.T) {
	const seeder, agent, left, fresh = 1, 2, 3, 4
	s := make(senders)
	s.measure([]swarm.Peer{{ID: [20]byte{seeder}, Downloaded: 100}, {ID: [20]byte{agent}, Downloaded: 50}, {ID: [20]byte{left}, Downloaded: 7}}, time.Second)
	s.count([]swarm.Peer{{ID: [20]byte{seeder}, Downloaded: 110}, {ID: [20]byte{agent}, Downloaded: 5}}) // the agent's connection is new
	names := map[[20]byte]gossip.Member{
		{seeder}: {Meta: gossip.Meta{Role: gossip.Seeder}},
		{agent}:  {Meta: gossip.Meta{Role: gossip.Agent}},
		{fresh}:  {Meta: gossip.Meta{Role: gossip.Agent}},
	}
	// The engine's word can be older than what was counted last.
	now := map[[20]byte]int64{{seeder}: 105, {agent}: 8, {fresh}: 1000}
	if got, want := s.origins(now, names), (origins{seeders: 110, agents: 1058, departed: 7}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// What is counted between two measures is in the next rate.
func TestCountLeavesTheRate(t *testing.T) {
	s := make(senders)
	id := [20]byte{1}
	s.count([]swarm.Peer{{ID: id, Downloaded: 400}})
	s.measure([]swarm.Peer{{ID: id, Downloaded: 1000}}, time.Second)
	if got := s[id].rate; got != rateWeight*1000 {
		t.Errorf("%v bytes/s", got)
	}
}
