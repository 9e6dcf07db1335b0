// Package ledger is the table of arrivals in DynamoDB: one item for the newest
// execution of each object, written when it is accepted and changed as the build
// arrives.
//
// Counts and status follow from sets, which DynamoDB cannot compute in the same
// update. So a change is one consistent read, one change in memory and one write
// on condition that the item is still as read, tried again on conflict. Only an
// arrival after which others are pending is added without looking at the rest of
// the item: many regions arrive at the same moment (add.go).
package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// maxTries bounds the writes tried for one change; dozens of arrivals of
	// one execution at once all get through.
	maxTries = 100
	// firstBackoff and maxBackoff bound the wait after a conflict; it doubles,
	// with full jitter. A conflict means that another write got through, so
	// the wait saves writes, not the table.
	firstBackoff, maxBackoff = 5 * time.Millisecond, 200 * time.Millisecond
	// createTimeout bounds the wait for a new table.
	createTimeout = 2 * time.Minute
	// createInterval is the time between looks at it.
	createInterval = 100 * time.Millisecond
	// pageTimeout bounds one page of a scan, 1 MiB: a connection that hangs is not
	// waited for in silence.
	pageTimeout = time.Minute
)

// Ledger is one table. It is safe for concurrent use, by any number of
// processes.
type Ledger struct {
	client *dynamodb.Client
	table  string
	owner  string
	place  *atomic.Pointer[Place] // nil in it until described
	*counts
}

type counts struct{ errors, conflicts atomic.Int64 }

// New returns the ledger kept in a table, which need not exist yet.
func New(client *dynamodb.Client, table string) *Ledger {
	return &Ledger{client: client, table: table, place: new(atomic.Pointer[Place]), counts: new(counts)}
}

// As returns the ledger for a seeder, by its global bucket: it leaves other seeders'
// executions alone and has what it writes say whose it is. Agents do without.
func (l *Ledger) As(owner string) *Ledger {
	of := *l
	of.owner = owner
	return &of
}

// Region is the AWS region that the table is looked for in; empty when none is set.
func (l *Ledger) Region() string { return l.client.Options().Region }

// Table is the table's name.
func (l *Ledger) Table() string { return l.table }

// schema is how the table is keyed.
func (l *Ledger) schema() Schema {
	return Schema{Client: l.client, Table: l.table, Partition: "fileKey", Sort: "sourceBucket", Flag: "table"}
}

// Create makes the table, billed by request, and waits until it can be used. It
// returns false when the table was there.
func (l *Ledger) Create(ctx context.Context) (created bool, err error) {
	if created, err = l.schema().Create(ctx); err != nil {
		return false, err
	}
	return created, l.Check(ctx)
}

// Check reports whether the table can be used: ErrNoTable when it is missing,
// another error when its key is not the one expected.
func (l *Ledger) Check(ctx context.Context) error {
	found, err := l.schema().Describe(ctx)
	if err != nil {
		l.count(err)
		return err
	}
	l.place.Store(placeOf(found, l.Region()))
	return nil
}

// count counts an error, unless nobody has waited for the answer.
func (l *Ledger) count(err error) {
	if !errors.Is(err, context.Canceled) {
		l.errors.Add(1)
	}
}

// explain turns a missing table into ErrNoTable, which says what to do, and counts
// the error.
func (l *Ledger) explain(err error) error {
	l.count(err)
	return l.schema().Explain(err)
}

// Get reads the item of a key, consistently. ErrNotFound when there is none, an
// *Unreadable when it is no execution.
func (l *Ledger) Get(ctx context.Context, k Key) (*Record, error) {
	if err := k.check(); err != nil {
		return nil, err
	}
	out, err := l.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName:      &l.table,
		Key:            k.item(),
		ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, l.explain(err)
	}
	if len(out.Item) == 0 {
		return nil, fmt.Errorf("%w: %s from %s in table %s of %s", ErrNotFound, k.FileKey, k.SourceBucket, l.table, l.Region())
	}
	return decode(out.Item, time.Now())
}

