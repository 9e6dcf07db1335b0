package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/retry"
)

// Schema is a table and how it is keyed, by one text or two.
type Schema struct {
	Client *dynamodb.Client
	Table  string
	// Partition and Sort are the attributes of its key; Sort is empty where there is none.
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
	var attributes []types.AttributeDefinition
	for _, k := range s.key() {
		attributes = append(attributes, types.AttributeDefinition{AttributeName: k.AttributeName, AttributeType: types.ScalarAttributeTypeS})
	}
	_, err = s.Client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: &s.Table, KeySchema: s.key(), AttributeDefinitions: attributes, BillingMode: types.BillingModePayPerRequest,
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

func (s Schema) key() []types.KeySchemaElement {
	key := []types.KeySchemaElement{{AttributeName: &s.Partition, KeyType: types.KeyTypeHash}}
	if s.Sort != "" {
		key = append(key, types.KeySchemaElement{AttributeName: &s.Sort, KeyType: types.KeyTypeRange})
	}
	return key
}

// Describe looks at the table: ErrNoTable when it is missing, another error when its key
// is not the one expected.
func (s Schema) Describe(ctx context.Context) (*types.TableDescription, error) {
	out, err := s.Client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &s.Table})
	if err != nil {
		return nil, s.Explain(err)
	}
	if !slices.EqualFunc(out.Table.KeySchema, s.key(), func(x, y types.KeySchemaElement) bool {
		return aws.ToString(x.AttributeName) == aws.ToString(y.AttributeName) && x.KeyType == y.KeyType
	}) {
		key := s.Partition
		if s.Sort != "" {
			key += " and " + s.Sort
		}
		return nil, fmt.Errorf("table %s is another one: its key is not %s; choose another name with --%s", s.Table, key, s.Flag)
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
