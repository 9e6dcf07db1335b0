package agent

import (
	"fmt"
	"testing"
)

// Every group of pieces has each agent once in its order, and the first places are
// spread over all.
func TestRendezvousRank(t *testing.T) {
	ids := []string{"a", "b", "c", "d"}
	first := map[string]int{}
	for i := range 400 {
		what := fmt.Sprint("group ", i)
		seen := map[int]bool{}
		for _, id := range ids {
			p := rendezvousRank(what, id, append([]string{id}, ids...))
			if seen[p] {
				t.Fatalf("two agents have place %d", p)
			}
			seen[p] = true
			if p == 0 {
				first[id]++
			}
		}
		for p := range ids {
			if !seen[p] {
				t.Fatalf("nobody has place %d", p)
			}
		}
	}
	for _, id := range ids {
		if first[id] < 50 {
			t.Errorf("%s is first for %d of 400", id, first[id])
		}
	}
}
