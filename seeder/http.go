package seeder

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/smithy-go"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// defaultPage and maxPage are how many executions one answer lists.
	defaultPage, maxPage = 50, 1000
	// busyRetry is when an upload for which there was no room may be tried again.
	busyRetry = 30 * time.Second
	// uploadsPath begins the path of an upload; the rest is the key.
	uploadsPath = "/uploads/"
)

// roles are what the seeder's paths ask for, beside those that every member serves.
var roles = map[string]operator.Role{
	"POST /deploy":                 operator.Publish,
	"POST /builds":                 operator.Publish,
	"PUT " + uploadsPath:           operator.Publish,
	"GET /executions":              operator.View,
	"GET /executions/{id}":         operator.View,
	"GET /executions/{id}/swarm":   operator.View,
	"GET /executions/{id}/torrent": operator.View,
	"POST /executions/{id}/retry":  operator.Publish,
	"POST /executions/{id}/cancel": operator.Deploy,
	"GET /audit":                   operator.Admin,

	"GET /services":                     operator.View,
	"GET /services/{name}":              operator.View,
	"GET /services/{name}/deployments":  operator.View,
	"GET /services/{name}/hosts":        operator.View,
	"POST /services/{name}/hosts/log":   operator.Deploy,
	"POST /services/{name}/deployments": operator.Deploy,
	"POST /services/{name}/pause":       operator.Deploy,
	"POST /services/{name}/resume":      operator.Deploy,
	"POST /services/{name}/abort":       operator.Deploy,
	"POST /services/{name}/rollback":    operator.Deploy,
	"POST /services/{name}/skip":        operator.Deploy,
	"POST /services/{name}/hold":        operator.Deploy,
	"POST /services/{name}/release":     operator.Deploy,
	"GET /recalls":                      operator.View,
	"POST /recalls":                     operator.Deploy,
}

func (s *Seeder) handler() http.Handler {
	protection, _, all := s.mux()
	return protection.Wrap(all)
}

// mux serves everything; all is what to ask, with the uploads, which mux knows only by
// their role.
func (s *Seeder) mux() (_ web.Protection, mux *web.Mux, all http.Handler) {
	mux = web.NewMux(web.Options{
		Page:    "seeder",
		Ready:   s.isReady,
		State:   web.State{All: s.state, One: s.opened},
		Metrics: s.registry(),
		Roles:   roles,
		Logger:  s.cfg.Logger,
	})
	mux.JSON("POST /deploy", s.postDeploy)
	mux.JSON("POST /builds", s.postBuild)
	mux.Limits(s.cfg.Limits, false)
	mux.Costly("GET /executions", mux.Answer(s.getExecutions))
	mux.JSON("GET /executions/{id}", s.whenRead(s.getExecution))
	mux.JSON("POST /executions/{id}/cancel", s.whenRead(func(r *http.Request) (int, any, error) {
		if s.uploads.get(r.PathValue("id")) != nil {
			e, err := s.cancelUpload(r.Context(), r.PathValue("id"))
			return http.StatusOK, e, err
		}
		return s.change(r, s.cancel(r.Context(), r.PathValue("id")))
	}))
	mux.JSON("POST /executions/{id}/retry", s.whenRead(func(r *http.Request) (int, any, error) {
		return s.change(r, s.retry(r.Context(), r.PathValue("id")))
	}))
	mux.Costly("GET /executions/{id}/swarm", mux.Answer(s.whenRead(s.getSwarm)))
	mux.Costly("GET /executions/{id}/torrent", mux.File("application/x-bittorrent", s.getTorrent))
	uploads := func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		mux.Answer(func(r *http.Request) (int, any, error) {
			return s.putUpload(r, func() { control.SetReadDeadline(time.Now()) }) //nolint:errcheck // a recorder has none
		})(w, r)
	}
	mux.HandleFunc("PUT "+uploadsPath, uploads)
	mux.Costly("GET /audit", mux.Answer(s.getAudit))
	s.serveServices(mux)
	// ServeMux would clean the path of a key such as a//b or ../c, and redirect.
	all = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = s.cfg.Tracer.Incoming(r)
		if strings.HasPrefix(r.URL.EscapedPath(), uploadsPath) {
			uploads(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	protection := s.protection()
	protection.Role = func(r *http.Request) operator.Role {
		if strings.HasPrefix(r.URL.EscapedPath(), uploadsPath) && r.Method == http.MethodPut {
			return operator.Publish
		}
		return mux.Role(r)
	}
	protection.Action = func(r *http.Request) string {
		if strings.HasPrefix(r.URL.EscapedPath(), uploadsPath) {
			return r.Method + " " + uploadsPath
		}
		return mux.Action(r)
	}
	return protection, mux, all
}

func (s *Seeder) protection() web.Protection {
	return web.Protection{Addr: s.cfg.HTTP.Addr(), Hosts: s.cfg.Hosts, Security: s.cfg.Security, Logger: s.cfg.Logger}
}

// getAudit lists the newest changes that were asked for.
func (s *Seeder) getAudit(r *http.Request) (int, any, error) {
	limit := defaultPage
	if v := r.URL.Query().Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > audit.MaxRead {
			return 0, nil, web.Errorf(http.StatusBadRequest, "limit is %q, expected 1 to %d", v, audit.MaxRead)
		}
		limit = n
	}
	if s.cfg.Security.Audit == nil {
		return 0, nil, web.Errorf(http.StatusNotImplemented, "this seeder keeps no record of changes")
	}
	records, err := s.cfg.Security.Audit.Newest(limit)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, api.Changes{Changes: records}, nil
}

