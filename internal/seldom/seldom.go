// Package seldom keeps a log readable while the same thing happens again and
// again: a line about one cause passes once in a while, and how many were left out
// is counted.
package seldom

import (
	"sync"
	"time"
)

// Lines decides which lines pass. Its methods are safe for concurrent use.
type Lines struct {
	interval time.Duration
	max      int
	now      func() time.Time

	mu     sync.Mutex
	causes map[string]*cause
}

type cause struct {
	last    time.Time // when a line passed
	omitted int       // lines since
}

// New lets a line of each cause pass once in the interval. So many causes at most are
// told apart, since addresses are causes and strangers have many: one line in an
// interval stands for all further ones.
func New(interval time.Duration, causes int) *Lines {
	return &Lines{interval: interval, max: causes, now: time.Now, causes: make(map[string]*cause)}
}

// Pass reports whether a line about a cause is due, and how many about it were left
// out since the last.
func (l *Lines) Pass(name string) (omitted int, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	c := l.causes[name]
	if c == nil {
		if len(l.causes) >= l.max {
			l.forget(now)
		}
		if len(l.causes) >= l.max {
			name = ""
		}
		if c = l.causes[name]; c == nil {
			c = &cause{last: now}
			l.causes[name] = c
			return 0, true
		}
	}
	if now.Sub(c.last) < l.interval {
		c.omitted++
		return 0, false
	}
	omitted, c.omitted, c.last = c.omitted, 0, now
	return omitted, true
}

// forget drops the causes of which nothing was said for an interval. The caller
// holds mu.
func (l *Lines) forget(now time.Time) {
	for name, c := range l.causes {
		if name != "" && now.Sub(c.last) >= l.interval {
			delete(l.causes, name)
		}
	}
}
