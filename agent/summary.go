package agent

import (
	"log/slog"
	"math"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// spanAttributes say what a build's span is about.
func (b *build) spanAttributes() []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("landfall.execution_id", b.ann.ExecutionID),
		attribute.String("landfall.key", b.ann.Key),
		attribute.String("landfall.source_bucket", b.ann.SourceBucket),
		attribute.Int64("landfall.size", b.ann.Size),
		attribute.String("landfall.infohash", b.ann.InfoHash.String()),
		attribute.String("landfall.bucket", b.agent.cfg.Bucket.Name()),
		attribute.String("landfall.region", b.agent.cfg.Region),
		attribute.String("landfall.node", b.agent.cfg.Gossip.ID),
	}
}

// downloaded takes note that every piece is here, and of where they came from: once
// others have them all too, connections end.
func (b *build) downloaded(d *download) {
	b.reach(whole)
	came := d.origins(gossip.ByPeerID(b.agent.gossip.Members(), swarm.PeerID))
	b.mu.Lock()
	b.came = came
	if b.state == api.StateDownloading { // another agent may have landed it meanwhile
		b.state = api.StateLanding
	}
	b.mu.Unlock()
	b.logger.Info("downloaded", "bytes", b.ann.Size, "seconds", seconds(time.Since(b.started)), "landedBytes", b.landedBytes())
}

// conclude says in one line how a build came here that has arrived, and ends its
// span.
func (b *build) conclude() {
	b.mu.Lock()
	from, by := b.came, b.landedBy
	took := b.times.took(b.started, time.Now())
	b.mu.Unlock()
	source := b.fromSource.Load()
	attrs := []any{
		"bucket", b.agent.cfg.Bucket.Name(), "region", b.agent.cfg.Region, "landedBy", by, "bytes", b.ann.Size,
		"seconds", seconds(time.Since(b.started)),
		slog.Group("took", "queued", seconds(took[turn]), "swarm", seconds(took[whole]), "landing", seconds(took[complete]), "recording", seconds(took[recorded])),
		"fromSeeder", from.seeders, "fromAgents", from.agents, "fromSource", source,
	}
	if from.gone > 0 {
		attrs = append(attrs, "fromGone", from.gone)
	}
	b.logger.Info("recorded", attrs...)
	b.span.Set(attribute.String("landfall.outcome", "recorded"), attribute.String("landfall.landed_by", by),
		attribute.Int64("landfall.from_seeder", from.seeders), attribute.Int64("landfall.from_agents", from.agents),
		attribute.Int64("landfall.from_source", source))
	b.span.End(nil)
}

// seconds of a duration, to the millisecond.
func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// origins are where the bytes of a download came from, by role.
type origins struct {
	seeders, agents int64
	gone            int64 // from members that have left since
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
	add := func(id [20]byte, bytes int64) {
		m, known := names[id]
		switch {
		case !known:
			o.gone += bytes
		case m.Role == gossip.Seeder:
			o.seeders += bytes
		default:
			o.agents += bytes
		}
	}
	for id, from := range s {
		add(id, from.before+max(from.last, now[id]))
	}
	for id, bytes := range now {
		if s[id] == nil {
			add(id, bytes)
		}
	}
	return o
}