func (s *Seeder) postDeploy(r *http.Request) (int, any, error) {
	var request api.DeployRequest
	if err := web.Read(r, &request); err != nil {
		return 0, nil, err
	}
	if request.SourceBucket == "" || request.SourceKey == "" {
		return 0, nil, web.Errorf(http.StatusBadRequest, "sourceBucket and sourceKey are required")
	}
	web.About(r, "key", request.SourceKey)
	web.About(r, "sourceBucket", request.SourceBucket)
	answer, err := s.deploy(r.Context(), request)
	if err == nil {
		web.About(r, "executionId", answer.ExecutionID)
	}
	return http.StatusAccepted, answer, err
}

func (s *Seeder) getExecutions(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	limit := defaultPage
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxPage {
			return 0, nil, web.Errorf(http.StatusBadRequest, "limit is %q, expected 1 to %d", v, maxPage)
		}
		limit = n
	}
	page := api.Executions{SkippedItems: s.items.skipped.Load(), Loading: !s.isLoaded(), Unserved: s.index.unservedOf(s.cfg.Destinations)}
	page.Executions, page.Next = s.index.page(limit, q.Get("after"), matching(q))
	return http.StatusOK, page, nil
}

// matching reads ?key=KEY, the whole key, and ?q=TEXT, any part of the key or the id,
// whatever the case.
func matching(q url.Values) func(key, id string) bool {
	whole, text := q.Get("key"), strings.ToLower(q.Get("q"))
	return func(key, id string) bool {
		return (whole == "" || key == whole) &&
			(text == "" || strings.Contains(strings.ToLower(key), text) || strings.Contains(strings.ToLower(id), text))
	}
}

func (s *Seeder) getExecution(r *http.Request) (int, any, error) {
	id := r.PathValue("id")
	e, ok := s.index.one(id)
	if !ok {
		return 0, nil, s.noExecution(id)
	}
	return http.StatusOK, e, nil
}

func (s *Seeder) getSwarm(r *http.Request) (int, any, error) {
	id := r.PathValue("id")
	record, ok := s.index.get(id)
	if !ok {
		return 0, nil, s.noExecution(id)
	}
	return http.StatusOK, s.swarmView(record), nil
}

// change answers with the execution as it is after a cancel or a retry.
func (s *Seeder) change(r *http.Request, err error) (int, any, error) {
	if errors.Is(err, ledger.ErrSuperseded) {
		err = &web.Error{Code: http.StatusConflict, Err: err}
	}
	if err != nil {
		return 0, nil, err
	}
	return s.getExecution(r)
}

func (s *Seeder) getTorrent(r *http.Request) (name string, file []byte, err error) {
	s.reading.wait(r.Context())
	id := r.PathValue("id")
	record, ok := s.index.get(id)
	if !ok {
		return "", nil, s.noExecution(id)
	}
	file, err = s.torrentFile(record)
	return record.SHA256 + ".torrent", file, err
}

