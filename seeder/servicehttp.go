package seeder

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// hostsPatience is how long agents may take to say which hosts they have: an answer
	// without one of them is better than none.
	hostsPatience = 3 * time.Second
	// defaultHosts is how many hosts one answer lists.
	defaultHosts = 100
)

// serveServices registers the paths of services.
func (s *Seeder) serveServices(mux *web.Mux) {
	mux.Costly("GET /services", mux.Answer(func(*http.Request) (int, any, error) {
		return http.StatusOK, s.servicesView(), nil
	}))
	mux.JSON("GET /services/{name}", func(r *http.Request) (int, any, error) {
		view, err := s.serviceView(r.PathValue("name"))
		return http.StatusOK, view, err
	})
	mux.Costly("GET /services/{name}/deployments", mux.Answer(func(r *http.Request) (int, any, error) {
		list, err := s.deploymentsView(r.Context(), r.PathValue("name"))
		return http.StatusOK, list, err
	}))
	mux.Costly("GET /services/{name}/hosts", mux.Answer(s.getHosts))
	mux.JSON("POST /services/{name}/deployments", s.postDeployment)
	mux.JSON("POST /services/{name}/pause", s.serviceCommand(api.CommandPause))
	mux.JSON("POST /services/{name}/resume", s.serviceCommand(api.CommandResume))
	mux.JSON("POST /services/{name}/abort", s.serviceCommand(api.CommandAbort))
	mux.JSON("POST /services/{name}/rollback", s.serviceCommand(api.CommandRollback))
	mux.JSON("POST /services/{name}/skip", s.serviceCommand(api.CommandSkip))
	mux.JSON("POST /services/{name}/hold", s.serviceCommand(api.CommandHold))
	mux.JSON("POST /services/{name}/release", s.serviceCommand(api.CommandRelease))
	mux.JSON("GET /recalls", func(*http.Request) (int, any, error) {
		view, err := s.recallsView()
		return http.StatusOK, view, err
	})
	mux.JSON("POST /recalls", s.postRecalls)
}

// postDeployment begins a deployment, or says what it would do.
func (s *Seeder) postDeployment(r *http.Request) (int, any, error) {
	var request api.ServiceDeployRequest
	if err := web.Read(r, &request); err != nil {
		return 0, nil, err
	}
	if request.Key == "" {
		return 0, nil, web.Errorf(http.StatusBadRequest, "key is required: that of the build which the service is to run")
	}
	web.About(r, "key", request.Key)
	web.About(r, "sourceBucket", request.SourceBucket)
	if request.WithoutTable {
		web.About(r, "withoutTable", "true")
	}
	answer, err := s.deployService(r.Context(), r.PathValue("name"), request, web.By(r))
	if err != nil {
		return 0, nil, err
	}
	if request.DryRun {
		return http.StatusOK, answer, nil
	}
	web.About(r, "deploymentId", answer.DeploymentID)
	return http.StatusAccepted, answer, nil
}

// serviceCommand answers with the service as it is after a command. Without a body there is
// nothing to say of it.
func (s *Seeder) serviceCommand(command string) func(*http.Request) (int, any, error) {
	return func(r *http.Request) (int, any, error) {
		var request api.ServiceCommandRequest
		if r.ContentLength != 0 {
			if err := web.Read(r, &request); err != nil {
				return 0, nil, err
			}
		}
		switch {
		case command == api.CommandSkip && request.Region == "":
			return 0, nil, web.Errorf(http.StatusBadRequest, "region is required: the one that the others do not wait for any more")
		case command != api.CommandSkip && request.Region != "":
			return 0, nil, web.Errorf(http.StatusBadRequest, "region means nothing to %s", command)
		case command != api.CommandRollback && request.Now:
			return 0, nil, web.Errorf(http.StatusBadRequest, "now means nothing to %s", command)
		case command != api.CommandRollback && (request.DryRun || request.WithoutTable):
			return 0, nil, web.Errorf(http.StatusBadRequest, "dryRun and withoutTable mean nothing to %s", command)
		case (command == api.CommandHold || command == api.CommandRelease) == (len(request.Hosts) == 0):
			return 0, nil, web.Errorf(http.StatusBadRequest, "hosts are those to hold or to release, and mean nothing to other commands")
		case len(request.Hosts) > goal.MaxHeld:
			return 0, nil, web.Errorf(http.StatusBadRequest, "%d hosts, at most %d", len(request.Hosts), goal.MaxHeld)
		}
		web.About(r, "region", request.Region)
		web.About(r, "hosts", strings.Join(request.Hosts, ","))
		if request.WithoutTable {
			web.About(r, "withoutTable", "true")
		}
		answer, err := s.commandService(r.Context(), r.PathValue("name"), command, request, web.By(r))
		return http.StatusOK, answer, err
	}
}

// getHosts asks the agents for hosts of a service.
func (s *Seeder) getHosts(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	limit := defaultHosts
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > gossip.MaxHosts {
			return 0, nil, web.Errorf(http.StatusBadRequest, "limit is %q, expected 1 to %d", v, gossip.MaxHosts)
		}
		limit = n
	}
	state := q.Get("state")
	if state != "" && !slices.Contains(api.HostStates(), state) {
		return 0, nil, web.Errorf(http.StatusBadRequest, "state is %.40q, expected one of %v", state, api.HostStates())
	}
	if _, err := s.serviceView(r.PathValue("name")); err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), hostsPatience)
	defer cancel()
	answers, silent, err := s.gossip.HostsOf(ctx, gossip.HostsQuestion{Service: r.PathValue("name"), State: state, Limit: limit})
	if err != nil {
		return 0, nil, &web.Error{Code: http.StatusServiceUnavailable, Err: err, RetryAfter: hostsPatience}
	}
	out := mergeHosts(answers, silent, limit)
	for i := range out.Hosts {
		h := &out.Hosts[i]
		if of, ok := s.index.get(h.Running); ok {
			h.Key = of.FileKey
		}
	}
	return http.StatusOK, out, nil
}

// mergeHosts makes one list of what agents say. A host that two of them know has moved: it
// is where it was seen last.
func mergeHosts(answers []gossip.HostsAnswer, silent []gossip.Member, limit int) api.HostViews {
	type place struct{ region, host string }
	hosts := make(map[place]api.HostView)
	out := api.HostViews{Hosts: []api.HostView{}}
	for _, a := range answers {
		out.All += a.All
		for _, h := range a.Hosts {
			at := place{h.Region, h.Host}
			if before, ok := hosts[at]; ok {
				out.All--
				if !seenBefore(before, h) {
					continue
				}
			}
			hosts[at] = h
		}
	}
	for _, h := range hosts {
		out.Hosts = append(out.Hosts, h)
	}
	slices.SortFunc(out.Hosts, func(a, b api.HostView) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Host, b.Host))
	})
	out.Hosts = out.Hosts[:min(len(out.Hosts), limit)]
	for _, m := range silent {
		out.Unanswered = append(out.Unanswered, m.Region)
	}
	slices.Sort(out.Unanswered)
	out.Unanswered = slices.Compact(out.Unanswered)
	return out
}

// seenBefore reports whether a is what was known of a host before b.
func seenBefore(a, b api.HostView) bool {
	switch {
	case b.SeenAt == nil:
		return false
	case a.SeenAt == nil:
		return true
	}
	return a.SeenAt.Before(*b.SeenAt)
}
