package seeder

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/web"
)

// policyOf reads a policy, and puts the defaults where it says nothing.
func policyOf(p api.Policy, checks waveChecks) (out deployment.Policy, err error) {
	out = deployment.Policy{
		MaxFailed: goal.Share(p.MaxFailed), MaxUnavailable: goal.Share(p.MaxUnavailable),
		Gate: p.Gate, WaveCheck: p.WaveCheck, AutoRollback: p.AutoRollback, Bake: deployment.DefaultBake,
	}
	for _, w := range p.Waves {
		out.Waves = append(out.Waves, goal.Share(w))
	}
	for _, d := range []struct {
		what, text string
		to         *time.Duration
	}{{"bake", p.Bake, &out.Bake}, {"gateTimeout", p.GateTimeout, &out.GateTimeout}} {
		if d.text == "" {
			continue
		}
		if *d.to, err = time.ParseDuration(d.text); err != nil {
			return out, web.Errorf(http.StatusBadRequest, "%s %.40q: expected a time such as 30s or 2m", d.what, d.text)
		}
	}
	if err := out.Complete(); err != nil {
		return out, &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	if out.WaveCheck != "" {
		if _, _, err := checks.find(out.WaveCheck); err != nil {
			return out, web.Errorf(http.StatusBadRequest, "waveCheck %.80q: %w", out.WaveCheck, err)
		}
	}
	return out, nil
}

// targetOf finds the build that a deployment is to bring.
func (s *Seeder) targetOf(r api.ServiceDeployRequest) (*ledger.Record, error) {
	k := ledger.Key{FileKey: r.Key, SourceBucket: r.SourceBucket}
	if k.SourceBucket == "" {
		k.SourceBucket = s.cfg.Bucket.Name()
	}
	if r.Key == "" {
		return nil, web.Errorf(http.StatusBadRequest, "key is missing: which build?")
	}
	if !s.isLoaded() {
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: fmt.Errorf("the table of executions was not read yet"), RetryAfter: time.Second}
	}
	of := s.index.newest(k)
	switch {
	case of == nil || of.Foreign:
		return nil, web.Errorf(http.StatusNotFound, "no execution of %s from %s: publish it first (`seeder publish s3://%s/%s`)", k.FileKey, k.SourceBucket, k.SourceBucket, k.FileKey)
	case of.Uploading:
		return nil, web.Errorf(http.StatusConflict, "%s is still being uploaded: deploy it when that is done", k.FileKey)
	case of.Status == ledger.Cancelled:
		return nil, web.Errorf(http.StatusConflict, "execution %s of %s was cancelled: publish it again first", of.ExecutionID, k.FileKey)
	case of.Size == 0:
		return nil, web.Errorf(http.StatusBadRequest, "%s has 0 bytes: no host can run that", k.FileKey)
	}
	return of, nil
}

// deployService begins a deployment. It returns when the table has it.
func (s *Seeder) deployService(ctx context.Context, name string, r api.ServiceDeployRequest, by string) (*api.ServiceDeployAnswer, error) {
	if s.cfg.Services == nil {
		return nil, &web.Error{Code: http.StatusNotImplemented, Err: errNoTables}
	}
	if err := goal.CheckService(name); err != nil {
		return nil, &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	policy, err := policyOf(r.Policy, waveChecks(s.cfg.WaveChecks))
	if err != nil {
		return nil, err
	}
	of, err := s.targetOf(r)
	if err != nil {
		return nil, err
	}
	if s.recalls.recalled(of.ExecutionID) {
		return nil, web.Errorf(http.StatusConflict, "%s is recalled: `seeder recall %s --undo` takes that back", of.FileKey, of.FileKey)
	}
	v, err := s.openService(name, !r.DryRun, r.WithoutTable)
	if err != nil {
		return nil, err
	}
	target := goal.Build{SourceBucket: of.SourceBucket, Key: of.FileKey, ExecutionID: of.ExecutionID, Size: of.Size}
	if r.DryRun {
		d := deployment.Deployment{Kind: api.KindDeploy, Target: target, Policy: policy, By: by, State: deployment.Gate, Started: time.Now().UTC()}
		out := &api.ServiceDeployAnswer{Deployment: viewOf(name, &d), DryRun: true}
		if v != nil {
			out.Plan = v.planned(policy)
		}
		return out, nil
	}
	if err := v.do(ctx, deployment.Deploy{Target: target, Policy: policy, By: by}, r.WithoutTable); err != nil {
		return nil, err
	}
	return &api.ServiceDeployAnswer{Deployment: *v.shown().Deployment, Plan: v.planned(policy)}, nil
}

// openService returns a service's owner. Where there is none it is made, or nil is returned.
func (s *Seeder) openService(name string, create, withoutTable bool) (*service, error) {
	all, why := s.services.all()
	v, _ := s.services.get(name)
	switch {
	case v != nil:
		return v, nil
	case why != nil && withoutTable && create:
		return s.withoutTables(name, why)
	case why != nil:
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: fmt.Errorf("services: %w", why), RetryAfter: time.Second}
	case !create:
		return nil, nil
	case len(all) >= goal.MaxServices:
		return nil, web.Errorf(http.StatusConflict, "there are %d services already, at most %d", len(all), goal.MaxServices)
	}
	if v = s.beginService(s.newService(name, nil)); v == nil {
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: errEnding}
	}
	v.owner.Tell(s.livingNow())
	return v, nil
}

// commandService does something to a service's newest deployment. It returns when the table
// has it.
func (s *Seeder) commandService(ctx context.Context, name, command string, r api.ServiceCommandRequest, by string) (*api.ServiceCommandAnswer, error) {
	v, err := s.serviceOf(name)
	if _, why := s.services.get(name); err != nil && why != nil && r.WithoutTable {
		v, err = s.withoutTables(name, why)
	}
	if err != nil {
		return nil, err
	}
	for _, h := range r.Hosts {
		if err := goal.CheckName("host", h); err != nil {
			return nil, &web.Error{Code: http.StatusBadRequest, Err: err}
		}
	}
	before := v.shown()
	var back []api.BackPlan
	if command == api.CommandRollback {
		if back = backPlan(&before); r.DryRun {
			if d := before.Deployment; d == nil || d.From == nil {
				return nil, web.Errorf(http.StatusConflict, "service %s: there is no stable build to go back to: no deployment before this one has completed", name)
			}
			return &api.ServiceCommandAnswer{Service: before, DryRun: true, Back: back}, nil
		}
	}
	if command == api.CommandSkip {
		if err := goal.CheckName("region", r.Region); err != nil {
			return nil, &web.Error{Code: http.StatusBadRequest, Err: err}
		}
	}
	if err := v.do(ctx, deployment.Command{Kind: command, Region: r.Region, Hosts: r.Hosts, Now: r.Now, By: by}, r.WithoutTable); err != nil {
		return nil, err
	}
	return &api.ServiceCommandAnswer{Service: v.shown(), Back: back}, nil
}

// backPlan says of each region how many hosts hold the stable build and how many have to fetch
// it, by what agents have counted last.
func backPlan(of *api.Service) (out []api.BackPlan) {
	for _, r := range of.Regions {
		out = append(out, api.BackPlan{
			Region: r.Region, Hosts: r.Hosts.Total, Holding: r.Hosts.Stable, Fetching: r.Hosts.Total - r.Hosts.Stable, Unknown: r.CountedAt == nil,
		})
	}
	return out
}
