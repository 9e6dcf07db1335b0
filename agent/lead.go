package agent

import (
	"crypto/sha256"
	"slices"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// leads reports whether this agent is the one to land: the living member that
// has begun, else the rendezvous winner among the living members of the bucket.
func (a *Agent) leads(record *ledger.Record) bool {
	self, ids := a.cfg.Gossip.ID, a.agentsOf(a.cfg.Bucket.Name())
	if begun := record.Landings[a.cfg.Bucket.Name()]; begun.ExecutionID == record.ExecutionID && slices.Contains(ids, begun.Agent) {
		return begun.Agent == self
	}
	return rendezvousRank(record.ExecutionID, self, ids) == 0 // everyone who knows the same ids agrees
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
