package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/fleet"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/web"
)

// durations are the bounds of histograms in seconds, up to a large build over a slow
// link.
var durations = prometheus.ExponentialBuckets(0.0625, 2, 16)

// metrics is what the agent counts as it happens. The rest is read when it is asked
// for.
type metrics struct {
	queued, downloads prometheus.Histogram
	landing           *landing.Metrics
}

func newMetrics() *metrics {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "landfall_" + name, Help: help, Buckets: durations})
	}
	return &metrics{
		queued:    histogram("queue_seconds", "How long a build waited for its turn among --max-active."),
		downloads: histogram("download_seconds", "From the beginning of a build's download, its info dictionary included, to the last verified piece."),
		landing:   landing.NewMetrics(),
	}
}

// registry is what /metrics shows.
func (a *Agent) registry() *prometheus.Registry {
	r := web.NewRegistry(a.cfg.Version, a.ready)
	r.MustRegister(
		gossip.Collector(a.gossip), cache.Collector(a.cfg.Cache), swarm.Collector(a.swarm), ledger.Collector(a.cfg.Ledger), arrivals.Collector(a.cfg.Arrivals), limits.Collector(a.cfg.Limits),
		a.metrics.queued, a.metrics.downloads, a.metrics.landing,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "landfall_source_read_bytes_total",
			Help: "Bytes of builds read from source buckets: by the seeder, or by an agent that no peer serves.",
		}, func() float64 { return float64(a.sourceRead.Load()) }),
	)
	for _, state := range []string{api.StateQueued, api.StateDownloading, api.StateLanding, api.StateLanded, api.StateFailed} {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "landfall_builds", Help: "Builds this agent remembers, by state.", ConstLabels: prometheus.Labels{"state": state},
		}, func() (n float64) {
			for _, b := range a.allBuilds() {
				if b.seen.Load().state == state {
					n++
				}
			}
			return n
		}))
	}
	if a.hosts != nil {
		r.MustRegister(fleet.Collector(a.hosts.Fleet), a.kept, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "landfall_fleet_authority_end_timestamp_seconds",
			Help: "When the authority ends by which this agent renews hosts' certificates, and they with it, in seconds since 1970; 0 where it renews none.",
		}, func() float64 {
			if authority := a.cfg.Fleet.Authority; authority != nil {
				return float64(authority.Expires().Unix())
			}
			return 0
		}))
	}
	if a.cfg.AWSMetrics != nil {
		r.MustRegister(a.cfg.AWSMetrics)
	}
	return r
}
