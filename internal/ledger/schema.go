package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/retry"
)

// Schema is a table and how it is keyed, by two texts.
type Schema struct {
	Client *dynamodb.Client
	Table  string
	// Partition and Sort are the attributes of its key.
	Partition, Sort string
	// Flag is the one that names the table.
	Flag string
}

// Create makes the table, billed by request, and waits until it can be used. It
// returns false when the table was there.
func (s Schema) Create(ctx context.Context) (created bool, err error) {
	if _, err := s.Describe(ctx); !errors.Is(err, ErrNoTable) {
		return false, err
	}
	_, err = s.Client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: &s.Table,
		KeySchema: []types.KeySchemaElement{
			{AttributeName: &s.Partition, KeyType: types.KeyTypeHash},
			{AttributeName: &s.Sort, KeyType: types.KeyTypeRange},
		},
		BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: &s.Partition, AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: &s.Sort, AttributeType: types.ScalarAttributeTypeS},
		},
	})
	var exists *types.ResourceInUseException
	if err != nil && !errors.As(err, &exists) {
		return false, fmt.Errorf("making table %s: %w", s.Table, awserr.Explain(err, "table "+s.Table))
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	for {
		found, err := s.Describe(ctx)
		if err == nil && found.TableStatus != types.TableStatusCreating {
			return exists == nil, nil
		}
		if !retry.Wait(ctx, createInterval) {
			return false, fmt.Errorf("waiting for table %s: %w", s.Table, errors.Join(ctx.Err(), err))
		}
	}
}

// Describe looks at the table: ErrNoTable when it is missing, another error when its key
// is not the one expected.
func (s Schema) Describe(ctx context.Context) (*types.TableDescription, error) {
	out, err := s.Client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &s.Table})
	if err != nil {
		return nil, s.Explain(err)
	}
	if key := out.Table.KeySchema; len(key) != 2 || aws.ToString(key[0].AttributeName) != s.Partition || key[0].KeyType != types.KeyTypeHash ||
		aws.ToString(key[1].AttributeName) != s.Sort || key[1].KeyType != types.KeyTypeRange {
		return nil, fmt.Errorf("table %s is another one: its key is not %s and %s; choose another name with --%s", s.Table, s.Partition, s.Sort, s.Flag)
	}
	return out.Table, nil
}

// Explain turns a missing table into ErrNoTable, which says what to do.
func (s Schema) Explain(err error) error {
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return fmt.Errorf("table %s: %w in AWS region %s; give the region that the other members' is in with --table-region; `seeder init` makes one where there is none at all yet",
			s.Table, ErrNoTable, s.Client.Options().Region)
	}
	return fmt.Errorf("table %s: %w", s.Table, awserr.Explain(err, "table "+s.Table))
}
