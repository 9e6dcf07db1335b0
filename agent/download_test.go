package agent

import (
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/swarm"
)

// A download that hears next to nothing from its peers is stuck, again after twice as
// long; one that hears something, or has no peers, is not.
func TestStuck(t *testing.T) {
	began := time.Now()
	d := &download{torrent: new(swarm.Torrent), heardAt: began, patience: stuckAfter}
	d.urgent = map[*segment]bool{{}: true}
	at := began
	after := func(elapsed time.Duration, bytes int64, peers int) bool {
		at = at.Add(elapsed)
		d.last = swarm.Stats{WireBytes: d.last.WireBytes + bytes, Peers: make([]swarm.Peer, peers)}
		return d.stuck(at)
	}
	for i, c := range []struct {
		elapsed time.Duration
		bytes   int64
		peers   int
		stuck   bool
	}{
		{stuckAfter - 1, 0, 1, false},
		{1, stuckBytes - 1, 1, true},
		{2*stuckAfter - 1, 0, 1, false},
		{1, 0, 1, true},
		{4*stuckAfter - 1, 0, 1, false},
		{1, stuckBytes, 1, false},
		{stuckAfter - 1, stuckBytes / 2, 1, false}, // slow, but something in all
		{1, stuckBytes / 2, 1, false},
		{stuckAfter, 0, 0, false}, // nobody to connect to anew
		{stuckAfter - 1, 0, 1, false},
		{1, 0, 1, true},
	} {
		if got := after(c.elapsed, c.bytes, c.peers); got != c.stuck {
			t.Fatalf("step %d: stuck is %v", i, got)
		}
	}
	for range 10 {
		if !after(d.patience, 0, 1) {
			t.Fatalf("not stuck after %s", d.patience)
		}
	}
	if d.patience != maxStuck {
		t.Errorf("patience of %s in the end", d.patience)
	}
}
