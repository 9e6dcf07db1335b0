package seeder

import (
	"net/http"
	"strings"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/web"
)

// serveServices registers the paths of services.
func (s *Seeder) serveServices(mux *web.Mux) {
	mux.Costly("GET /services", mux.Answer(func(*http.Request) (int, any, error) {
		return http.StatusOK, s.servicesView(), nil
	}))
	mux.JSON("GET /services/{name}", s.whenRead(func(r *http.Request) (int, any, error) {
		view, err := s.serviceView(r.PathValue("name"))
		return http.StatusOK, view, err
	}))
	mux.Costly("GET /services/{name}/deployments", mux.Answer(s.whenRead(func(r *http.Request) (int, any, error) {
		list, err := s.deploymentsView(r.Context(), r.PathValue("name"))
		return http.StatusOK, list, err
	})))
	mux.Costly("GET /services/{name}/hosts", mux.Answer(s.whenRead(s.getHosts)))
	mux.JSON("POST /services/{name}/hosts/log", s.whenRead(s.postHostsLog))
	mux.JSON("POST /services/{name}/deployments", s.postDeployment)
	mux.JSON("POST /services/{name}/pause", s.serviceCommand(api.CommandPause))
	mux.JSON("POST /services/{name}/resume", s.serviceCommand(api.CommandResume))
	mux.JSON("POST /services/{name}/abort", s.serviceCommand(api.CommandAbort))
	mux.JSON("POST /services/{name}/rollback", s.serviceCommand(api.CommandRollback))
	mux.JSON("POST /services/{name}/skip", s.serviceCommand(api.CommandSkip))
	mux.JSON("POST /services/{name}/hold", s.serviceCommand(api.CommandHold))
	mux.JSON("POST /services/{name}/release", s.serviceCommand(api.CommandRelease))
	mux.JSON("GET /recalls", s.whenRead(func(*http.Request) (int, any, error) {
		view, err := s.recallsView()
		return http.StatusOK, view, err
	}))
	mux.JSON("POST /recalls", s.whenRead(s.postRecalls))
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
	} else {
		s.reading.wait(r.Context())
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
		} else {
			s.reading.wait(r.Context())
		}
		answer, err := s.commandService(r.Context(), r.PathValue("name"), command, request, web.By(r))
		return http.StatusOK, answer, err
	}
}
