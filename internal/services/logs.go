package services

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// logPartitions is into how many partitions the hosts of one region and deployment go.
	logPartitions = 16
	// maxBatch is DynamoDB's limit on the items of one BatchWriteItem.
	maxBatch = 25
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
