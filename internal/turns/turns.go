// Package turns lets one after the other do what must not be done to one thing at a
// time, such as beginning an execution of a key, where a lock would be held over the
// network or a disk: only those of the same thing wait, and each can go.
package turns

import (
	"context"
	"sync"
)

// Turns has a turn for each key. The zero value is ready.
type Turns[K comparable] struct {
	mu   sync.Mutex // never held over a call
	busy map[K]*turn
}

// turn is one key's.
type turn struct {
	taken chan struct{} // holds one value while somebody has it
	users int           // who have it or wait
}

// Take waits for a key's turn, which is given back with release. The error is that of
// ctx.
func (t *Turns[K]) Take(ctx context.Context, k K) (release func(), err error) {
	t.mu.Lock()
	own := t.busy[k]
	if own == nil {
		if t.busy == nil {
			t.busy = make(map[K]*turn)
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

// Busy counts the keys that somebody has or waits for.
func (t *Turns[K]) Busy() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.busy)
}
