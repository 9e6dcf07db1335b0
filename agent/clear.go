package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// clear removes the uploads of an execution that failed or was cancelled, those too
// that an agent left that was away then: nobody else would. What is sent again
// meanwhile begins a new upload. It tries again until ctx ends.
func (a *Agent) clear(ctx context.Context, key ledger.Key, executionID string) {
	logger := a.cfg.Logger.With("key", key.FileKey, "executionId", executionID)
	for wait := firstRetry; ; wait = min(2*wait, maxRetry) {
		n, err := a.clearOnce(ctx, key, executionID)
		if n > 0 {
			logger.Info("uploads of an execution that is over were removed", "bucket", a.cfg.Bucket.Name(), "uploads", n)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		logger.Warn("uploads of an execution that is over are still there", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(wait) + firstRetry/10):
		}
	}
}

func (a *Agent) clearOnce(ctx context.Context, key ledger.Key, executionID string) (removed int, err error) {
	record, err := a.cfg.Ledger.Get(ctx, key)
	name := a.cfg.Bucket.Name()
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	case record.ExecutionID != executionID, record.Status != ledger.Failed && record.Status != ledger.Cancelled, !slices.Contains(record.Failed, name):
		return 0, nil
	}
	uploads, err := a.cfg.Bucket.Uploads(ctx, key.FileKey)
	if err != nil {
		return 0, err
	}
	for _, id := range uploads {
		if err := a.cfg.Bucket.AbortUpload(ctx, key.FileKey, id); err != nil {
			return removed, fmt.Errorf("removing an upload: %w", err)
		}
		removed++
	}
	return removed, nil
}
