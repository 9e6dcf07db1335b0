package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// SetSourceModified notes that the source object was written again, at a time, as it
// was. Nothing else of the item changes; ErrSuperseded when it is another
// execution's.
func (l *Ledger) SetSourceModified(ctx context.Context, k Key, executionID string, at time.Time) (*Record, error) {
	out, err := l.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName:                 &l.table,
		Key:                       k.item(),
		UpdateExpression:          aws.String("SET sourceModified = :at, version = version + :one"),
		ConditionExpression:       aws.String("executionId = :id"),
		ExpressionAttributeValues: item{":id": text(executionID), ":at": instant(at), ":one": number(1)},
		ReturnValues:              types.ReturnValueAllNew,
	})
	if err == nil {
		return decode(out.Attributes)
	}
	err = l.refused(err)
	if conflict := (*types.ConditionalCheckFailedException)(nil); errors.As(err, &conflict) {
		return nil, fmt.Errorf("%w: %s of %s", ErrSuperseded, executionID, k.FileKey)
	}
	return nil, err
}

// sameObject reports whether an execution is of what the source has now. The headers
// of one that an older version began are not known.
func (s Start) sameObject(old *Record) bool {
	return old.SourceETag == s.SourceETag && (old.Headers == nil || maps.Equal(old.Headers, s.Headers))
}
