package cache

import "github.com/prometheus/client_golang/prometheus"

var sizeDesc = prometheus.NewDesc("landfall_cache_bytes", "Length of the builds in the cache, whole or not.", nil, nil)

// Collector reads the cache's metrics when it is asked.
func Collector(c *Cache) prometheus.Collector { return collector{c} }

type collector struct{ c *Cache }

func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- sizeDesc }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(sizeDesc, prometheus.GaugeValue, float64(c.c.Size()))
}