// putUpload streams a body into the global bucket, and to the regions meanwhile. interrupt
// ends a Read of it that is under way.
func (s *Seeder) putUpload(r *http.Request, interrupt func()) (int, any, error) {
	if r.Method != http.MethodPut {
		return 0, nil, web.Errorf(http.StatusMethodNotAllowed, "%s %s: only PUT is allowed", r.Method, uploadsPath)
	}
	key, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), uploadsPath))
	if err == nil {
		err = announce.CheckKey(key)
	}
	if err != nil {
		return 0, nil, &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	to, err := s.uploadTo(r.URL.Query())
	if err != nil {
		return 0, nil, err
	}
	headers, err := parseUploadHeaders(r)
	if err != nil {
		return 0, nil, err
	}
	web.About(r, "key", key)
	if !s.reserved.take(key) {
		return 0, nil, web.Errorf(http.StatusConflict, "%s is being uploaded already", key)
	}
	object, begun, err := s.bring(r.Context(), &upload{
		key: key, body: headers.check(r.Body), size: r.ContentLength, headers: headers.stored, condition: headers.condition,
		destinations: to.DestinationBuckets, high: to.Priority == api.PriorityHigh, interrupt: interrupt,
	})
	if err != nil {
		return 0, nil, err
	}
	answer := &api.UploadAnswer{Bucket: s.cfg.Bucket.Name(), Key: key, Size: object.Size, ETag: object.ETag}
	switch {
	case begun != nil:
		answer.ExecutionID = begun.Record.ExecutionID
	case len(to.DestinationBuckets) > 0 && s.isLoaded(): // else the watcher finds it
		to.SourceKey = key
		begun, err := s.send(r.Context(), *to)
		if err != nil { // who publishes it is told
			s.cfg.Logger.Warn("uploaded, and not distributed yet", "key", key, "error", err)
			break
		}
		s.reserved.uploaded(key, begun)
		answer.ExecutionID = begun.Record.ExecutionID
	}
	web.About(r, "executionId", answer.ExecutionID)
	return http.StatusOK, answer, nil
}

// uploadTo reads where an upload is to go: what POST /deploy would refuse is refused before
// a byte is read. Without a destination it goes where builds go that are found in the
// bucket; nowhere by itself where there is none, or by ?distribute=false.
func (s *Seeder) uploadTo(q url.Values) (*api.DeployRequest, error) {
	for name := range q {
		switch name {
		case "destination", "force", "priority", "distribute", "x-id": // the last is how the SDKs name the call
		default:
			return nil, web.Errorf(http.StatusBadRequest, "the query %q means nothing here; a question mark of a key is written %%3F", name)
		}
	}
	if _, err := api.IsHigh(q.Get("priority")); err != nil {
		return nil, &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	to := &api.DeployRequest{SourceBucket: s.cfg.Bucket.Name(), DestinationBuckets: q["destination"], Force: q.Get("force") == "true", Priority: q.Get("priority")}
	var err error
	if to.DestinationBuckets, err = s.destinations(*to); err != nil && q.Has("destination") {
		return nil, err
	}
	if q.Get("distribute") == "false" {
		to.DestinationBuckets = nil
	}
	return to, nil
}

// refused gives an upload that S3 refused, or that is too large, its status.
func refused(err error) error {
	var answer smithy.APIError
	switch known := (*web.Error)(nil); {
	case errors.Is(err, bucket.ErrBusy):
		return &web.Error{Code: http.StatusServiceUnavailable, Err: err, RetryAfter: busyRetry}
	case errors.As(err, &known):
		return &web.Error{Code: known.Code, Err: err}
	case errors.Is(err, bucket.ErrTooLarge):
		return &web.Error{Code: http.StatusRequestEntityTooLarge, Err: err}
	case errors.Is(err, bucket.ErrExists):
		return &web.Error{Code: http.StatusPreconditionFailed, Err: err}
	case errors.Is(err, bucket.ErrConflict):
		return &web.Error{Code: http.StatusConflict, Err: err}
	case errors.Is(err, bucket.ErrNotFound): // of an object that a condition names
		return &web.Error{Code: http.StatusNotFound, Err: err}
	case errors.As(err, &answer) && answer.ErrorFault() == smithy.FaultClient:
		return &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	return err
}
