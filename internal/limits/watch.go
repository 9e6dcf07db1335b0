package limits

import (
	"context"
	"sync"
	"time"
)

// watcher hears of waits, and so do those around it. Nil is nobody.
type watcher struct {
	outer *watcher
	tell  func(waiting bool)
}

type watcherKey struct{}

func watchers(ctx context.Context) *watcher {
	w, _ := ctx.Value(watcherKey{}).(*watcher)
	return w
}

func (w *watcher) hear(waiting bool) {
	for ; w != nil; w = w.outer {
		w.tell(waiting)
	}
}

// OnWait has f hear of every wait for a limit under the context that it returns: true
// when one begins, false when it is over. f must not block. What waits for a limit is not
// stuck: whoever counts its time is to leave these out.
func OnWait(ctx context.Context, f func(waiting bool)) context.Context {
	return context.WithValue(ctx, watcherKey{}, &watcher{watchers(ctx), f})
}

// WithTimeout is context.WithTimeout by a clock that stands still during waits for a
// limit. Its end has the cause context.DeadlineExceeded.
func WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &clock{left: d, since: time.Now()}
	c.timer = time.AfterFunc(d, func() { cancel(context.DeadlineExceeded) })
	return OnWait(ctx, c.hear), func() {
		c.timer.Stop()
		cancel(nil)
	}
}

// clock is a timer that stands still while somebody waits.
type clock struct {
	timer *time.Timer

	mu      sync.Mutex
	waiting int
	left    time.Duration // when it began to run
	since   time.Time     // when that was
}

func (c *clock) hear(waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if waiting {
		if c.waiting++; c.waiting == 1 && c.timer.Stop() {
			c.left -= time.Since(c.since)
		}
		return
	}
	if c.waiting--; c.waiting == 0 {
		c.since = time.Now()
		c.timer.Reset(c.left)
	}
}
