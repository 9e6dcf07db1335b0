package host

import (
	"errors"
	"fmt"
	"time"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/retry"
)

// errNewer is why a host cannot follow what a newer version of this program says.
var errNewer = errors.New("a newer agent host is needed")

// failure is what has gone wrong so many times since it last went well; the zero value is
// none. It is tried again: what a disk, or a fault of this program, has prevented may go.
type failure struct {
	err   error
	times int
	again time.Time // zero for never
}

// more is the failure after another one.
func (f failure) more(err error, when retry.Policy) failure {
	f.times++
	f.again = time.Now().Add(when.Delay(f.times))
	if f.err = err; f.times >= fetch.MaxFailures {
		f.err = fmt.Errorf("%w, %d times: %w", fetch.ErrFailing, f.times, err)
	}
	return f
}

// waits reports whether it is not to be tried again yet.
func (f failure) waits(now time.Time) bool {
	return f.err != nil && (f.again.IsZero() || now.Before(f.again))
}

// settled reports whether a host that is to run a build counts as failed by an error: as
// long as nobody does something, as far as can be known.
func settled(err error) bool {
	for _, lasting := range []error{errRecalled, errNewer, release.ErrRefused, release.ErrNoRoom, cache.ErrNoSpace, fetch.ErrWrongBuild, fetch.ErrFailing} {
		if errors.Is(err, lasting) {
			return true
		}
	}
	return false
}
