package gossip

import "github.com/prometheus/client_golang/prometheus"

var (
	membersDesc = prometheus.NewDesc("landfall_members", "Members of the cluster that are not dead, this one included, by role and state.", []string{"role", "state"}, nil)
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
	type kind struct {
		role  Role
		state string
	}
	counts := map[kind]int{
		{Seeder, "alive"}: 0, {Seeder, "suspect"}: 0,
		{Agent, "alive"}: 0, {Agent, "suspect"}: 0,
	}
	for _, m := range c.g.Members() {
		counts[kind{m.Role, m.State}]++
	}
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), string(k.role), k.state)
	}
	ch <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(c.g.dropped.Load()))
}
