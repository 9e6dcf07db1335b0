package agent

import "github.com/prometheus/client_golang/prometheus"

var (
	keptDesc   = prometheus.NewDesc("landfall_fleet_builds", "Builds that goals name, as target or as stable: whole are handed to hosts in full, lacking those of which something is not here yet.", []string{"state"}, nil)
	handedDesc = prometheus.NewDesc("landfall_fleet_pieces_total", "Pieces offered to hosts: first copies, and second ones of what others have, for hosts to which nothing came.", []string{"copy"}, nil)
	placesDesc = prometheus.NewDesc("landfall_fleet_peers", "Hosts to which builds are handed out at the moment.", nil, nil)
)

// Describe and Collect make it a prometheus.Collector.
func (k *kept) Describe(ch chan<- *prometheus.Desc) {
	ch <- keptDesc
	ch <- handedDesc
	ch <- placesDesc
}

// Collect reads the counters.
func (k *kept) Collect(ch chan<- prometheus.Metric) {
	k.mu.Lock()
	wanted := len(k.wanted)
	k.mu.Unlock()
	whole, handed := int(k.whole.Load()), k.swarm.Fleet()
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	count := func(n int, of string) {
		ch <- prometheus.MustNewConstMetric(handedDesc, prometheus.CounterValue, float64(n), of)
	}
	gauge(keptDesc, whole, "whole")
	gauge(keptDesc, max(0, wanted-whole), "lacking")
	gauge(placesDesc, handed.Hosts)
	count(handed.Handed, "first")
	count(handed.Second, "second")
}