// Scan says what to do with the items of the table. Its functions are called one at a
// time.
type Scan struct {
	// Record gets every execution, in no order; where the ledger has an owner, those of
	// that one and those that name none.
	Record func(*Record)
	// Unreadable gets every item that is no execution; nil for nobody.
	Unreadable func(*Unreadable)
	// Upload gets every item beside which an upload's execution stands; nil for nobody.
	Upload func(*Record)
	// Page hears after each page how many items the table has gone through, those of
	// other owners among them; nil for nobody.
	Page func(items int64)
}

// Scan goes through the whole table.
func (l *Ledger) Scan(ctx context.Context, s Scan) error {
	in := &dynamodb.ScanInput{TableName: &l.table, ConsistentRead: aws.Bool(true)}
	if l.owner != "" {
		in.FilterExpression = aws.String("attribute_not_exists(#owner) OR #owner = :owner")
		in.ExpressionAttributeNames = map[string]string{"#owner": "owner"}
		in.ExpressionAttributeValues = item{":owner": text(l.owner)}
	}
	// The next page is fetched while one is read.
	pages := make(chan scanned)
	go func() {
		defer close(pages)
		var next map[string]types.AttributeValue
		for p := dynamodb.NewScanPaginator(l.client, in); p.HasMorePages(); {
			page, err := l.page(ctx, p)
			if err == nil && len(next) > 0 && reflect.DeepEqual(page.LastEvaluatedKey, next) {
				err = fmt.Errorf("table %s: %w", l.table, ErrEndless)
			}
			if err == nil {
				next = page.LastEvaluatedKey
			}
			if pages <- (scanned{page, err}); err != nil {
				return
			}
		}
	}()
	var items int64
	for p := range pages {
		if p.err != nil {
			return p.err // the last
		}
		items += int64(max(p.page.ScannedCount, int32(len(p.page.Items))))
		now := time.Now()
		for _, i := range p.page.Items {
			s.item(i, now)
		}
		if s.Page != nil {
			s.Page(items)
		}
	}
	return nil
}

type scanned struct {
	page *dynamodb.ScanOutput
	err  error
}

func (l *Ledger) page(ctx context.Context, pages *dynamodb.ScanPaginator) (*dynamodb.ScanOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	page, err := pages.NextPage(ctx)
	if err != nil {
		return nil, l.explain(err)
	}
	return page, nil
}

func (s Scan) item(i item, now time.Time) {
	if isNote(i) {
		return
	}
	r, err := decode(i, now)
	var unreadable *Unreadable
	switch {
	case err == nil:
		if r.Upload != nil && s.Upload != nil {
			s.Upload(r)
		}
		if r.ExecutionID != "" {
			s.Record(r)
		}
	case errors.As(err, &unreadable) && s.Unreadable != nil:
		s.Unreadable(unreadable)
	}
}

// isNote reports whether an item is no execution by its key.
func isNote(i item) bool {
	return strings.HasPrefix((&reader{item: i}).whole("sourceBucket"), NotePrefix)
}

// Start asks for an execution.
type Start struct {
	Key
	SourceETag string
	Size       int64 // bytes
	// Headers and SourceModified are the source object's, as in Record.
	Headers        map[string]string
	SourceModified time.Time
	Destinations   []string
	// High goes before what is not. A running execution that is joined becomes it, too.
	High bool
	// Scheme is as in Record, of an execution that is begun now.
	Scheme string
	Now    time.Time
	// Instead is an execution that is not joined, whatever it is like; empty for none.
	Instead string
	// Upload is the execution that the object names as that of its upload; empty for none.
	// Where it stands beside the key's, it is adopted instead of another begun, to the
	// destinations that it has.
	Upload string
	// Sealing: the upload itself asks, so one that was adopted meanwhile is joined.
	Sealing bool
	// IsAnothers reports whether an executionId is known as that of another key, whose
	// item somebody has copied to this one; nil for never.
	IsAnothers func(executionID string) bool
}

