package arrivals

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// regionPrefix begins the partition of what is a region's and no bucket's: no bucket's
	// name has a colon, so that a role's policy can name it beside the bucket.
	regionPrefix = "region:"
	// leaseID is the lease's row.
	leaseID = "hosts"
)

// Lease is the right to count a region's hosts that switch, which one of the region's agents
// has at a time: a row that its holder writes anew as long as it counts, and that another
// takes once it has stood still for Patience. It belongs to one goroutine.
type Lease struct {
	table                  *Table
	region, agent, process string
	now                    func() time.Time

	term    int64   // this process's; 0 while it has not the lease
	version int64   // of the row, as this process wrote it
	seen    watched // the row as another wrote it
}

// NewLease returns that of a region, for a process of one of its agents.
func NewLease(table *Table, region, agent, process string) *Lease {
	return &Lease{table: table, region: region, agent: agent, process: process, now: time.Now}
}

// Held is who has a lease.
type Held struct {
	// Term grows with each holder. It is 0 when another has the lease: Agent.
	Term  int64
	Agent string
	// Taken is set when this process did not have it before, and Hosts is then what its last
	// holder wrote: 0 where that one gave it back.
	Taken bool
	Hosts int64
	// Asked is when this process began to write it: another may take it Patience later.
	Asked time.Time
}

func (l *Lease) key() item { return key(regionPrefix+l.region, leaseID) }

// Hold takes the lease, or keeps it, and writes how many hosts there are. What its last
// holder wrote stays until Hold is called again. Where another has it, the error is nil.
func (l *Lease) Hold(ctx context.Context, hosts int64) (Held, error) {
	asked := l.now()
	if l.term > 0 {
		err := l.put(ctx, l.process, hosts, l.term)
		if err == nil {
			return Held{Term: l.term, Agent: l.agent, Asked: asked}, nil
		}
		if !errors.Is(err, errConflict) {
			return Held{}, err
		}
		l.term = 0
	}
	i, err := l.table.get(ctx, l.key())
	if err != nil {
		return Held{}, err
	}
	of := ledger.Read(i, time.Now())
	process, agent, before, term := of.Text("process"), of.Text("agent"), of.Number("hosts", maxNumber), of.Number("term", maxNumber)
	version := of.Number("version", maxNumber)
	if term >= maxNumber || version >= maxNumber {
		return Held{}, fmt.Errorf("table %s: the lease of %s cannot be read, remove the row %s of %s%s", l.table.name, l.region, leaseID, regionPrefix, l.region)
	}
	// This agent's own process before has ended, and so has a machine of this process that
	// does not know the lease any more.
	if process != "" && agent != l.agent {
		now := watched{process: process, beat: version, since: l.now()}
		if l.seen.process != now.process || l.seen.beat != now.beat {
			l.seen = now
		}
		if asked.Sub(l.seen.since) < Patience {
			return Held{Agent: agent}, nil
		}
	}
	if process == "" {
		before = 0
	}
	l.version = version
	asked = l.now()
	switch err := l.put(ctx, l.process, max(before, hosts), term+1); {
	case errors.Is(err, errConflict): // the next try sees by whom
		return Held{}, nil
	case err != nil:
		return Held{}, err
	}
	l.term = term + 1
	return Held{Term: l.term, Agent: l.agent, Taken: true, Hosts: before, Asked: asked}, nil
}

// Release gives the lease back: no host switches. Who takes it next has nothing to wait for.
func (l *Lease) Release(ctx context.Context) error {
	if l.term == 0 {
		return nil
	}
	term := l.term
	l.term = 0
	return l.put(ctx, "", 0, term)
}

// Forget has this process not know that it holds the lease: Hold takes it anew.
func (l *Lease) Forget() { l.term = 0 }

// put writes the row on condition that it is as this process knows it.
func (l *Lease) put(ctx context.Context, process string, hosts, term int64) error {
	i := l.key()
	i["agent"], i["process"], i["hosts"], i["term"], i["version"] = text(l.agent), text(process), number(hosts), number(term), number(l.version+1)
	in := &dynamodb.PutItemInput{TableName: &l.table.name, Item: i, ConditionExpression: aws.String("attribute_not_exists(version)")}
	if l.version > 0 {
		in.ConditionExpression, in.ExpressionAttributeValues = aws.String("version = :version"), item{":version": number(l.version)}
	}
	_, err := l.table.client.PutItem(ctx, in)
	var conflict *types.ConditionalCheckFailedException
	switch {
	case errors.As(err, &conflict):
		l.table.counts.conflicts.Add(1)
		return fmt.Errorf("table %s: the lease of %s: %w", l.table.name, l.region, errConflict)
	case err != nil:
		return l.table.explain(err)
	}
	l.version++
	l.table.counts.wrote("lease")
	return nil
}
