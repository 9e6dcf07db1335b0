package seeder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/web"
)

const (
	// beatInterval is how often the seeder says which goals are the newest.
	beatInterval = time.Minute
	// meetWithin is how long after its start a seeder may still be meeting agents: those that
	// it remembers, or is given, it meets within a second or two.
	meetWithin = 5 * time.Second
	// answerWithin is how long a command about a service waits for the table: one write that
	// nobody answers, and most of the next. It is written all the same when that can be.
	answerWithin = 2 * writeTimeout
	// maxBucketRegions bounds the buckets whose regions are remembered.
	maxBucketRegions = 4 * goal.MaxRegions
)

// errNoTables is why services cannot be deployed where there are no tables of them.
var errNoTables = errors.New("this seeder has no tables of services")

// serviceOwners are the owners of all services, by name.
type serviceOwners struct {
	mu     sync.Mutex // held for a few lines
	owners map[string]*service
	// why is why there are none yet; nil once the table was read.
	why error
	// regions are those of the buckets that agents serve or have served.
	regions map[string]string
	soon    chan struct{} // has a value when a beat is due
	// met is when the agents that there are should have been met.
	met time.Time
	// logging are the services whose hosts are being written into the table.
	logging map[string]bool
}

func newServiceOwners() *serviceOwners {
	return &serviceOwners{
		owners: make(map[string]*service), why: errors.New("the table of services was not read yet"),
		regions: make(map[string]string), soon: make(chan struct{}, 1), met: time.Now().Add(meetWithin),
		logging: make(map[string]bool),
	}
}

// get returns a service's owner; nil where there is none.
func (o *serviceOwners) get(name string) (*service, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.owners[name], o.why
}

func (o *serviceOwners) put(v *service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.owners[v.name] = v
}

// all are the owners in the order of their names.
func (o *serviceOwners) all() (out []*service, why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(o.owners)) {
		out = append(out, o.owners[name])
	}
	return out, o.why
}

// beatSoon has a beat follow a goal.
func (o *serviceOwners) beatSoon() {
	select {
	case o.soon <- struct{}{}:
	default:
	}
}

// learn notes which region serves a bucket.
func (o *serviceOwners) learn(members []gossip.Member) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range members {
		if _, known := o.regions[m.Bucket]; m.Role == gossip.Agent && m.Bucket != "" && (known || len(o.regions) < maxBucketRegions) {
			o.regions[m.Bucket] = m.Region
		}
	}
}

// landedIn are the regions where an execution is in every bucket of the region that it goes
// to.
func (o *serviceOwners) landedIn(r *ledger.Record) (out []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lacks := make(map[string]bool)
	for _, bucket := range r.Destinations {
		here := slices.Contains(r.Successful, bucket)
		region := o.regions[bucket]
		if region == "" && here {
			region = r.Results[bucket].Region
		}
		if region != "" {
			lacks[region] = lacks[region] || !here
		}
	}
	for _, region := range slices.Sorted(maps.Keys(lacks)) {
		if !lacks[region] {
			out = append(out, region)
		}
	}
	return out
}

// loadServices reads the tables, has all goals sent, and then has beats sent until ctx ends.
func (s *Seeder) loadServices(ctx context.Context) error {
	var list []*services.Service
	again := retry.Policy{
		First: firstRetry, Max: maxRetry, Logger: s.cfg.Logger, Level: slog.LevelDebug, Message: "the tables of services were not read yet",
		Failed: func(try int, err error) {
			if s.services.wait(err) {
				s.cfg.Logger.Warn("no service can be deployed before the tables of services can be read", "error", err)
			}
			s.reading.services.done()
		},
	}
	ahead, err := s.cfg.Copies.Ahead()
	if err != nil {
		s.cfg.Logger.Error("some copies of services are of no use", "error", err)
	}
	for _, c := range ahead { // what hosts follow already, whether or not the tables can be read
		s.beginService(s.serviceOfCopy(c))
	}
	var recalls *services.Recalls
	err = again.Do(ctx, func() (err error) {
		if err := s.cfg.Services.Check(ctx); err != nil {
			return err
		}
		if recalls, err = s.cfg.Services.Recalls(ctx); err != nil {
			return err
		}
		list, err = s.cfg.Services.All(ctx)
		return err
	})
	if err != nil {
		return nil // ctx has ended
	}
	s.takeRecalls(recalls)
	for _, of := range list {
		if of.Odd != nil {
			s.cfg.Logger.Error("a service cannot be read and is left alone", "service", of.Name, "error", of.Odd)
		}
		s.keepRead(of)
		if v, _ := s.services.get(of.Name); v != nil { // it has begun without the table
			v.owner.Tell(readAgain{table: of})
			continue
		}
		s.beginService(s.newService(of.Name, of))
	}
	s.services.wait(nil)
	s.reading.services.done()
	s.livingChanged()
	return s.beat(ctx)
}