// Begun is what came of it.
type Begun struct {
	Record *Record
	// Joined: a running execution of the same ETag and headers covers the destinations.
	// Record is that one, and nothing was written but what Raised says: that it is a high
	// one now.
	Joined, Raised bool
	// Adopted: it is the one of the object's upload.
	Adopted bool
	// Broken is an upload's execution that stood beside the key's and was overtaken, to be
	// ended; nil for none.
	Broken *Upload
	// Superseded is the executionId that this one replaces; empty if none.
	Superseded string
	// Inherited are the destinations taken over from a superseded execution
	// that was running, beyond those asked for.
	Inherited []string
	// Replaced is why the item that was there counts for nothing; nil if it does.
	Replaced *Unreadable
}

// Begin writes a new execution of a key, in place of the one there was, or joins
// the one that is running. Its id is greater than the replaced one's, whatever
// the clock says.
func (l *Ledger) Begin(ctx context.Context, s Start) (*Begun, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	destinations := sorted(s.Destinations)
	var begun *Begun
	err := l.withRetry(ctx, s.Key, func() error {
		old, err := l.current(ctx, s.Key)
		if err != nil {
			return err
		}
		if err := l.owns(old); err != nil {
			return err
		}
		begun = s.over(old, destinations)
		if old != nil {
			begun.Replaced = old.unreadable
		}
		if begun.Joined && !begun.Raised {
			return nil
		}
		if n := len(begun.Record.Destinations); n > maxDestinations {
			return fmt.Errorf("%w: %d with those that execution %s of %s has still to reach, expected 1 to %d; wait until it has ended, or cancel it",
				ErrTooMany, n, begun.Superseded, s.FileKey, maxDestinations)
		}
		_, err = l.put(ctx, begun.Record, old)
		return err
	})
	if err != nil {
		return nil, err
	}
	return begun, nil
}

// owns refuses to take a key over from another seeder, but for one that has ended and
// is of this ledger's owner's own bucket.
func (l *Ledger) owns(old *Record) error {
	if old == nil || l.owner == "" || old.Owner == "" || old.Owner == l.owner {
		return nil
	}
	if old.SourceBucket == l.owner && old.Status != InProgress {
		return nil
	}
	return fmt.Errorf("%w: %s from %s belongs to the seeder of %s; publish it there, or give this seeder a table of its own with --table",
		ErrOwned, old.FileKey, old.SourceBucket, old.Owner)
}

// over is the execution that takes the place of old, which may be nil.
func (s Start) over(old *Record, destinations []string) *Begun {
	r := &Record{
		Key:          s.Key,
		Destinations: destinations,
		StartTime:    s.Now.UTC(),
		Results:      map[string]Result{},
		Landings:     map[string]Landing{},
		Size:         s.Size,
		SourceETag:   s.SourceETag,
		Headers:      maps.Clone(s.Headers),
		High:         s.High,
		Scheme:       s.Scheme,
		Version:      1,

		SourceModified: s.SourceModified,
	}
	b := &Begun{Record: r}
	var last string
	if old != nil {
		switch u := old.Upload; {
		case u == nil || u.ExecutionID != s.Upload:
			r.Upload = u
		case u.ExecutionID > old.ExecutionID || old.Foreign:
			return s.adopt(old)
		default:
			b.Broken = u
		}
	}
	if old != nil && s.Sealing && old.ExecutionID == s.Upload {
		return &Begun{Record: old, Joined: true, Adopted: true}
	}
	if old != nil && (old.Foreign || s.IsAnothers != nil && s.IsAnothers(old.ExecutionID)) {
		r.Version = old.Version + 1
		r.item = old.item.foreign()
	} else if old != nil && old.ExecutionID == "" { // nothing but an upload
		r.Version = old.Version + 1
		r.item = old.item.foreign()
	} else if old != nil {
		if old.Status == InProgress && old.ExecutionID != s.Instead && s.sameObject(old) && len(without(destinations, old.Destinations)) == 0 {
			if s.High && !old.High {
				r = old.Clone()
				r.High = true
				r.Version++
				return &Begun{Record: r, Joined: true, Raised: true}
			}
			return &Begun{Record: old, Joined: true}
		}
		last = old.ExecutionID
		r.Version = old.Version + 1
		r.item = old.item.foreign()
		b.inherit(s, old)
	}
	r.ExecutionID = executionid.New(s.Now, last)
	r.settle(s.Now)
	return b
}

