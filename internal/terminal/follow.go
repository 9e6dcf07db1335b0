package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
)

// patience is how many answers in a row may fail before following gives up: a
// seeder that is restarted goes on.
const patience = 60

// askTimeout bounds one question: a host that has dropped off the network says nothing.
const askTimeout = 10 * time.Second

// Form is how something that changes is shown.
type Form int

const (
	// Live is bars on a terminal, and a line for each change anywhere else.
	Live Form = iota
	// JSONLines is a line with the whole answer as JSON whenever it has changed.
	JSONLines
	// Silent shows nothing; the caller has the last answer.
	Silent
)

// view is something that shows answers as they come.
type view[T any] interface {
	update(answer *T, now time.Time)
	// trouble says that there was no answer this time.
	trouble(err error, now time.Time)
}

// poll asks again and again until an answer is the last, and returns it. At most
// patience questions in a row may go unanswered, or be answered with a 5xx, as a proxy
// does while the seeder restarts; any other error, as of a superseded execution, will
// not change.
func poll[T any](ctx context.Context, interval time.Duration, patience int, get func(context.Context) (*T, error), v view[T], last func(*T) bool) (*T, error) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	failed := 0
	for {
		answer, err := ask(ctx, get)
		var refused *api.StatusError
		switch {
		case err == nil:
			failed = 0
			v.update(answer, time.Now())
			if last(answer) {
				return answer, nil
			}
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case failed >= patience || errors.As(err, &refused) && refused.Code < http.StatusInternalServerError:
			return nil, err
		default:
			failed++
			v.trouble(err, time.Now())
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
	}
}

// ask puts one question.
func ask[T any](ctx context.Context, get func(context.Context) (*T, error)) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return get(ctx)
}

// Follow shows an execution until it has ended: a bar for each destination, then
// why some have failed, and how it went in one line. It returns the last answer.
// Where w is no terminal a line says whenever a destination's state changes, and every
// stillEvery without a change how things stand, and the table of arrivals stands before the last line.
func Follow(ctx context.Context, w io.Writer, form Form, interval time.Duration, get func(context.Context) (*api.Execution, error)) (*api.Execution, error) {
	return follow(ctx, w, form, interval, get, newExecutionLines(w))
}

// follow is Follow with the lines for a pipe, which may have said something already.
func follow(ctx context.Context, w io.Writer, form Form, interval time.Duration, get func(context.Context) (*api.Execution, error), l *executionLines) (*api.Execution, error) {
	ended := func(e *api.Execution) bool { return e.Ended() }
	switch {
	case form == Silent:
		return poll(ctx, interval, patience, get, &silent[api.Execution]{aside("seeder")}, ended)
	case form == JSONLines:
		return poll(ctx, interval, patience, get, &jsonLines[api.Execution]{lines: aside("seeder"), w: w}, ended)
	case IsTerminal(w):
		s := newScreen(w)
		e, err := poll(ctx, interval, patience, get, newExecutionBars(s), ended)
		if err == nil {
			conclude(s, e)
		}
		return e, err
	}
	e, err := poll(ctx, interval, patience, get, l, ended)
	if err != nil {
		return nil, err
	}
	if err := Arrivals(w, e); err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(w, summary(e))
	return e, err
}

// WatchExecutions shows a page of the list until ctx ends.
func WatchExecutions(ctx context.Context, w io.Writer, form Form, interval time.Duration, get func(context.Context) (*api.Executions, error)) error {
	switch {
	case form == JSONLines:
		return watch(ctx, interval, get, &jsonLines[api.Executions]{lines: aside("seeder"), w: w})
	case IsTerminal(w):
		return watch(ctx, interval, get, &listBars{screen: newScreen(w)})
	}
	return watch(ctx, interval, get, &listLines{lines: lines{w: w, who: "seeder"}})
}

// WatchAgent shows what an agent does until ctx ends: a bar for each build.
func WatchAgent(ctx context.Context, w io.Writer, form Form, interval time.Duration, get func(context.Context) (*api.AgentStatus, error)) error {
	switch {
	case form == JSONLines:
		return watch(ctx, interval, get, &jsonLines[api.AgentStatus]{lines: aside("agent"), w: w})
	case IsTerminal(w):
		return watch(ctx, interval, get, &agentBars{screen: newScreen(w)})
	}
	return watch(ctx, interval, get, &agentLines{lines: lines{w: w, who: "agent"}})
}

// watch polls until ctx ends, which is no error. The first question must be
// answered: whoever asks the wrong address should hear of it.
func watch[T any](ctx context.Context, interval time.Duration, get func(context.Context) (*T, error), v view[T]) error {
	first, err := ask(ctx, get)
	if err != nil {
		return err
	}
	again := func(ctx context.Context) (*T, error) {
		if answer := first; answer != nil {
			first = nil
			return answer, nil
		}
		return get(ctx)
	}
	_, err = poll(ctx, interval, patience, again, v, func(*T) bool { return false })
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// aside is where it is said that there is no answer, when the output is for programs.
func aside(who string) lines { return lines{w: os.Stderr, who: who} }

type silent[T any] struct{ lines }

func (s *silent[T]) update(_ *T, now time.Time) { s.answered(now) }

// jsonLines writes an answer when it differs from the last.
type jsonLines[T any] struct {
	lines
	w    io.Writer
	last string
}

func (j *jsonLines[T]) update(answer *T, now time.Time) {
	j.answered(now)
	var line strings.Builder
	if writeJSON(&line, answer, "") != nil || line.String() == j.last {
		return // what came as JSON can be written as JSON
	}
	j.last = line.String()
	io.WriteString(j.w, j.last)
}
