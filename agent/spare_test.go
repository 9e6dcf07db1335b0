package agent

import (
	"fmt"
	"testing"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// Where not all may be connected to, the seeders are among those who are, and agents do
// not all choose the same others.
func TestSeedersComeFirst(t *testing.T) {
	member := func(name string, role gossip.Role, bucket string) gossip.Member {
		return gossip.Member{Name: name, Meta: gossip.Meta{Role: role, Bucket: bucket}}
	}
	var members []gossip.Member
	for i := range 300 {
		members = append(members, member(fmt.Sprintf("agent-%03d", i), gossip.Agent, "builds"))
	}
	members = append(members, member("seeder-1", gossip.Seeder, ""), member("elsewhere", gossip.Agent, "other"))
	chosen := make(map[peerwire.Peer]int)
	for i := range 300 {
		peers := peersOf(members[i].Name, []string{"builds"}, members)
		if len(peers) != 300 {
			t.Fatalf("%d peers", len(peers))
		}
		if peers[0].ID != peerwire.PeerID("seeder-1") {
			t.Fatalf("the first of %s is %x", members[i].Name, peers[0].ID)
		}
		for _, p := range peers[1:8] {
			chosen[p]++
		}
	}
	if len(chosen) < 250 {
		t.Errorf("all choose among %d members", len(chosen))
	}
}
