package seeder

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// firstReading is the reading of the tables at the start. What needs them waits for it, so
// that whoever asks just after a start is answered.
type firstReading struct {
	until                time.Time // nobody waits longer
	executions, services tried
}

// tried is done once a table was read, or it is known why it could not be.
type tried struct {
	c    chan struct{}
	done func() // may be called again
}

func newTried() tried {
	c := make(chan struct{})
	return tried{c, sync.OnceFunc(func() { close(c) })}
}

func newFirstReading() *firstReading {
	return &firstReading{until: time.Now().Add(answerWithin), executions: newTried(), services: newTried()}
}

// wait returns once all tables were tried, at until, or when ctx ends.
func (f *firstReading) wait(ctx context.Context) {
	ctx, cancel := context.WithDeadline(ctx, f.until)
	defer cancel()
	for _, t := range []tried{f.executions, f.services} {
		select {
		case <-t.c:
		case <-ctx.Done():
		}
	}
}

// whenRead has a handler wait for the first reading.
func (s *Seeder) whenRead(handler func(*http.Request) (int, any, error)) func(*http.Request) (int, any, error) {
	return func(r *http.Request) (int, any, error) {
		s.reading.wait(r.Context())
		return handler(r)
	}
}
