package seeder

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/api"
)

const (
	// maxServiceLabels bounds the services that have a metric of their own, the first by
	// name; the others share otherServices, which none can be called.
	maxServiceLabels = 32
	otherServices    = "OTHER"
)

var (
	servicesDesc      = prometheus.NewDesc("landfall_services", "Services by the state of their newest deployment.", []string{"deployment"}, nil)
	serviceHostsDesc  = prometheus.NewDesc("landfall_service_hosts", "Hosts of services by state, as agents count them: the first 32 services by name, and OTHER for the rest.", []string{"service", "state"}, nil)
	deploymentAgeDesc = prometheus.NewDesc("landfall_oldest_deployment_age_seconds", "Age of the oldest deployment that is under way, in seconds; 0 without one.", nil, nil)
	failingDesc       = prometheus.NewDesc("landfall_services_failing", "Services that the seeder cannot go on with, such as for a table that cannot be written.", nil, nil)
	onTargetDesc      = prometheus.NewDesc("landfall_service_hosts_on_target", "Hosts of services that run the target of its goal.", []string{"service"}, nil)
)

// deploymentStates are what landfall_services tells apart.
func deploymentStates() []string {
	return []string{
		api.DeploymentGate, api.DeploymentWave, api.DeploymentBaking, api.DeploymentPaused, api.DeploymentBack,
		api.DeploymentDone, api.DeploymentStopped, api.DeploymentWentBack,
	}
}

// serviceCollector reads what services do when it is asked.
type serviceCollector struct{ list func() api.Services }

func (c serviceCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- servicesDesc
	ch <- serviceHostsDesc
	ch <- onTargetDesc
	ch <- deploymentAgeDesc
	ch <- failingDesc
}

func (c serviceCollector) Collect(ch chan<- prometheus.Metric) {
	value := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) { value(d, float64(v), labels...) }
	states := make(map[string]int)
	others := api.HostCounts{}
	failing, oldest := 0, time.Duration(0)
	show := func(label string, c api.HostCounts) {
		for _, state := range api.HostStates() {
			gauge(serviceHostsDesc, c.Of(state), label, state)
		}
		gauge(onTargetDesc, c.Target, label)
	}
	for i, s := range c.list().Services {
		if s.Deployment != nil {
			states[s.Deployment.State]++
			if !s.Deployment.Ended() {
				oldest = max(oldest, time.Since(s.Deployment.StartedAt))
			}
		}
		if s.Error != "" {
			failing++
		}
		if i < maxServiceLabels {
			show(s.Service, s.Hosts)
		} else {
			others.Add(s.Hosts)
		}
	}
	show(otherServices, others)
	value(deploymentAgeDesc, oldest.Seconds())
	gauge(failingDesc, failing)
	for _, state := range deploymentStates() {
		gauge(servicesDesc, states[state], state)
	}
}
