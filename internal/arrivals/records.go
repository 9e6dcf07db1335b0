package arrivals

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/retry"
)

// maxSeen bounds the rows that are remembered as they were read last; a row that is not
// costs a read.
const maxSeen = 256

// Items are the executions, which an agent only reads.
type Items interface {
	Get(ctx context.Context, key ledger.Key) (*ledger.Record, error)
}

// Records is how an agent reads and writes what becomes of executions: their items, with
// what the rows say beside them; and its own bucket's rows, which it alone writes with its
// bucket's other agents. It is safe for concurrent use.
type Records struct {
	items                  Items
	table                  *Table
	bucket, agent, process string
	signer                 Signer
	checker                Checker

	// now is the clock by which beats stand still, interval the time between this process's
	// own; tests have others.
	now      func() time.Time
	interval time.Duration

	mu     sync.Mutex
	seen   map[Place]*Row
	untrue map[Place]int64 // versions of rows that the bucket does not bear out
	beats  beats
}

// NewRecords returns the records of a bucket's agent; process is another for each start of
// it. signer is nil without TLS, and checker where arrivals need not be signed.
func NewRecords(items Items, table *Table, bucket, agent, process string, signer Signer, checker Checker) *Records {
	return &Records{
		items: items, table: table, bucket: bucket, agent: agent, process: process, signer: signer, checker: checker,
		now: time.Now, interval: beatInterval, seen: make(map[Place]*Row), untrue: make(map[Place]int64), beats: newBeats(),
	}
}

// Get reads the item of a key, with what this bucket's row says beside it.
func (r *Records) Get(ctx context.Context, key ledger.Key) (record *ledger.Record, err error) {
	var row *Row
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) { record, err = r.items.Get(ctx, key); return err })
	group.Go(func() (err error) { row, err = r.read(ctx, r.place(key)); return err })
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return r.borneOut(row).Over(record), nil
}

// Everywhere adds to a record what the other destinations' rows say: with no seeder alive
// nobody else does.
func (r *Records) Everywhere(ctx context.Context, record *ledger.Record) (*ledger.Record, error) {
	var places []Place
	for _, b := range record.Unfinished() {
		places = append(places, Place{Key: record.Key, Bucket: b})
	}
	rows, err := r.table.Rows(ctx, places)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		record = row.Over(record)
	}
	return record, nil
}

func (r *Records) place(key ledger.Key) Place { return Place{Key: key, Bucket: r.bucket} }

// read reads a row, and remembers it.
func (r *Records) read(ctx context.Context, p Place) (*Row, error) {
	row, err := r.table.row(ctx, p)
	if err == nil {
		r.remember(row)
	}
	return row, err
}

func (r *Records) remember(row *Row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.seen[row.Place]; !known && len(r.seen) >= maxSeen {
		clear(r.seen)
	}
	r.seen[row.Place] = row
}

// Untrue says that this bucket has not the build whose arrival its row records, as it was
// read last: that arrival counts no more, and gives way to a true one.
func (r *Records) Untrue(key ledger.Key, executionID string) {
	row := r.last(r.place(key))
	if row == nil {
		return
	}
	if _, ok := row.of(executionID); !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.untrue) >= maxSeen {
		clear(r.untrue)
	}
	r.untrue[row.Place] = row.version
}

// borneOut is a row without a success that does not count: one that Untrue was told of, and
// one whose signature a seeder would refuse, such as that of an agent which was denied since.
func (r *Records) borneOut(row *Row) *Row {
	a := row.Arrival
	if a == nil || !a.Success {
		return row
	}
	r.mu.Lock()
	version, untrue := r.untrue[row.Place]
	r.mu.Unlock()
	if untrue = untrue && version == row.version; !untrue && (r.checker == nil || row.Verify(r.checker) == nil) {
		return row
	}
	c := *row
	c.Arrival = nil
	return &c
}

// doubt takes out of a row a success that does not count, and is ledger.ErrSuperseded where
// the one that does is of an execution which began after this one. The item has that one
// then: an execution that nobody began supersedes none.
func (r *Records) doubt(ctx context.Context, row *Row, executionID string) error {
	row.Arrival = r.borneOut(row).Arrival
	a := row.Arrival
	if a == nil || !a.Success || a.ExecutionID <= executionID {
		return nil
	}
	item, err := r.items.Get(ctx, row.Key)
	if err != nil {
		return err
	}
	if item.ExecutionID < a.ExecutionID && item.Of(a.ExecutionID) == nil {
		row.Arrival = nil
		return nil
	}
	return superseded(executionID, a.ExecutionID)
}

// last is a row as it was read or written last; nil where that is not known.
func (r *Records) last(p Place) *Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[p]
}

