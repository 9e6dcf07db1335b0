package agent

import (
	"errors"
	"iter"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/web"
)

// errAlone is why an agent is not ready: it can hear of nothing.
var errAlone = errors.New("no seeder in sight yet: does --join name a living member?")

func (a *Agent) handler() http.Handler {
	mux := web.NewMux(web.Options{
		Page:    "agent",
		Ready:   a.ready,
		State:   a.state,
		Metrics: a.metrics(),
		Logger:  a.cfg.Logger,
	})
	mux.JSON("GET /status", func(*http.Request) (int, any, error) { return http.StatusOK, a.status(), nil })
	return mux
}

func (a *Agent) ready() error {
	for _, m := range a.gossip.Members() {
		if m.Role == gossip.Seeder {
			return nil
		}
	}
	return errAlone
}

func (a *Agent) status() *api.AgentStatus {
	members := a.gossip.Members()
	names := gossip.ByPeerID(members, swarm.PeerID)
	s := &api.AgentStatus{
		Node:     a.gossip.Name(),
		Region:   a.cfg.Region,
		Bucket:   a.cfg.Bucket.Name(),
		Version:  a.cfg.Version,
		Members:  gossip.View(members),
		Builds:   []api.Build{},
		BadPeers: swarm.View(a.swarm.BadPeers()),
		Cache:    cache.View(a.cfg.Cache),
	}
	for _, b := range a.allBuilds() {
		s.Builds = append(s.Builds, b.view(names))
	}
	return s
}

// state is what the page shows: the status, cut into values.
func (a *Agent) state([]string) iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		s := a.status()
		builds := s.Builds
		ok := yield("members", s.Members) && yield("badPeers", s.BadPeers) && yield("cache", s.Cache)
		s.Builds, s.Members, s.BadPeers, s.Cache = nil, nil, nil, api.Cache{}
		ok = ok && yield("about", s)
		for _, b := range builds {
			ok = ok && yield("build/"+b.ExecutionID, b)
		}
	}
}

func (a *Agent) metrics() *prometheus.Registry {
	r := web.NewRegistry()
	r.MustRegister(gossip.Collector(a.gossip), cache.Collector(a.cfg.Cache), swarm.Collector(a.swarm), buildsCollector{a})
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "landfall_source_read_bytes_total",
		Help: "Bytes of builds read from source buckets, for want of peers.",
	}, func() float64 { return float64(a.sourceRead.Load()) }))
	return r
}

var buildsDesc = prometheus.NewDesc("landfall_builds", "Builds this agent remembers, by state.", []string{"state"}, nil)

// buildsCollector counts builds by state when it is asked.
type buildsCollector struct{ agent *Agent }

func (c buildsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- buildsDesc }

func (c buildsCollector) Collect(ch chan<- prometheus.Metric) {
	counts := map[string]int{
		api.StateQueued: 0, api.StateDownloading: 0, api.StateLanding: 0, api.StateLanded: 0, api.StateFailed: 0,
	}
	for _, b := range c.agent.allBuilds() {
		b.mu.Lock()
		counts[b.state]++
		b.mu.Unlock()
	}
	for state, n := range counts {
		ch <- prometheus.MustNewConstMetric(buildsDesc, prometheus.GaugeValue, float64(n), state)
	}
}