// inherit has the new execution replace old, and takes over where that was still to go.
func (b *Begun) inherit(s Start, old *Record) {
	if old.Foreign || old.ExecutionID == "" || s.IsAnothers != nil && s.IsAnothers(old.ExecutionID) {
		return
	}
	b.Superseded = old.ExecutionID
	if old.Status == InProgress {
		// But for the source itself, which older versions took for a destination.
		b.Inherited = without(old.Unfinished(), append([]string{s.SourceBucket}, b.Record.Destinations...))
		b.Record.Destinations = sorted(append(slices.Clone(b.Record.Destinations), b.Inherited...))
	}
}

func (s Start) check() error {
	if err := s.Key.check(); err != nil {
		return err
	}
	if n := len(sorted(s.Destinations)); n == 0 || n > maxDestinations {
		return fmt.Errorf("%w: %d destinations, expected 1 to %d", errInvalid, n, maxDestinations)
	}
	if slices.Contains(s.Destinations, "") {
		return fmt.Errorf("%w: a destination without a name", errInvalid)
	}
	if s.Size < 0 {
		return fmt.Errorf("%w: size %d", errInvalid, s.Size)
	}
	return nil
}

// SetContent adds what is known once the build was pulled; infohash is empty for
// a build of 0 bytes.
func (l *Ledger) SetContent(ctx context.Context, k Key, executionID, infohash, sha256 string) (*Record, error) {
	return l.update(ctx, k, executionID, func(r *Record) (bool, error) {
		if r.InfoHash == infohash && r.SHA256 == sha256 {
			return false, nil
		}
		r.InfoHash, r.SHA256 = infohash, sha256
		return true, nil
	})
}

// SetLanding notes the upload of a destination, so that a successor finds it. It is
// one write without a read before it, unless the item is in an unusual form.
func (l *Ledger) SetLanding(ctx context.Context, k Key, executionID, bucket string, landing Landing) (*Record, error) {
	r, err := l.addLanding(ctx, k, executionID, bucket, landing)
	last := shown(err)
	if err == nil || last == nil && !isConflict(err) {
		return r, err
	}
	if last == nil || last.ExecutionID != executionID {
		if r, err := l.addUploadLanding(ctx, k, executionID, bucket, landing); !isConflict(err) {
			return r, err
		}
		last = nil // it may have come to its end meanwhile
	}
	return l.updateFrom(ctx, last, k, executionID, func(r *Record) (bool, error) {
		if err := r.isDestination(bucket); err != nil {
			return false, err
		}
		if r.Landings[bucket] == landing {
			return false, nil
		}
		r.Landings[bucket] = landing
		return true, nil
	}, l.put)
}

// Arrive records a build's arrival in a destination of an execution; again
// changes nothing. A destination that had failed counts as successful from then
// on. The record is the execution's as it was read last, which saves reading it
// once more; with a Version of 0 it only names the execution.
func (l *Ledger) Arrive(ctx context.Context, last *Record, bucket string, result Result) (*Record, error) {
	newest := last
	if last.Version == 0 || slices.Contains(last.Successful, bucket) {
		newest = nil
	}
	return l.updateFrom(ctx, newest, last.Key, last.ExecutionID,
		func(r *Record) (bool, error) { return r.arrive(bucket, result) },
		func(ctx context.Context, r, old *Record) (*Record, error) {
			if r.Status == InProgress && len(r.Failed) == 0 && !r.mended {
				return l.add(ctx, r, bucket)
			}
			return l.put(ctx, r, old)
		})
}

