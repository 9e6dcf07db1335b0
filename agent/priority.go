package agent

import (
	"context"
	"time"

	"github.com/landfall-dist/landfall/internal/turns"
)

// While a build of high priority comes, the others ask for no more than their oldest
// segment: they share its downlink, and the others' uplinks.

// highPatience is how long nothing may come of a build that others are held back for. What
// nobody sends, or what is waited for, keeps no link busy.
const highPatience = 5 * time.Second

// comesFirst reports whether what others ask for is to wait for this build.
func (m *membership) comesFirst(now time.Time) bool {
	return m.newest.Load().High && m.lacks.Load() && now.UnixNano()-m.came.Load() < int64(highPatience)
}

// holdOthers has builds hear that one of high priority comes, or none any more.
func (a *Agent) holdOthers(now time.Time) {
	first := false
	builds := a.allBuilds()
	for _, b := range builds {
		m := b.seen.Load().member
		first = first || m != nil && m.comesFirst(now)
	}
	if a.highFirst.Swap(first) == first {
		return
	}
	for _, b := range builds {
		if m := b.seen.Load().member; m != nil {
			ask(m.progress)
		}
	}
}

// queued is how many builds wait for their turn.
func (a *Agent) queued() int { return a.active.Waiting() + a.beyond.Waiting() }

// awaitTurn waits for a place among the builds that are worked on, first come first
// served, and returns where it is to be given back. A high build is not kept waiting by
// those that are not.
func (a *Agent) awaitTurn(ctx context.Context, high bool) (*turns.Slots, error) {
	begun, of := time.Now(), a.active
	if !high || !of.TryTake() {
		if high {
			of = a.beyond
		}
		if err := of.Take(ctx, high); err != nil {
			return nil, err
		}
	}
	a.metrics.queued.Observe(time.Since(begun).Seconds())
	return of, nil
}
