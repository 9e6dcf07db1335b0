// Package services is the three tables of the fleet, which the seeder writes: what each
// service is to run, its deployments, and what failed on its hosts.
//
//	LandfallServices     service (S)                     version N, goal B (as it is signed), completed S (JSON), held S (JSON), deployment S
//	                     "head"                          beat B (as it is signed)
//	                     ".recalls"                      version N, recalls B (as they are signed), builds S (JSON)
//	LandfallDeployments  service (S), deploymentId (S)   state S, key S, by S, started S, ended S, document S (JSON)
//	host-deployment-logs region#deployment#nn (S), host (S)
//	                                                     a failure: at S, phase S, error S, output S, version N, expires N
//	                                                     on request, of each host: listed S, state S, running S, goal N, zone S, seen S
//	                     region#deployment#rest          hosts N, example S, …: those beyond the first thousand, by reason
//
// A goal and its deployment are written in one transaction, on condition that the version
// in the table is still the one that was read: of two seeders one wins, the other is told.
package services

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// The tables' usual names.
const (
	DefaultServices    = "LandfallServices"
	DefaultDeployments = "LandfallDeployments"
	DefaultLogs        = "host-deployment-logs"
)

// DefaultTTL is how long what is logged of hosts is kept.
const DefaultTTL = 30 * 24 * time.Hour

const (
	// maxDocument bounds a deployment's JSON in bytes: 64 regions and two keys have some
	// 20 KB, DynamoDB's items at most 400.
	maxDocument = 256 << 10
	// maxNumber is where a number still is exact for those who read it as a float.
	maxNumber = 1 << 53
	// MaxListed bounds the deployments that are read at once.
	MaxListed = 100
)

// ErrChanged is wrapped when somebody else has written a service since it was read.
var ErrChanged = errors.New("the service was changed meanwhile, perhaps by another seeder")

// Names are the tables'.
type Names struct{ Services, Deployments, Logs string }

// DefaultNames are the usual ones.
func DefaultNames() Names { return Names{DefaultServices, DefaultDeployments, DefaultLogs} }

// Tables are the three. They are safe for concurrent use, by any number of processes.
type Tables struct {
	client *dynamodb.Client
	names  Names
	ttl    time.Duration
	page   int32 // items that are looked at in one request
}

// New returns the tables of these names, which need not exist yet. What is logged of hosts
// says that it may go after ttl; 0 for never.
func New(client *dynamodb.Client, names Names, ttl time.Duration) *Tables {
	return &Tables{client: client, names: names, ttl: ttl, page: logPage}
}

// Names are the tables'.
func (t *Tables) Names() Names { return t.names }

// Region is the AWS region where they are.
func (t *Tables) Region() string { return t.client.Options().Region }

func (t *Tables) schemas() []ledger.Schema {
	return []ledger.Schema{
		{Client: t.client, Table: t.names.Services, Partition: "service", Flag: "services-table"},
		{Client: t.client, Table: t.names.Deployments, Partition: "service", Sort: "deploymentId", Flag: "deployments-table"},
		{Client: t.client, Table: t.names.Logs, Partition: "deployment", Sort: "host", Flag: "logs-table"},
	}
}

// Create makes those that are missing, billed by request, and calls made with each name.
func (t *Tables) Create(ctx context.Context, made func(table string, created bool)) error {
	for _, s := range t.schemas() {
		created, err := s.Create(ctx)
		if err != nil {
			return err
		}
		made(s.Table, created)
	}
	return nil
}

