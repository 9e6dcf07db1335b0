package seeder

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// maxProgress bounds the executions that have a metric of their own.
	maxProgress = 20
	// maxBuckets bounds the destinations that have; a request may name any bucket.
	// The others share otherBuckets, which no bucket can be called.
	maxBuckets   = announce.MaxDestinations
	otherBuckets = "OTHER"
	// superseded is an end that is no status of the table.
	superseded = "SUPERSEDED"
)

var (
	// arrivalTimes has the half hour that people wait before they ask.
	arrivalTimes = []float64{1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200}
	pullTimes    = prometheus.ExponentialBuckets(0.0625, 2, 16)
	// announceTimes end with what a member that does not answer may take.
	announceTimes = prometheus.ExponentialBuckets(0.001, 2, 15)
)

// metrics is what the seeder counts as it happens. The rest is read when it is asked
// for.
type metrics struct {
	ended         *prometheus.CounterVec
	arrivals      *prometheus.HistogramVec
	failures      *prometheus.CounterVec
	pulls         prometheus.Histogram
	announcements prometheus.Histogram
	folded        *prometheus.CounterVec
	pollFailures  prometheus.Counter
	lastPoll      prometheus.Gauge
	// unread are the objects of the last listing that could not be taken up,
	// unreadFailures all the tries that failed.
	unread         prometheus.Gauge
	unreadFailures prometheus.Counter
	// repaired are bytes read again for what the disk has damaged.
	repaired atomic.Int64

	// mu keeps changes of the index apart, so that each is counted once.
	mu      sync.Mutex
	buckets map[string]bool // that have a label of their own
}

func newMetrics(destinations []string) *metrics {
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: "landfall_" + name, Help: help, Buckets: buckets}
	}
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Name: "landfall_" + name, Help: help}
	}
	m := &metrics{
		ended: prometheus.NewCounterVec(counter("executions_ended_total",
			"Executions that have ended, by status; one that is sent again may end again."), []string{"status"}),
		arrivals: prometheus.NewHistogramVec(histogram("arrival_seconds",
			"From the start of an execution to the arrival in a destination, by the seeder's clock.", arrivalTimes), []string{"bucket"}),
		failures: prometheus.NewCounterVec(counter("destination_failures_total",
			"Destinations of executions that have failed, those cancelled by request left out."), []string{"bucket"}),
		pulls: prometheus.NewHistogram(histogram("pull_seconds",
			"Pulls of builds from their source bucket, hashing included.", pullTimes)),
		announcements: prometheus.NewHistogram(histogram("announce_seconds",
			"From an announcement to its delivery to the last member that could be reached.", announceTimes)),
		folded: prometheus.NewCounterVec(counter("arrivals_folded_total",
			"Arrivals in rows of their own that the seeder has read, by outcome: counted in the execution's item, or refused since they cannot be so."), []string{"outcome"}),
		pollFailures: prometheus.NewCounter(counter("poll_failures_total",
			"Listings of the global bucket that failed after all of the SDK's tries.")),
		lastPoll: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "landfall_poll_last_success_timestamp_seconds",
			Help: "When the global bucket was last listed, in seconds since 1970; 0 before.",
		}),
		unread: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "landfall_unread_objects",
			Help: "Objects of the global bucket for which no execution could be begun; they are tried again at growing intervals.",
		}),
		unreadFailures: prometheus.NewCounter(counter("unread_object_failures_total",
			"Tries to begin an execution for an object of the global bucket that failed.")),
		buckets: make(map[string]bool),
	}
	for _, status := range []string{string(ledger.Completed), string(ledger.Failed), string(ledger.Cancelled), superseded} {
		m.ended.WithLabelValues(status)
	}
	for _, outcome := range []string{"counted", "refused"} {
		m.folded.WithLabelValues(outcome)
	}
	m.show(destinations)
	return m
}

// show has the metrics of these destinations begin at zero, so that the first
// failure is an increase.
func (m *metrics) show(destinations []string) {
	for _, bucket := range destinations {
		label := m.bucket(bucket)
		m.arrivals.WithLabelValues(label)
		m.failures.WithLabelValues(label)
	}
}

// bucket is the label of a destination.
func (m *metrics) bucket(name string) string {
	if !m.buckets[name] && len(m.buckets) >= maxBuckets {
		return otherBuckets
	}
	m.buckets[name] = true
	return name
}

// put takes a record into the index and counts what is new in it.
func (s *Seeder) put(r *ledger.Record) {
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	before := s.index.newest(r.Key)
	s.index.put(r)
	s.metrics.changed(before, s.index.newest(r.Key), time.Now())
}

// changed counts what has happened between two records of one key. What the table
// said before this process began, and before is nil, was counted by another.
func (m *metrics) changed(before, after *ledger.Record, now time.Time) {
	if after.Foreign {
		return
	}
	if after.Status == ledger.InProgress {
		m.show(after.Destinations)
	}
	if before == nil {
		return
	}
	if before.ExecutionID != after.ExecutionID {
		if before.Status == ledger.InProgress && !before.Foreign {
			m.ended.WithLabelValues(superseded).Inc()
		}
		return
	}
	for _, bucket := range after.Successful {
		if !slices.Contains(before.Successful, bucket) {
			m.arrivals.WithLabelValues(m.bucket(bucket)).Observe(max(0, now.Sub(after.StartTime).Seconds()))
		}
	}
	for _, bucket := range after.Failed {
		if !slices.Contains(before.Failed, bucket) && !after.Cancelled(bucket) {
			m.failures.WithLabelValues(m.bucket(bucket)).Inc()
		}
	}
	if after.Status != before.Status && after.Status != ledger.InProgress {
		m.ended.WithLabelValues(string(after.Status)).Inc()
	}
}

