package landing

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// durations are the bounds of histograms of steps, in seconds: from a table's answer
// to a large build over a slow link.
var durations = prometheus.ExponentialBuckets(0.0625, 2, 16)

// Metrics counts what all landings of a process do. A nil one counts nothing.
type Metrics struct {
	landing, recording, part prometheus.Histogram
	bytes, failures, retries prometheus.Counter
}

// NewMetrics begins at zero.
func NewMetrics() *Metrics {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "landfall_" + name, Help: help, Buckets: durations})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "landfall_" + name, Help: help})
	}
	return &Metrics{
		landing:   histogram("landing_seconds", "From the last verified piece, or the beginning of the landing where that was later, to the object in the regional bucket."),
		recording: histogram("recording_seconds", "From the object in the regional bucket to its arrival in the table."),
		part:      histogram("part_upload_seconds", "Uploads of one part that succeeded, one try."),
		bytes:     counter("landed_bytes_total", "Bytes of parts that the regional bucket has taken."),
		failures:  counter("part_upload_failures_total", "Uploads of one part that failed, every try counted."),
		retries:   counter("part_upload_retries_total", "Uploads of one part that were tried again after a failure."),
	}
}

// Describe is prometheus.Collector's.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect is prometheus.Collector's.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.landing, m.recording, m.part, m.bytes, m.failures, m.retries} {
		c.Collect(ch)
	}
}

func (m *Metrics) landed(d time.Duration) {
	if m != nil {
		m.landing.Observe(d.Seconds())
	}
}

func (m *Metrics) recorded(d time.Duration) {
	if m != nil {
		m.recording.Observe(d.Seconds())
	}
}

// sent counts one try of a part of so many bytes; again when it is not the first.
func (m *Metrics) sent(d time.Duration, bytes int64, again bool, err error) {
	if m == nil {
		return
	}
	if again {
		m.retries.Inc()
	}
	if err != nil {
		m.failures.Inc()
		return
	}
	m.part.Observe(d.Seconds())
	m.bytes.Add(float64(bytes))
}
