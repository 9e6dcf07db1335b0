package cache

import "github.com/prometheus/client_golang/prometheus"

var (
	sizeDesc    = prometheus.NewDesc("landfall_cache_bytes", "Length of the builds in the cache, whole or not.", nil, nil)
	limitDesc   = prometheus.NewDesc("landfall_cache_limit_bytes", "What --cache-size keeps the finished builds below.", nil, nil)
	buildsDesc  = prometheus.NewDesc("landfall_cache_builds", "Builds in the cache, whole or not.", nil, nil)
	evictedDesc = prometheus.NewDesc("landfall_cache_evictions_total", "Builds that had to leave the cache.", nil, nil)
	refusedDesc = prometheus.NewDesc("landfall_cache_refusals_total", "How often a build found no room on the disk, every try counted.", nil, nil)
	freeDesc    = prometheus.NewDesc("landfall_disk_free_bytes", "Free space of the cache's file system.", nil, nil)
)

// Collector reads the cache's metrics when it is asked.
func Collector(c *Cache) prometheus.Collector { return collector{c} }

type collector struct{ c *Cache }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sizeDesc, limitDesc, buildsDesc, evictedDesc, refusedDesc, freeDesc} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	c.c.mu.Lock()
	size, builds, evicted, refused := c.c.bytes, len(c.c.builds), c.c.evicted, c.c.refused
	c.c.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	gauge(sizeDesc, float64(size))
	gauge(limitDesc, float64(c.c.limit))
	gauge(buildsDesc, float64(builds))
	ch <- prometheus.MustNewConstMetric(evictedDesc, prometheus.CounterValue, float64(evicted))
	ch <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(refused))
	// Without an answer it is left out: an error would take all others along.
	if free, err := c.c.free(); err == nil {
		gauge(freeDesc, float64(free))
	}
}
