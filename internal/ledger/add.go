package ledger

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// add writes the arrival of a bucket that leaves others pending and none failed,
// as r has it, and returns the item as it is then. What else has changed since r
// was read does not matter, so arrivals at the same moment do not wait for each
// other; the condition holds as long as status and completedAt stay what they
// are.
func (l *Ledger) add(ctx context.Context, r *Record, bucket string) (*Record, error) {
	return l.updateItem(ctx, r.Key, bucket,
		"SET copyResults.#bucket = :result, successfulCopies = successfulCopies + :one, version = version + :one "+
			"REMOVE landings.#bucket ADD successfulBuckets :buckets",
		"executionId = :id AND successfulCopies < :mostButOne AND failedCopies = :none "+
			"AND attribute_not_exists(copyResults.#bucket)",
		item{
			":id": text(r.ExecutionID), ":buckets": texts([]string{bucket}),
			":result": r.Results[bucket].encode(),
			":one":    number(1), ":none": number(0), ":mostButOne": number(int64(len(r.Destinations) - 1)),
		})
}

// addLanding writes the upload of a destination, whatever else the item says: those
// that begin at the same moment do not wait for each other. The condition fails for
// another execution, for what is no destination, and where the item has not the form
// that the update needs.
func (l *Ledger) addLanding(ctx context.Context, k Key, executionID, bucket string, landing Landing) (*Record, error) {
	return l.updateItem(ctx, k, bucket,
		"SET landings.#bucket = :landing, version = version + :one",
		"executionId = :id AND contains(destinationBuckets, :bucket) AND attribute_type(landings, :map) AND attribute_type(version, :number)",
		item{
			":id": text(executionID), ":bucket": text(bucket), ":landing": landing.encode(),
			":one": number(1), ":map": text("M"), ":number": text("N"),
		})
}

// updateItem changes an item on a condition, without a read, and returns it as it is
// then. The expressions name the bucket, if there is one, #bucket.
func (l *Ledger) updateItem(ctx context.Context, k Key, bucket, update, condition string, values item) (*Record, error) {
	var names map[string]string
	if bucket != "" {
		names = map[string]string{"#bucket": bucket}
	}
	out, err := l.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName:                           &l.table,
		Key:                                 k.item(),
		UpdateExpression:                    &update,
		ConditionExpression:                 &condition,
		ExpressionAttributeNames:            names,
		ExpressionAttributeValues:           values,
		ReturnValues:                        types.ReturnValueAllNew,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	if err != nil {
		return nil, l.refused(err)
	}
	return decode(out.Attributes, time.Now())
}
