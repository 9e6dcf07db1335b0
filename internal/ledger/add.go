package ledger

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// add writes the arrival of a bucket that leaves others pending and none failed,
// as r has it, and returns the item as it is then. What else has changed since r
// was read does not matter, so arrivals at the same moment do not wait for each
// other; the condition holds as long as status and completedAt stay what they
// are.
func (l *Ledger) add(ctx context.Context, r *Record, bucket string) (*Record, error) {
	out, err := l.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &l.table,
		Key:       r.Key.item(),
		UpdateExpression: aws.String("SET copyResults.#bucket = :result, successfulCopies = successfulCopies + :one, version = version + :one " +
			"REMOVE landings.#bucket ADD successfulBuckets :buckets"),
		ConditionExpression: aws.String("executionId = :id AND successfulCopies < :mostButOne AND failedCopies = :none " +
			"AND attribute_not_exists(copyResults.#bucket)"),
		ExpressionAttributeNames: map[string]string{"#bucket": bucket},
		ExpressionAttributeValues: item{
			":id": text(r.ExecutionID), ":buckets": texts([]string{bucket}),
			":result": r.Results[bucket].encode(),
			":one":    number(1), ":none": number(0), ":mostButOne": number(int64(len(r.Destinations) - 1)),
		},
		ReturnValues:                        types.ReturnValueAllNew,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	if err != nil {
		return nil, l.refused(err)
	}
	return decode(out.Attributes)
}
