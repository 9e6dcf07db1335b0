package agent

import (
	"errors"
	"net"
	"testing"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
)

// TestRegionOfHosts: no goal names some regions, so that hosts there would follow none.
func TestRegionOfHosts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, region := range []string{"", "Region A", "region/a"} {
		a := &Agent{cfg: Config{Region: region, Fleet: Fleet{Listener: l}}}
		var g gossip.Config
		if err := a.openFleet(&g); !errors.Is(err, goal.ErrInvalid) || g.Fleet != 0 {
			t.Errorf("%q: %v", region, err)
		}
	}
}
