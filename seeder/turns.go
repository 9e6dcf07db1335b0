package seeder

import (
	"context"
	"sync"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// turns give everybody who begins an execution of a key the table after the other, so
// that two publishes of one key are told of each other. The table is the judge. Only
// those of the same key wait, each as long as its context lets it. The zero value is
// ready.
type turns struct {
	mu   sync.Mutex // never held over a call
	busy map[ledger.Key]*turn
}

// turn is one key's.
type turn struct {
	taken chan struct{} // holds one value while somebody has it
	users int           // who have it or wait
}

// take waits for a key's turn. The error is that of ctx.
func (t *turns) take(ctx context.Context, k ledger.Key) (release func(), err error) {
	t.mu.Lock()
	own := t.busy[k]
	if own == nil {
		if t.busy == nil {
			t.busy = make(map[ledger.Key]*turn)
		}
		own = &turn{taken: make(chan struct{}, 1)}
		t.busy[k] = own
	}
	own.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(t.busy, k)
		}
	}
	select {
	case own.taken <- struct{}{}:
		return func() { <-own.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
