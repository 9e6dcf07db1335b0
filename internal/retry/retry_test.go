package retry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errFails = errors.New("fails")

// The bound doubles to its end and no further, however often; no wait is none.
func TestDelay(t *testing.T) {
	p := Policy{First: time.Second, Max: 10 * time.Second}
	for try, bound := range map[int]time.Duration{1: 1, 2: 2, 3: 4, 4: 8, 5: 10, 6: 10, 1 << 30: 10} {
		bound *= time.Second
		var least, most time.Duration = bound, 0
		for range 1000 {
			d := p.Delay(try)
			least, most = min(least, d), max(most, d)
		}
		if floor := p.First / 10; least < floor || most >= bound+floor || least > floor+bound/4 || most < bound*3/4 {
			t.Errorf("try %d: waits from %s to %s, want up to %s", try, least, most, bound)
		}
	}
	if d := (Policy{}).Delay(1); d > 1 {
		t.Errorf("without bounds it waits %s", d)
	}
}

func TestDo(t *testing.T) {
	final := errors.New("final")
	for name, c := range map[string]struct {
		policy Policy
		errs   []error // of the tries; after them nil
		want   error
		tries  int
	}{
		"at once":      {Policy{Tries: 3}, nil, nil, 1},
		"later":        {Policy{Tries: 3}, []error{errFails, errFails}, nil, 3},
		"never":        {Policy{Tries: 3}, []error{errFails, errFails, errFails, nil}, errFails, 3},
		"as it takes":  {Policy{}, []error{errFails, errFails, errFails, errFails, errFails}, nil, 6},
		"with an end":  {Policy{Settled: func(err error) bool { return err == final }}, []error{errFails, final, errFails}, final, 2},
		"end at first": {Policy{Settled: func(error) bool { return true }}, []error{final}, final, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				failed, tries := 0, 0
				p := c.policy
				p.First, p.Max = time.Second, time.Minute
				p.Logger, p.Level, p.Message = slog.New(slog.NewTextHandler(&log, nil)), slog.LevelWarn, "it is tried again"
				p.Failed = func(int, error) { failed++ }
				err := p.Do(t.Context(), func() error {
					if tries++; tries <= len(c.errs) {
						return c.errs[tries-1]
					}
					return nil
				})
				if err != c.want || tries != c.tries {
					t.Errorf("%d tries, %v; want %d, %v", tries, err, c.tries, c.want)
				}
				if said := strings.Count(log.String(), "it is tried again"); said != tries-1 || failed != said {
					t.Errorf("said %d times and told %d times of %d tries", said, failed, tries)
				}
			})
		})
	}
}

// The end of the context ends the wait, with the error of what was tried, and no try
// begins after it.
func TestDoEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		p := Policy{First: 24 * time.Hour * 365, Max: 24 * time.Hour * 365}
		tries, began := 0, time.Now()
		if err := p.Do(ctx, func() error { tries++; return errFails }); err != errFails || tries != 1 || time.Since(began) != time.Hour {
			t.Errorf("%d tries, %v after %s", tries, err, time.Since(began))
		}
		if err := p.Do(ctx, func() error { tries++; return errFails }); err != errFails || tries != 2 {
			t.Errorf("%d tries, %v", tries, err)
		}
		if Wait(ctx, time.Hour) || !Wait(t.Context(), time.Second) {
			t.Error("a wait reports the wrong end")
		}
	})
}
