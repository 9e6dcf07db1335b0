package seeder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/web"
)

// commitName is what may stand for a commit: it becomes a path segment of the
// build source and the name of an object.
var commitName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// postBuild fetches what was built of a commit, stores it in the global bucket
// and starts its execution.
func (s *Seeder) postBuild(r *http.Request) (int, any, error) {
	var request api.BuildRequest
	if err := web.Read(r, &request); err != nil {
		return 0, nil, err
	}
	if _, err := api.IsHigh(request.Priority); err != nil {
		return 0, nil, &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	if s.cfg.BuildSource == "" {
		return 0, nil, web.Errorf(http.StatusNotImplemented, "builds cannot be fetched: the seeder was started without --build-source")
	}
	if !commitName.MatchString(request.Commit) {
		return 0, nil, web.Errorf(http.StatusBadRequest, "commit is %q, expected letters, digits, '.', '_' and '-'", request.Commit)
	}
	web.About(r, "commit", request.Commit)
	answer, err := s.fetchBuild(r.Context(), request)
	if err == nil {
		web.About(r, "key", answer.FileName)
		web.About(r, "executionId", answer.ExecutionID)
	}
	return http.StatusAccepted, answer, err
}

func (s *Seeder) fetchBuild(ctx context.Context, request api.BuildRequest) (*api.BuildAnswer, error) {
	commit := request.Commit
	key := commit + ".zip"
	if !s.reserved.take(key) {
		return nil, web.Errorf(http.StatusConflict, "%s is being uploaded already", key)
	}
	object, err := s.storeBuild(ctx, commit, key, request.Priority == api.PriorityHigh)
	if err != nil {
		return nil, err
	}
	begun, err := s.deploy(ctx, api.DeployRequest{SourceBucket: s.cfg.Bucket.Name(), SourceKey: key, Priority: request.Priority})
	if err != nil {
		return nil, fmt.Errorf("%s is stored, but not sent: %w", key, err)
	}
	return &api.BuildAnswer{
		Commit:      commit,
		FileName:    key,
		FileSize:    object.Size,
		S3Location:  "s3://" + s.cfg.Bucket.Name() + "/" + key,
		ETag:        object.ETag,
		ExecutionID: begun.ExecutionID,
		Status:      begun.Status,
	}, nil
}

// storeBuild brings a build from the source into the global bucket, whole or not at
// all, as the source sends it, and distributes it meanwhile where that can be. The key is
// reserved.
func (s *Seeder) storeBuild(ctx context.Context, commit, key string, high bool) (*bucket.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	build, err := s.openBuild(ctx, commit)
	if err != nil {
		s.reserved.uploaded(key, nil)
		return nil, err
	}
	defer build.Close()
	build.headers.ContentType = cmp.Or(build.headers.ContentType, "application/zip")
	build.headers.Metadata = map[string]string{"commit": commit}
	destinations, err := s.destinations(api.DeployRequest{SourceBucket: s.cfg.Bucket.Name()})
	if err != nil {
		destinations = nil // which is said when it is stored
	}
	object, _, err := s.bring(ctx, &upload{
		key: key, body: &atMost{build, s.cfg.MaxFetch, tooLarge(commit, s.cfg.MaxFetch)}, size: build.size, headers: build.headers,
		destinations: destinations, high: high, interrupt: cancel,
	})
	return object, err
}

// openBuild begins to read a build that is not larger than those that are taken.
func (s *Seeder) openBuild(ctx context.Context, commit string) (*fetched, error) {
	build, err := s.builds.open(ctx, commit)
	if err == nil && build.size > s.cfg.MaxFetch {
		err = errors.Join(tooLarge(commit, s.cfg.MaxFetch), build.Close())
	}
	return build, err
}

func tooLarge(commit string, most int64) error {
	return web.Errorf(http.StatusRequestEntityTooLarge,
		"the build of %s is larger than %d bytes; --max-fetch lets the seeder take larger ones from its build source", commit, most)
}
