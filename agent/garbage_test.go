package agent

import (
	"slices"
	"testing"
	"time"
)

func TestGarbage(t *testing.T) {
	percent, said := 100, []int(nil)
	var now time.Time
	var freed []int // at which second
	g := garbage{
		set: func(p int) int {
			before := percent
			percent, said = p, append(said, p)
			return before
		},
		free: func() { freed = append(freed, now.Second()) },
	}
	start := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for second, hosts := range []int{0, manyHosts - 1, manyHosts, 5000, 10_000, 5000, 5000, 5000, 5000, 5000, 5000, 5000, 5000, 5000, manyHosts - 1, 0, 5000, 0, 0, 0, 0, 0, 0, 0, 5000, 0} {
		now = start.Add(time.Duration(second) * time.Second)
		g.connected(hosts, now)
	}
	if want := []int{manyHostsPercent, 100, manyHostsPercent, 100, manyHostsPercent, 100}; !slices.Equal(said, want) {
		t.Errorf("set to %v, expected %v", said, want)
	}
	if want := []int{2, 12, 24}; !slices.Equal(freed, want) {
		t.Errorf("given back after %v s, expected %v", freed, want)
	}
}
