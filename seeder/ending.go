package seeder

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// fail decides what follows from a failed attempt. One that may pass is tried again; one
// that cannot is recorded for every destination that has not arrived.
func (m *machine) fail(now time.Time, err error) {
	m.live.err = err
	switch {
	case errors.Is(err, ledger.ErrSuperseded):
		m.finish(now, replaced)
	case errors.Is(err, bucket.ErrNotFound), errors.Is(err, manifest.ErrInvalid), bucket.Permanent(err):
		m.live.sourceMissing = errors.Is(err, bucket.ErrNotFound)
		m.live.spoilt = errors.Is(err, bucket.ErrChecksum) && m.handedOut > 0
		m.failAll(now, err)
	case errors.Is(err, announce.ErrContradiction): // by who knows what was announced before a crash
		m.live.spoilt = true
		fallthrough
	case errors.Is(err, bucket.ErrChanged):
		m.doing = renewing
		m.work(renewWorker)
	case now.Sub(m.lastMove()) > m.timeout:
		m.failAll(now, fmt.Errorf("no progress for %s: %w", m.timeout, err))
	default:
		m.rest(now, err)
	}
}

// lastMove is when there last was progress, here or at any destination.
func (m *machine) lastMove() time.Time {
	last := m.pulling
	for _, moved := range m.moved {
		if moved.After(last) {
			last = moved
		}
	}
	return last
}

func (m *machine) rest(now time.Time, err error) {
	delay := m.jitter(m.wait)
	m.wait = min(2*m.wait, maxRetry)
	m.until, m.doing = now.Add(delay), resting
	m.live.err, m.live.retryAt = err, m.until
	m.do(complain{err, delay})
}

// failAll has it recorded why nothing more will come.
func (m *machine) failAll(now time.Time, cause error) {
	m.live.err = cause
	pending := m.record.Pending()
	if len(pending) == 0 {
		m.finish(now, wasFailed)
		return
	}
	m.doing, m.failures = failing, nil
	for _, b := range pending {
		m.failures = append(m.failures, failure{b, cause.Error(), bucket.Permanent(cause)})
	}
	m.work(failWorker)
}

// recorded follows the writing of failures.
func (m *machine) recorded(now time.Time, err error) {
	switch {
	case m.doing != following && m.doing != failing: // it is looked at again
	case errors.Is(err, ledger.ErrSuperseded):
		m.finish(now, replaced)
	case err != nil:
		m.rest(now, fmt.Errorf("recording a failure: %w", err))
	case m.doing == failing:
		m.finish(now, hasFailed)
	default:
		m.follow(now)
	}
}

// renewed follows the try to begin again with the object as it is now.
func (m *machine) renewed(now time.Time, err error) {
	switch {
	case err == nil:
		m.finish(now, replaced)
	case errors.Is(err, bucket.ErrNotFound):
		m.failAll(now, err)
	default:
		m.rest(now, err)
	}
}

// finish ends what is under way, and the execution with it.
func (m *machine) finish(now time.Time, how end) {
	switch m.doing {
	case idle:
		return
	case finishing:
		m.end = max(m.end, how)
		return
	}
	m.doing, m.end = finishing, how
	names := how == replaced && m.successor == "" // the table names the other
	for _, w := range slices.Sorted(maps.Keys(m.working)) {
		if w != rereadWorker || !names {
			m.do(cancel{w})
		}
	}
	if names {
		m.work(rereadWorker)
	}
	m.finished(now)
}

// finished concludes, once nobody is at work any more. What was asked for meanwhile
// begins now.
func (m *machine) finished(now time.Time) {
	if len(m.working) > 0 {
		return
	}
	if m.end < replaced && len(m.record.Pending()) > 0 { // made so since, by a retry
		m.attempt(now)
		return
	}
	if !m.left {
		m.left = true
		m.work(leaveWorker)
		return
	}
	if reason := m.endReason(); reason != "" && !m.noticed {
		m.noticed = true
		m.sendNotice(reason)
		return
	}
	if m.end == brokenOff && !m.dropped {
		m.dropped = true // after the notice: what a crash leaves in the table is ended again
		m.work(dropWorker)
		return
	}
	m.doing, m.left = idle, false
	m.news(now)
	switch m.end {
	case hasEnded:
		m.live.err = nil
	case hasFailed, wasFailed:
		m.do(sayHopeless{m.live.err})
	}
	if m.end != replaced {
		m.live.phase = api.PhaseEnded
	}
	m.do(concluded{m.end})
	a := m.request
	if m.request = nil; a != nil && m.end < replaced && wanted(m.record) && (a.why == asRetried || !m.live.sourceMissing) {
		m.begin(now, *a)
	}
}

// endReason is what the notice of this end says; empty where none is sent: the cluster
// has heard it before, or hears it of who has the key now.
func (m *machine) endReason() string {
	switch m.end {
	case hasEnded, hasFailed:
		return endOf(m.record)
	case brokenOff:
		return announce.Failed
	}
	return ""
}

// wanted reports whether a destination is left to be reached.
func wanted(r *ledger.Record) bool {
	return slices.ContainsFunc(r.Unfinished(), func(bucket string) bool { return !r.Cancelled(bucket) && !r.Hopeless(bucket) })
}

// endOf is why the announcement of an execution ends that nobody carries any more.
func endOf(r *ledger.Record) string {
	if r.Status == ledger.Completed {
		return announce.Completed
	}
	return announce.Failed
}
