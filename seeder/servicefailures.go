package seeder

import (
	"cmp"
	"slices"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
)

const (
	// maxLogged bounds the failures of one region and deployment that are written into the
	// table; the rest is counted by reason.
	maxLogged = 1000
	// maxReasons bounds the reasons that are told apart, maxShown those that are shown.
	maxReasons, maxShown = 200, 20
	// logBatch bounds the failures of one write.
	logBatch = 100
)

// failures are those of the newest deployment.
type failures struct {
	deployment string
	groups     map[[2]string]*api.FailureGroup // by phase and error
	logged     map[string]int                  // by region
	waiting    map[string]map[string]goal.Failure
}

// add counts failures, and keeps some for the table: of each host the newest.
func (f *failures) add(region string, d *deployment.Deployment, list []goal.Failure) {
	if d == nil || len(list) == 0 {
		return
	}
	if f.deployment != d.ID {
		*f = failures{
			deployment: d.ID, groups: make(map[[2]string]*api.FailureGroup), logged: make(map[string]int),
			waiting: make(map[string]map[string]goal.Failure),
		}
	}
	for _, e := range list {
		reason := [2]string{e.Phase, e.Error}
		g := f.groups[reason]
		if g == nil {
			if len(f.groups) >= maxReasons {
				reason = [2]string{"", "other reasons"}
				g = f.groups[reason]
			}
			if g == nil {
				g = &api.FailureGroup{Phase: reason[0], Error: reason[1]}
				f.groups[reason] = g
			}
		}
		g.Hosts++
		g.Example, g.Output = e.Host, e.Output
		of := f.waiting[region]
		if of == nil {
			of = make(map[string]goal.Failure)
			f.waiting[region] = of
		}
		if _, again := of[e.Host]; !again {
			if f.logged[region] >= maxLogged {
				continue
			}
			f.logged[region]++
		}
		of[e.Host] = e
	}
}

// next are failures for the table, of one region; none where all are written.
func (f *failures) next() (region, id string, list []goal.Failure) {
	for name, of := range f.waiting {
		for host, e := range of {
			if len(list) == logBatch {
				break
			}
			list = append(list, e)
			delete(of, host)
		}
		if len(list) > 0 {
			return name, f.deployment, list
		}
	}
	return "", "", nil
}

// shown are the reasons, the most frequent first.
func (f *failures) shown() (out []api.FailureGroup) {
	for _, g := range f.groups {
		out = append(out, *g)
	}
	slices.SortFunc(out, func(x, y api.FailureGroup) int {
		return cmp.Or(cmp.Compare(y.Hosts, x.Hosts), cmp.Compare(x.Phase, y.Phase), cmp.Compare(x.Error, y.Error))
	})
	return out[:min(len(out), maxShown)]
}
