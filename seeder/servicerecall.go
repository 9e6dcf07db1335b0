package seeder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/web"
)

// maxRecallTries bounds how often a list of recalls is written that other seeders write, too.
const maxRecallTries = 5

// recallList is the builds that must run nowhere.
type recallList struct {
	turn chan struct{} // of who changes it

	mu  sync.Mutex // held for a few lines
	now services.Recalls
}

func newRecallList() *recallList { return &recallList{turn: make(chan struct{}, 1)} }

func (l *recallList) get() services.Recalls {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// recalled reports whether a build was recalled by its execution.
func (l *recallList) recalled(executionID string) bool {
	return slices.ContainsFunc(l.get().Builds, func(b services.Recalled) bool { return b.ExecutionID == executionID })
}

// event is what deployments are told of it.
func (l *recallList) event() deployment.Recalled {
	sums := make(map[string]bool)
	for _, b := range l.get().Builds {
		sums[b.SHA256] = true
	}
	return deployment.Recalled{SHA256: sums}
}

// takeRecalls has agents get a list, and deployments heed it.
func (s *Seeder) takeRecalls(r *services.Recalls) {
	s.recalls.mu.Lock()
	s.recalls.now = *r
	s.recalls.mu.Unlock()
	if r.Wire == nil {
		return
	}
	if err := s.gossip.SendGoal(goal.Recalls, r.Wire); err != nil {
		s.cfg.Logger.Error("list of recalls not sent", "error", err)
	}
	s.services.beatSoon()
	all, _ := s.services.all()
	for _, v := range all {
		v.owner.Tell(s.recalls.event())
	}
}

// recall puts builds on the list, or takes them off it. It returns when the table has it.
func (s *Seeder) recall(ctx context.Context, r api.RecallRequest, by string) (*api.Recalls, error) {
	if s.cfg.Services == nil {
		return nil, &web.Error{Code: http.StatusNotImplemented, Err: errNoTables}
	}
	if _, why := s.services.all(); why != nil {
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: fmt.Errorf("services: %w", why), RetryAfter: time.Second}
	}
	select {
	case s.recalls.turn <- struct{}{}:
		defer func() { <-s.recalls.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	named, err := s.namedBuilds(ctx, r, by)
	if err != nil {
		return nil, err
	}
	for range maxRecallTries {
		var before *services.Recalls
		if before, err = s.cfg.Services.Recalls(ctx); err != nil {
			return nil, err
		}
		next := &services.Recalls{Version: goal.NextVersion(time.Now(), before.Version)}
		if next.Builds, err = changeRecalls(before.Builds, named, r.Undo); err != nil {
			return nil, err
		}
		if next.Wire, err = s.signRecalls(ctx, next, by); err != nil {
			return nil, err
		}
		if err = s.cfg.Services.WriteRecalls(ctx, next, before.Version); err == nil {
			s.takeRecalls(next)
			s.cfg.Logger.Warn("list of recalls changed", "version", next.Version, "builds", len(next.Builds), "undo", r.Undo, "named", strings.Join(r.Builds, ","), "by", by)
			return s.recallsView()
		}
		if !errors.Is(err, services.ErrChanged) {
			return nil, err
		}
	}
	return nil, &web.Error{Code: http.StatusConflict, Err: err}
}

func (s *Seeder) signRecalls(ctx context.Context, r *services.Recalls, by string) ([]byte, error) {
	doc := &goal.Recall{Version: r.Version, SourceBucket: s.cfg.Bucket.Name(), SHA256: []string{}, By: by, Issued: time.Now().UTC()}
	for _, b := range r.Builds {
		doc.SHA256 = append(doc.SHA256, b.SHA256)
	}
	wire, err := goal.Sign(ctx, s.cfg.Signer, doc)
	if err != nil {
		return nil, fmt.Errorf("signing the list of recalls: %w", err)
	}
	return wire, nil
}

// changeRecalls is the list, in order of the digests, with builds or without them.
func changeRecalls(list, named []services.Recalled, undo bool) (out []services.Recalled, err error) {
	out = slices.Clone(list)
	for _, b := range named {
		i, found := slices.BinarySearchFunc(out, b.SHA256, func(of services.Recalled, sum string) int { return strings.Compare(of.SHA256, sum) })
		switch {
		case undo && !found:
			return nil, web.Errorf(http.StatusConflict, "%s is not recalled", nameOf(b))
		case undo:
			out = slices.Delete(out, i, i+1)
		case !found:
			out = slices.Insert(out, i, b)
		}
	}
	if len(out) > goal.MaxRecalled {
		return nil, web.Errorf(http.StatusConflict, "%d builds would be recalled, at most %d can be: take back those that nobody can deploy any more (--undo)", len(out), goal.MaxRecalled)
	}
	return out, nil
}

func nameOf(b services.Recalled) string {
	if b.Key != "" {
		return b.Key
	}
	return b.SHA256
}

// namedBuilds finds the builds that a request names.
func (s *Seeder) namedBuilds(ctx context.Context, r api.RecallRequest, by string) (out []services.Recalled, err error) {
	switch {
	case len(r.Builds) == 0:
		return nil, web.Errorf(http.StatusBadRequest, "builds is missing: which ones?")
	case len(r.Builds) > goal.MaxRecalled:
		return nil, web.Errorf(http.StatusBadRequest, "%d builds, at most %d", len(r.Builds), goal.MaxRecalled)
	case !s.isLoaded():
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: errors.New("the table of executions was not read yet"), RetryAfter: time.Second}
	}
	for _, name := range r.Builds {
		b, err := s.namedBuild(ctx, name, r)
		if err != nil {
			return nil, err
		}
		b.By, b.At = by, time.Now().UTC()
		if !r.Undo {
			if err := s.refuseNeeded(b); err != nil {
				return nil, err
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// namedBuild finds a build by its digest, its execution or its key; to take a recall back also
// by what the list has.
func (s *Seeder) namedBuild(ctx context.Context, name string, r api.RecallRequest) (services.Recalled, error) {
	if goal.IsComposite(name) {
		return services.Recalled{SHA256: name}, nil
	}
	if r.Undo {
		for _, b := range s.recalls.get().Builds {
			if name == b.ExecutionID || name == b.Key {
				return b, nil
			}
		}
	}
	of, ok := s.index.get(name)
	if !ok {
		k := ledger.Key{FileKey: name, SourceBucket: r.SourceBucket}
		if k.SourceBucket == "" {
			k.SourceBucket = s.cfg.Bucket.Name()
		}
		of = s.index.newest(k)
	}
	if of == nil || of.Foreign {
		return services.Recalled{}, web.Errorf(http.StatusNotFound, "no build %.200s: expected a key, an executionId, or a composite SHA-256 such as S3 has it", name)
	}
	sum, err := s.compositeOf(ctx, of)
	if err != nil {
		return services.Recalled{}, err
	}
	if sum == "" {
		return services.Recalled{}, web.Errorf(http.StatusConflict, "%s is not known whole yet, so its SHA-256 is not either", of.FileKey)
	}
	return services.Recalled{SHA256: sum, Key: of.FileKey, ExecutionID: of.ExecutionID}, nil
}

// refuseNeeded refuses a recall of what a service is to run: hosts would have nothing.
func (s *Seeder) refuseNeeded(b services.Recalled) error {
	all, _ := s.services.all()
	for _, v := range all {
		of := v.shown()
		needed := []*api.ServiceBuild{of.Target, of.Stable}
		if d := of.Deployment; d != nil {
			needed = append(needed, d.From)
			if !d.Ended() && d.State != api.DeploymentBack {
				needed = append(needed, d.Target)
			}
		}
		for _, n := range needed {
			if n != nil && (n.SHA256 == b.SHA256 || n.ExecutionID == b.ExecutionID && b.ExecutionID != "") {
				return web.Errorf(http.StatusConflict, "%s is what %s runs or goes back to: deploy another build, or roll back, first", nameOf(b), v.name)
			}
		}
	}
	return nil
}

// recallsView is the list as HTTP shows it.
func (s *Seeder) recallsView() (*api.Recalls, error) {
	if s.cfg.Services == nil {
		return nil, &web.Error{Code: http.StatusNotImplemented, Err: errNoTables}
	}
	if _, why := s.services.all(); why != nil {
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: fmt.Errorf("services: %w", why), RetryAfter: time.Second}
	}
	now := s.recalls.get()
	out := &api.Recalls{Version: now.Version, Recalled: []api.RecalledBuild{}}
	for _, b := range now.Builds {
		out.Recalled = append(out.Recalled, api.RecalledBuild(b))
	}
	return out, nil
}

func (s *Seeder) postRecalls(r *http.Request) (int, any, error) {
	var request api.RecallRequest
	if err := web.Read(r, &request); err != nil {
		return 0, nil, err
	}
	web.About(r, "builds", strings.Join(request.Builds, ","))
	if request.Undo {
		web.About(r, "undo", "true")
	}
	answer, err := s.recall(r.Context(), request, web.By(r))
	return http.StatusOK, answer, err
}
