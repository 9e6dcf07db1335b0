// Package arrivals is the table of arrivals: a row for each build and destination, which
// the destination's agents write, and nobody else. Its partition is the destination's
// bucket, so that a role's policy (dynamodb:LeadingKeys) fences what an agent can write to
// its own region's rows. An execution's item in FileCopyTracking (package ledger) is the
// seeder's summary of them.
//
// One more row is of a region and no build: who counts its hosts that switch (lease.go).
//
// A row says who lands the build, with the upload that a successor goes on with, and then
// how it ended. Of each process that lands something there is one more item, its beat
// (beat.go). Records (records.go) is how an agent sees all that; a seeder reads Rows.
//
//	destinationBucket  id                                            attributes
//	BUCKET             hex SHA-256 of source bucket, NUL, file key   sourceBucket, fileKey, version,
//	                                                                 landings {executionId: {agent, process, uploadId}},
//	                                                                 executionId, result, retries, signature
//	BUCKET             agent:NAME                                    process, beat, lands
//	region:REGION      hosts                                         agent, process, term, hosts, version
package arrivals

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// DefaultTable is the table's usual name.
	DefaultTable = "LandfallArrivals"
	// maxBatch is DynamoDB's limit on the items that one BatchGetItem asks for.
	maxBatch = 100
	// maxBatchTries bounds how often what DynamoDB has left out of an answer is asked for
	// again, and the two bound the wait before.
	maxBatchTries            = 10
	firstBackoff, maxBackoff = 20 * time.Millisecond, time.Second
	// maxTries bounds the writes tried for one change of a row, which the agents of one
	// bucket alone write.
	maxTries = 20
)

// Table is one table. It is safe for concurrent use, by any number of processes.
type Table struct {
	client *dynamodb.Client
	name   string
	counts counts
}

// New returns the table of a name, which need not exist yet.
func New(client *dynamodb.Client, name string) *Table { return &Table{client: client, name: name} }

// Name is the table's.
func (t *Table) Name() string { return t.name }

// Told is the table's name as members tell it each other; empty for a nil Table. Where it is
// they tell of the executions' table, beside which it lies.
func (t *Table) Told() string {
	if t == nil {
		return ""
	}
	return ledger.TableName(t.name)
}

// Differs says that a member records arrivals in another table, by its Told, than a seeder
// reads, and what to give that member; nil where either does not say.
func Differs(member, records, seeder, reads string) error {
	if records == "" || reads == "" || records == reads {
		return nil
	}
	return fmt.Errorf("%s records arrivals in rows of table %s, %s reads table %s; give %s --arrivals-table %s", member, records, seeder, reads, member, reads)
}

func (t *Table) schema() ledger.Schema {
	return ledger.Schema{Client: t.client, Table: t.name, Partition: "destinationBucket", Sort: "id", Flag: "arrivals-table"}
}

// Create makes the table, billed by request, and waits until it can be used. It
// returns false when the table was there.
func (t *Table) Create(ctx context.Context) (created bool, err error) { return t.schema().Create(ctx) }

// Check reports whether the table can be used: ledger.ErrNoTable when it is missing,
// another error when its key is not the one expected.
func (t *Table) Check(ctx context.Context) error {
	_, err := t.schema().Describe(ctx)
	return err
}

// Place is where a row is: a build and a destination.
type Place struct {
	ledger.Key
	Bucket string
}

func (p Place) id() string {
	sum := sha256.Sum256([]byte(p.SourceBucket + "\x00" + p.FileKey))
	return hex.EncodeToString(sum[:])
}

func (p Place) key() item { return key(p.Bucket, p.id()) }

func key(bucket, id string) item {
	return item{"destinationBucket": text(bucket), "id": text(id)}
}

// Rows reads the rows of several places, consistently. Those that are not there
// are not in the answer.
func (t *Table) Rows(ctx context.Context, places []Place) (map[Place]*Row, error) {
	rows := make(map[Place]*Row, len(places))
	for len(places) > 0 {
		n := min(len(places), maxBatch)
		if err := t.batch(ctx, places[:n], rows); err != nil {
			return nil, err
		}
		places = places[n:]
	}
	return rows, nil
}

// batch reads at most maxBatch rows.
func (t *Table) batch(ctx context.Context, places []Place, rows map[Place]*Row) error {
	at := make(map[[2]string]Place, len(places))
	var keys []map[string]types.AttributeValue
	for _, p := range places {
		name := [2]string{p.Bucket, p.id()}
		if _, known := at[name]; !known { // DynamoDB refuses the same one twice
			at[name] = p
			keys = append(keys, p.key())
		}
	}
	again := retry.Policy{First: firstBackoff, Max: maxBackoff, Tries: maxBatchTries, Settled: func(err error) bool { return !errors.Is(err, errUnprocessed) }}
	return again.Do(ctx, func() error {
		out, err := t.client.BatchGetItem(ctx, &dynamodb.BatchGetItemInput{
			RequestItems: map[string]types.KeysAndAttributes{t.name: {Keys: keys, ConsistentRead: aws.Bool(true)}},
		})
		if err != nil {
			return t.explain(err)
		}
		for _, i := range out.Responses[t.name] {
			of := ledger.Read(i, time.Now())
			p, ok := at[[2]string{of.Whole("destinationBucket"), of.Whole("id")}]
			if !ok {
				continue
			}
			rows[p] = decode(p, i, time.Now())
		}
		keys = out.UnprocessedKeys[t.name].Keys
		if len(keys) > maxBatch {
			return fmt.Errorf("table %s: the answer leaves out %d rows of %d", t.name, len(keys), len(places))
		}
		if len(keys) > 0 {
			return fmt.Errorf("table %s: %w: %d", t.name, errUnprocessed, len(keys))
		}
		return nil
	})
}

// errUnprocessed says that DynamoDB has left rows out, as it does when it is asked for too
// much.
var errUnprocessed = errors.New("rows were left out of the answer")

// row reads one row, consistently: an empty one where there is none.
func (t *Table) row(ctx context.Context, p Place) (*Row, error) {
	i, err := t.get(ctx, p.key())
	if err != nil {
		return nil, err
	}
	return decode(p, i, time.Now()), nil
}

func (t *Table) get(ctx context.Context, key item) (item, error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.name, Key: key, ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, t.explain(err)
	}
	return out.Item, nil
}

// errConflict says that somebody else has written the row since it was read.
var errConflict = errors.New("the row was changed meanwhile")

// put writes a row on condition that it is still the one that was read.
func (t *Table) put(ctx context.Context, r *Row, kind string) error {
	in := &dynamodb.PutItemInput{TableName: &t.name, Item: r.encode(), ConditionExpression: aws.String("attribute_not_exists(id)")}
	if r.item != nil {
		in.ConditionExpression = aws.String("attribute_not_exists(version)")
		if v, ok := r.item["version"]; ok {
			in.ConditionExpression, in.ExpressionAttributeValues = aws.String("version = :version"), item{":version": v}
		}
	}
	_, err := t.client.PutItem(ctx, in)
	var conflict *types.ConditionalCheckFailedException
	switch {
	case errors.As(err, &conflict):
		t.counts.conflicts.Add(1)
		return fmt.Errorf("table %s: %w", t.name, errConflict)
	case err != nil:
		return t.explain(err)
	}
	t.counts.wrote(kind)
	r.item = in.Item
	return nil
}

// explain says what an error means, and counts it.
func (t *Table) explain(err error) error {
	if !errors.Is(err, context.Canceled) { // else nobody has waited for the answer
		t.counts.errors.Add(1)
	}
	return t.schema().Explain(err)
}
