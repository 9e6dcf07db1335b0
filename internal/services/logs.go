package services

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// logPartitions is into how many partitions the hosts of one region and deployment go.
	logPartitions = 16
	// maxBatch is DynamoDB's limit on the items of one BatchWriteItem.
	maxBatch = 25
	// maxCounted is how many hosts are counted of one region and deployment: more are too many
	// whatever their number is.
	maxCounted = 10_000
	// maxRest bounds the reasons that are read of one region and deployment.
	maxRest = 500
	// logPage is how many items of a partition are looked at in one request, and maxPages how
	// many requests there are of one: a sixteenth of a million hosts is 63.
	logPage, maxPages = 1000, 100
	// maxBatchTries bounds how often what DynamoDB has not written is sent again, and the
	// two bound the wait before.
	maxBatchTries            = 8
	firstBackoff, maxBackoff = 50 * time.Millisecond, 2 * time.Second
)

// errUnprocessed says that DynamoDB has left items out.
var errUnprocessed = errors.New("items were not written")

// partition is where a host's line lies.
func partition(region, deploymentID, host string) string {
	h := fnv.New32a()
	h.Write([]byte(host)) //nolint:errcheck // never fails
	return fmt.Sprintf("%s#%s#%02d", region, deploymentID, h.Sum32()%logPartitions)
}

// LogFailures writes what failed on hosts of a region in a deployment: a host's newest
// failure takes the place of the one before. A host may be named once only.
func (t *Tables) LogFailures(ctx context.Context, region, deploymentID string, failures []goal.Failure) error {
	for len(failures) > 0 {
		n := min(len(failures), maxBatch)
		var requests []types.WriteRequest
		for _, f := range failures[:n] {
			i := item{
				"deployment": text(partition(region, deploymentID, f.Host)), "host": text(f.Host), "at": text(f.At.UTC().Format(time.RFC3339)),
				"phase": text(f.Phase), "error": text(f.Error), "version": number(f.Version),
			}
			if f.Output != "" {
				i["output"] = text(f.Output)
			}
			if t.ttl > 0 {
				i["expires"] = number(time.Now().Add(t.ttl).Unix())
			}
			requests = append(requests, types.WriteRequest{PutRequest: &types.PutRequest{Item: i}})
		}
		if err := t.batch(ctx, requests); err != nil {
			return err
		}
		failures = failures[n:]
	}
	return nil
}

func (t *Tables) batch(ctx context.Context, requests []types.WriteRequest) error {
	again := retry.Policy{First: firstBackoff, Max: maxBackoff, Tries: maxBatchTries, Settled: func(err error) bool { return !errors.Is(err, errUnprocessed) }}
	return again.Do(ctx, func() error {
		out, err := t.client.BatchWriteItem(ctx, &dynamodb.BatchWriteItemInput{RequestItems: map[string][]types.WriteRequest{t.names.Logs: requests}})
		if err != nil {
			return t.explain(2, err)
		}
		if left := out.UnprocessedItems[t.names.Logs]; len(left) > 0 {
			requests = left
			return fmt.Errorf("table %s: %w: %d", t.names.Logs, errUnprocessed, len(left))
		}
		return nil
	})
}

// Rest is how many hosts of a region have failed for one reason in a deployment, beyond those
// that are written one by one.
type Rest struct {
	Phase, Error string
	Hosts        int
	Example      string // one of them
}

// LogRest writes counts by reason, each in the place of the one before.
func (t *Tables) LogRest(ctx context.Context, region, deploymentID string, rest []Rest) error {
	for len(rest) > 0 {
		n := min(len(rest), maxBatch)
		var requests []types.WriteRequest
		for _, r := range rest[:n] {
			i := item{
				"deployment": text(fmt.Sprintf("%s#%s#rest", region, deploymentID)), "host": text(reasonOf(r)), "hosts": number(int64(r.Hosts)),
				"at": text(time.Now().UTC().Format(time.RFC3339)), "phase": text(r.Phase), "error": text(r.Error), "example": text(r.Example),
			}
			if t.ttl > 0 {
				i["expires"] = number(time.Now().Add(t.ttl).Unix())
			}
			requests = append(requests, types.WriteRequest{PutRequest: &types.PutRequest{Item: i}})
		}
		if err := t.batch(ctx, requests); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// reasonOf is the sort key of a reason, of which DynamoDB takes 1,024 bytes.
func reasonOf(r Rest) string {
	sum := sha256.Sum256([]byte(r.Phase + "\x00" + r.Error))
	return fmt.Sprintf("reason-%x", sum[:8])
}

// Logged is what the table has of a region's failures in a deployment: how many hosts one by
// one, and the counts of the others. Hosts of LogHosts that have not failed do not count.
func (t *Tables) Logged(ctx context.Context, region, deploymentID string) (hosts int, rest []Rest, err error) {
	for n := range logPartitions {
		of, err := t.countFailures(ctx, fmt.Sprintf("%s#%s#%02d", region, deploymentID, n))
		if err != nil {
			return 0, nil, err
		}
		if hosts += of; hosts >= maxCounted {
			return maxCounted, nil, nil
		}
	}
	out, err := t.client.Query(ctx, t.logsOf(fmt.Sprintf("%s#%s#rest", region, deploymentID)))
	if err != nil {
		return 0, nil, t.explain(2, err)
	}
	for _, i := range out.Items[:min(len(out.Items), maxRest)] {
		of := ledger.Read(i, time.Now())
		r := Rest{Phase: of.Whole("phase"), Error: of.Whole("error"), Hosts: int(of.Number("hosts", goal.MaxHosts)), Example: of.Whole("example")}
		if of.Whole("host") == reasonOf(r) && r.Hosts > 0 {
			rest = append(rest, r)
		}
	}
	return hosts, rest, nil
}

// countFailures counts those of one partition, at most maxCounted.
func (t *Tables) countFailures(ctx context.Context, partition string) (hosts int, err error) {
	in := t.logsOf(partition)
	in.Select, in.Limit = types.SelectCount, aws.Int32(t.page)
	in.FilterExpression, in.ExpressionAttributeNames = aws.String("attribute_exists(#at)"), map[string]string{"#at": "at"}
	for range maxPages {
		out, err := t.client.Query(ctx, in)
		if err != nil {
			return 0, t.explain(2, err)
		}
		hosts = min(hosts+max(int(out.Count), len(out.Items), 0), maxCounted)
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(out.LastEvaluatedKey) == 0 || hosts == maxCounted {
			return hosts, nil
		}
	}
	return 0, fmt.Errorf("table %s: partition %s: %w", t.names.Logs, partition, ledger.ErrEndless)
}

func (t *Tables) logsOf(partition string) *dynamodb.QueryInput {
	return &dynamodb.QueryInput{
		TableName: &t.names.Logs, KeyConditionExpression: aws.String("deployment = :deployment"),
		ExpressionAttributeValues: item{":deployment": text(partition)}, ConsistentRead: aws.Bool(true),
	}
}