// wait says why there are no services yet, and reports whether that is news.
func (o *serviceOwners) wait(why error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	news := why != nil && (o.why == nil || o.why.Error() != why.Error())
	o.why = why
	return news
}

// beginService has an owner run from now on, unless the service has one already, and returns
// the one that it has; nil when the seeder ends.
func (s *Seeder) beginService(v *service) *service {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx := s.running
	if ctx == nil || ctx.Err() != nil {
		return nil
	}
	if other, _ := s.services.get(v.name); other != nil {
		return other
	}
	s.services.put(v)
	s.group.Go(func() error {
		for next := v; next != nil; next = next.run(ctx) {
		}
		return nil
	})
	return v
}

// beat says which goals are the newest: each minute, and soon after there is another one.
func (s *Seeder) beat(ctx context.Context) error {
	ticker := time.NewTicker(beatInterval)
	defer ticker.Stop()
	for {
		if err := s.sendBeat(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("beat not sent: agents show their goals' age", "error", err, "retryIn", beatInterval.String())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-s.services.soon:
		}
	}
}

func (s *Seeder) sendBeat(ctx context.Context) error {
	b := &goal.Beat{Time: time.Now().UTC(), Versions: make(map[string]int64)}
	all, _ := s.services.all()
	for _, v := range all {
		if version := v.newest(); version > 0 {
			b.Versions[v.name] = version
		}
	}
	wire, err := goal.Sign(ctx, s.cfg.Signer, b)
	if err != nil {
		return fmt.Errorf("signing a beat: %w", err)
	}
	recalls, err := goal.Sign(ctx, s.cfg.Signer, &goal.RecallBeat{Time: b.Time, Version: s.recalls.get().Version})
	if err != nil {
		return fmt.Errorf("signing the beat of the list of recalls: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return errors.Join(s.gossip.SendGoal("", wire), s.gossip.SendGoal(goal.RecallBeats, recalls), s.cfg.Services.WriteHead(ctx, wire, recalls))
}

// living are the agents that serve hosts, by region.
func (s *Seeder) living() map[string][]string {
	out := make(map[string][]string)
	for _, m := range s.gossip.Members() {
		if m.HasHosts() {
			out[m.Region] = append(out[m.Region], m.Name)
		}
	}
	for _, names := range out {
		slices.Sort(names)
	}
	return out
}

func (s *Seeder) livingNow() deployment.Living {
	return deployment.Living{Agents: s.living(), Until: s.services.met}
}

// livingChanged tells the owners which agents there are.
func (s *Seeder) livingChanged() {
	s.services.learn(s.gossip.Members())
	living := s.livingNow()
	all, _ := s.services.all()
	for _, v := range all {
		v.owner.Tell(living)
	}
}

// counted takes what an agent counts of its hosts.
func (s *Seeder) counted(from gossip.Member, list []goal.Counts) {
	for _, c := range list {
		if v, _ := s.services.get(c.Service); v != nil {
			failures := c.Failures
			c.Failures = nil
			v.owner.Tell(hostsCounted{deployment.Counted{Region: from.Region, Agent: from.Name, Counts: c}, failures})
		}
	}
}

// roster takes an agent's answer to which hosts it has.
func (s *Seeder) roster(from gossip.Member, name string, hashes []uint32) {
	if v, _ := s.services.get(name); v != nil {
		v.owner.Tell(deployment.Roster{Region: from.Region, Agent: from.Name, Hashes: hashes})
	}
}

// compositeOf finds out what S3 has as the SHA-256 of a build of parts: from its parts'
// digests where they are here, else from a bucket where it has landed. Empty where neither
// is possible yet.
func (s *Seeder) compositeOf(ctx context.Context, r *ledger.Record) (string, error) {
	layout, err := layoutOf(r)
	if err != nil {
		return "", err
	}
	entries, err := s.segmentsOf(r, layout)
	if err != nil {
		return "", err
	}
	if entries != nil {
		b := manifest.NewBuild(layout)
		for i, e := range entries {
			err = errors.Join(err, b.Know(i, e.Manifest()))
			e.Unpin()
		}
		return b.Composite(), err
	}
	for _, name := range r.Successful {
		b, lookErr := s.regional.Get(ctx, name)
		if lookErr == nil {
			var object *bucket.Object
			var there bool
			if object, there, lookErr = landing.Present(ctx, b, r, ""); there && object.Composite != "" {
				return object.Composite, nil
			}
		}
		err = errors.Join(err, lookErr)
	}
	return "", err
}

// withoutTables returns the owner of a service that is begun before the tables of services were
// read, why is why they were not, with what this seeder has known of it last.
func (s *Seeder) withoutTables(name string, why error) (*service, error) {
	if s.cfg.Services == nil {
		return nil, &web.Error{Code: http.StatusNotImplemented, Err: errNoTables}
	}
	c, err := s.cfg.Copies.Get(name)
	if err == nil && c == nil {
		err = fmt.Errorf("this seeder's disk knows nothing of service %s: %w", name, why)
	}
	if err != nil {
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: err}
	}
	v := s.beginService(s.serviceOfCopy(c))
	if v == nil {
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: errEnding}
	}
	v.owner.Tell(s.livingNow())
	return v, nil
}

