package agent

import (
	"context"
	"log/slog"
	"math"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// say makes known what the machine has to say.
func (b *build) say(s say) {
	a, m := b.agent, b.machine
	switch s.what {
	case "heard":
		b.log().Info("announcement received", "bytes", m.ann.Size, "sourceBucket", m.ann.SourceBucket)
		_, b.span = a.cfg.Tracer.Root(tracing.Remote(context.Background(), string(m.ann.TraceParent)), "build",
			attribute.String("landfall.execution_id", b.id),
			attribute.String("landfall.key", m.ann.Key),
			attribute.String("landfall.source_bucket", m.ann.SourceBucket),
			attribute.Int64("landfall.size", m.ann.Size),
			attribute.String("landfall.infohash", firstInfoHash(m.ann)),
			attribute.String("landfall.bucket", a.cfg.Bucket.Name()),
			attribute.String("landfall.region", a.cfg.Region),
			attribute.String("landfall.node", a.cfg.Gossip.ID))
	case "turn":
		b.span.Event("turn")
	case "alike":
		b.log().Info("bucket holds what may be this build; it is known when the seeder has read all of it", "bucket", a.cfg.Bucket.Name())
	case "downloading":
		b.log().Info("downloading", "bytes", m.ann.Size)
	case "downloaded":
		b.log().Info("downloaded", "bytes", m.ann.Size, "seconds", seconds(time.Since(m.started)), "landedBytes", m.landed)
		a.metrics.downloads.Observe(time.Since(b.member.begun).Seconds())
		b.member.span.End(nil)
	case "recorded":
		from, took := m.came, m.times.took(m.started, time.Now())
		attrs := []any{
			"bucket", a.cfg.Bucket.Name(), "region", a.cfg.Region, "landedBy", m.landedBy,
			"bytes", m.ann.Size, "seconds", seconds(time.Since(m.started)),
			slog.Group("took", "queued", seconds(took[turn]), "swarm", seconds(took[whole]), "landing", seconds(took[complete]), "recording", seconds(took[recorded])),
			"fromSeeder", from.seeders, "fromAgents", from.agents, "fromSource", m.fromSource,
		}
		if from.departed > 0 {
			attrs = append(attrs, "fromGone", from.departed)
		}
		b.log().Info("recorded", attrs...)
		b.span.Set(attribute.String("landfall.outcome", "recorded"), attribute.String("landfall.landed_by", m.landedBy),
			attribute.Int64("landfall.from_seeder", from.seeders), attribute.Int64("landfall.from_agents", from.agents),
			attribute.Int64("landfall.from_source", m.fromSource))
		b.span.End(nil)
	case "failed":
		b.span.Failed("retry", s.err)
		b.log().Warn("build not landed yet", "error", s.err, "retryIn", s.delay.Round(time.Millisecond).String())
	case "yielded":
		b.log().Info("waiting for another turn: there was no progress, and other builds wait")
	case "late":
		b.log().Info("execution was ended, and the build is here: its arrival is recorded all the same", "reason", s.err)
	case "stopped":
		b.log().Info("stopped", "reason", s.err)
		b.span.Set(attribute.String("landfall.outcome", "stopped"), attribute.String("landfall.reason", s.err.Error()))
		b.span.End(nil)
	}
}

// seconds of a duration, to the millisecond.
func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// origins are where the bytes of a download came from, by role.
type origins struct {
	seeders, agents int64
	departed        int64 // from members that have left since
}

// origins are those so far. Several executions of the same bytes share them.
func (d *download) origins(names map[[20]byte]gossip.Member) origins {
	now := make(map[[20]byte]int64)
	for _, p := range d.torrent.Stats().Peers {
		now[p.ID] += p.Downloaded
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.senders.origins(now, names)
}

// origins sorts by role what came, with counters of the present connections that may
// be newer or older than those measured last.
func (s senders) origins(now map[[20]byte]int64, names map[[20]byte]gossip.Member) (o origins) {
	for id, from := range s {
		now[id] = from.before + max(from.last, now[id])
	}
	for id, bytes := range now {
		switch m, known := names[id]; {
		case !known:
			o.departed += bytes
		case m.Role == gossip.Seeder:
			o.seeders += bytes
		default:
			o.agents += bytes
		}
	}
	return o
}
