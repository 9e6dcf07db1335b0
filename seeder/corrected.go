package seeder

import (
	"context"
	"errors"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// sameSecond is how long after it was written an object is looked at once more: S3
// tells times in whole seconds, so an object that was written twice within one looks
// like the first.
const sameSecond = 2 * time.Second

// rewritten are the objects of which the table knows the bytes, that may have other
// headers by now: their ETag is the same, but they were written again.
type rewritten struct {
	// since is from when on objects are looked at once more after sameSecond.
	since time.Time
	// done are the keys of those that were, and what they were then; bounded by
	// maxNamed.
	done map[string]looked
}

// looked is what the table had of an object when it was looked at once more.
type looked struct {
	executionID string
	modified    int64 // seconds since 1970
}

// suspected reports whether the source object of an execution has to be looked at. What
// an older version began is not: it did not note when its object was written.
func (w *rewritten) suspected(r *ledger.Record, o bucket.Object, now time.Time) bool {
	switch {
	case r.SourceModified.IsZero():
		return false
	case r.SourceModified.Unix() != o.LastModified.Unix():
		return true
	}
	newest := r.StartTime
	if r.SourceModified.After(newest) {
		newest = r.SourceModified
	}
	return newest.After(w.since) && now.Sub(newest) > sameSecond &&
		w.done[o.Key] != looked{r.ExecutionID, o.LastModified.Unix()}
}

// looked takes note that the object was looked at once more.
func (w *rewritten) looked(r *ledger.Record) {
	if len(w.done) >= maxNamed {
		w.done, w.since = make(map[string]looked), time.Now()
	}
	w.done[r.FileKey] = looked{r.ExecutionID, r.SourceModified.Unix()}
}

// corrected reports whether an object, of which the bytes are known, has other headers
// or user metadata than its execution. One that was only written again is remembered in
// the table, so that it is looked at once.
func (w *watcher) corrected(ctx context.Context, r *ledger.Record, head *bucket.Object) (bool, error) {
	newest, err := w.cfg.Ledger.Get(ctx, r.Key) // the index need not have the headers
	if err != nil {
		return false, err
	}
	if newest.ExecutionID != r.ExecutionID {
		w.put(newest)
		return false, nil
	}
	if names := differ(newest, head); len(names) > 0 {
		w.cfg.Logger.Info("object has other headers than were sent", "key", head.Key, "executionId", r.ExecutionID, "headers", names)
		return true, nil
	}
	if newest.SourceModified.Unix() == head.LastModified.Unix() {
		w.rewritten.looked(newest)
		return false, nil
	}
	newest, err = w.cfg.Ledger.SetSourceModified(ctx, r.Key, r.ExecutionID, head.LastModified)
	if errors.Is(err, ledger.ErrSuperseded) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	w.put(newest)
	return false, nil
}
