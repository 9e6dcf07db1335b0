package agent

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// lander is who lands a build in this agent's bucket.
type lander int

const (
	nobody lander = iota // as far as the table says
	itself
	another
	silent // another one, of whom nothing has been heard for so long that it may be replaced
)

// landerOf is who lands an execution, by its record. Whether another is alive its beat says;
// where the landing has no holder, as older versions begin it, the membership.
func (a *Agent) landerOf(ctx context.Context, record *ledger.Record) (lander, error) {
	switch begun := record.Landings[a.cfg.Bucket.Name()]; {
	case begun.ExecutionID != record.ExecutionID:
		return nobody, nil
	case begun.Agent == a.cfg.Gossip.ID:
		return itself, nil
	case begun.Holder != "":
		still, err := a.rows.StandsStill(ctx, begun)
		if still {
			return silent, err
		}
		return another, err
	case slices.Contains(a.agentsOf(a.cfg.Bucket.Name()), begun.Agent):
		return another, nil
	}
	return nobody, nil
}

// leads reports whether this agent is to land. Where nobody does, the rendezvous among the
// living members of the bucket says who tries first; but whoever that is may be made up, or
// unable to: after a while another tries. since is how long nobody has.
func (a *Agent) leads(executionID string, who lander, since time.Duration) bool {
	switch who {
	case itself, silent:
		return true
	case nobody:
		self, ids := a.cfg.Gossip.ID, a.agentsOf(a.cfg.Bucket.Name())
		return rendezvousRank(executionID, self, ids) == 0 || since >= arrivals.Patience // everyone who knows the same ids agrees
	}
	return false
}

// agentsOf are the ids of the living members that serve one of the buckets.
func (a *Agent) agentsOf(buckets ...string) (ids []string) {
	for _, m := range a.gossip.Members() {
		if m.Role == gossip.Agent && slices.Contains(buckets, m.Bucket) {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// rendezvousRank is the place of self, from 0, in the order of ids that a name gives, the
// highest hash first: everyone who knows the same ids has the same order, and another
// name spreads differently.
func rendezvousRank(name, self string, ids []string) int {
	hash := func(id string) [sha256.Size]byte { return sha256.Sum256([]byte(name + "\x00" + id)) }
	own := hash(self)
	before := 0
	for i, id := range ids {
		h := hash(id)
		if !slices.Contains(ids[:i], id) && slices.Compare(h[:], own[:]) > 0 {
			before++
		}
	}
	return before
}
