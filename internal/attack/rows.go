package attack

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/processtest"
)

// Build is what an execution's item says of it: agents may read it.
type Build struct {
	ledger.Key
	ExecutionID, SHA256 string
	Size                int64
}

// lies records what is not so, with what an agent's role allows, and tries the same where it
// does not: that each build that goes out has arrived in the bucket of its own, own, and in
// those of other regions, and that it lands there.
func (t Target) lies(ctx context.Context, own string) error {
	table := arrivals.New(dynamodb.NewFromConfig(processtest.AWS(t.Stores)), t.ArrivalsTable)
	id := t.source.ID()
	records := arrivals.NewRecords(nil, table, own, id.Name, "process", t.source, nil)
	tick(ctx, 50*time.Millisecond, func() {
		for _, b := range t.Now().Builds {
			for _, to := range append([]string{own}, t.Buckets...) {
				// What is refused is tried again; that is the point.
				result := ledger.Result{Timestamp: time.Now(), ETag: `"e"`, Bytes: b.Size, SHA256: b.SHA256, Region: id.Region, Agent: id.Name}
				_, _ = records.Arrive(ctx, &ledger.Record{Key: b.Key, ExecutionID: b.ExecutionID}, to, result)
				if to != own {
					_, _ = records.SetLanding(ctx, b.Key, b.ExecutionID, to, ledger.Landing{UploadID: "upload"})
				}
			}
		}
	})
	return nil
}

// liesAbroad are those of an agent of a region that no build goes to, liesAtHome those of an
// agent of a region that is waited for.
func liesAbroad(ctx context.Context, t Target) error { return t.lies(ctx, t.ForeignBucket) }

func liesAtHome(ctx context.Context, t Target) error { return t.lies(ctx, t.Bucket) }