// Fail records that a destination has failed; never over a success.
func (l *Ledger) Fail(ctx context.Context, k Key, executionID, bucket string, result Result) (*Record, error) {
	return l.update(ctx, k, executionID, func(r *Record) (bool, error) { return r.fail(bucket, result) })
}

// Retry makes failed destinations pending again.
func (l *Ledger) Retry(ctx context.Context, k Key, executionID string) (*Record, error) {
	return l.update(ctx, k, executionID, (*Record).retry)
}

// update reads, changes and writes the item of an execution. ErrSuperseded when
// the item is another's.
func (l *Ledger) update(ctx context.Context, k Key, executionID string, change func(*Record) (changed bool, err error)) (*Record, error) {
	return l.updateFrom(ctx, nil, k, executionID, change, l.put)
}

// updateFrom is update with the item as it was read last, or nil, and with what
// writes the changed record over it and returns what the table has then.
func (l *Ledger) updateFrom(
	ctx context.Context, last *Record, k Key, executionID string,
	change func(*Record) (changed bool, err error),
	write func(ctx context.Context, r, old *Record) (*Record, error),
) (*Record, error) {
	var r *Record
	err := l.withRetry(ctx, k, func() (err error) {
		if last == nil {
			if last, err = l.Get(ctx, k); err != nil {
				return err
			}
		}
		if last.ExecutionID != executionID {
			return fmt.Errorf("%w: %s of %s is %s now", ErrSuperseded, executionID, k.FileKey, last.ExecutionID)
		}
		r = last.Clone()
		changed, err := change(r)
		if err != nil || !changed {
			return err
		}
		r.settle(time.Now())
		r.Version++
		r, err = write(ctx, r, last)
		last = shown(err)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// shown is the item that a conflict was about, which saves a round trip; nil
// where the table does not say.
func shown(err error) *Record {
	var conflict *types.ConditionalCheckFailedException
	if !errors.As(err, &conflict) || len(conflict.Item) == 0 {
		return nil
	}
	r, err := decode(conflict.Item, time.Now())
	if err != nil {
		return nil // reading it says what is wrong
	}
	return r
}

// put writes r on condition that the item is still old, or still absent when old
// is nil, and returns r.
func (l *Ledger) put(ctx context.Context, r, old *Record) (*Record, error) {
	if r.Owner == "" {
		r.Owner = l.owner
	}
	in := &dynamodb.PutItemInput{
		TableName:                           &l.table,
		Item:                                r.encode(),
		ConditionExpression:                 aws.String("attribute_not_exists(fileKey)"),
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}
	if old != nil {
		condition, values := old.item.unchanged()
		in.ConditionExpression, in.ExpressionAttributeValues = &condition, values
		if len(values) == 0 {
			in.ExpressionAttributeValues = nil // DynamoDB refuses an empty one
		}
	}
	if _, err := l.client.PutItem(ctx, in); err != nil {
		return nil, l.refused(err)
	}
	r.item, r.mended = in.Item, false
	return r, nil
}

func isConflict(err error) bool {
	var conflict *types.ConditionalCheckFailedException
	return errors.As(err, &conflict)
}

// refused leaves a conflict as it is, for withRetry and shown.
func (l *Ledger) refused(err error) error {
	if err == nil {
		return nil
	}
	if isConflict(err) {
		l.conflicts.Add(1)
		return err
	}
	return l.explain(err)
}

// withRetry calls f again as long as it meets a conflict.
func (l *Ledger) withRetry(ctx context.Context, k Key, f func() error) error {
	err := retry.Policy{First: firstBackoff, Max: maxBackoff, Tries: maxTries, Settled: func(err error) bool { return !isConflict(err) }}.Do(ctx, f)
	switch {
	case !isConflict(err):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("table %s: item of %s changes faster than it can be written", l.table, k.FileKey)
}
