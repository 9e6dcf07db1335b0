package ledger

import "github.com/prometheus/client_golang/prometheus"

var (
	errorsDesc    = prometheus.NewDesc("landfall_table_errors_total", "Calls of the table that failed after all of the SDK's tries, without conflicts.", nil, nil)
	conflictsDesc = prometheus.NewDesc("landfall_table_conflicts_total", "Conditional writes that found the item changed by another, and were tried again.", nil, nil)
)

// Collector reads the table's metrics when it is asked.
func Collector(l *Ledger) prometheus.Collector { return collector{l} }

type collector struct{ l *Ledger }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- errorsDesc
	ch <- conflictsDesc
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(errorsDesc, prometheus.CounterValue, float64(c.l.errors.Load()))
	ch <- prometheus.MustNewConstMetric(conflictsDesc, prometheus.CounterValue, float64(c.l.conflicts.Load()))
}
