package services

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// Recalls are the builds that must run nowhere, as the table has them.
type Recalls struct {
	// Version is that of the signed list; 0 before the first.
	Version int64
	Wire    []byte
	Builds  []Recalled
}

// Recalled is one of the builds.
type Recalled struct {
	SHA256 string `json:"sha256"` // composite
	// Key and ExecutionID are of the execution by which it was named, if it was.
	Key         string    `json:"key,omitempty"`
	ExecutionID string    `json:"executionId,omitempty"`
	By          string    `json:"by,omitempty"`
	At          time.Time `json:"at"`
}

// Recalls reads the list, consistently; one without builds where there is none.
func (t *Tables) Recalls(ctx context.Context) (*Recalls, error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.names.Services, Key: item{"service": text(goal.Recalls)}, ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, t.explain(0, err)
	}
	if len(out.Item) == 0 {
		return &Recalls{}, nil
	}
	of := ledger.Read(out.Item, time.Now())
	r := &Recalls{Version: of.Number("version", maxNumber), Wire: binary(out.Item, "recalls", goal.MaxLength)}
	builds := of.Whole("builds")
	if r.Version < 1 || r.Wire == nil || len(builds) > maxDocument {
		return nil, fmt.Errorf("table %s: item %s has no list of recalls", t.names.Services, goal.Recalls)
	}
	if err := json.Unmarshal([]byte(builds), &r.Builds); err != nil || len(r.Builds) > goal.MaxRecalled {
		return nil, fmt.Errorf("table %s: item %s: %d builds: %w", t.names.Services, goal.Recalls, len(r.Builds), err)
	}
	return r, nil
}

// WriteRecalls puts a list into the table on condition that the version there is before, 0
// for none. Else the error wraps ErrChanged.
func (t *Tables) WriteRecalls(ctx context.Context, r *Recalls, before int64) error {
	builds, err := json.Marshal(r.Builds)
	if err != nil {
		return fmt.Errorf("encoding recalls: %w", err)
	}
	if len(builds) > maxDocument {
		return fmt.Errorf("recalls: %d bytes, at most %d", len(builds), maxDocument)
	}
	in := &dynamodb.PutItemInput{
		TableName: &t.names.Services, ConditionExpression: aws.String("attribute_not_exists(service)"),
		Item: item{"service": text(goal.Recalls), "version": number(r.Version), "recalls": &types.AttributeValueMemberB{Value: r.Wire}, "builds": text(string(builds))},
	}
	if before > 0 {
		in.ConditionExpression, in.ExpressionAttributeValues = aws.String("version = :before"), item{":before": number(before)}
	}
	_, err = t.client.PutItem(ctx, in)
	var changed *types.ConditionalCheckFailedException
	switch {
	case errors.As(err, &changed):
		return fmt.Errorf("table %s: recalls: %w", t.names.Services, ErrChanged)
	case err != nil:
		return t.explain(0, err)
	}
	return nil
}
