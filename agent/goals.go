package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// headInterval is how often the beat is read in the table, so that a goal which no member
	// has sent costs no more; headTimeout bounds a round, with the goals that it lacks.
	headInterval, headTimeout = 10 * time.Second, 10 * time.Second
	// maxGoalsRead bounds the goals that are read in one round; the next one reads others.
	maxGoalsRead = 50
)

// GoalsTable is the table in which the seeder writes goals before it sends them, as
// services.Tables has it. What is read there is believed for its signature alone.
type GoalsTable interface {
	// Head is the newest beat, and that of the list of recalls; Goal a service's newest goal,
	// or that list for goal.Recalls. They are as signed; nil where there is none.
	Head(ctx context.Context) (beat, recalls []byte, err error)
	Goal(ctx context.Context, service string) ([]byte, error)
}

// watchHead reads the beat in the table, and the goals that it names and that are not here,
// until ctx ends.
func (a *Agent) watchHead(ctx context.Context) {
	said := ""
	for retry.Wait(ctx, headInterval) {
		err := a.readHead(ctx)
		switch {
		case err == nil:
			said = ""
		case ctx.Err() != nil || err.Error() == said:
		case errors.Is(err, ledger.ErrNoTable):
			said = err.Error()
			a.cfg.Logger.Info("goals are heard of from other members alone", "error", err)
		default:
			said = err.Error()
			a.cfg.Logger.Warn("goals not read in the table, they are heard of from other members", "error", err, "retryIn", headInterval.String())
		}
	}
}

// readHead is one round.
func (a *Agent) readHead(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	wire, recalls, err := a.cfg.Fleet.Table.Head(ctx)
	if err != nil || wire == nil {
		return err
	}
	var all error
	if recalls != nil {
		all = a.goal(recalls)
	}
	if err := a.goal(wire); err != nil {
		return errors.Join(all, err)
	}
	doc, err := goal.Open(wire, a.cfg.Trust, time.Now())
	if err != nil {
		return errors.Join(all, err)
	}
	b, ok := doc.(*goal.Beat)
	if !ok {
		return errors.Join(all, errors.New("the item head has a goal in the place of the beat"))
	}
	lacking := a.lacking(b)
	if a.hosts.shelf.RecallsBehind() {
		lacking = slices.Insert(lacking, 0, goal.Recalls)
	}
	for _, service := range lacking[:min(len(lacking), maxGoalsRead)] {
		wire, err := a.cfg.Fleet.Table.Goal(ctx, service)
		if err == nil && wire != nil {
			err = a.goal(wire)
		}
		all = errors.Join(all, err)
		if ctx.Err() != nil {
			break
		}
	}
	return all
}
