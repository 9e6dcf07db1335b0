package seeder

import (
	"context"
	"log/slog"
	"strings"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/retry"
)

// probe finds out whether the global bucket's store refuses to give out another object
// than the one that a pull began with. Its error ends the seeder: a guarantee lacks. One
// that cannot be reached is asked again.
func (s *Seeder) probe(ctx context.Context) error {
	logger := s.cfg.Logger.With("bucket", s.cfg.Bucket.Name())
	again := retry.Policy{First: firstRetry, Max: maxRetry, Logger: logger, Level: slog.LevelDebug, Message: "the bucket's store could not be checked yet"}
	var found []bucket.Weakness
	var sums bucket.Sums
	_ = again.Do(ctx, func() (err error) { // until it succeeds, or ctx ends
		if found, err = s.cfg.Bucket.ProbeRead(ctx); err == nil {
			sums, err = s.cfg.Bucket.CheckSums(ctx, "")
		}
		return err
	})
	if ctx.Err() != nil {
		return nil
	}
	for _, w := range found {
		logger.Warn("the bucket's store is weaker than S3", "store", string(w), "guaranteeLost", w.Grave())
	}
	logger.Info("looked for the checksums that source objects have", "found", sums.String())
	return s.cfg.Bucket.Refuse(found, s.cfg.AllowWeakStore)
}

// own reports whether a key is Landfall's own, which is never distributed.
func own(key string) bool { return strings.HasPrefix(key, bucket.OwnPrefix) }
