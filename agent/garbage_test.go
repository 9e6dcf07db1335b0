package agent

import (
	"slices"
	"testing"
)

func TestGarbage(t *testing.T) {
	percent, said := 100, []int(nil)
	g := garbage{set: func(p int) int {
		before := percent
		percent, said = p, append(said, p)
		return before
	}}
	for _, hosts := range []int{0, manyHosts - 1, manyHosts, 5000, 10_000, manyHosts - 1, 0, 5000, 0} {
		g.connected(hosts)
	}
	if want := []int{manyHostsPercent, 100, manyHostsPercent, 100}; !slices.Equal(said, want) {
		t.Errorf("set to %v, expected %v", said, want)
	}
}
