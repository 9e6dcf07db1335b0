package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/gossip"
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

// keyIDs names the keys that an agent trusts.
func keyIDs(trust []ed25519.PublicKey) []string {
	var out []string
	for _, key := range trust {
		out = append(out, announce.KeyID(key))
	}
	return out
}

// ready is nil when a seeder is in sight whose announcements this agent follows, and
// which reads the table that this agent writes;
// else it says why not.
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
	for _, m := range a.gossip.Members() {
		if m.Role != gossip.Seeder {
			continue
		}
		switch gossip.TrustOf(m.Key, keyIDs(a.cfg.Trust)) {
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

// complain says again and again why no build can come here, until ctx ends.
func (a *Agent) complain(ctx context.Context) error {
	others := seldom.New(otherSeeders, maxOtherSeeders)
	wait := complainFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			wait = complainEvery
		}
		untrusted, err := a.seeders()
		if err != nil {
			a.cfg.Logger.Warn("agent is not ready", "error", err)
			continue
		}
		for _, m := range untrusted {
			if _, due := others.Pass(m.ID); due {
				a.cfg.Logger.Warn("a seeder is not trusted, its builds are not followed", "member", m.Name, "key", m.Key)
			}
		}
	}
}