// Check reports whether the tables can be used: ledger.ErrNoTable when one is missing,
// another error when its key is not the one expected.
func (t *Tables) Check(ctx context.Context) error {
	for _, s := range t.schemas() {
		if _, err := s.Describe(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tables) explain(table int, err error) error { return t.schemas()[table].Explain(err) }

type item = map[string]types.AttributeValue

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

func binary(i item, name string, most int) []byte {
	if b, ok := i[name].(*types.AttributeValueMemberB); ok && len(b.Value) <= most {
		return b.Value
	}
	return nil
}

// Service is one of the table, and its goal as it is signed.
type Service struct {
	deployment.Service
	Wire []byte
	// Odd is what could not be read; nil for nothing. Then the service is shown and kept,
	// and nothing is written.
	Odd error
}

// All reads all services, consistently. What cannot be read is Odd.
func (t *Tables) All(ctx context.Context) (all []*Service, err error) {
	in := &dynamodb.ScanInput{TableName: &t.names.Services, ConsistentRead: aws.Bool(true)}
	for {
		out, err := t.client.Scan(ctx, in)
		if err != nil {
			return nil, t.explain(0, err)
		}
		for _, i := range out.Items {
			name := ledger.Read(i, time.Now()).Whole("service")
			if name == goal.Head || name == goal.Recalls {
				continue
			}
			if len(all) >= goal.MaxServices {
				return nil, fmt.Errorf("table %s: more than %d services", t.names.Services, goal.MaxServices)
			}
			s, err := t.read(ctx, name, i)
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		switch next := out.LastEvaluatedKey; {
		case len(next) == 0:
			return all, nil
		case reflect.DeepEqual(next, in.ExclusiveStartKey):
			return nil, fmt.Errorf("table %s: %w", t.names.Services, ledger.ErrEndless)
		default:
			in.ExclusiveStartKey = next
		}
	}
}

// Service reads one, consistently; nil where there is none.
func (t *Tables) Service(ctx context.Context, name string) (*Service, error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.names.Services, Key: item{"service": text(name)}, ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, t.explain(0, err)
	}
	if len(out.Item) == 0 {
		return nil, nil
	}
	return t.read(ctx, name, out.Item)
}

// read reads a service's item, and its newest deployment.
func (t *Tables) read(ctx context.Context, name string, i item) (*Service, error) {
	of := ledger.Read(i, time.Now())
	s := &Service{Service: deployment.Service{Name: name, Version: of.Number("version", maxNumber)}, Wire: binary(i, "goal", goal.MaxLength)}
	odd := func(err error) (*Service, error) {
		s.Odd = fmt.Errorf("table %s: service %.80s: %w", t.names.Services, name, err)
		return s, nil
	}
	if err := goal.CheckService(name); err != nil {
		return odd(err)
	}
	if s.Version < 1 || s.Wire == nil {
		return odd(errors.New("it has no goal"))
	}
	if c := of.Whole("completed"); c != "" {
		if err := json.Unmarshal([]byte(c), &s.Completed); err != nil {
			return odd(fmt.Errorf("completed: %w", err))
		}
	}
	if held := of.Whole("held"); held != "" {
		if err := json.Unmarshal([]byte(held), &s.Held); err != nil || len(s.Held) > goal.MaxHeld {
			return odd(fmt.Errorf("held: %d hosts: %w", len(s.Held), err))
		}
	}
	d, err := t.Deployment(ctx, name, of.Text("deployment"))
	if err != nil {
		return nil, err
	}
	if d == nil {
		return odd(fmt.Errorf("deployment %.40q is not in table %s", of.Text("deployment"), t.names.Deployments))
	}
	s.Current = d
	return s, nil
}

// Deployment reads one, consistently; nil where there is none that can be read.
func (t *Tables) Deployment(ctx context.Context, service, id string) (*deployment.Deployment, error) {
	if id == "" {
		return nil, nil
	}
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &t.names.Deployments, Key: item{"service": text(service), "deploymentId": text(id)}, ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, t.explain(1, err)
	}
	return decode(out.Item), nil
}

// Deployments reads the newest of a service, at most limit of them.
func (t *Tables) Deployments(ctx context.Context, service string, limit int) (list []deployment.Deployment, err error) {
	out, err := t.client.Query(ctx, &dynamodb.QueryInput{
		TableName: &t.names.Deployments, KeyConditionExpression: aws.String("service = :service"),
		ExpressionAttributeValues: item{":service": text(service)}, ScanIndexForward: aws.Bool(false),
		Limit: aws.Int32(int32(min(limit, MaxListed))), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, t.explain(1, err)
	}
	for _, i := range out.Items {
		if d := decode(i); d != nil {
			list = append(list, *d)
		}
	}
	return list, nil
}

func decode(i item) *deployment.Deployment {
	of := ledger.Read(i, time.Now())
	document := of.Whole("document")
	d := new(deployment.Deployment)
	if document == "" || len(document) > maxDocument || json.Unmarshal([]byte(document), d) != nil || d.ID != of.Whole("deploymentId") {
		return nil
	}
	return d
}

// Write puts a service, with its goal as it is signed, and its newest deployment into the
// tables, on condition that the service's version there is before, 0 for none. Else the
// error wraps ErrChanged.
func (t *Tables) Write(ctx context.Context, s deployment.Service, wire []byte, before int64) error {
	d := s.Current
	of, err := encode(s.Name, d)
	if err != nil {
		return err
	}
	i := item{"service": text(s.Name), "version": number(s.Version), "goal": &types.AttributeValueMemberB{Value: wire}, "deployment": text(d.ID)}
	if s.Completed != nil {
		completed, err := json.Marshal(s.Completed)
		if err != nil {
			return fmt.Errorf("encoding a build: %w", err)
		}
		i["completed"] = text(string(completed))
	}
	if len(s.Held) > 0 {
		held, err := json.Marshal(s.Held)
		if err != nil {
			return fmt.Errorf("encoding held hosts: %w", err)
		}
		i["held"] = text(string(held))
	}
	put := &types.Put{TableName: &t.names.Services, Item: i, ConditionExpression: aws.String("attribute_not_exists(service)")}
	if before > 0 {
		put.ConditionExpression, put.ExpressionAttributeValues = aws.String("version = :before"), item{":before": number(before)}
	}
	return t.transact(ctx, s.Name, types.TransactWriteItem{Put: put}, types.TransactWriteItem{Put: &types.Put{TableName: &t.names.Deployments, Item: of}})
}

// Record puts a service's newest deployment into its table, on condition that the service's
// version is still this one. Else the error wraps ErrChanged.
func (t *Tables) Record(ctx context.Context, service string, d *deployment.Deployment, version int64) error {
	of, err := encode(service, d)
	if err != nil {
		return err
	}
	return t.transact(ctx, service, types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName: &t.names.Services, Key: item{"service": text(service)},
		ConditionExpression: aws.String("version = :version"), ExpressionAttributeValues: item{":version": number(version)},
	}}, types.TransactWriteItem{Put: &types.Put{TableName: &t.names.Deployments, Item: of}})
}

