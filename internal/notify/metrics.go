package notify

import "github.com/prometheus/client_golang/prometheus"

var noticesDesc = prometheus.NewDesc("landfall_notices_total", "Notices of failed destinations, counted for each receiver, by result.", []string{"result"}, nil)

// Collector reads the notifier's metrics when it is asked.
func Collector(n *Notifier) prometheus.Collector { return collector{n} }

type collector struct{ n *Notifier }

func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- noticesDesc }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	for result, n := range map[string]int64{
		"sent": c.n.sent.Load(), "failed": c.n.failed.Load(), "dropped": c.n.dropped.Load(),
	} {
		ch <- prometheus.MustNewConstMetric(noticesDesc, prometheus.CounterValue, float64(n), result)
	}
}
