package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/retry"
)

// maxProbeRetry bounds the wait before a store that was not reached is asked again:
// nothing lands before. probeTimeout is what the few small calls of one try may take: one
// that hangs is asked again.
const (
	maxProbeRetry = 5 * time.Second
	probeTimeout  = 30 * time.Second
)

// errNotProbed is why an agent is not ready at first.
var errNotProbed = errors.New("the bucket's store was not checked yet")

// store is what the agent knows of its bucket's store.
type store struct {
	// known is closed when what follows is.
	known      chan struct{}
	weaknesses []bucket.Weakness
	notes      *landing.Notes // of parts whose SHA-256 the store does not say; nil for none
	// err is why they are not known.
	err atomic.Pointer[error]
}

func newStore() *store { return &store{known: make(chan struct{})} }

// ready is nil when the store is known.
func (s *store) ready() error {
	select {
	case <-s.known:
		return nil
	default:
	}
	if err := s.err.Load(); err != nil {
		return fmt.Errorf("%w: %w", errNotProbed, *err)
	}
	return errNotProbed
}

// probe finds out whether the bucket's store refuses what it has to. Its error ends the
// agent: a guarantee lacks. One that cannot be reached is asked again.
func (a *Agent) probe(ctx context.Context) error {
	var found []bucket.Weakness
	again := retry.Policy{First: firstRetry, Max: maxProbeRetry, Failed: func(_ int, err error) {
		if a.store.err.Swap(&err) == nil {
			a.cfg.Logger.Warn("the bucket's store could not be checked yet, nothing lands before", "bucket", a.cfg.Bucket.Name(), "error", err)
		}
	}}
	_ = again.Do(ctx, func() (err error) { // until it succeeds, or ctx ends
		asking, stop := context.WithTimeout(ctx, probeTimeout)
		defer stop()
		found, err = a.cfg.Bucket.Probe(asking)
		return err
	})
	if ctx.Err() != nil {
		return nil
	}
	err := a.cfg.Bucket.Refuse(found, a.cfg.AllowWeakStore)
	if err != nil {
		return err
	}
	for _, w := range found {
		a.cfg.Logger.Warn("the bucket's store is weaker than S3", "bucket", a.cfg.Bucket.Name(), "store", string(w), "guaranteeLost", w.Grave())
	}
	a.store.weaknesses = found
	if a.cfg.Notes != "" && slices.Contains(found, bucket.NoPartSums) {
		if a.store.notes, err = landing.OpenNotes(a.cfg.Notes); err != nil {
			a.cfg.Logger.Warn("parts are sent again after a restart: the store does not say their SHA-256, and they cannot be noted", "error", err)
		}
	}
	close(a.store.known)
	a.tellAll(storeKnown{})
	return nil
}
