package devcloud

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/truora/minidyn/server"
)

// updateItem mends what minidyn leaves undone in an update: see finishUpdate.
func (db *database) updateItem(ctx context.Context, in *server.UpdateItemInput) (*server.UpdateItemOutput, error) {
	out, err := db.client.UpdateItem(ctx, in)
	if err != nil {
		return nil, db.withItem(ctx, err, in.ReturnValuesOnConditionCheckFailure, in.TableName, in.Key)
	}
	gone, err := db.finishUpdate(ctx, in.TableName, in.Key, aws.ToString(in.UpdateExpression), in.ExpressionAttributeNames)
	if err != nil {
		return nil, err
	}
	if in.ReturnValues == "ALL_NEW" || in.ReturnValues == "UPDATED_NEW" {
		maps.DeleteFunc(out.Attributes, func(name string, _ *server.AttributeValue) bool { return slices.Contains(gone, name) })
	}
	return out, nil
}

func (db *database) transactWriteItems(ctx context.Context, in *server.TransactWriteItemsInput) (*server.TransactWriteItemsOutput, error) {
	out, err := db.client.TransactWriteItems(ctx, in)
	if err != nil {
		return nil, err
	}
	for _, it := range in.TransactItems {
		if u := it.Update; u != nil {
			if _, err := db.finishUpdate(ctx, u.TableName, u.Key, aws.ToString(u.UpdateExpression), u.ExpressionAttributeNames); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// conflict is a condition that did not hold, and the item that it was about.
type conflict struct {
	error
	item item
}

func (c *conflict) Unwrap() error { return c.error }

// putItem is withItem for a PutItem.
func (db *database) putItem(ctx context.Context, in *server.PutItemInput) (*server.PutItemOutput, error) {
	out, err := db.client.PutItem(ctx, in)
	if err == nil {
		return out, nil
	}
	key := make(map[string]*server.AttributeValue)
	if table := db.tables[aws.ToString(in.TableName)]; table != nil {
		for _, k := range table.KeySchema {
			name := aws.ToString(k.AttributeName)
			key[name] = in.Item[name]
		}
	}
	return nil, db.withItem(ctx, err, in.ReturnValuesOnConditionCheckFailure, in.TableName, key)
}

// withItem adds what minidyn leaves out of a condition's error: the item that it
// was about, where that is asked for.
func (db *database) withItem(
	ctx context.Context, err error, asked ddbtypes.ReturnValuesOnConditionCheckFailure,
	table *string, key map[string]*server.AttributeValue,
) error {
	if strings.Contains(err.Error(), "is not supported for path=NULL") {
		// A function of an attribute that is not there: minidyn calls that a wrong
		// expression, DynamoDB false.
		err = &ddbtypes.ConditionalCheckFailedException{Message: aws.String("The conditional request failed")}
	}
	var failed *ddbtypes.ConditionalCheckFailedException
	if asked != ddbtypes.ReturnValuesOnConditionCheckFailureAllOld || !errors.As(err, &failed) {
		return err
	}
	there, getErr := db.client.GetItem(ctx, &server.GetItemInput{TableName: table, Key: key})
	if getErr != nil {
		return getErr
	}
	return &conflict{err, itemOf(there.Item)}
}

// finishUpdate takes away the attributes of an updated item that are named in a
// REMOVE clause, which minidyn ignores unless they are inside a map or list, and
// sets that a DELETE clause has emptied, which minidyn keeps. It returns their
// names.
func (db *database) finishUpdate(ctx context.Context, table *string, key map[string]*server.AttributeValue, expression string, names map[string]string) ([]string, error) {
	out, err := db.client.GetItem(ctx, &server.GetItemInput{TableName: table, Key: key})
	if err != nil {
		return nil, err
	}
	remove := removed(expression, names)
	var gone []string
	for name, v := range out.Item {
		if slices.Contains(remove, name) || emptySet(v) {
			gone = append(gone, name)
			delete(out.Item, name)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	_, err = db.client.PutItem(ctx, &server.PutItemInput{TableName: table, Item: out.Item})
	return gone, err
}

func emptySet(v *server.AttributeValue) bool {
	return v.SS != nil && len(v.SS) == 0 || v.NS != nil && len(v.NS) == 0 || v.BS != nil && len(v.BS) == 0
}

// removed returns the whole attributes that the REMOVE clause of an update
// expression names. minidyn has parsed the expression before.
func removed(expression string, names map[string]string) []string {
	var attributes []string
	var inRemove bool
	for _, word := range strings.FieldsFunc(expression, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
		switch strings.ToUpper(word) {
		case "REMOVE":
			inRemove = true
		case "SET", "ADD", "DELETE":
			inRemove = false
		default:
			if inRemove && !strings.ContainsAny(word, ".[") {
				if name, ok := names[word]; ok {
					word = name
				}
				attributes = append(attributes, word)
			}
		}
	}
	return attributes
}
