package agent

import (
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// What came over a connection that broke is not forgotten, nor counted twice.
func TestSendersOverReconnects(t *testing.T) {
	s := make(senders)
	id := [20]byte{1}
	for _, downloaded := range []int64{100, 300, 50, 50} { // 300, then a new connection
		s.measure([]swarm.Peer{{ID: id, Downloaded: downloaded}}, time.Second)
	}
	s.measure(nil, time.Second) // and none
	s.measure([]swarm.Peer{{ID: id, Downloaded: 7}, {ID: [20]byte{2}, Downloaded: 9}}, time.Second)
	names := map[[20]byte]gossip.Member{id: {Meta: gossip.Meta{ID: "seeder"}}}
	links := s.links(names)
	if len(links) != 1 || links[0].ID != "seeder" || links[0].Bytes != 357 {
		t.Errorf("%+v, want 357 bytes from the one that is a member", links)
	}
}

// A member that was restarted is another peer, and the same sender.
func TestSendersOverRestarts(t *testing.T) {
	s := make(senders)
	for n, downloaded := range []int64{100, 30} {
		id := [20]byte{byte(n)}
		s.measure([]swarm.Peer{{ID: id, Downloaded: downloaded}}, time.Second)
		s.links(map[[20]byte]gossip.Member{id: {Meta: gossip.Meta{ID: "seeder"}}})
	}
	if links := s.links(nil); len(links) != 1 || links[0].ID != "seeder" || links[0].Bytes != 130 {
		t.Errorf("%+v, want 130 bytes from the seeder", links)
	}
}