// serviceOf returns a service's owner; a *web.Error where there is none.
func (s *Seeder) serviceOf(name string) (*service, error) {
	if s.cfg.Services == nil {
		return nil, &web.Error{Code: http.StatusNotImplemented, Err: errNoTables}
	}
	if err := goal.CheckService(name); err != nil {
		return nil, &web.Error{Code: http.StatusBadRequest, Err: err}
	}
	v, why := s.services.get(name)
	switch {
	case v != nil:
		return v, nil
	case why != nil:
		return nil, &web.Error{Code: http.StatusServiceUnavailable, Err: fmt.Errorf("services: %w", why), RetryAfter: time.Second}
	}
	return nil, web.Errorf(http.StatusNotFound, "no service %s: nothing was deployed to it yet (deploy with `seeder deploy %s KEY`)", name, name)
}

// newest is the version of the service's goal in the table.
func (v *service) newest() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.view.Version
}

// do tells a service's owner what is wanted, and waits for what came of it, answerWithin at
// most.
func (v *service) do(ctx context.Context, e deployment.Event, withoutTable bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerWithin, fmt.Errorf("%s have passed", answerWithin))
	defer cancel()
	answer := make(chan error, 1)
	v.owner.Tell(request{e, answer, withoutTable})
	var err error
	select {
	case err = <-answer:
	case <-ctx.Done():
		return web.Errorf(http.StatusServiceUnavailable, "service %s: the table was not written in time; it is tried on, look at the service; where that cannot be waited for, roll back or deploy with --without-table: %w", v.name, context.Cause(ctx))
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, deployment.ErrState), errors.Is(err, services.ErrChanged):
		return &web.Error{Code: http.StatusConflict, Err: fmt.Errorf("service %s: %w", v.name, err)}
	case errors.Is(err, goal.ErrInvalid):
		return &web.Error{Code: http.StatusBadRequest, Err: fmt.Errorf("service %s: %w", v.name, err)}
	}
	return fmt.Errorf("service %s: %w", v.name, err)
}

// servicesView are all services.
func (s *Seeder) servicesView() api.Services {
	all, why := s.services.all()
	out := api.Services{Services: []api.Service{}, Loading: why != nil && s.cfg.Services != nil}
	for _, v := range all {
		if of := v.shown(); of.Deployment != nil || of.Error != "" {
			out.Services = append(out.Services, of)
		}
	}
	return out
}

// serviceView is one service.
func (s *Seeder) serviceView(name string) (*api.Service, error) {
	v, err := s.serviceOf(name)
	if err != nil {
		return nil, err
	}
	of := v.shown()
	return &of, nil
}

// deploymentsView are a service's newest deployments.
func (s *Seeder) deploymentsView(ctx context.Context, name string) (*api.Deployments, error) {
	v, err := s.serviceOf(name)
	if err != nil {
		return nil, err
	}
	list, err := s.cfg.Services.Deployments(ctx, name, services.MaxListed)
	if err != nil {
		return nil, err
	}
	out := &api.Deployments{Deployments: []api.Deployment{}}
	current := v.shown().Deployment
	for i := range list {
		if current != nil && current.DeploymentID == list[i].ID {
			out.Deployments = append(out.Deployments, *current)
			continue
		}
		out.Deployments = append(out.Deployments, viewOf(name, &list[i]))
	}
	return out, nil
}
