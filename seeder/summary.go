package seeder

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// maxSenders bounds the senders named at the end of an execution.
const maxSenders = 5

// Why a distribution begins.
const (
	asAccepted = "accepted" // somebody asked for it, or the object is new
	asResumed  = "resumed"  // by a start of the seeder
	asRetried  = "retried"  // by request
	asAwaited  = "awaited"  // by an agent that has come and lacks it
)

// spanAttributes say what a distribution is about.
func spanAttributes(r *ledger.Record, why string) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("landfall.execution_id", r.ExecutionID),
		attribute.String("landfall.key", r.FileKey),
		attribute.String("landfall.source_bucket", r.SourceBucket),
		attribute.Int64("landfall.size", r.Size),
		attribute.StringSlice("landfall.destinations", r.Destinations),
		attribute.String("landfall.begun", why),
	}
}

// arrivals says of each destination once that it has arrived.
func (d *distribution) arrivals(r *ledger.Record) {
	for _, b := range r.Successful {
		if d.arrived[b] {
			continue
		}
		d.arrived[b] = true
		d.lastArrival = time.Now()
		result := r.Results[b]
		attrs := []any{"bucket", b, "region", result.Region, "agent", result.Agent, "bytes", result.Bytes, "seconds", rounded(result.Seconds)}
		if result.Seconds > 0 {
			attrs = append(attrs, "bytesPerSecond", int64(float64(result.Bytes)/result.Seconds))
		}
		d.logger.Info("destination landed", attrs...)
		d.span.Event("arrived", attribute.String("landfall.bucket", b), attribute.String("landfall.region", result.Region),
			attribute.Float64("landfall.seconds", result.Seconds))
	}
	d.failures(r)
}

// failures tells of the destinations that an agent has recorded as failed.
func (d *distribution) failures(r *ledger.Record) {
	maps.DeleteFunc(d.failed, func(b string, _ bool) bool { return !slices.Contains(r.Failed, b) }) // sent again
	for _, b := range r.Failed {
		if r.Hopeless(b) && !d.failed[b] {
			d.failedAt(r, b)
		}
	}
}

// conclude says in one line how the distribution went, and ends its span. err is why
// run has not brought it to an end.
func (d *distribution) conclude(ctx context.Context, err error) {
	record, _, ok := d.index.get(d.id)
	switch {
	case !ok || errors.Is(err, ledger.ErrSuperseded):
		successor := d.superseder(ctx)
		d.logger.Info("execution ended", "status", "SUPERSEDED", "successor", successor, "seconds", since(d.since))
		d.span.Set(attribute.String("landfall.status", "SUPERSEDED"), attribute.String("landfall.successor", successor))
		err = nil
	case err != nil:
		d.logger.Info("execution is left, the next start goes on with it", "seconds", since(d.since))
		err = ctx.Err()
	default:
		d.arrivals(record)
		d.logger.Info("execution ended", d.summary(record)...)
		d.span.Set(attribute.String("landfall.status", string(record.Status)),
			attribute.Int("landfall.successful", len(record.Successful)), attribute.Int("landfall.failed", len(record.Failed)))
		if record.Status == ledger.Failed {
			err = errNotEverywhere
		}
	}
	d.span.End(err)
}

// superseder is the execution in place of this one. The table has it before the index
// does: whoever is about to put it there is waited for.
func (d *distribution) superseder(ctx context.Context) string {
	if release, err := d.turns.Take(ctx, d.key); err == nil {
		defer release()
	}
	successor, _ := d.index.successor(d.id)
	return successor
}

// errNotEverywhere is the span's status of an execution that has failed.
var errNotEverywhere = errors.New("not every destination has it")

// summary are the numbers of the whole distribution; docs/tracing.md explains them.
func (d *distribution) summary(r *ledger.Record) []any {
	e, _ := d.index.one(d.id)
	end := time.Now()
	if r.Status == ledger.Completed && !d.lastArrival.IsZero() {
		end = d.lastArrival
	}
	attrs := []any{"status", string(r.Status), "bytes", r.Size, "seconds", rounded(end.Sub(d.since).Seconds())}
	if e.PullBeganAt != nil && e.PulledAt != nil {
		attrs = append(attrs, "pullSeconds", rounded(e.PulledAt.Sub(*e.PullBeganAt).Seconds()))
	}
	if !d.announced.IsZero() && d.lastArrival.After(d.announced) {
		seconds := d.lastArrival.Sub(d.announced).Seconds()
		attrs = append(attrs, "distributionSeconds", rounded(seconds))
		if d.cfg.Uplink > 0 && r.Size > 0 {
			attrs = append(attrs, "overBound", rounded(seconds*float64(d.cfg.Uplink)/float64(r.Size)))
		}
	}
	attrs = append(attrs, "sentBytes", e.SentBytes)
	if r.Size > 0 {
		attrs = append(attrs, "sentRatio", rounded(float64(e.SentBytes)/float64(r.Size)))
	}
	attrs = append(attrs, "successful", len(r.Successful), "failed", len(r.Failed))
	if bucket, slowest := slowest(r); bucket != "" {
		attrs = append(attrs, "slowestRegion", cmp.Or(slowest.Region, bucket), "slowestSeconds", rounded(slowest.Seconds))
	}
	return append(attrs, slog.Group("senders", senders(d.index.linksOf(d.id))...))
}

// slowest is the destination that took longest; empty when none has arrived.
func slowest(r *ledger.Record) (bucket string, result ledger.Result) {
	for _, b := range r.Successful {
		if bucket == "" || r.Results[b].Seconds > result.Seconds {
			bucket, result = b, r.Results[b]
		}
	}
	return bucket, result
}

// senders are those that sent most, and their bytes, as the agents said last.
func senders(links []api.Link) []any {
	sent := make(map[string]int64)
	var names []string
	for _, l := range links {
		if sent[l.From] == 0 {
			names = append(names, l.From)
		}
		sent[l.From] += l.Bytes
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(sent[b], sent[a]) })
	var out []any
	for _, name := range names[:min(len(names), maxSenders)] {
		out = append(out, slog.Int64(name, sent[name]))
	}
	return out
}

func since(t time.Time) float64 { return rounded(time.Since(t).Seconds()) }

// rounded keeps three digits: milliseconds, or thousandths of a ratio.
func rounded(v float64) float64 { return math.Round(v*1000) / 1000 }
