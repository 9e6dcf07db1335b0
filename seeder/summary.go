package seeder

import (
	"cmp"
	"errors"
	"log/slog"
	"math"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/notify"
)

// maxSenders bounds the senders named at the end of an execution.
const maxSenders = 5

// Why an execution is carried.
const (
	asAccepted = "accepted" // somebody asked for it, or the object is new
	asUploaded = "uploaded" // its build goes up through this seeder
	asResumed  = "resumed"  // by a start of the seeder
	asRetried  = "retried"  // by request
	asAwaited  = "awaited"  // by an agent that has come and lacks it
	asLate     = "late"     // it has ended, and an agent says that it has landed after all
	asOver     = "over"     // it is still announced: if it has ended, that is said again
)

// spanAttributes say what an execution's span is about.
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

// sayArrived says that a destination has it.
func (c *carrier) sayArrived(r *ledger.Record, b string) {
	result := r.Results[b]
	attrs := []any{"bucket", b, "region", result.Region, "agent", result.Agent, "bytes", result.Bytes, "seconds", rounded(result.Seconds)}
	if result.Seconds > 0 {
		attrs = append(attrs, "bytesPerSecond", int64(float64(result.Bytes)/result.Seconds))
	}
	c.logger.Info("destination landed", attrs...)
	c.span.Event("arrived", attribute.String("landfall.bucket", b), attribute.String("landfall.region", result.Region),
		attribute.Float64("landfall.seconds", result.Seconds))
}

// sayFailed tells of a destination that has failed.
func (c *carrier) sayFailed(r *ledger.Record, b string) {
	c.logger.Error("destination failed", "bucket", b, "error", r.Results[b].Error)
	c.span.Event("failed", attribute.String("landfall.bucket", b))
	if c.cfg.Notify != nil {
		c.cfg.Notify.Send(notify.Of(r, b))
	}
}

// conclude says in one line how the execution went, and ends its span.
func (c *carrier) conclude(how end) {
	m, r := &c.machine, c.machine.record
	var err error
	if how == replaced {
		c.logger.Info("execution ended", "status", "SUPERSEDED", "successor", m.successor, "seconds", since(m.since))
		c.span.Set(attribute.String("landfall.status", "SUPERSEDED"), attribute.String("landfall.successor", m.successor))
	} else {
		c.logger.Info("execution ended", c.summary(m)...)
		c.span.Set(attribute.String("landfall.status", string(r.Status)),
			attribute.Int("landfall.successful", len(r.Successful)), attribute.Int("landfall.failed", len(r.Failed)))
		if r.Status == ledger.Failed {
			err = errNotEverywhere
		}
	}
	c.span.End(err)
	c.span = nil
}

// errNotEverywhere is the span's status of an execution that has failed.
var errNotEverywhere = errors.New("not every destination has it")

// summary are the numbers of the whole distribution; docs/tracing.md explains them.
func (c *carrier) summary(m *machine) []any {
	r := m.record
	end := time.Now()
	if r.Status == ledger.Completed && !m.lastArrival.IsZero() {
		end = m.lastArrival
	}
	attrs := []any{"status", string(r.Status), "bytes", r.Size, "seconds", rounded(end.Sub(m.since).Seconds())}
	if !m.live.began.IsZero() && !m.live.whole.IsZero() {
		attrs = append(attrs, "pullSeconds", rounded(m.live.whole.Sub(m.live.began).Seconds()))
	}
	if !m.announced.IsZero() && m.lastArrival.After(m.announced) {
		seconds := m.lastArrival.Sub(m.announced).Seconds()
		attrs = append(attrs, "distributionSeconds", rounded(seconds))
		if c.cfg.Uplink > 0 && r.Size > 0 {
			attrs = append(attrs, "overBound", rounded(seconds*float64(c.cfg.Uplink)/float64(r.Size)))
		}
	}
	sent := bytesOf(m.live.sent)
	attrs = append(attrs, "sentBytes", sent)
	if r.Size > 0 {
		attrs = append(attrs, "sentRatio", rounded(float64(sent)/float64(r.Size)))
	}
	attrs = append(attrs, "successful", len(r.Successful), "failed", len(r.Failed))
	if bucket, slowest := slowest(r); bucket != "" {
		attrs = append(attrs, "slowestRegion", cmp.Or(slowest.Region, bucket), "slowestSeconds", rounded(slowest.Seconds))
	}
	return append(attrs, slog.Group("senders", senders(c.index.linksOf(c.id))...))
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