// encode makes a deployment's item.
func encode(service string, d *deployment.Deployment) (item, error) {
	document, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding a deployment: %w", err)
	}
	if len(document) > maxDocument {
		return nil, fmt.Errorf("deployment %s of %s: %d bytes, at most %d", d.ID, service, len(document), maxDocument)
	}
	of := item{
		"service": text(service), "deploymentId": text(d.ID), "state": text(d.State), "key": text(d.Target.Key),
		"started": text(d.Started.UTC().Format(time.RFC3339)), "document": text(string(document)),
	}
	if d.By != "" {
		of["by"] = text(d.By)
	}
	if !d.Ended.IsZero() {
		of["ended"] = text(d.Ended.UTC().Format(time.RFC3339))
	}
	return of, nil
}

// transact writes all or nothing: nothing where a condition about a service does not hold.
func (t *Tables) transact(ctx context.Context, service string, items ...types.TransactWriteItem) error {
	_, err := t.client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: items})
	var canceled *types.TransactionCanceledException
	if errors.As(err, &canceled) {
		for _, r := range canceled.CancellationReasons {
			if aws.ToString(r.Code) == "ConditionalCheckFailed" {
				return fmt.Errorf("table %s: %s: %w", t.names.Services, service, ErrChanged)
			}
		}
	}
	if err != nil {
		return t.explain(0, err)
	}
	return nil
}

// WriteHead puts the beat, and that of the list of recalls, as they are signed, beside the
// services: who reads them knows which goals, and which list, are the newest.
func (t *Tables) WriteHead(ctx context.Context, wire, recalls []byte) error {
	_, err := t.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &t.names.Services, Item: item{"service": text(goal.Head), "beat": &types.AttributeValueMemberB{Value: wire}, "recalls": &types.AttributeValueMemberB{Value: recalls}},
	})
	if err != nil {
		return t.explain(0, err)
	}
	return nil
}

// Head reads the beat as it is signed, and that of the list of recalls; nil where there is none.
func (t *Tables) Head(ctx context.Context) (wire, recalls []byte, err error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.names.Services, Key: item{"service": text(goal.Head)}})
	if err != nil {
		return nil, nil, t.explain(0, err)
	}
	return binary(out.Item, "beat", goal.MaxLength), binary(out.Item, "recalls", goal.MaxLength), nil
}

// Goal reads a service's goal as it is signed, or for goal.Recalls that list; nil where there
// is none.
func (t *Tables) Goal(ctx context.Context, service string) ([]byte, error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.names.Services, Key: item{"service": text(service)}})
	if err != nil {
		return nil, t.explain(0, err)
	}
	attribute := "goal"
	if service == goal.Recalls {
		attribute = "recalls"
	}
	return binary(out.Item, attribute, goal.MaxLength), nil
}

// NewID is that of a deployment that follows another one of the same service.
func NewID(now time.Time, last *deployment.Deployment) string {
	if last == nil {
		return executionid.New(now, "")
	}
	return executionid.New(now, last.ID)
}
