package seeder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

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
	// maxLoggings bounds the services whose hosts are written at a time.
	maxLoggings = 4
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

// logHosts writes a service's hosts under a deployment, as the agents know them, page by page.
// With an error it returns what was written before.
func (s *Seeder) logHosts(ctx context.Context, name, deploymentID string) (*api.HostsLogged, error) {
	out := &api.HostsLogged{DeploymentID: deploymentID, Regions: []api.RegionLogged{}}
	written := make(map[string]int) // by region
	asked := gossip.HostsQuestion{Service: name, Limit: gossip.MaxHosts}
	for {
		page, err := s.hosts(ctx, asked)
		if err != nil {
			return out, err
		}
		if ctx.Err() != nil { // for which agents that have not answered were not waited for
			return out, context.Cause(ctx)
		}
		out.Unanswered = append(out.Unanswered, page.Unanswered...)
		for hosts := page.Hosts; len(hosts) > 0; {
			region := hosts[0].Region
			n := slices.IndexFunc(hosts, func(h api.HostView) bool { return h.Region != region })
			if n < 0 {
				n = len(hosts)
			}
			if err := s.cfg.Services.LogHosts(ctx, region, deploymentID, loggedOf(hosts[:n])); err != nil {
				return out, err
			}
			written[region] += n
			out.Hosts += n
			hosts = hosts[n:]
		}
		if page.Next == "" {
			break
		}
		if out.Hosts >= goal.MaxHosts {
			return out, errors.New("there are more")
		}
		if asked.After, err = gossip.ParseHostPlace(page.Next); err != nil {
			return out, err
		}
	}
	for _, region := range slices.Sorted(maps.Keys(written)) {
		out.Regions = append(out.Regions, api.RegionLogged{Region: region, Hosts: written[region]})
	}
	slices.Sort(out.Unanswered)
	out.Unanswered = slices.Compact(out.Unanswered)
	return out, nil
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
