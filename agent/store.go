package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/landing"
)

// maxProbeRetry bounds the wait before a store that was not reached is asked again:
// nothing lands before. probeTimeout is what the few small calls of one try may take: one
// that hangs is asked again.
const (
	maxProbeRetry = 5 * time.Second
	probeTimeout  = 30 * time.Second
)

// notes are opened when they are needed.
type notes struct {
	once sync.Once
	open *landing.Notes
}

// errNotProbed is why an agent is not ready at first.
var errNotProbed = errors.New("the bucket's store was not checked yet")

// store is what the agent knows of its bucket's store.
type store struct {
	// known is closed when weaknesses are.
	known      chan struct{}
	weaknesses []bucket.Weakness
	// err is why they are not known; of type error.
	err atomic.Value
}

func newStore() *store { return &store{known: make(chan struct{})} }

// ready is nil when the store is known.
func (s *store) ready() error {
	select {
	case <-s.known:
		return nil
	default:
	}
	if err, ok := s.err.Load().(storeError); ok {
		return fmt.Errorf("%w: %w", errNotProbed, err.error)
	}
	return errNotProbed
}

// storeError makes errors of all types storable in one atomic.Value.
type storeError struct{ error }

// notesOfParts are for a store that does not say the SHA-256 of parts; nil for any other.
func (a *Agent) notesOfParts() *landing.Notes {
	if a.cfg.Notes == "" || !a.store.has(bucket.NoPartSums) {
		return nil
	}
	a.notes.once.Do(func() {
		var err error
		if a.notes.open, err = landing.OpenNotes(a.cfg.Notes); err != nil {
			a.cfg.Logger.Warn("parts are sent again after a restart: the store does not say their SHA-256, and they cannot be noted", "error", err)
		}
	})
	return a.notes.open
}

// has reports a weakness of the store; none before it is known, when nothing lands.
func (s *store) has(w bucket.Weakness) bool {
	select {
	case <-s.known:
		return slices.Contains(s.weaknesses, w)
	default:
		return false
	}
}

// probe finds out whether the bucket's store refuses what it has to. Its error ends the
// agent: a guarantee lacks. One that cannot be reached is asked again.
func (a *Agent) probe(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, maxProbeRetry) {
		asking, stop := context.WithTimeout(ctx, probeTimeout)
		found, err := a.cfg.Bucket.Probe(asking)
		stop()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			if err := a.cfg.Bucket.Refuse(found, a.cfg.AllowWeakStore); err != nil {
				return err
			}
			for _, w := range found {
				a.cfg.Logger.Warn("the bucket's store is weaker than S3", "bucket", a.cfg.Bucket.Name(), "store", string(w), "guaranteeLost", w.Grave())
			}
			a.store.weaknesses = found
			close(a.store.known)
			return nil
		}
		if a.store.err.Swap(storeError{err}) == nil {
			a.cfg.Logger.Warn("the bucket's store could not be checked yet, nothing lands before", "bucket", a.cfg.Bucket.Name(), "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rand.N(wait) + firstRetry/10):
		}
	}
}
