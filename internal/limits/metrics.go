package limits

import "github.com/prometheus/client_golang/prometheus"

var (
	limitDesc = prometheus.NewDesc("landfall_rate_limit_bytes_per_second",
		"What bytes of each direction may pass, over all builds; 0 for no limit.", []string{"direction"}, nil)
	waitDesc = prometheus.NewDesc("landfall_rate_limit_wait_seconds_total",
		"How long transfers waited for the limit of their direction, the times of all that waited beside each other added up.", []string{"direction"}, nil)
)

// Collector shows the limits, and what was waited for them.
func Collector(l *Limits) prometheus.Collector { return collector{l} }

type collector struct{ l *Limits }

func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- limitDesc; ch <- waitDesc }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, d := range c.l.Directions() {
		limiter := c.l.Of(d)
		ch <- prometheus.MustNewConstMetric(limitDesc, prometheus.GaugeValue, float64(limiter.Rate()), string(d))
		ch <- prometheus.MustNewConstMetric(waitDesc, prometheus.CounterValue, limiter.Waited().Seconds(), string(d))
	}
}
