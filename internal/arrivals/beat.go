package arrivals

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// beatInterval is how often a process that lands something says that it is alive.
	beatInterval = 3 * time.Second
	// Patience is how long a beat has to stand still before another takes the landing.
	Patience = 10 * time.Second
	// beatTimeout bounds the write of a beat: a later one says the same.
	beatTimeout = 2 * beatInterval
	// maxWatched bounds the landings whose beats are watched.
	maxWatched = 256
	// maxBeating bounds the executions that one beat names.
	maxBeating = 128
	// beatPrefix begins the id of an agent's beat, which no hash does.
	beatPrefix = "agent:"
)

// beats are this process's own, and those of others as they were seen.
type beats struct {
	landing map[string]int // works of this process that land an execution
	last    int64
	changed chan struct{}         // has a value when there is the first of them
	watched map[[2]string]watched // by agent and execution
}

// watched is a beat as it was seen last; 0 of who does not say that it lands the execution.
type watched struct {
	process string
	beat    int64
	since   time.Time // when it was first seen so
}

func newBeats() beats {
	return beats{landing: make(map[string]int), changed: make(chan struct{}, 1), watched: make(map[[2]string]watched)}
}

// Holder is this process's, as its landings have it.
func (r *Records) Holder() string { return r.process }

// Hold has this process say that it is alive and lands an execution, until release is
// called.
func (r *Records) Hold(executionID string) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.beats.landing) == 0 {
		select {
		case r.beats.changed <- struct{}{}:
		default: // it was told already
		}
	}
	r.beats.landing[executionID]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.beats.landing[executionID]--; r.beats.landing[executionID] == 0 {
			delete(r.beats.landing, executionID)
		}
	}
}

// Beat says that this process is alive as long as it lands something, until ctx ends.
func (r *Records) Beat(ctx context.Context, log *slog.Logger) {
	ticker := time.NewTicker(r.interval)
	defer ticker.Stop()
	said := false // that it could not be written
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.beats.changed: // the first one is due in an interval: most landings are over by then
			ticker.Reset(r.interval)
			continue
		case <-ticker.C:
		}
		lands := r.lands()
		if len(lands) == 0 {
			continue
		}
		err := r.beat(ctx, lands)
		if err != nil && ctx.Err() == nil && !said {
			log.Warn("another agent of the bucket may take the landings of this one: it could not say that it is alive", "table", r.table.name, "error", err)
		}
		said = err != nil
	}
}

// lands are the executions that this process lands, at most maxBeating of them.
func (r *Records) lands() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Sorted(maps.Keys(r.beats.landing))
	return all[:min(len(all), maxBeating)]
}

// beat writes another one than before, also than before a restart.
func (r *Records) beat(ctx context.Context, lands []string) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	r.mu.Lock()
	r.beats.last = max(r.beats.last+1, time.Now().UnixMilli())
	n := r.beats.last
	r.mu.Unlock()
	i := key(r.bucket, beatPrefix+r.agent)
	i["process"], i["beat"], i["lands"] = text(r.process), number(n), &types.AttributeValueMemberSS{Value: lands}
	if _, err := r.table.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &r.table.name, Item: i}); err != nil {
		return r.table.explain(err)
	}
	r.table.counts.wrote("beat")
	return nil
}

// StandsStill looks at the beat of whoever has a landing, and reports whether it has said
// nothing new of that for Patience, by this process's clock: it has to be asked again and
// again.
func (r *Records) StandsStill(ctx context.Context, l ledger.Landing) (bool, error) {
	asked := r.now()
	i, err := r.table.get(ctx, key(r.bucket, beatPrefix+l.Agent))
	if err != nil {
		return false, err
	}
	seen := watched{process: l.Holder, since: r.now()}
	lands, _ := i["lands"].(*types.AttributeValueMemberSS)
	if of := ledger.Read(i, time.Now()); of.Text("process") == l.Holder && lands != nil && slices.Contains(lands.Value, l.ExecutionID) {
		seen.beat = of.Number("beat", maxNumber)
	}
	name := [2]string{l.Agent, l.ExecutionID}
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.beats.watched[name]
	if !known || last.process != seen.process || last.beat != seen.beat {
		if !known && len(r.beats.watched) >= maxWatched {
			clear(r.beats.watched)
		}
		r.beats.watched[name] = seen
		return false, nil
	}
	return asked.Sub(last.since) >= Patience, nil
}
