package seeder

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// maxSaid bounds the log lines about items of the table, for each reason: a table
	// may be full of what others wrote.
	maxSaid = 10
	// loadGCPercent is the garbage collector's setting while the table is read, usually 100.
	loadGCPercent = 50
	// sayInterval is how often a long reading of the table says how far it is.
	sayInterval = 10 * time.Second
)

// tableItems are how many items of the table are what, as it was last read whole.
type tableItems struct{ own, others, skipped atomic.Int64 }

// load reads the table once and takes up what is not finished. A table that cannot be
// read is tried again, as a bucket that cannot be listed is; the seeder is not ready
// meanwhile.
func (s *Seeder) load(ctx context.Context) error {
	causes := make(map[string]int)
	// say reports whether another line for this reason is due.
	say := func(cause string) bool {
		causes[cause]++
		return causes[cause] <= maxSaid
	}
	var left []*ledger.Record
	again := retry.Policy{
		First: firstRetry, Max: maxRetry, Failed: func(_ int, err error) { s.setReady(err); s.reading.executions.done() },
		Logger: s.cfg.Logger.With("table", s.cfg.Ledger.Table()), Level: slog.LevelError, Message: "table not read, trying again",
	}
	err := again.Do(ctx, func() (err error) {
		if left, err = s.readTable(ctx, say); err != nil {
			return fmt.Errorf("reading what was distributed before: %w", err)
		}
		return nil
	})
	if err != nil {
		return ctx.Err()
	}
	s.foldAtStart(ctx)
	s.mu.Lock()
	s.loaded = true // from here on membersChanged sees to whoever comes
	served := s.served
	s.mu.Unlock()
	s.reading.executions.done()
	resumed := 0
	for _, r := range s.index.unfinished() {
		if (r.Status == ledger.InProgress || lacks(r, served)) && s.start(ctx, r, asResumed) {
			resumed++
		}
	}
	for _, a := range s.book.Active() {
		s.retireEnded(a)
	}
	s.recoverUploads(ctx, left)
	if err := s.forgetPulls(); err != nil {
		s.cfg.Logger.Warn("disk space is not freed", "error", err)
	}
	if resumed > 0 {
		s.cfg.Logger.Info("taking up executions that were not finished", "executions", resumed)
	}
	return nil
}

// readTable takes in every execution of the table that is this seeder's, and says of
// every other item once why it is not, as far as there is room in a log. It returns the
// items beside which an upload's execution stands.
func (s *Seeder) readTable(ctx context.Context, say func(cause string) bool) (uploads []*ledger.Record, err error) {
	var own, skipped, odd, items int64
	past := newArchive()
	ids := make(map[ulid.ULID]struct{}) // of those that are taken in
	// What is read is garbage at once, and most of what stays is small: a heap twice its
	// size would be for nothing.
	defer debug.SetGCPercent(debug.SetGCPercent(loadGCPercent))
	begun := time.Now()
	said := begun
	err = s.cfg.Ledger.Scan(ctx, ledger.Scan{
		Upload: func(r *ledger.Record) {
			if r.SourceBucket == s.cfg.Bucket.Name() && (r.Owner == "" || r.Owner == s.cfg.Bucket.Name()) {
				uploads = append(uploads, r)
			}
		},
		Record: func(r *ledger.Record) {
			if !s.owns(r) {
				if r.Owner == "" && r.Status == ledger.InProgress && !r.Foreign && say("older") {
					s.cfg.Logger.Info("execution of an older version is left alone: its source bucket and its destinations are not this seeder's",
						"key", r.FileKey, "sourceBucket", r.SourceBucket, "executionId", r.ExecutionID, "destinations", r.Destinations)
				}
				return
			}
			// By its id an execution is asked for, cancelled and ended: a copy of an item
			// under another key must not stand in for it.
			id, err := ulid.ParseStrict(r.ExecutionID)
			if _, taken := ids[id]; err == nil && taken {
				if skipped++; say("copy") {
					s.cfg.Logger.Warn("item of the table is skipped", "key", r.FileKey, "sourceBucket", r.SourceBucket,
						"reason", "its executionId is another item's", "found", r.ExecutionID)
				}
				return
			}
			ids[id] = struct{}{}
			own++
			if r.Odd != "" {
				if odd++; say("odd") {
					s.cfg.Logger.Warn("item of the table is read in part", "key", r.FileKey, "sourceBucket", r.SourceBucket, "leftOut", r.Odd)
				}
			}
			if why := leftAlone(r); why != nil && !over(r) && say("scheme") {
				s.cfg.Logger.Warn("execution is shown and not taken up", "key", r.FileKey, "sourceBucket", r.SourceBucket, "executionId", r.ExecutionID, "reason", why)
			}
			if over(r) {
				past.add(r)
			} else {
				s.put(r)
			}
		},
		Unreadable: func(u *ledger.Unreadable) {
			if skipped++; say(u.Cause) {
				s.cfg.Logger.Warn("item of the table is skipped", "key", u.FileKey, "sourceBucket", u.SourceBucket, "reason", u.Cause, "found", u.Detail)
			}
		},
		Page: func(n int64) {
			items = n
			if time.Since(said) >= sayInterval {
				said = time.Now()
				s.setReady(fmt.Errorf("reading the table: %d items so far", items))
				s.cfg.Logger.Info("reading the table", "items", items, "seconds", since(begun))
			}
		},
	})
	if err != nil {
		return nil, err
	}
	s.index.takeIn(past)
	s.items.own.Store(own)
	s.items.others.Store(max(0, items-own-skipped))
	s.items.skipped.Store(skipped)
	if skipped > 0 || odd > 0 {
		s.cfg.Logger.Warn("the table holds items that are not Landfall's", "skipped", skipped, "readInPart", odd, "linesPerReason", maxSaid)
	}
	s.cfg.Logger.Info("table read", "items", items, "own", own, "seconds", since(begun))
	return uploads, nil
}

// recoverUploads sees to the executions of uploads that a former process has left. What
// cannot be found out now is tried again beside the rest.
func (s *Seeder) recoverUploads(ctx context.Context, left []*ledger.Record) {
	for _, r := range left {
		err := s.recoverUpload(ctx, r.Key, r.Upload)
		if err == nil || ctx.Err() != nil {
			continue
		}
		logger := s.cfg.Logger.With("key", r.FileKey, "executionId", r.Upload.ExecutionID)
		logger.Warn("not known yet what has become of an upload", "error", err)
		again := retry.Policy{First: firstRetry, Max: maxRetry, Logger: logger, Level: slog.LevelWarn, Message: "not known yet what has become of an upload, trying again"}
		s.mu.Lock()
		s.group.Go(func() error {
			_ = again.Do(ctx, func() error { return s.recoverUpload(ctx, r.Key, r.Upload) }) // until it succeeds, or ctx ends
			return nil
		})
		s.mu.Unlock()
	}
}

// owns reports whether an execution is this seeder's. One without an owner was begun by
// an older version: by the seeder of its source bucket or, where that is no seeder's, by
// one that sends to these destinations.
func (s *Seeder) owns(r *ledger.Record) bool {
	own := s.cfg.Bucket.Name()
	if r.Owner != "" {
		return r.Owner == own
	}
	return r.SourceBucket == own || !r.Foreign && !slices.ContainsFunc(r.Destinations, func(b string) bool {
		return !slices.Contains(s.cfg.Destinations, b)
	})
}
