package client

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"reflect"
	"time"
)

const (
	// followInterval is how often Follow asks.
	followInterval = 500 * time.Millisecond
	// patience is how many questions in a row may go unanswered: a seeder that is
	// restarted goes on.
	patience = 60
	// askTimeout bounds one question: a host that has dropped off the network says
	// nothing.
	askTimeout = 10 * time.Second
)

// Follow yields an execution as it is now and again whenever it has changed; the last
// one is that which has ended. It asks every half a second. An error is the last as
// well: of ctx, a *StatusError with a code below 500 (410 when another publish of the
// key took the execution's place), or whatever it was that lasted for half a minute, ten minutes where each question has to time out.
func (c *Client) Follow(ctx context.Context, id string) iter.Seq2[*Execution, error] {
	return func(yield func(*Execution, error) bool) {
		ticker := time.NewTicker(followInterval)
		defer ticker.Stop()
		var before *Execution
		missed := 0
		for {
			e, err := c.ask(ctx, id)
			switch {
			case err == nil:
				missed = 0
				if !reflect.DeepEqual(e, before) && !yield(e, nil) || e.Ended() {
					return
				}
				before = e
			case ctx.Err() != nil:
				yield(nil, ctx.Err())
				return
			case missed >= patience || refused(err):
				yield(nil, err)
				return
			default:
				missed++
			}
			select {
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			case <-ticker.C:
			}
		}
	}
}

func (c *Client) ask(ctx context.Context, id string) (*Execution, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return c.Execution(ctx, id)
}

// refused reports whether the seeder itself said no, which asking again will not change.
func refused(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code < http.StatusInternalServerError
}
