package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/private"
)

// accounts are where an agent reads and writes what becomes of executions: *arrivals.Records
// are rows of its own; *ledger.Ledger is the items of the seeders' table, as before there
// were rows.
type accounts interface {
	landing.Ledger
	Fail(ctx context.Context, key ledger.Key, executionID, bucket string, result ledger.Result) (*ledger.Record, error)
}

// records are the rows of arrivals, as soon as every seeder in sight says that it reads
// them; beside a seeder that does not, the items. A seeder that is away changes nothing,
// also not over a restart. Before the first is seen, an agent that is new records in rows,
// since its role may have no right to write items, and one of which there is something from
// an earlier version in items, since the seeders may be of that version.
type records struct {
	items *ledger.Ledger
	rows  *arrivals.Records // nil for none
	// file is there while the seeders read rows; empty for nowhere.
	file string

	byRows atomic.Bool
	// heeded: a seeder was in sight since the start.
	heeded atomic.Bool
}

func newRecords(items *ledger.Ledger, rows *arrivals.Records, file string, isNew bool) (*records, error) {
	r := &records{items: items, rows: rows, file: file}
	if rows == nil || file == "" {
		return r, nil
	}
	if isNew {
		r.byRows.Store(true)
		if err := private.Replace(file, nil); err != nil {
			return nil, fmt.Errorf("remembering how arrivals are recorded: %w; choose another --data-dir", err)
		}
		return r, nil
	}
	_, err := os.Stat(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("finding out how arrivals were recorded before: %w", err)
	}
	r.byRows.Store(err == nil)
	return r, nil
}

// isNew reports whether there is nothing of an agent yet: every version makes its memory at
// its first start.
func isNew(memory string) bool {
	_, err := os.Lstat(memory)
	return memory != "" && errors.Is(err, fs.ErrNotExist)
}

// heed looks whether the seeders in sight read rows, and reports whether that is news.
func (r *records) heed(seeders []gossip.Member) (news bool, err error) {
	if r.rows == nil || len(seeders) == 0 {
		return false, nil
	}
	r.heeded.Store(true)
	all := true
	for _, s := range seeders {
		all = all && s.Arrivals
	}
	if r.byRows.Swap(all) == all {
		return false, nil
	}
	switch {
	case r.file == "":
	case all:
		err = private.Replace(r.file, nil)
	default:
		if err = os.Remove(r.file); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return true, err
}

func (r *records) now() accounts {
	if r.byRows.Load() {
		return r.rows
	}
	return r.items
}

func (r *records) Get(ctx context.Context, key ledger.Key) (*ledger.Record, error) {
	return r.now().Get(ctx, key)
}

func (r *records) SetLanding(ctx context.Context, key ledger.Key, executionID, bucket string, l ledger.Landing) (*ledger.Record, error) {
	return r.now().SetLanding(ctx, key, executionID, bucket, l)
}

func (r *records) Arrive(ctx context.Context, last *ledger.Record, bucket string, result ledger.Result) (*ledger.Record, error) {
	return r.now().Arrive(ctx, last, bucket, result)
}

func (r *records) Fail(ctx context.Context, key ledger.Key, executionID, bucket string, result ledger.Result) (*ledger.Record, error) {
	return r.now().Fail(ctx, key, executionID, bucket, result)
}

// untrue says that the bucket has not a build that has arrived there as its row says.
func (r *records) untrue(key ledger.Key, executionID string) {
	if r.byRows.Load() {
		r.rows.Untrue(key, executionID)
	}
}

// everywhere adds what other destinations' rows say, where there are any.
func (r *records) everywhere(ctx context.Context, record *ledger.Record) (*ledger.Record, error) {
	if !r.byRows.Load() || record.Status != ledger.InProgress {
		return record, nil
	}
	return r.rows.Everywhere(ctx, record)
}

// heedSeeders finds out where the seeders in sight look for arrivals.
func (a *Agent) heedSeeders() {
	var seeders []gossip.Member
	for _, m := range a.gossip.Members() {
		if m.Role == gossip.Seeder && gossip.TrustOf(m.Key, a.cfg.Trust.IDs()) != gossip.Untrusted {
			seeders = append(seeders, m)
		}
	}
	news, err := a.records.heed(seeders)
	if news {
		a.cfg.Logger.Info("where arrivals are recorded has changed, as the seeders say", "inRows", a.records.byRows.Load())
	}
	if err != nil {
		a.cfg.Logger.Warn("where arrivals are recorded is not remembered over a restart", "error", err)
	}
}

// hold has this agent say that it is alive while it lands a build.
func (a *Agent) hold(executionID string) (release func()) {
	if a.rows == nil || !a.records.byRows.Load() {
		return func() {}
	}
	return a.rows.Hold(executionID)
}
