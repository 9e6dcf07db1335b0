package agent

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// From manyHosts on their streams are most of what an agent has in memory. They make little
	// garbage, and 50 KiB each are in use: with the usual percentage, 100, the process was seen
	// to have 82 KiB each.
	manyHosts        = 500
	manyHostsPercent = 10
	// freeInterval is how often what is free is given back to the system then: hosts that come
	// leave some 4 KiB each behind that nothing uses.
	freeInterval = 10 * time.Second
	// garbageInterval is how often it is looked how many there are.
	garbageInterval = time.Second
)

// garbage says how much of it may come together for what is in use, by how many hosts have
// a stream, and has it given back.
type garbage struct {
	set   func(percent int) (before int) // debug.SetGCPercent
	free  func()                         // debug.FreeOSMemory
	freed time.Time
	many  bool
	usual int // while there are many
}

func (g *garbage) connected(hosts int, now time.Time) {
	switch many := hosts >= manyHosts; {
	case many && !g.many:
		g.many, g.usual = true, g.set(manyHostsPercent)
	case !many && g.many:
		g.many = false
		g.set(g.usual)
	}
	if g.many && now.Sub(g.freed) >= freeInterval {
		g.freed = now
		g.free()
	}
}

// collectGarbage keeps to it until ctx ends, unless whoever started the process has said how
// much it may be.
func (a *Agent) collectGarbage(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	g := garbage{set: debug.SetGCPercent, free: debug.FreeOSMemory}
	for retry.Wait(ctx, garbageInterval) {
		g.connected(a.hosts.View().Connected, time.Now())
	}
	g.connected(0, time.Now())
}
