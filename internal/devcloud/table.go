package devcloud

import (
	"cmp"
	"context"
	"maps"
	"regexp"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/truora/minidyn/server"
)

const (
	// maxTables is DynamoDB's default quota of tables in a region.
	maxTables = 2500
	// maxListed is DynamoDB's limit on the names in one answer of ListTables.
	maxListed = 100
)

// tableName is DynamoDB's rule for names of tables.
var tableName = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`)

// tableAnswer is a TableDescription of the API.
type tableAnswer struct {
	TableName              *string
	TableStatus            ddbtypes.TableStatus
	ItemCount              *int64
	KeySchema              []ddbtypes.KeySchemaElement
	AttributeDefinitions   []ddbtypes.AttributeDefinition
	BillingModeSummary     billingMode
	GlobalSecondaryIndexes []ddbtypes.GlobalSecondaryIndexDescription `json:",omitempty"`
	LocalSecondaryIndexes  []ddbtypes.LocalSecondaryIndexDescription  `json:",omitempty"`
}

type billingMode struct{ BillingMode ddbtypes.BillingMode }

// describe completes minidyn's description of a table with what it was created
// with and with its status: the SDK's TableExistsWaiter waits for ACTIVE.
func describe(created *server.CreateTableInput, description any, status ddbtypes.TableStatus) tableAnswer {
	a := tableAnswer{
		TableName:            created.TableName,
		TableStatus:          status,
		KeySchema:            created.KeySchema,
		AttributeDefinitions: created.AttributeDefinitions,
		BillingModeSummary:   billingMode{cmp.Or(created.BillingMode, ddbtypes.BillingModeProvisioned)},
	}
	if d, ok := description.(*ddbtypes.TableDescription); ok {
		a.ItemCount = d.ItemCount
		a.GlobalSecondaryIndexes = d.GlobalSecondaryIndexes
		a.LocalSecondaryIndexes = d.LocalSecondaryIndexes
	}
	return a
}

type createTableAnswer struct{ TableDescription tableAnswer }

func (db *database) createTable(ctx context.Context, in *server.CreateTableInput) (*createTableAnswer, error) {
	name := aws.ToString(in.TableName)
	if !tableName.MatchString(name) {
		return nil, apiErrorf("ValidationException", "table name %q does not match %s", name, tableName)
	}
	if len(db.tables) >= maxTables {
		return nil, apiErrorf("LimitExceededException", "there are %d tables already", maxTables)
	}
	out, err := db.client.CreateTable(ctx, in)
	if err != nil {
		return nil, err
	}
	db.tables[name] = in
	return &createTableAnswer{describe(in, out.TableDescription, ddbtypes.TableStatusActive)}, nil
}

func (db *database) deleteTable(ctx context.Context, in *server.DeleteTableInput) (*createTableAnswer, error) {
	out, err := db.client.DeleteTable(ctx, in)
	if err != nil {
		return nil, err
	}
	name := aws.ToString(in.TableName)
	created := db.tables[name]
	delete(db.tables, name)
	return &createTableAnswer{describe(created, out.TableDescription, ddbtypes.TableStatusDeleting)}, nil
}

type describeTableAnswer struct{ Table tableAnswer }

func (db *database) describeTable(ctx context.Context, in *server.DescribeTableInput) (*describeTableAnswer, error) {
	out, err := db.client.DescribeTable(ctx, in)
	if err != nil {
		return nil, err
	}
	created := db.tables[aws.ToString(in.TableName)]
	return &describeTableAnswer{describe(created, out.Table, ddbtypes.TableStatusActive)}, nil
}

type listTablesInput struct {
	ExclusiveStartTableName string
	Limit                   *int
}

type listTablesAnswer struct {
	TableNames             []string
	LastEvaluatedTableName string `json:",omitempty"`
}

func (db *database) listTables(_ context.Context, in *listTablesInput) (*listTablesAnswer, error) {
	limit := maxListed
	if in.Limit != nil {
		limit = *in.Limit
	}
	if limit < 1 || limit > maxListed {
		return nil, apiErrorf("ValidationException", "limit %d is not between 1 and %d", limit, maxListed)
	}
	names := db.tableNames()
	from, found := slices.BinarySearch(names, in.ExclusiveStartTableName)
	if found {
		from++
	}
	names = names[from:]
	if len(names) <= limit {
		return &listTablesAnswer{TableNames: names}, nil
	}
	return &listTablesAnswer{TableNames: names[:limit], LastEvaluatedTableName: names[limit-1]}, nil
}

func (db *database) tableNames() []string {
	names := slices.AppendSeq([]string{}, maps.Keys(db.tables))
	slices.Sort(names)
	return names
}

// scanOutput is a page, and how many items a filter has seen for it.
type scanOutput struct {
	*server.ScanOutput
	scanned int32
}

// scan counts what minidyn does not: the items that a filter leaves out.
func (db *database) scan(ctx context.Context, in *server.ScanInput) (*scanOutput, error) {
	out, err := db.client.Scan(ctx, in)
	if err != nil {
		return nil, err
	}
	answer := &scanOutput{out, out.Count}
	if aws.ToString(in.FilterExpression) != "" {
		all, err := db.client.Scan(ctx, &server.ScanInput{TableName: in.TableName, Limit: in.Limit, ExclusiveStartKey: in.ExclusiveStartKey})
		if err != nil {
			return nil, err
		}
		answer.scanned = all.Count
	}
	return answer, nil
}
