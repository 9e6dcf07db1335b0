// Package retry tries again what fails for a while.
package retry

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Policy says how often something is tried again, and when.
type Policy struct {
	// First and Max bound the waits: the bound begins with First, doubles with each try
	// and ends at Max. A wait is drawn from zero to it (full jitter), and a tenth of
	// First added: those that wait do not all try at the same moment, and never at once.
	First, Max time.Duration
	// Tries bounds the tries; 0 for as long as it takes.
	Tries int
	// Settled reports whether an error is an answer that another try does not change;
	// nil where there is none.
	Settled func(err error) bool
	// Failed is called when another try is to follow, beside the log; may be nil.
	Failed func(try int, err error)
	// Logger says Message at that time, with the number of the try, the error and the
	// wait; nil says nothing.
	Logger  *slog.Logger
	Level   slog.Level
	Message string
}

// Delay draws the wait that follows a try; the first one is number 1.
func (p Policy) Delay(try int) time.Duration {
	bound := p.First
	for ; try > 1 && bound < p.Max; try-- {
		bound *= 2
	}
	return rand.N(max(1, min(bound, p.Max))) + p.First/10
}

// Do calls op until it succeeds, and returns its last error: of the last try, one that
// is settled, or that with which ctx has ended.
func (p Policy) Do(ctx context.Context, op func() error) error {
	for try := 1; ; try++ {
		err := op()
		if err == nil || ctx.Err() != nil || try == p.Tries || p.Settled != nil && p.Settled(err) {
			return err
		}
		wait := p.Delay(try)
		if p.Failed != nil {
			p.Failed(try, err)
		}
		if p.Logger != nil {
			p.Logger.Log(ctx, p.Level, p.Message, "try", try, "error", err, "retryIn", wait.Round(time.Millisecond).String())
		}
		if !Wait(ctx, wait) {
			return err
		}
	}
}

// Wait reports whether ctx goes on for so long.
func Wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
