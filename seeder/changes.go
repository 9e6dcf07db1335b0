package seeder

import (
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// firstChangeWait is how long after an execution that began by itself the next
	// one of its key does at the earliest. It doubles up to maxChangeWait while the
	// object goes on to change, and begins anew after calmAfter waits without: an
	// object, or a store, that has another ETag at each look costs little then.
	firstChangeWait, maxChangeWait = time.Second, 10 * time.Minute
	calmAfter                      = 4
	// maxChanging bounds the keys remembered for that.
	maxChanging = 10_000
)

// changes are the objects for which executions began by themselves of late: they were
// found in the bucket, or changed while they were pulled. The zero value is ready.
type changes struct {
	mu   sync.Mutex
	keys map[ledger.Key]*change
}

type change struct {
	begun time.Time
	wait  time.Duration
	said  bool // that it waits
}

func (c *change) calm(now time.Time) bool { return now.Sub(c.begun) > calmAfter*c.wait }

// due is how long it is until the next execution of a key may begin; 0 for now. news
// is true once for an object that changes again and again.
func (c *changes) due(k ledger.Key, now time.Time) (wait time.Duration, news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := c.keys[k]
	if own == nil {
		return 0, false
	}
	if wait = own.begun.Add(own.wait).Sub(now); wait <= 0 {
		return 0, false
	}
	news, own.said = !own.said, true
	return wait, news
}

// began takes note of an execution that began by itself.
func (c *changes) began(k ledger.Key, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := c.keys[k]
	switch {
	case own == nil:
		c.makeRoom(now)
		c.keys[k] = &change{begun: now, wait: firstChangeWait}
	case own.calm(now):
		*own = change{begun: now, wait: firstChangeWait}
	default:
		own.begun, own.wait = now, min(2*own.wait, maxChangeWait)
	}
}

// makeRoom forgets what is calm when there are too many, and else any.
func (c *changes) makeRoom(now time.Time) {
	if c.keys == nil {
		c.keys = make(map[ledger.Key]*change)
	}
	if len(c.keys) < maxChanging {
		return
	}
	for k, own := range c.keys {
		if own.calm(now) {
			delete(c.keys, k)
		}
	}
	for k := range c.keys {
		if len(c.keys) < maxChanging {
			return
		}
		delete(c.keys, k)
	}
}
