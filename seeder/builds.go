package seeder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/web"
)

// commitName is what may stand for a commit: it becomes a path segment of the
// build source and the name of an object.
var commitName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// newBuildSource returns a client for http, https and file URLs.
func newBuildSource() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	return &http.Client{Transport: transport}
}

// postBuild fetches what was built of a commit, stores it in the global bucket
// and starts its execution.
func (s *Seeder) postBuild(r *http.Request) (int, any, error) {
	var request api.BuildRequest
	if err := web.Read(r, &request); err != nil {
		return 0, nil, err
	}
	if s.cfg.BuildSource == "" {
		return 0, nil, web.Errorf(http.StatusNotImplemented, "builds cannot be fetched: the seeder was started without --build-source")
	}
	if !commitName.MatchString(request.Commit) {
		return 0, nil, web.Errorf(http.StatusBadRequest, "commit is %q, expected letters, digits, '.', '_' and '-'", request.Commit)
	}
	answer, err := s.fetchBuild(r.Context(), request.Commit)
	return http.StatusAccepted, answer, err
}

func (s *Seeder) fetchBuild(ctx context.Context, commit string) (*api.BuildAnswer, error) {
	from, err := url.JoinPath(s.cfg.BuildSource, commit)
	if err != nil {
		return nil, fmt.Errorf("build source: %w", err)
	}
	key := commit + ".zip"
	if !s.reserved.take(key) {
		return nil, web.Errorf(http.StatusConflict, "%s is being uploaded already", key)
	}
	defer s.reserved.uploaded(key)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, fmt.Errorf("build source: %w", err)
	}
	res, err := s.builds.Do(req)
	if err != nil {
		return nil, &web.Error{Code: http.StatusBadGateway, Err: fmt.Errorf("build source: %w", redact(err))}
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotFound:
		return nil, web.Errorf(http.StatusNotFound, "the build source has no build of %s", commit)
	case res.StatusCode != http.StatusOK:
		return nil, web.Errorf(http.StatusBadGateway, "the build source answered %s for %s", res.Status, commit)
	}
	contentType := res.Header.Get("Content-Type")
	if contentType == "" {
		contentType = "application/zip"
	}
	object, err := s.cfg.Bucket.Upload(ctx, key, res.Body, res.ContentLength, bucket.Headers{
		ContentType: contentType, Metadata: map[string]string{"commit": commit},
	})
	if err != nil {
		return nil, refused(err)
	}
	s.reserved.uploaded(key)
	begun, err := s.deploy(ctx, api.DeployRequest{SourceBucket: s.cfg.Bucket.Name(), SourceKey: key})
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

// redact keeps credentials in a build source's URL out of answers and logs.
func redact(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		if u, parseErr := url.Parse(e.URL); parseErr == nil {
			e.URL = u.Redacted()
		}
	}
	return err
}
