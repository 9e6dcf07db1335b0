package services

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"golang.org/x/sync/errgroup"
)

// maxUpdates bounds the hosts that LogHosts writes at a time: at some milliseconds each that
// is a few thousand a second, which a table that is billed by request takes from its first day.
const maxUpdates = 16

// Host is how a host of a service stands.
type Host struct {
	Name, Zone, State string
	Running           string // the executionId of its build; empty for none
	Goal              int64  // the version that it follows
	Seen              time.Time
	Phase, Error      string // of what failed last
}

// LogHosts writes how hosts of a region stand, beside their failures in a deployment, which
// stay as they are; what was written of a host so before is replaced. After an error some may
// be written.
func (t *Tables) LogHosts(ctx context.Context, region, deploymentID string, hosts []Host) error {
	now := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxUpdates)
	for i := range hosts {
		group.Go(func() error { return t.logHost(ctx, region, deploymentID, &hosts[i], now) })
	}
	return group.Wait()
}

func (t *Tables) logHost(ctx context.Context, region, deploymentID string, h *Host, now time.Time) error {
	stands := item{"state": text(h.State), "goal": number(h.Goal), "listed": text(now.UTC().Format(time.RFC3339)), "running": nil, "zone": nil, "seen": nil}
	for name, value := range map[string]string{"running": h.Running, "zone": h.Zone} {
		if value != "" {
			stands[name] = text(value)
		}
	}
	if !h.Seen.IsZero() {
		stands["seen"] = text(h.Seen.UTC().Format(time.RFC3339))
	}
	if t.ttl > 0 {
		stands["expires"] = number(now.Add(t.ttl).Unix())
	}
	why := item{"phase": nil, "error": nil}
	if h.Error != "" {
		why["phase"], why["error"] = text(h.Phase), text(h.Error)
	}
	key := item{"deployment": text(partition(region, deploymentID, h.Name)), "host": text(h.Name)}
	in := t.update(key, stands, why)
	in.ConditionExpression, in.ExpressionAttributeNames["#at"] = aws.String("attribute_not_exists(#at)"), "at" // which a failure has
	_, err := t.client.UpdateItem(ctx, in)
	var failed *types.ConditionalCheckFailedException
	if errors.As(err, &failed) {
		_, err = t.client.UpdateItem(ctx, t.update(key, stands))
	}
	if err != nil {
		return t.explain(2, err)
	}
	return nil
}

// update sets the attributes of an item that have a value, and removes those that are nil.
func (t *Tables) update(key item, attributes ...item) *dynamodb.UpdateItemInput {
	in := &dynamodb.UpdateItemInput{TableName: &t.names.Logs, Key: key, ExpressionAttributeNames: make(map[string]string), ExpressionAttributeValues: make(item)}
	var set, remove []string
	for _, of := range attributes {
		for name, value := range of {
			in.ExpressionAttributeNames["#"+name] = name // many are words that DynamoDB reserves
			if value == nil {
				remove = append(remove, "#"+name)
				continue
			}
			set = append(set, fmt.Sprintf("#%s = :%s", name, name))
			in.ExpressionAttributeValues[":"+name] = value
		}
	}
	slices.Sort(set)
	slices.Sort(remove)
	expression := "SET " + strings.Join(set, ", ")
	if len(remove) > 0 {
		expression += " REMOVE " + strings.Join(remove, ", ")
	}
	in.UpdateExpression = &expression
	return in
}
