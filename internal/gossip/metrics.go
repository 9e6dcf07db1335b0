package gossip

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/identity"
)

var (
	membersDesc = prometheus.NewDesc("landfall_members", "Members of the cluster that are not dead, this one included, by role and state.", []string{"role", "state"}, nil)
	refusedDesc = prometheus.NewDesc("landfall_documents_refused_total", "Announcements and ends from other members that were refused, by reason: signed by a key that is not trusted, malformed, or too many.", []string{"reason"}, nil)
	joinDesc    = prometheus.NewDesc("landfall_join_unreached", "Addresses of --join at which no member is reached.", nil, nil)
	keptOutDesc = prometheus.NewDesc("landfall_members_refused_total", "Members refused because there are as many as are allowed.", nil, nil)
	droppedDesc = prometheus.NewDesc("landfall_gossip_dropped_total", "Gossip messages dropped because too many came at once.", nil, nil)
	goalsDesc   = prometheus.NewDesc("landfall_goals_undelivered", "Members that have not got every goal of a service yet that this one sends.", nil, nil)
	countsDesc  = prometheus.NewDesc("landfall_fleet_counts_undelivered", "Seeders that have not got the newest counts of hosts yet that this member sends.", nil, nil)

	certificateEndDesc = prometheus.NewDesc("landfall_certificate_end_timestamp_seconds", "When this member's certificate ends, in seconds since 1970; 0 without TLS.", nil, nil)
	uncertifiedDesc    = prometheus.NewDesc("landfall_certificates_refused_total", "Members and connections turned away for their certificate, by reason.", []string{"reason"}, nil)
	renewalsDesc       = prometheus.NewDesc("landfall_certificate_renewals_total", "Tries to renew this member's certificate, by result.", []string{"result"}, nil)
)

// Collector reads the membership's metrics when it is asked.
func Collector(g *Gossip) prometheus.Collector { return collector{g} }

type collector struct{ g *Gossip }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- membersDesc
	ch <- refusedDesc
	ch <- joinDesc
	ch <- keptOutDesc
	ch <- droppedDesc
	ch <- goalsDesc
	ch <- countsDesc
	ch <- certificateEndDesc
	ch <- uncertifiedDesc
	ch <- renewalsDesc
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	type kind struct {
		role  Role
		state string
	}
	counts := map[kind]int{
		{Seeder, alive}: 0,
		{Agent, alive}:  0,
	}
	for _, m := range c.g.Members() {
		counts[kind{m.Role, m.State}]++
	}
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), string(k.role), k.state)
	}
	refused := &c.g.refusals
	for reason, n := range map[string]int64{
		refusedUntrusted: refused.untrusted.Load(), refusedInvalid: refused.invalid.Load(), refusedFull: refused.full.Load(),
	} {
		ch <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(n), reason)
	}
	c.g.reach.mu.Lock()
	unreached := len(c.g.reach.failures)
	c.g.reach.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(joinDesc, prometheus.GaugeValue, float64(unreached))
	ch <- prometheus.MustNewConstMetric(keptOutDesc, prometheus.CounterValue, float64(c.g.roster.refusals()))
	ch <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(c.g.inbox.dropped.Load()))
	ch <- prometheus.MustNewConstMetric(goalsDesc, prometheus.GaugeValue, float64(c.g.fleet.goals.behind()))
	ch <- prometheus.MustNewConstMetric(countsDesc, prometheus.GaugeValue, float64(c.g.fleet.counts.behind()))
	end := 0.0
	if own := c.g.cfg.Identity; own != nil {
		end = float64(own.Expires().Unix())
	}
	ch <- prometheus.MustNewConstMetric(certificateEndDesc, prometheus.GaugeValue, end)
	for _, r := range identity.Reasons {
		ch <- prometheus.MustNewConstMetric(uncertifiedDesc, prometheus.CounterValue, float64(c.g.cfg.Identity.Refused(r)), string(r))
	}
	ch <- prometheus.MustNewConstMetric(renewalsDesc, prometheus.CounterValue, float64(c.g.renewalsDone.Load()), "done")
	ch <- prometheus.MustNewConstMetric(renewalsDesc, prometheus.CounterValue, float64(c.g.renewalsFailed.Load()), "failed")
}
