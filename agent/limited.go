package agent

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/limits"
)

// arrives notes that bytes are coming, of pieces that may take long: neither the download
// nor its builds are stuck, however slowly a limit, here or at the peers, lets them come.
func (d *download) arrives(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.heard, d.heardAt, d.patience = d.last.WireBytes, now, stuckAfter
	for s := range d.onPieces {
		s.move()
	}
}

// limited is a context of work that is not stuck while it waits for a limit: the build
// moves then, and keeps its turn.
func (b *build) limited(ctx context.Context) context.Context {
	var told atomic.Int64 // Unix nanoseconds
	return limits.OnWait(ctx, func(bool) {
		now := time.Now().UnixNano()
		if last := told.Load(); now-last >= int64(tick) && told.CompareAndSwap(last, now) {
			b.move()
		}
	})
}
