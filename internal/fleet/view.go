package fleet

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// view is what others may know.
func (m *machine) view() *View {
	v := &View{Hosts: len(m.hosts), Connected: m.connected, stats: m.stats}
	for _, s := range m.services {
		n := m.counted(s)
		n.Failures = nil
		v.Services = append(v.Services, n)
		v.Leaves += s.switching
		if m.counter == nil {
			continue
		}
		if why, _ := m.counter.why(s.name, m.now); why != "" {
			if v.Waits == nil {
				v.Waits = make(map[string]string)
			}
			v.Waits[s.name] = why
		}
	}
	slices.SortFunc(v.Services, func(a, b goal.Counts) int { return strings.Compare(a.Service, b.Service) })
	return v
}

// collector is the fleet's metrics.
type collector struct{ f *Fleet }

// Collector is what /metrics shows of the fleet.
func Collector(f *Fleet) prometheus.Collector { return collector{f} }

var (
	connectedDesc = prometheus.NewDesc("landfall_fleet_hosts_connected", "Hosts that have a stream to this agent.", nil, nil)
	hostsDesc     = prometheus.NewDesc("landfall_fleet_hosts", "Services of this agent's hosts, by state: a host that runs two counts twice.", []string{"state"}, nil)
	leavesDesc    = prometheus.NewDesc("landfall_fleet_switching", "Services of hosts that have leave to switch, or do.", nil, nil)
	streamsDesc   = prometheus.NewDesc("landfall_fleet_streams_total", "Streams of hosts, by what became of them: joined is all, left those that ended in order, lost those that did not, refused those that there was none of.", []string{"result"}, nil)
	givenDesc     = prometheus.NewDesc("landfall_fleet_leaves_total", "Leave to switch that was given to hosts.", nil, nil)
	lapsedDesc    = prometheus.NewDesc("landfall_fleet_leaves_lapsed_total", "Leave to switch that hosts did not use, and that others got.", nil, nil)
	failuresDesc  = prometheus.NewDesc("landfall_fleet_failures_total", "Failures of hosts to switch, or to stay healthy afterwards.", nil, nil)
	slowedDesc    = prometheus.NewDesc("landfall_fleet_slowed_total", "Messages after which a host was not read for a moment, since it had sent more than it may.", nil, nil)
	messagesDesc  = prometheus.NewDesc("landfall_fleet_messages_total", "Messages over streams of hosts, down to them and up from them, by kind.", []string{"direction", "kind"}, nil)
	bytesDesc     = prometheus.NewDesc("landfall_fleet_bytes_total", "Bytes of those messages, without what HTTP and TLS add.", []string{"direction"}, nil)
	newestDesc    = prometheus.NewDesc("landfall_fleet_goals_newest_timestamp_seconds", "When a seeder last said that the goals here are the newest, in seconds since 1970; 0 while none has.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{connectedDesc, hostsDesc, leavesDesc, streamsDesc, givenDesc, lapsedDesc, failuresDesc, slowedDesc, messagesDesc, bytesDesc, newestDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	v := c.f.View()
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	counter := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge(connectedDesc, float64(v.Connected))
	for _, state := range api.HostStates() {
		n := 0
		for _, s := range v.Services {
			n += Of(s, state)
		}
		gauge(hostsDesc, float64(n), state)
	}
	gauge(leavesDesc, float64(v.Leaves))
	counter(streamsDesc, v.stats.joined, "joined")
	counter(streamsDesc, v.stats.left, "left")
	counter(streamsDesc, v.stats.lost, "lost")
	counter(streamsDesc, v.stats.refused+c.f.refused.Load(), "refused")
	counter(givenDesc, v.stats.leaves)
	counter(lapsedDesc, v.stats.leavesLapsed)
	counter(failuresDesc, v.stats.failures)
	counter(slowedDesc, c.f.slowed.Load())
	for _, kind := range hostwire.Kinds() {
		sent, received := c.f.passed.Messages(kind)
		counter(messagesDesc, sent, "down", kind)
		counter(messagesDesc, received, "up", kind)
	}
	sent, received := c.f.passed.Bytes()
	counter(bytesDesc, sent, "down")
	counter(bytesDesc, received, "up")
	newest := 0.0
	if age, known, _ := c.f.cfg.Shelf.Age(c.f.cfg.clock()); known {
		newest = float64(c.f.cfg.clock().Add(-age).UnixMilli()) / 1000
	}
	gauge(newestDesc, newest)
}

// Of is how many hosts are in a state.
func Of(c goal.Counts, state string) int {
	switch state {
	case goal.Waiting:
		return c.Waiting
	case goal.Ready:
		return c.Ready
	case goal.Switching:
		return c.Switching
	case goal.Healthy:
		return c.Healthy
	case goal.Failed:
		return c.Failed
	case goal.Absent:
		return c.Absent
	case goal.Sick:
		return c.Sick
	}
	return 0
}
