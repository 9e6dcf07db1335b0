package devcloud

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
)

const sourceBucket = "global-builds"

type values = map[string]types.AttributeValue

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func num(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}
func set(s ...string) types.AttributeValue { return &types.AttributeValueMemberSS{Value: s} }
func dict(m values) types.AttributeValue   { return &types.AttributeValueMemberM{Value: m} }

func key(fileKey string) values {
	return values{"fileKey": str(fileKey), "sourceBucket": str(sourceBucket)}
}

// entry is an item with that key and further attributes.
func entry(fileKey string, more values) values {
	e := key(fileKey)
	for name, v := range more {
		e[name] = v
	}
	return e
}

func tableInput(name string) *dynamodb.CreateTableInput {
	return &dynamodb.CreateTableInput{
		TableName:   &name,
		BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String("fileKey"), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String("sourceBucket"), AttributeType: types.ScalarAttributeTypeS},
		},
		KeySchema: []types.KeySchemaElement{
			{AttributeName: aws.String("fileKey"), KeyType: types.KeyTypeHash},
			{AttributeName: aws.String("sourceBucket"), KeyType: types.KeyTypeRange},
		},
	}
}

func createTable(t *testing.T, c clients, name string) {
	t.Helper()
	if _, err := c.db.CreateTable(t.Context(), tableInput(name)); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, c clients, table string, item values) {
	t.Helper()
	if _, err := c.db.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &table, Item: item}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, c clients, table, fileKey string) values {
	t.Helper()
	out, err := c.db.GetItem(t.Context(), &dynamodb.GetItemInput{
		TableName: &table, Key: key(fileKey), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Item
}

func TestTables(t *testing.T) {
	c, _ := start(t, t.TempDir())
	ctx := t.Context()
	for _, name := range []string{"third", "first", "second"} {
		out, err := c.db.CreateTable(ctx, tableInput(name))
		if err != nil {
			t.Fatal(err)
		}
		if out.TableDescription.TableStatus != types.TableStatusActive {
			t.Errorf("%s has status %q", name, out.TableDescription.TableStatus)
		}
	}
	desc, err := dynamodb.NewTableExistsWaiter(c.db).WaitForOutput(ctx, &dynamodb.DescribeTableInput{TableName: aws.String("first")}, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	want := tableInput("first")
	if !reflect.DeepEqual(desc.Table.KeySchema, want.KeySchema) || !reflect.DeepEqual(desc.Table.AttributeDefinitions, want.AttributeDefinitions) ||
		desc.Table.BillingModeSummary.BillingMode != want.BillingMode {
		t.Errorf("description %+v", desc.Table)
	}

	var inUse *types.ResourceInUseException
	if _, err := c.db.CreateTable(ctx, tableInput("first")); !errors.As(err, &inUse) {
		t.Errorf("creating a table twice: %v", err)
	}

	var names []string
	pages := dynamodb.NewListTablesPaginator(c.db, &dynamodb.ListTablesInput{Limit: aws.Int32(2)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.TableNames) > 2 {
			t.Errorf("page of %d names", len(page.TableNames))
		}
		names = append(names, page.TableNames...)
	}
	if !slices.Equal(names, []string{"first", "second", "third"}) {
		t.Errorf("tables %v", names)
	}

	if _, err := c.db.DeleteTable(ctx, &dynamodb.DeleteTableInput{TableName: aws.String("second")}); err != nil {
		t.Fatal(err)
	}
	var missing *types.ResourceNotFoundException
	if _, err := c.db.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: aws.String("second")}); !errors.As(err, &missing) {
		t.Errorf("describing a deleted table: %v", err)
	}
	if _, err := c.db.CreateTable(ctx, tableInput("a/b")); errorCode(err) != "ValidationException" {
		t.Errorf("creating a table of a wrong name: %v", err)
	}
}

func errorCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func TestItemRoundTrip(t *testing.T) {
	dir := t.TempDir()
	c, stop := start(t, dir)
	createTable(t, c, "items")
	item := entry("build 1/ä+.zip", values{
		"size":               num(5 << 40),
		"exact":              &types.AttributeValueMemberN{Value: "12345678901234567890.5"},
		"destinationBuckets": set("region-a-builds", "region-b-builds"),
		"copyResults":        dict(values{"region-a-builds": dict(values{"success": &types.AttributeValueMemberBOOL{Value: true}, "bytes": num(0)})}),
		"emptyMap":           dict(values{}),
		"emptyList":          &types.AttributeValueMemberL{Value: []types.AttributeValue{}},
		"list":               &types.AttributeValueMemberL{Value: []types.AttributeValue{str(""), dict(values{})}},
		"emptyString":        str(""),
		"binary":             &types.AttributeValueMemberB{Value: []byte{0, 255}},
		"null":               &types.AttributeValueMemberNULL{Value: true},
		"text":               str("<a&b>\u2028\n"),
	})
	put(t, c, "items", item)
	check := func() {
		t.Helper()
		if got := get(t, c, "items", "build 1/ä+.zip"); !reflect.DeepEqual(got, item) {
			t.Errorf("got %v\nwant %v", got, item)
		}
	}
	check()
	stop()
	c, _ = start(t, dir)
	check()
	if got := get(t, c, "items", "other"); got != nil {
		t.Errorf("a missing item is %v, want nil", got)
	}
}

func TestConditions(t *testing.T) {
	c, _ := start(t, t.TempDir())
	createTable(t, c, "items")
	put(t, c, "items", entry("there", values{
		"executionId": str("01A"), "version": num(3), "size": num(5 << 40), "done": set("a", "b"),
		"landings": dict(values{"region-a": dict(values{"uploadId": str("u")})}),
	}))
	for _, tt := range []struct {
		key, condition string
		values         values
		want           bool
	}{
		{"there", "attribute_not_exists(fileKey)", nil, false},
		{"missing", "attribute_not_exists(fileKey)", nil, true},
		{"there", "attribute_exists(fileKey)", nil, true},
		{"missing", "attribute_exists(fileKey)", nil, false},
		{"there", "executionId = :v", values{":v": str("01A")}, true},
		{"there", "executionId = :v", values{":v": str("01B")}, false},
		{"there", "executionId < :v", values{":v": str("01B")}, true},
		{"there", "executionId < :v", values{":v": str("00Z")}, false},
		{"there", "version = :v", values{":v": num(3)}, true},
		{"there", "version = :v", values{":v": num(4)}, false},
		{"there", "#size = :v", values{":v": num(5<<40 + 1)}, false},
		{"there", "version < :v", values{":v": num(10)}, true},
		{"missing", "version = :v", values{":v": num(3)}, false},
		{"there", "executionId = :v AND version = :n", values{":v": str("01A"), ":n": num(3)}, true},
		{"there", "executionId = :v AND version = :n", values{":v": str("01A"), ":n": num(2)}, false},
		{"missing", "attribute_not_exists(fileKey) OR executionId < :v", values{":v": str("01B")}, true},
		{"there", "attribute_not_exists(fileKey) OR executionId < :v", values{":v": str("01A")}, false},
		{"there", "attribute_not_exists(infohash)", nil, true},
		{"there", "contains(done, :v)", values{":v": str("a")}, true},
		{"there", "contains(done, :v)", values{":v": str("c")}, false},
		{"there", "attribute_exists(landings.#r)", nil, true},
	} {
		t.Run(tt.key+" "+tt.condition, func(t *testing.T) {
			in := &dynamodb.UpdateItemInput{
				TableName: aws.String("items"), Key: key(tt.key), ConditionExpression: &tt.condition,
				ExpressionAttributeValues: values{":touched": num(1)}, UpdateExpression: aws.String("SET touched = :touched"),
			}
			for name, v := range tt.values {
				in.ExpressionAttributeValues[name] = v
			}
			for name, attribute := range map[string]string{"#r": "region-a", "#size": "size"} {
				if strings.Contains(tt.condition, name) {
					in.ExpressionAttributeNames = map[string]string{name: attribute}
				}
			}
			_, err := c.db.UpdateItem(t.Context(), in)
			checkCondition(t, err, tt.want)
			if tt.key == "missing" && err == nil {
				if _, err := c.db.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: aws.String("items"), Key: key(tt.key)}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func checkCondition(t *testing.T, err error, want bool) {
	t.Helper()
	var refused *types.ConditionalCheckFailedException
	if want && err != nil || !want && !errors.As(err, &refused) {
		t.Errorf("error %v; condition should hold: %v", err, want)
	}
}

func TestConditionalPutAndDelete(t *testing.T) {
	c, _ := start(t, t.TempDir())
	createTable(t, c, "items")
	ctx := t.Context()
	first := &dynamodb.PutItemInput{
		TableName: aws.String("items"), Item: entry("k", values{"version": num(1)}),
		ConditionExpression: aws.String("attribute_not_exists(fileKey)"),
	}
	_, err := c.db.PutItem(ctx, first)
	checkCondition(t, err, true)
	_, err = c.db.PutItem(ctx, first)
	checkCondition(t, err, false)
	var conflict *types.ConditionalCheckFailedException
	if errors.As(err, &conflict) && len(conflict.Item) > 0 {
		t.Errorf("the item is shown without being asked for: %v", conflict.Item)
	}
	asking := *first
	asking.Item = entry("k", values{"version": num(2)})
	asking.ReturnValuesOnConditionCheckFailure = types.ReturnValuesOnConditionCheckFailureAllOld
	_, err = c.db.PutItem(ctx, &asking)
	checkCondition(t, err, false)
	if want := values(entry("k", values{"version": num(1)})); !errors.As(err, &conflict) || !reflect.DeepEqual(values(conflict.Item), want) {
		t.Errorf("the conflict shows %v, want %v", conflict.Item, want)
	}
	conflict = nil
	_, err = c.db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: aws.String("items"), Key: key("k"), UpdateExpression: aws.String("SET version = :v"),
		ConditionExpression: aws.String("version = :v"), ExpressionAttributeValues: values{":v": num(2)},
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	checkCondition(t, err, false)
	if want := values(entry("k", values{"version": num(1)})); !errors.As(err, &conflict) || !reflect.DeepEqual(values(conflict.Item), want) {
		t.Errorf("an update's conflict shows %v, want %v", conflict, want)
	}
	for _, tt := range []struct {
		version int64
		want    bool
	}{{2, false}, {1, true}} {
		_, err := c.db.DeleteItem(ctx, &dynamodb.DeleteItemInput{
			TableName: aws.String("items"), Key: key("k"),
			ConditionExpression: aws.String("version = :v"), ExpressionAttributeValues: values{":v": num(tt.version)},
		})
		checkCondition(t, err, tt.want)
	}
	if get(t, c, "items", "k") != nil {
		t.Error("the item is still there")
	}
}

func TestScanPages(t *testing.T) {
	c, _ := start(t, t.TempDir())
	createTable(t, c, "items")
	ctx := t.Context()
	const n = 25
	for i := range n {
		put(t, c, "items", entry(fmt.Sprintf("build-%02d.zip", i), values{"odd": num(int64(i % 2))}))
	}
	for _, tt := range []struct {
		filter string
		want   int
	}{{"", n}, {"odd = :one", n / 2}} {
		seen := make(map[string]bool)
		in := &dynamodb.ScanInput{TableName: aws.String("items"), Limit: aws.Int32(4), ConsistentRead: aws.Bool(true)}
		if tt.filter != "" {
			in.FilterExpression, in.ExpressionAttributeValues = &tt.filter, values{":one": num(1)}
		}
		pages := dynamodb.NewScanPaginator(c.db, in)
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(page.Items) > 4 || int(page.Count) != len(page.Items) {
				t.Errorf("page of %d items, count %d", len(page.Items), page.Count)
			}
			for _, item := range page.Items {
				seen[item["fileKey"].(*types.AttributeValueMemberS).Value] = true
			}
		}
		if len(seen) != tt.want {
			t.Errorf("filter %q: %d items, want %d", tt.filter, len(seen), tt.want)
		}
	}
	query, err := c.db.Query(ctx, &dynamodb.QueryInput{
		TableName: aws.String("items"), KeyConditionExpression: aws.String("fileKey = :k"),
		ExpressionAttributeValues: values{":k": str("build-07.zip")},
	})
	if err != nil || len(query.Items) != 1 {
		t.Errorf("query: %v, %v", query, err)
	}
}

func TestBatchesAndTransactions(t *testing.T) {
	dir := t.TempDir()
	c, stop := start(t, dir)
	createTable(t, c, "items")
	ctx := t.Context()
	if _, err := c.db.BatchWriteItem(ctx, &dynamodb.BatchWriteItemInput{RequestItems: map[string][]types.WriteRequest{"items": {
		{PutRequest: &types.PutRequest{Item: entry("a", values{"version": num(1)})}},
		{PutRequest: &types.PutRequest{Item: entry("b", values{"version": num(1)})}},
	}}}); err != nil {
		t.Fatal(err)
	}
	transact := func(version int64) error {
		_, err := c.db.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{
			{Put: &types.Put{TableName: aws.String("items"), Item: entry("c", nil)}},
			{Update: &types.Update{
				TableName: aws.String("items"), Key: key("a"), UpdateExpression: aws.String("SET version = :next"),
				ConditionExpression: aws.String("version = :v"), ExpressionAttributeValues: values{":v": num(version), ":next": num(version + 1)},
			}},
		}})
		return err
	}
	var cancelled *types.TransactionCanceledException
	if err := transact(5); !errors.As(err, &cancelled) || *cancelled.CancellationReasons[1].Code != "ConditionalCheckFailed" {
		t.Fatalf("transaction on a wrong version: %v", err)
	}
	if get(t, c, "items", "c") != nil {
		t.Error("a cancelled transaction left an item")
	}
	if err := transact(1); err != nil {
		t.Fatal(err)
	}
	stop()
	c, _ = start(t, dir)
	batch, err := c.db.BatchGetItem(ctx, &dynamodb.BatchGetItemInput{RequestItems: map[string]types.KeysAndAttributes{
		"items": {Keys: []map[string]types.AttributeValue{key("a"), key("b"), key("c"), key("d")}},
	}})
	if err != nil || len(batch.Responses["items"]) != 3 {
		t.Errorf("batch: %v, %v", batch, err)
	}
	if v := get(t, c, "items", "a")["version"]; !reflect.DeepEqual(v, num(2)) {
		t.Errorf("version %v", v)
	}
	read, err := c.db.TransactGetItems(ctx, &dynamodb.TransactGetItemsInput{TransactItems: []types.TransactGetItem{
		{Get: &types.Get{TableName: aws.String("items"), Key: key("b")}},
		{Get: &types.Get{TableName: aws.String("items"), Key: key("d")}},
	}})
	if err != nil || len(read.Responses) != 2 || read.Responses[0].Item == nil || read.Responses[1].Item != nil {
		t.Errorf("transactional read: %v, %v", read, err)
	}
}

// TestConcurrentCounters runs the ledger's loop of read, change and conditional
// write from many sides at once: no update may be lost, before or after replay.
func TestConcurrentCounters(t *testing.T) {
	dir := t.TempDir()
	c, stop := start(t, dir)
	createTable(t, c, "items")
	put(t, c, "items", entry("k", values{"version": num(0)}))
	const writers, times = 8, 5
	errs := make(chan error, writers)
	for range writers {
		go func() { errs <- count(t, c, times) }()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	want := num(writers * times)
	if v := get(t, c, "items", "k")["version"]; !reflect.DeepEqual(v, want) {
		t.Errorf("version %v, want %v", v, want)
	}
	stop()
	c, _ = start(t, dir)
	if v := get(t, c, "items", "k")["version"]; !reflect.DeepEqual(v, want) {
		t.Errorf("version %v after a restart, want %v", v, want)
	}
}

func count(t *testing.T, c clients, times int) error {
	for times > 0 {
		out, err := c.db.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: aws.String("items"), Key: key("k"), ConsistentRead: aws.Bool(true)})
		if err != nil {
			return err
		}
		old := out.Item["version"]
		n, err := strconv.ParseInt(old.(*types.AttributeValueMemberN).Value, 10, 64)
		if err != nil {
			return err
		}
		_, err = c.db.PutItem(t.Context(), &dynamodb.PutItemInput{
			TableName: aws.String("items"), Item: entry("k", values{"version": num(n + 1)}),
			ConditionExpression: aws.String("version = :old"), ExpressionAttributeValues: values{":old": old},
		})
		var refused *types.ConditionalCheckFailedException
		switch {
		case err == nil:
			times--
		case !errors.As(err, &refused):
			return err
		}
	}
	return nil
}

func TestProtocol(t *testing.T) {
	c, err := New(Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, c)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for _, tt := range []struct {
		name, target, body string
		status             int
		errorType          string
	}{
		{"known", "DynamoDB_20120810.ListTables", `{}`, 200, ""},
		{"unknown", "DynamoDB_20120810.DescribeTimeToLive", `{"TableName":"x"}`, 400, "UnknownOperationException"},
		{"other service", "Kinesis_20131202.ListStreams", `{}`, 400, "UnknownOperationException"},
		{"no JSON", "DynamoDB_20120810.PutItem", `{"TableName":`, 400, "SerializationException"},
		{"no body", "DynamoDB_20120810.PutItem", ``, 400, "SerializationException"},
		{"wrong type", "DynamoDB_20120810.PutItem", `{"TableName":1}`, 400, "SerializationException"},
		{"no table", "DynamoDB_20120810.GetItem", `{"TableName":"x","Key":{}}`, 400, "ResourceNotFoundException"},
		{"too large", "DynamoDB_20120810.PutItem", `"` + strings.Repeat("x", maxBody) + `"`, 413, tooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "POST", c.URL()+"/", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Amz-Target", tt.target)
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !bytes.Contains(body, []byte(tt.errorType)) {
				t.Errorf("%s: %s, want %d %s", resp.Status, body, tt.status, tt.errorType)
			}
			if sum := strconv.FormatUint(uint64(crc32.ChecksumIEEE(body)), 10); resp.Header.Get("X-Amz-Crc32") != sum {
				t.Errorf("checksum %s, want %s", resp.Header.Get("X-Amz-Crc32"), sum)
			}
			if ct := resp.Header.Get("Content-Type"); ct != "application/x-amz-json-1.0" {
				t.Errorf("content type %s", ct)
			}
		})
	}
}
