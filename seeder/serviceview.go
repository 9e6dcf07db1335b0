package seeder

import (
	"fmt"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
)

// shown is the service as HTTP shows it.
func (v *service) shown() api.Service {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.view
}

// planned are the waves of a policy, by the hosts of now.
func (v *service) planned(p deployment.Policy) (out []api.WavePlan) {
	of := v.shown()
	for i, share := range p.Waves {
		for _, r := range of.Regions {
			out = append(out, api.WavePlan{Wave: i + 1, Share: string(share), Region: r.Region, Hosts: share.Of(r.Hosts.Total)})
		}
	}
	return out
}

// publish shows the service as it is now, and then gives the answers that are due.
func (v *service) publish() {
	view := v.look()
	v.mu.Lock()
	v.view = view
	v.mu.Unlock()
	for _, a := range v.answers {
		a.to <- a.err
	}
	v.answers = nil
}

func (v *service) look() api.Service {
	of := v.m.Service()
	d := of.Current
	out := api.Service{Service: v.name, Version: of.Version, Stable: buildView(of.Completed), Regions: []api.ServiceRegion{}, WithoutTable: v.apart.ahead != nil}
	if g := v.goal; g != nil {
		out.Target, out.Issued, out.By, out.Held = buildView(&g.Target), g.Issued, g.By, g.Held
	}
	var apart, newer error
	if a := v.apart.ahead; a != nil {
		apart = fmt.Errorf("goal %d was sent without the table, which has goal %d", a.Service.Version, a.Table)
	}
	if n := v.m.Newer(); n > 0 && n == v.looked {
		newer = fmt.Errorf("hosts follow goal %d, the table has goal %d: it was restored from an older copy; deploy what should run", n, of.Version)
	}
	for _, err := range []error{v.odd, v.trouble, apart, newer} {
		if err != nil {
			out.Error = err.Error()
			break
		}
	}
	for _, name := range v.m.Regions() {
		c, at := v.m.Counts(name)
		r := api.ServiceRegion{Region: name, Hosts: countsView(c.InStates), CountedAt: utc(at), Zones: zonesView(c.Zones)}
		if d != nil {
			of, named := d.Regions[name]
			switch {
			case d.State == deployment.GoingBack || d.State == deployment.WentBack || !named && d.State == deployment.Done:
				r.Open, r.Share = true, 1
			default:
				r.Open, r.Share = of.Open, float64(of.Cut)/float64(goal.Circle)
			}
			r.Skipped, r.Roster = of.Skipped, of.Roster
		}
		out.Regions = append(out.Regions, r)
		out.Hosts.Add(r.Hosts)
	}
	if d == nil {
		return out
	}
	view := viewOf(v.name, d)
	view.State, view.WaitsFor = v.m.State(), v.m.Closed()
	if !d.Over() {
		view.Hosts = out.Hosts
		if waits := strings.Join(v.m.Waits(), "; "); waits != "" && view.Reason != "" {
			view.Reason += "; " + waits
		} else if waits != "" {
			view.Reason = waits
		}
	}
	if v.failures.deployment == d.ID {
		out.Failures = v.failures.shown()
	}
	out.Deployment = &view
	return out
}

func buildView(b *goal.Build) *api.ServiceBuild {
	if b == nil {
		return nil
	}
	return &api.ServiceBuild{Key: b.Key, SourceBucket: b.SourceBucket, ExecutionID: b.ExecutionID, Size: b.Size, SHA256: b.SHA256}
}

func countsView(c goal.InStates) api.HostCounts {
	return api.HostCounts{
		Total: c.Hosts, Waiting: c.Waiting, Ready: c.Ready, Switching: c.Switching, Healthy: c.Healthy,
		Failed: c.Failed, Absent: c.Absent, Sick: c.Sick, Target: c.OnTarget, Stable: c.HoldStable,
	}
}

// zonesView are the largest of a region's zones.
func zonesView(zones []goal.Zone) (out []api.ServiceZone) {
	for _, z := range goal.Largest(zones, goal.MaxZones) {
		out = append(out, api.ServiceZone{Zone: z.Zone, Hosts: countsView(z.InStates)})
	}
	return out
}

// viewOf is a deployment as the table has it.
func viewOf(name string, d *deployment.Deployment) api.Deployment {
	out := api.Deployment{
		DeploymentID: d.ID, Service: name, Kind: d.Kind, State: d.State, Reason: d.Reason,
		Target: buildView(&d.Target), From: buildView(d.Stable), Regions: []string{}, Wave: d.Wave, By: d.By,
		StartedAt: d.Started, WaveAt: utc(d.WaveAt), EndedAt: utc(d.Ended),
		Policy: api.Policy{
			Bake: timeText(d.Policy.Bake), MaxFailed: string(d.Policy.MaxFailed), MaxUnavailable: string(d.Policy.MaxUnavailable),
			Gate: d.Policy.Gate, WaveCheck: d.Policy.WaveCheck, AutoRollback: d.Policy.AutoRollback,
		},
	}
	if d.Policy.GateTimeout > 0 {
		out.Policy.GateTimeout = timeText(d.Policy.GateTimeout)
	}
	for _, w := range d.Policy.Waves {
		out.Policy.Waves = append(out.Policy.Waves, string(w))
	}
	out.Regions = d.Names()
	if d.Counts != nil {
		out.Hosts = countsView(d.Counts.InStates)
	}
	return out
}

// timeText is a time without the zeros at its end: 2m, not 2m0s.
func timeText(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-len(zero)+1]
		}
	}
	return s
}
