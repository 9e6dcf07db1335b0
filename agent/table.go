package agent

import (
	"context"
	"errors"
	"time"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// tableAgain is how often it is said that a seeder reads another table.
const tableAgain = 30 * time.Second

// table is told when the seeders' tables have to be looked at again.
type table struct{ changed chan struct{} }

func (t table) look() {
	select {
	case t.changed <- struct{}{}:
	default: // a look is due already
	}
}

// tableDiffers says why a seeder would not see this agent's arrivals; nil when all
// seeders in sight use the same table, or do not say.
func (a *Agent) tableDiffers() error {
	mine := a.cfg.Ledger.Place()
	var differs error
	for _, m := range a.gossip.Members() {
		if m.Role != gossip.Seeder || gossip.TrustOf(m.Key, keyIDs(a.cfg.Trust)) == gossip.Untrusted {
			continue
		}
		err := mine.Differs("this agent", "seeder "+m.ID, mine.Of(m.Table))
		if err == nil && m.Table != "" {
			return nil // one agrees: another's mistake is not this agent's
		}
		if differs == nil {
			differs = err
		}
	}
	return differs
}

// watchTable says, as long as it lasts, that a seeder uses another table. An agent
// that finds so at its first sight of a seeder ends, where its table is another region
// of an eventually consistent global table: it would lose arrivals of others.
func (a *Agent) watchTable(ctx context.Context) error {
	ticker := time.NewTicker(tableAgain)
	defer ticker.Stop()
	agreed, said, due := false, "", true
	for {
		_, alone := a.seeders()
		switch err := a.tableDiffers(); {
		case err == nil:
			agreed, said = agreed || alone == nil, ""
		case !agreed && errors.Is(err, ledger.ErrGlobalTable):
			return err
		case due || err.Error() != said:
			said = err.Error()
			a.cfg.Logger.Warn("arrivals are recorded in another table than the seeder's, it does not see them", "error", err)
		}
		due = false
		select {
		case <-ctx.Done():
			return nil
		case <-a.table.changed:
		case <-ticker.C:
			due = true
		}
	}
}
