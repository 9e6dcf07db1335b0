package swarm

import "github.com/prometheus/client_golang/prometheus"

var (
	badDesc   = prometheus.NewDesc("landfall_bad_peers", "Peers that are left alone now for what they did.", nil, nil)
	bansTotal = prometheus.NewDesc("landfall_bad_peers_total", "How often a peer was found to be bad, by reason.", []string{"reason"}, nil)
)

// Collector reads the swarm's metrics when it is asked.
func Collector(s *Swarm) prometheus.Collector { return collector{s} }

type collector struct{ s *Swarm }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- badDesc
	ch <- bansTotal
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(badDesc, prometheus.GaugeValue, float64(len(c.s.BadPeers())))
	for _, r := range Reasons {
		ch <- prometheus.MustNewConstMetric(bansTotal, prometheus.CounterValue, float64(c.s.conduct.total(r)), string(r))
	}
}
