package seeder

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
)

// probe finds out whether the global bucket's store refuses to give out another object
// than the one that a pull began with. Its error ends the seeder: a guarantee lacks. One
// that cannot be reached is asked again.
func (s *Seeder) probe(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, maxRetry) {
		found, err := s.cfg.Bucket.ProbeRead(ctx)
		var sums bucket.Sums
		if err == nil {
			sums, err = s.cfg.Bucket.CheckSums(ctx, "")
		}
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			for _, w := range found {
				s.cfg.Logger.Warn("the bucket's store is weaker than S3", "bucket", s.cfg.Bucket.Name(), "store", string(w), "guaranteeLost", w.Grave())
			}
			s.cfg.Logger.Info("looked for the checksums that source objects have", "bucket", s.cfg.Bucket.Name(), "found", sums.String())
			return s.cfg.Bucket.Refuse(found, s.cfg.AllowWeakStore)
		}
		s.cfg.Logger.Debug("the bucket's store could not be checked yet", "bucket", s.cfg.Bucket.Name(), "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rand.N(wait) + firstRetry/10):
		}
	}
}

// own reports whether a key is Landfall's own, which is never distributed.
func own(key string) bool { return strings.HasPrefix(key, bucket.OwnPrefix) }