// polled takes note of a listing of the global bucket.
func (m *metrics) polled(err error) {
	if err != nil {
		m.pollFailures.Inc()
		return
	}
	m.lastPoll.SetToCurrentTime()
}

// registry is what /metrics shows.
func (s *Seeder) registry() *prometheus.Registry {
	r := web.NewRegistry(s.cfg.Version, s.isReady)
	m := s.metrics
	r.MustRegister(
		gossip.Collector(s.gossip), cache.Collector(s.cfg.Cache), swarm.Collector(s.swarm), ledger.Collector(s.cfg.Ledger), arrivals.Collector(s.cfg.Arrivals), limits.Collector(s.cfg.Limits),
		m.ended, m.arrivals, m.failures, m.pulls, m.announcements, m.folded, m.pollFailures, m.lastPoll,
		m.unread, m.unreadFailures,
		collector{s}, serviceCollector{s.servicesView},
	)
	if s.cfg.Notify != nil {
		r.MustRegister(notify.Collector(s.cfg.Notify))
	}
	if s.cfg.AWSMetrics != nil {
		r.MustRegister(s.cfg.AWSMetrics)
	}
	return r
}

var (
	executionsDesc = prometheus.NewDesc("landfall_executions", "Executions in the table, by status.", []string{"status"}, nil)
	unfinishedDesc = prometheus.NewDesc("landfall_unfinished_destinations", "Destinations that running executions have still to reach.", nil, nil)
	oldestDesc     = prometheus.NewDesc("landfall_oldest_execution_age_seconds", "Time since the start of the oldest running execution; 0 when none is.", nil, nil)
	progressDesc   = prometheus.NewDesc("landfall_execution_progress_ratio", "How much of an execution has landed, over all destinations, for the 20 newest executions.", []string{"execution_id", "key"}, nil)
	agentsDesc     = prometheus.NewDesc("landfall_destination_agents", "Living agents that serve each of --destinations and trust this seeder's key.", []string{"bucket"}, nil)
	distrustDesc   = prometheus.NewDesc("landfall_distrusting_agents", "Living agents of each of --destinations that do not trust this seeder's key.", []string{"bucket"}, nil)
	itemsDesc      = prometheus.NewDesc("landfall_table_items", "Items that the table had when the seeder read it at its start: its own executions, those of others, and skipped items that are no executions.", []string{"kind"}, nil)
	readDesc       = prometheus.NewDesc("landfall_source_read_bytes_total", "Bytes of builds read from source buckets: by the seeder, or by an agent that no peer serves.", nil, nil)
)

// collector reads what is the case when it is asked.
type collector struct{ seeder *Seeder }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{executionsDesc, unfinishedDesc, oldestDesc, progressDesc, agentsDesc, distrustDesc, itemsDesc, readDesc} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.seeder
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for status, n := range s.index.countByStatus() {
		gauge(executionsDesc, float64(n), string(status))
	}
	pending, age := 0, time.Duration(0)
	for _, r := range s.index.running() {
		pending += len(r.Pending())
		age = max(age, time.Since(r.StartTime))
	}
	gauge(unfinishedDesc, float64(pending))
	gauge(oldestDesc, age.Seconds())
	newest, _ := s.index.page(maxProgress, "", matching(nil))
	for _, e := range newest {
		gauge(progressDesc, progressOf(e), e.ExecutionID, strings.ToValidUTF8(e.Key, "\uFFFD"))
	}
	gauge(itemsDesc, float64(s.items.own.Load()), "own")
	gauge(itemsDesc, float64(s.items.others.Load()), "others")
	gauge(itemsDesc, float64(s.items.skipped.Load()), "skipped")
	agents, distrusting := make(map[string]int), make(map[string]int)
	for _, m := range s.gossip.Members() {
		switch {
		case m.Role != gossip.Agent || m.Age() != "":
		case s.trustedBy(m):
			agents[m.Bucket]++
		default:
			distrusting[m.Bucket]++
		}
	}
	for _, bucket := range slices.Compact(slices.Sorted(slices.Values(s.cfg.Destinations))) {
		gauge(agentsDesc, float64(agents[bucket]), bucket)
		gauge(distrustDesc, float64(distrusting[bucket]), bucket)
	}
	ch <- prometheus.MustNewConstMetric(readDesc, prometheus.CounterValue, float64(s.puller.BytesRead()+s.metrics.repaired.Load()))
}

// progressOf is the landed share of all bytes that are to land, from 0 to 1.
func progressOf(e api.Execution) float64 {
	if len(e.Destinations) == 0 {
		return 0
	}
	landed := 0.0
	for _, d := range e.Destinations {
		switch {
		case d.State == api.StateLanded:
			landed++
		case e.Size > 0:
			landed += min(1, float64(d.LandedBytes)/float64(e.Size)) // an agent can say anything
		}
	}
	return landed / float64(len(e.Destinations))
}
