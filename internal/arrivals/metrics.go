package arrivals

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	errorsDesc    = prometheus.NewDesc("landfall_arrivals_errors_total", "Calls of the table of arrivals that failed after all of the SDK's tries, without conflicts.", nil, nil)
	conflictsDesc = prometheus.NewDesc("landfall_arrivals_conflicts_total", "Conditional writes of rows that found the row changed by another agent, and were tried again.", nil, nil)
	writesDesc    = prometheus.NewDesc("landfall_arrivals_writes_total", "Writes to the table of arrivals: a landing taken, its result, a beat of a process that lands, the lease of who counts the hosts that switch.", []string{"kind"}, nil)
)

// counts are those of a table.
type counts struct {
	errors, conflicts               atomic.Int64
	landings, results, beat, leases atomic.Int64
}

func (c *counts) of(kind string) *atomic.Int64 {
	switch kind {
	case "landing":
		return &c.landings
	case "result":
		return &c.results
	case "lease":
		return &c.leases
	}
	return &c.beat
}

func (c *counts) wrote(kind string) { c.of(kind).Add(1) }

// Collector reads the table's metrics when it is asked; t may be nil.
func Collector(t *Table) prometheus.Collector { return collector{t} }

type collector struct{ t *Table }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- errorsDesc
	ch <- conflictsDesc
	ch <- writesDesc
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	if c.t == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(errorsDesc, prometheus.CounterValue, float64(c.t.counts.errors.Load()))
	ch <- prometheus.MustNewConstMetric(conflictsDesc, prometheus.CounterValue, float64(c.t.counts.conflicts.Load()))
	for _, kind := range []string{"landing", "result", "beat", "lease"} {
		ch <- prometheus.MustNewConstMetric(writesDesc, prometheus.CounterValue, float64(c.t.counts.of(kind).Load()), kind)
	}
}
