package seeder

import (
	"cmp"
	"slices"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/services"
)

const (
	// maxLogged bounds the failures of one region and deployment that are written into the
	// table, each with its output; the rest is counted there by reason.
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
	regions    map[string]*regionFailures
}

// regionFailures are those of one region, on their way into the table.
type regionFailures struct {
	// before is how many hosts the table has had when this seeder began; below 0 while that is
	// not known.
	before  int
	written map[string]bool         // hosts that it has since
	waiting map[string]goal.Failure // by host
	// rest are counted alone; restDue: the table has fewer.
	rest    map[[2]string]*services.Rest
	restDue bool
}

// reasonIn is under which reason a failure is counted, so that there are not too many.
func reasonIn[T any](known map[[2]string]T, phase, text string) [2]string {
	reason := [2]string{phase, text}
	if _, ok := known[reason]; !ok && len(known) >= maxReasons {
		return [2]string{"", "other reasons"}
	}
	return reason
}

// add counts failures, and keeps some for the table: of each host the newest.
func (f *failures) add(region string, d *deployment.Deployment, list []goal.Failure) {
	if d == nil || len(list) == 0 {
		return
	}
	if f.deployment != d.ID {
		*f = failures{deployment: d.ID, groups: make(map[[2]string]*api.FailureGroup), regions: make(map[string]*regionFailures)}
	}
	of := f.regions[region]
	if of == nil {
		if len(f.regions) >= goal.MaxRegions {
			return
		}
		of = &regionFailures{before: -1, written: make(map[string]bool), waiting: make(map[string]goal.Failure), rest: make(map[[2]string]*services.Rest)}
		f.regions[region] = of
	}
	for _, e := range list {
		reason := reasonIn(f.groups, e.Phase, e.Error)
		g := f.groups[reason]
		if g == nil {
			g = &api.FailureGroup{Phase: reason[0], Error: reason[1]}
			f.groups[reason] = g
		}
		g.Hosts++
		g.Example, g.Output = e.Host, e.Output
		if _, again := of.waiting[e.Host]; again || len(of.waiting) < maxLogged {
			of.waiting[e.Host] = e
		} else {
			of.countRest(e)
		}
	}
}

func (of *regionFailures) countRest(e goal.Failure) {
	of.addRest(services.Rest{Phase: e.Phase, Error: e.Error, Hosts: 1, Example: e.Host})
	of.restDue = true
}

func (of *regionFailures) addRest(more services.Rest) {
	reason := reasonIn(of.rest, more.Phase, more.Error)
	r := of.rest[reason]
	if r == nil {
		r = &services.Rest{Phase: reason[0], Error: reason[1]}
		of.rest[reason] = r
	}
	r.Hosts += more.Hosts
	r.Example = more.Example
}

// logging is one thing to do about the table of failures, in one region.
type logging struct {
	region, deployment string
	// count: it is to be found out what the table has.
	count bool
	list  []goal.Failure
	rest  []services.Rest
}

// next is what is to be done for the table; false for nothing.
func (f *failures) next() (l logging, ok bool) {
	for region, of := range f.regions {
		l := logging{region: region, deployment: f.deployment}
		if len(of.waiting) > 0 && of.before < 0 {
			l.count = true
			return l, true
		}
		for host, e := range of.waiting {
			if len(l.list) == logBatch {
				break
			}
			delete(of.waiting, host)
			if !of.written[host] && of.before+len(of.written) >= maxLogged {
				of.countRest(e)
				continue
			}
			of.written[host] = true
			l.list = append(l.list, e)
		}
		if len(l.list) == 0 && of.restDue {
			for _, r := range of.rest {
				l.rest = append(l.rest, *r)
			}
			of.restDue = false
		}
		if len(l.list) > 0 || len(l.rest) > 0 {
			return l, true
		}
	}
	return l, false
}

// counted takes what the table has had: how many hosts, and the counts of others.
func (f *failures) counted(l logging, hosts int, rest []services.Rest) {
	of := f.regions[l.region]
	if of == nil || f.deployment != l.deployment {
		return
	}
	of.before = hosts
	for _, r := range rest {
		of.addRest(r)
	}
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
