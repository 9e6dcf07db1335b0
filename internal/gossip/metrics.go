package gossip

import "github.com/prometheus/client_golang/prometheus"

var (
	membersDesc = prometheus.NewDesc("landfall_members", "Living members of the cluster, this one included.", nil, nil)
	droppedDesc = prometheus.NewDesc("landfall_gossip_dropped_total", "Messages not worked on because too many came at once.", nil, nil)
)

// Collector reads the membership's metrics when it is asked.
func Collector(g *Gossip) prometheus.Collector { return collector{g} }

type collector struct{ g *Gossip }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- membersDesc
	ch <- droppedDesc
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(len(c.g.Members())))
	ch <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(c.g.dropped.Load()))
}
