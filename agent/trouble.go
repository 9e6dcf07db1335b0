package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/seldom"
)

const (
	// complainFirst and complainEvery are when it is said that no build can come
	// here: members that start together need a few seconds.
	complainFirst, complainEvery = 5 * time.Second, 30 * time.Second
	// otherSeeders is how often a seeder that is not trusted is named while another
	// is: it may serve others, and be meant to.
	otherSeeders = 10 * time.Minute
	// maxOtherSeeders bounds those that are told apart in the log.
	maxOtherSeeders = 16
	// refusedLately is how long a refused document says that a seeder of before,
	// which does not name its key, is not trusted: push/pull brings another each
	// minute.
	refusedLately = 3 * time.Minute
)

var (
	// errAlone is why an agent is not ready: it can hear of nothing.
	errAlone  = errors.New("no seeder in sight yet: does --join name a living member?")
	errNoJoin = errors.New("no seeder in sight: there is no --join, and no member has joined this agent")
)

// trustChanged takes other rules of trust: the members hear of the keys, and what is under
// way by the word of who is not trusted any more ends, as do the goals.
func (a *Agent) trustChanged() {
	ids := a.cfg.Trust.IDs()
	a.cfg.Logger.Info("trusted keys changed", "keys", ids)
	if err := a.gossip.SetTrusts(ids); err != nil {
		a.cfg.Logger.Warn("the members have not heard of the trusted keys, they will with time", "error", err)
	}
	for _, end := range a.book.Recheck() {
		a.cfg.Logger.Warn("announcement dropped: its key is not trusted any more", "key", end.Key, "executionId", end.ExecutionID)
		a.ended(end)
	}
	if a.hosts != nil {
		a.dropGoals()
	}
	ask(a.seedersChanged)
}

// ready is nil when a seeder is in sight whose announcements this agent follows, and which
// reads the table that this agent writes, and the store is known; else it says why not.
func (a *Agent) ready() error {
	if _, err := a.seeders(); err != nil {
		return err
	}
	if err := a.tableDiffers(); err != nil {
		return err
	}
	return a.store.ready()
}

// seeders returns those in sight that this agent does not trust, and the error of
// ready.
func (a *Agent) seeders() (untrusted []gossip.Member, err error) {
	trusted, unknown := false, false
	var other error
	for _, m := range a.gossip.Members() {
		if m.Role != gossip.Seeder {
			continue
		}
		trust := gossip.TrustOf(m.Key, a.cfg.Trust.IDs())
		if age := m.Age(); age != "" && trust != gossip.Untrusted {
			other = fmt.Errorf("seeder %s is of an %s version, whose announcements this agent does not understand: upgrade the %s", m.ID, age,
				map[string]string{"older": "seeder", "newer": "agent"}[age])
			continue
		}
		switch trust {
		case gossip.Trusted:
			trusted = true
		case gossip.Untrusted:
			untrusted = append(untrusted, m)
		case gossip.UnknownTrust:
			unknown = true
		}
	}
	switch {
	case trusted:
		return untrusted, nil
	case unknown:
		return untrusted, a.gossip.Untrusted(refusedLately)
	case other != nil:
		return untrusted, other
	case len(untrusted) > 0:
		m := untrusted[0]
		return untrusted, fmt.Errorf("seeder %s signs with the key %s…, which is not among --trust: give --trust its public key", m.ID, m.Key)
	case len(a.cfg.Gossip.Join) == 0:
		return nil, errNoJoin
	}
	if err := a.gossip.Unreached(); err != nil {
		return nil, fmt.Errorf("no seeder in sight: %w", err)
	}
	return nil, errAlone
}

// tableDiffers says why a seeder would not see this agent's arrivals; nil when all
// seeders in sight use the same table, or do not say.
func (a *Agent) tableDiffers() error {
	mine := a.cfg.Ledger.Place()
	var differs error
	for _, m := range a.gossip.Members() {
		if m.Role != gossip.Seeder || gossip.TrustOf(m.Key, a.cfg.Trust.IDs()) == gossip.Untrusted {
			continue
		}
		err := mine.Differs("this agent", "seeder "+m.ID, mine.Of(m.Table))
		if err == nil && a.rows != nil {
			err = arrivals.Differs("this agent", a.cfg.Arrivals.Told(), "seeder "+m.ID, m.ArrivalsTable)
		}
		if err == nil && (m.Table != "" || m.ArrivalsTable != "") {
			return nil // one agrees: another's mistake is not this agent's
		}
		if differs == nil {
			differs = err
		}
	}
	return differs
}

// watchSeeders says again and again, until ctx ends, why no build can come here, and that
// a seeder uses another table. An agent that finds so at its first sight of a seeder ends,
// where its table is another region of an eventually consistent global table: it would
// lose arrivals of others.
func (a *Agent) watchSeeders(ctx context.Context) error {
	others := seldom.New(otherSeeders, maxOtherSeeders)
	timer := time.NewTimer(complainFirst)
	defer timer.Stop()
	agreed, said, due := false, "", false
	for {
		untrusted, alone := a.seeders()
		switch err := a.tableDiffers(); {
		case err == nil:
			agreed, said = agreed || alone == nil, ""
		case !agreed && errors.Is(err, ledger.ErrGlobalTable):
			return err
		case due || err.Error() != said:
			said = err.Error()
			a.cfg.Logger.Warn("arrivals are recorded in another table than the seeder's, it does not see them", "error", err)
		}
		if due && alone != nil {
			a.cfg.Logger.Warn("agent is not ready", "error", alone)
		} else if due {
			for _, m := range untrusted {
				if _, pass := others.Pass(m.ID); pass {
					a.cfg.Logger.Warn("a seeder is not trusted, its builds are not followed", "member", m.Name, "key", m.Key)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.seedersChanged:
			due = false
		case <-timer.C:
			due = true
			timer.Reset(complainEvery)
		}
	}
}
