package seeder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/services"
)

// apart is how a service stands to its table: as a rule a goal is sent when it is there.
// Somebody may say that it is sent without (--without-table), for when the table is away and
// hosts must switch all the same. From then on goals are kept here and sent, and the newest is
// written into the table as soon as that can be; then it is again as it was.
type apart struct {
	on bool
	// table is the version that the table has, as far as known.
	table int64
	// ahead is the newest goal that was sent and is not in the table; nil for none.
	ahead *services.Copy
	// instead is what the table was found to have, greater than what was sent; nil for nothing.
	instead *services.Service
}

// reconciled says what came of bringing the table up to date.
type reconciled struct {
	version int64 // which is there now
	// table is the service as somebody else has written it, greater than what is here.
	table *services.Service
	err   error
}

// behind says that the table lacks something.
type behind struct{}

// setApart has goals be sent without the table, also one that waits for it.
func (v *service) setApart() {
	if v.apart.on {
		return
	}
	v.apart.on = true
	if v.writing != nil {
		v.owner.Cancel("write")
	}
}

// settle ends it where nothing is sent without the table any more.
func (a *apart) settle(v *service) {
	if a.ahead != nil || v.writing != nil {
		return
	}
	a.on = false
	if of := a.instead; of != nil {
		v.replaceBy(of)
	}
}

// keepApart signs a goal and keeps it here, for the table of a later time.
func (v *service) keepApart(ctx context.Context, a deployment.Publish, wire []byte, table int64) wrote {
	out := wrote{goal: a.Goal, wire: wire}
	if out.wire == nil {
		if out.wire, out.err = goal.Sign(ctx, v.cfg.Signer, a.Goal); out.err != nil {
			out.err = fmt.Errorf("signing the goal of %s: %w", v.name, out.err)
			return out
		}
	}
	out.apart = &services.Copy{Service: a.Service, Wire: out.wire, Table: table}
	v.keepCopy(*out.apart)
	return out
}

// keepCopy keeps a service on this seeder's disk. That it cannot keeps nothing from going on.
func (s *Seeder) keepCopy(c services.Copy) {
	if err := s.cfg.Copies.Put(&c); err != nil {
		s.cfg.Logger.Error("service not kept on the disk", "error", err)
	}
}

// keepRead is keepCopy of what was read from the table; nil is nothing.
func (s *Seeder) keepRead(of *services.Service) {
	if of != nil && of.Odd == nil {
		s.keepCopy(services.Copy{Service: of.Service, Wire: of.Wire, Table: of.Version})
	}
}

// reconcile has the table get what it lacks.
func (v *service) reconcile() {
	if v.apart.ahead == nil || v.owner.Works("reconcile") {
		return
	}
	c := *v.apart.ahead
	v.owner.Work("reconcile", func(err error) any { return reconciled{err: err} }, func(ctx context.Context) any { return v.writeAhead(ctx, c) })
}

// writeAhead puts what was sent into the table, however long that takes. What hosts follow is
// the greatest version, so that a lesser one of somebody else's gives way, and a greater one
// stays.
func (v *service) writeAhead(ctx context.Context, c services.Copy) reconciled {
	again := retry.Policy{
		First: firstRetry, Max: maxRetry, Logger: v.logger, Level: slog.LevelWarn, Message: "the table still lacks the goal that was sent without it",
		Settled: func(err error) bool { return errors.Is(err, services.ErrChanged) },
	}
	for before := c.Table; ; {
		err := again.Do(ctx, func() error {
			ctx, cancel := context.WithTimeout(ctx, writeTimeout)
			defer cancel()
			return v.cfg.Services.Write(ctx, c.Service, c.Wire, before)
		})
		if errors.Is(err, services.ErrChanged) {
			var table *services.Service
			if err = again.Do(ctx, func() (err error) { table, err = v.cfg.Services.Service(ctx, v.name); return err }); err == nil {
				switch {
				case table == nil:
					before = 0
				case bytes.Equal(table.Wire, c.Wire): // an answer was lost
					return v.inTable(c)
				case table.Version >= c.Service.Version:
					v.keepRead(table)
					return reconciled{table: table}
				default:
					v.logger.Warn("the table was changed by somebody else meanwhile; hosts follow what was sent later without it, which takes its place", "table", table.Version, "version", c.Service.Version)
					before = table.Version
				}
				continue
			}
		}
		if err != nil {
			return reconciled{err: err}
		}
		return v.inTable(c)
	}
}

func (v *service) inTable(c services.Copy) reconciled {
	c.Table = c.Service.Version
	v.keepCopy(c)
	return reconciled{version: c.Table}
}

// reconciled takes what came of it.
func (v *service) reconciled(e reconciled) {
	switch {
	case e.err != nil:
		if !v.owner.Ending() {
			v.logger.Error("the table lacks the goal that was sent without it, until another one is written", "error", e.err)
		}
		return
	case e.table != nil && e.table.Version < v.apart.ahead.Service.Version: // a later one was sent meanwhile
		v.apart.ahead.Table, v.apart.table = e.table.Version, e.table.Version
		v.reconcile()
	case e.table != nil:
		v.logger.Error("what was sent without the table is given up", "version", v.apart.ahead.Service.Version, "table", e.table.Version)
		v.apart.ahead, v.apart.instead = nil, e.table
	case v.apart.ahead != nil && v.apart.ahead.Service.Version > e.version: // another one was sent meanwhile
		v.apart.ahead.Table, v.apart.table = e.version, e.version
		v.reconcile()
	default:
		v.apart.ahead, v.apart.table = nil, e.version
		v.logger.Info("the table has again what hosts are told", "version", e.version)
	}
	v.apart.settle(v)
}

// replaceBy goes on with what somebody else has written into the table.
func (v *service) replaceBy(of *services.Service) {
	v.logger.Warn("the table has a greater goal of somebody else's, perhaps another seeder, which holds from now on", "version", of.Version)
	for id, to := range v.asks {
		v.answers = append(v.answers, answer{to, services.ErrChanged})
		delete(v.asks, id)
	}
	v.take(of)
	v.owner.Tell(v.livingNow())
}

// aheadOf returns an owner of a service of which this seeder has sent a goal that is not in
// the table; nil where it has not.
func (s *Seeder) aheadOf(name string) *service {
	c, err := s.cfg.Copies.Get(name)
	if err != nil {
		s.cfg.Logger.Error("copy of a service is of no use", "service", name, "error", err)
	}
	if c == nil || !c.Ahead() {
		return nil
	}
	return s.serviceOfCopy(c)
}

// serviceOfCopy returns the owner of a service as this seeder has known it last.
func (s *Seeder) serviceOfCopy(c *services.Copy) *service {
	v := s.ownerOf(c.Service.Name)
	v.take(&services.Service{Service: c.Service, Wire: c.Wire})
	v.apart.table = c.Table
	if c.Ahead() {
		v.owner.Tell(behind{})
		v.apart.on, v.apart.ahead = true, c
		v.logger.Error("the newest goal was sent without the table, which does not have it", "version", c.Service.Version, "table", c.Table)
	}
	v.publish()
	return v
}
