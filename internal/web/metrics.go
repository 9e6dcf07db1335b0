package web

import (
	"regexp"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry has the metrics of any process of ours: Go's and the process's own,
// its version, and whether it is ready, as Options.Ready has it. The roles add
// theirs.
func NewRegistry(version string, ready func() error) *prometheus.Registry {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "landfall_build_info",
		Help:        "Always 1; the labels name the version.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	info.Set(1)
	r.MustRegister(
		// Percent is no unit of Prometheus, and nobody looks at GOGC.
		collectors.NewGoCollector(collectors.WithoutGoCollectorRuntimeMetrics(regexp.MustCompile(`^/gc/gogc:percent$`))),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		info,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "landfall_ready",
			Help: "1 when the process is ready, as /readyz says, else 0.",
		}, func() float64 {
			if ready() != nil {
				return 0
			}
			return 1
		}),
	)
	return r
}