// change writes a changed row, beginning with how it was read last: change says what is to
// become of it, and whether that is anything.
func (r *Records) change(ctx context.Context, p Place, kind string, change func(*Row) (changed bool, err error)) (*Row, error) {
	row := r.last(p)
	again := retry.Policy{First: firstBackoff, Max: maxBackoff, Tries: maxTries, Settled: func(err error) bool { return !errors.Is(err, errConflict) }}
	err := again.Do(ctx, func() (err error) {
		if row == nil {
			if row, err = r.read(ctx, p); err != nil {
				return err
			}
		}
		next := row.clone()
		changed, err := change(next)
		if err != nil {
			return err
		}
		if !changed {
			row = next
			return nil
		}
		next.version++
		if err := r.table.put(ctx, next, kind); err != nil {
			row = nil
			return err
		}
		row = next
		r.remember(row)
		return nil
	})
	return row, err
}

// SetLanding takes the landing of an execution for this process, with its upload: where
// nobody has it, where this agent's process before had it, and where the one that has it
// does not beat any more. Else it is ledger.ErrHeld; where a newer execution has arrived,
// ledger.ErrSuperseded. The record is nil.
func (r *Records) SetLanding(ctx context.Context, key ledger.Key, executionID, bucket string, l ledger.Landing) (*ledger.Record, error) {
	p := Place{Key: key, Bucket: bucket}
	mine := ledger.Landing{Agent: r.agent, UploadID: l.UploadID, ExecutionID: executionID, Holder: r.process}
	_, err := r.change(ctx, p, "landing", func(row *Row) (bool, error) {
		if err := r.doubt(ctx, row, executionID); err != nil {
			return false, err
		}
		if a, ok := row.of(executionID); ok && a.Success {
			return false, fmt.Errorf("%w: it has arrived", ledger.ErrHeld)
		}
		held, ok := row.landings[executionID]
		if held == mine {
			return false, nil
		}
		if ok && held.Agent != r.agent {
			still, err := r.StandsStill(ctx, held)
			if err != nil {
				return false, err
			}
			if !still {
				return false, fmt.Errorf("%w: %s", ledger.ErrHeld, held.Agent)
			}
		}
		row.land(mine)
		return true, nil
	})
	return nil, err
}

// Arrive records a build's arrival in a destination of an execution; again changes
// nothing. It is the record as it is then.
func (r *Records) Arrive(ctx context.Context, last *ledger.Record, bucket string, result ledger.Result) (*ledger.Record, error) {
	result.Success, result.Error, result.Final = true, "", false
	row, err := r.end(ctx, Place{Key: last.Key, Bucket: bucket}, Arrival{ExecutionID: last.ExecutionID, Result: result, Retries: last.Retries})
	if err != nil {
		return nil, err
	}
	// Also where the item says that it has arrived: that need not be so.
	return last.Without(bucket).With(bucket, row.Arrival.Result), nil
}

// Fail records that a build cannot land in a destination of an execution; never over a
// success, and never for an execution that has not the key.
func (r *Records) Fail(ctx context.Context, key ledger.Key, executionID, bucket string, result ledger.Result) (*ledger.Record, error) {
	item, err := r.items.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	if item.ExecutionID != executionID {
		return nil, superseded(executionID, item.ExecutionID)
	}
	result.Success = false
	row, err := r.end(ctx, Place{Key: key, Bucket: bucket}, Arrival{ExecutionID: executionID, Result: result, Retries: item.Retries})
	if err != nil {
		return nil, err
	}
	return row.Over(item), nil
}

// end writes how an execution ended in a destination.
func (r *Records) end(ctx context.Context, p Place, a Arrival) (*Row, error) {
	// As it will be read: what is signed is what the row says.
	a.Timestamp, a.Error = a.Timestamp.UTC().Round(0), ledger.CutText(strings.ToValidUTF8(a.Error, "\uFFFD"))
	if r.signer != nil {
		var err error
		if a.Signature, err = r.signer.Sign(purpose, a.message(p)); err == nil && len(a.Signature) > maxSignature {
			err = fmt.Errorf("%d bytes, at most %d", len(a.Signature), maxSignature)
		}
		if err != nil {
			return nil, fmt.Errorf("signing the arrival of %s: %w", p.FileKey, err)
		}
	}
	return r.change(ctx, p, "result", func(row *Row) (bool, error) {
		if err := r.doubt(ctx, row, a.ExecutionID); err != nil {
			return false, err
		}
		if old, ok := row.of(a.ExecutionID); ok && old.Success {
			return false, nil
		}
		row.end(&a)
		return true, nil
	})
}

func superseded(executionID, by string) error {
	return fmt.Errorf("%w: %s by %s", ledger.ErrSuperseded, executionID, by)
}
