package devcloud

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

func TestUpdates(t *testing.T) {
	dir := t.TempDir()
	c, stop := start(t, dir)
	createTable(t, c, "items")
	ctx := t.Context()
	put(t, c, "items", entry("k", values{"version": num(1), "copyResults": dict(values{})}))
	update := func(expression string, names map[string]string, v values) {
		t.Helper()
		_, err := c.db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: aws.String("items"), Key: key("k"), UpdateExpression: &expression,
			ExpressionAttributeNames: names, ExpressionAttributeValues: v,
		})
		if err != nil {
			t.Fatalf("%s: %v", expression, err)
		}
	}
	update("SET copyResults.#b = :r, version = version + :one, #size = :size ADD successfulBuckets :b",
		map[string]string{"#b": "region-a-builds", "#size": "size"},
		values{":r": dict(values{"success": &types.AttributeValueMemberBOOL{Value: true}}), ":one": num(1), ":size": num(5 << 40), ":b": set("region-a-builds")})
	want := entry("k", values{
		"version": num(2), "size": num(5 << 40), "successfulBuckets": set("region-a-builds"),
		"copyResults": dict(values{"region-a-builds": dict(values{"success": &types.AttributeValueMemberBOOL{Value: true}})}),
	})
	if got := get(t, c, "items", "k"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	// A refused condition hands over the item that stood in the way.
	_, err := c.db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: aws.String("items"), Key: key("k"), UpdateExpression: aws.String("SET version = :v"),
		ConditionExpression: aws.String("version = :v"), ExpressionAttributeValues: values{":v": num(9)},
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	var refused *types.ConditionalCheckFailedException
	if !errors.As(err, &refused) || !reflect.DeepEqual(refused.Item, want) {
		t.Errorf("refused with %v: item %v", err, refused)
	}
	// A set that is not there contains nothing.
	for _, k := range []values{key("k"), key("nothing")} {
		_, err = c.db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: aws.String("items"), Key: k, UpdateExpression: aws.String("SET version = :v"),
			ConditionExpression: aws.String("contains(buckets, :b)"), ExpressionAttributeValues: values{":v": num(9), ":b": str("b")},
		})
		if !errors.As(err, &refused) {
			t.Errorf("a set that is not there: %v", err)
		}
	}
	// An expression that cannot be carried out changes nothing.
	if _, err := c.db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: aws.String("items"), Key: key("k"), UpdateExpression: aws.String("SET version = :v, missing.deep = :v"),
		ExpressionAttributeValues: values{":v": num(7)},
	}); errorCode(err) != "ValidationException" {
		t.Errorf("setting below a missing map: %v", err)
	}
	stop()
	c, _ = start(t, dir)
	if got := get(t, c, "items", "k"); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart %v\nwant %v", got, want)
	}
}

func TestUpdatesThatTakeAway(t *testing.T) {
	c, _ := start(t, t.TempDir())
	createTable(t, c, "items")
	for _, tt := range []struct {
		expression string
		names      map[string]string
		values     values
		gone       []string
	}{
		{"REMOVE a", nil, nil, []string{"a"}},
		{"REMOVE a, #status", map[string]string{"#status": "status"}, nil, []string{"a", "status"}},
		{"SET b = :b REMOVE a", nil, values{":b": num(2)}, []string{"a"}},
		{"REMOVE a,nowhere SET b = :b", nil, values{":b": num(2)}, []string{"a"}},
		{"DELETE buckets :all", nil, values{":all": set("x", "y")}, []string{"buckets"}},
		{"REMOVE results.x", nil, nil, nil},
	} {
		t.Run(tt.expression, func(t *testing.T) {
			for _, transaction := range []bool{false, true} {
				want := entry("k", values{
					"a": num(1), "b": num(2), "status": str("FAILED"), "buckets": set("x", "y"),
					"results": dict(values{"x": num(1), "y": num(2)}),
				})
				put(t, c, "items", want)
				for _, name := range tt.gone {
					delete(want, name)
				}
				if tt.gone == nil {
					want["results"] = dict(values{"y": num(2)})
				}
				if transaction {
					_, err := c.db.TransactWriteItems(t.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{{Update: &types.Update{
						TableName: aws.String("items"), Key: key("k"), UpdateExpression: &tt.expression,
						ExpressionAttributeNames: tt.names, ExpressionAttributeValues: tt.values,
					}}}})
					if err != nil {
						t.Fatal(err)
					}
				} else {
					out, err := c.db.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
						TableName: aws.String("items"), Key: key("k"), UpdateExpression: &tt.expression,
						ExpressionAttributeNames: tt.names, ExpressionAttributeValues: tt.values, ReturnValues: types.ReturnValueAllNew,
					})
					if err != nil {
						t.Fatal(err)
					}
					checkItem(t, out.Attributes, want)
				}
				checkItem(t, get(t, c, "items", "k"), want)
			}
		})
	}
}

// checkItem compares items, sets in any order.
func checkItem(t *testing.T, got, want values) {
	t.Helper()
	for _, item := range []values{got, want} {
		for _, v := range item {
			if ss, ok := v.(*types.AttributeValueMemberSS); ok {
				slices.Sort(ss.Value)
			}
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestScanCountsWhatItsFilterLeavesOut(t *testing.T) {
	c, _ := start(t, t.TempDir())
	createTable(t, c, "items")
	put(t, c, "items", entry("a", values{"owner": str("x")}))
	put(t, c, "items", entry("b", values{"owner": str("y")}))
	put(t, c, "items", entry("c", nil))
	out, err := c.db.Scan(t.Context(), &dynamodb.ScanInput{
		TableName: aws.String("items"), FilterExpression: aws.String("attribute_not_exists(#owner) OR #owner = :owner"),
		ExpressionAttributeNames: map[string]string{"#owner": "owner"}, ExpressionAttributeValues: values{":owner": str("x")},
	})
	if err != nil || out.Count != 2 || len(out.Items) != 2 || out.ScannedCount != 3 {
		t.Errorf("%+v, %v", out, err)
	}
}
