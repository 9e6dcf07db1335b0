//go:build linux

package chaos

import (
	"testing"
	"time"
)

// TestPartitions cuts members off in mid-distribution, for long enough that they
// are given up, and joins them again.
func TestPartitions(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1, 1}, Link: link, Seed: 40})
	w.NeedsNetwork()
	for i, c := range []struct {
		name  string
		short bool
		cut   func() (heal func())
	}{
		{"the seeder from all agents", true, func() func() { return w.Part([]*Member{w.Seeder}, w.Agents) }},
		{"the seeder does not reach one agent", false, func() func() { return w.Drop(w.Seeder, w.Agents[0]) }},
		{"one agent does not reach the seeder", true, func() func() { return w.Drop(w.Agents[0], w.Seeder) }},
		{"an agent from all", false, func() func() { return w.Part(w.Agents[2:], w.Members()[:3]) }},
	} {
		if !c.short && !*longFlag {
			continue
		}
		v, _ := progressed(30)(t, w, string(rune('a'+i))+".zip")
		heal := c.cut()
		select {
		case <-time.After(4 * time.Second): // as long as the fault lasts
		case <-t.Context().Done():
		}
		heal()
		began := time.Now()
		w.Completed(v)
		t.Logf("%s: completed %.1f s after it was over", c.name, seconds(began))
	}
	w.Settle()
}

// TestBehindTheSeeder: agents that do not reach each other get everything from the
// seeder.
func TestBehindTheSeeder(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1, 1}, Link: 8 * link, Seed: 41})
	w.NeedsNetwork()
	for i, a := range w.Agents {
		w.Part([]*Member{a}, w.Agents[i+1:])
	}
	v := w.Put("build.zip", several)
	w.Completed(v)
	w.Settle()
}
