package seeder

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// logHostsWithin bounds the writing of a service's hosts into the table: at a thousand a
	// second it is enough for half a million.
	logHostsWithin = 10 * time.Minute
	// maxLoggings bounds the services whose hosts are written at a time, maxRegionsLogged the
	// regions of one whose agents are asked then: half of the questions that gossip takes.
	maxLoggings, maxRegionsLogged = 4, 8
	// logHostsRetry is when it may be asked for again.
	logHostsRetry = 30 * time.Second
)

// postHostsLog writes all hosts of a service into the table, and answers when that is done. It
// goes on no longer than somebody waits for it.
func (s *Seeder) postHostsLog(r *http.Request) (int, any, error) {
	if r.ContentLength != 0 {
		if err := web.Read(r, &struct{}{}); err != nil {
			return 0, nil, err
		}
	}
	name := r.PathValue("name")
	view, err := s.serviceView(name)
	if err != nil {
		return 0, nil, err
	}
	if view.Deployment == nil {
		return 0, nil, web.Errorf(http.StatusConflict, "service %s has no deployment yet, under which its hosts are written", name)
	}
	web.About(r, "deploymentId", view.Deployment.DeploymentID)
	if err := s.services.beginLogging(name); err != nil {
		return 0, nil, err
	}
	defer s.services.endLogging(name)
	ctx, cancel := context.WithTimeout(r.Context(), logHostsWithin)
	defer cancel()
	out, err := s.logHosts(ctx, name, view.Deployment.DeploymentID)
	if err != nil {
		if ctx.Err() != nil && r.Context().Err() == nil {
			err = fmt.Errorf("not all were written within %s: %w", logHostsWithin, err)
		}
		return 0, nil, &web.Error{Code: http.StatusServiceUnavailable, RetryAfter: logHostsRetry, Err: fmt.Errorf("hosts of %s, of which %d were written: %w", name, out.Hosts, err)}
	}
	return http.StatusOK, out, nil
}

// beginLogging takes the right to write a service's hosts, which one request has at a time.
func (o *serviceOwners) beginLogging(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.logging[name]:
		return web.Errorf(http.StatusConflict, "the hosts of %s are being written already", name)
	case len(o.logging) >= maxLoggings:
		return &web.Error{Code: http.StatusServiceUnavailable, RetryAfter: logHostsRetry, Err: fmt.Errorf("the hosts of %d services are being written already, ask again later", maxLoggings)}
	}
	o.logging[name] = true
	return nil
}

func (o *serviceOwners) endLogging(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.logging, name)
}

// logHosts writes a service's hosts under a deployment, as the agents know them: each region by
// itself, so that its agents hold up no other. With an error it returns what was written before.
func (s *Seeder) logHosts(ctx context.Context, name, deploymentID string) (*api.HostsLogged, error) {
	living := s.living()
	regions := slices.Sorted(maps.Keys(living))
	logged := make([]regionLogged, len(regions))
	writing := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxRegionsLogged)
	for i, region := range regions {
		most := min(len(living[region])*goal.MaxHostsOfAgent, goal.MaxHosts)
		group.Go(func() error {
			if err := s.logRegion(ctx, name, deploymentID, region, most, writing, &logged[i]); err != nil {
				return fmt.Errorf("%s: %w", region, err)
			}
			return nil
		})
	}
	err := group.Wait()
	out := &api.HostsLogged{DeploymentID: deploymentID, Regions: []api.RegionLogged{}}
	for i, of := range logged {
		out.Hosts += of.hosts
		if of.hosts > 0 {
			out.Regions = append(out.Regions, api.RegionLogged{Region: regions[i], Hosts: of.hosts})
		}
		if of.incomplete {
			out.Unanswered = append(out.Unanswered, regions[i])
		}
	}
	return out, err
}

// regionLogged is what was written of a region: its hosts, and whether some of its agents have
// not said all of theirs.
type regionLogged struct {
	hosts      int
	incomplete bool
}

// logRegion writes the hosts of a region page by page, in turn with others, which writing has
// room for one of: no more than the most that its agents can have.
func (s *Seeder) logRegion(ctx context.Context, name, deploymentID, region string, most int, writing chan struct{}, out *regionLogged) error {
	asked := gossip.HostsQuestion{Service: name, Region: region, Limit: gossip.MaxHosts}
	for {
		page, err := s.hosts(ctx, asked)
		if err != nil {
			return err
		}
		if ctx.Err() != nil { // for which agents that have not answered were not waited for
			return context.Cause(ctx)
		}
		out.incomplete = out.incomplete || len(page.Unanswered) > 0
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case writing <- struct{}{}:
		}
		err = s.cfg.Services.LogHosts(ctx, region, deploymentID, loggedOf(page.Hosts))
		<-writing
		if err != nil {
			return err
		}
		out.hosts += len(page.Hosts)
		switch {
		case page.Next == "":
			return nil
		case out.hosts >= most: // an agent names what there is not
			out.incomplete = true
			return nil
		}
		if asked.After, err = gossip.ParseHostPlace(page.Next); err != nil {
			return err
		}
	}
}

// loggedOf is what the table gets of hosts.
func loggedOf(hosts []api.HostView) (out []services.Host) {
	for i := range hosts {
		h := &hosts[i]
		l := services.Host{Name: h.Host, Zone: h.Zone, State: h.State, Running: h.Running, Goal: h.Version, Phase: h.Phase, Error: h.Error}
		if h.SeenAt != nil {
			l.Seen = *h.SeenAt
		}
		out = append(out, l)
	}
	return out
}
