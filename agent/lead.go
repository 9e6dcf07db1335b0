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
	var ids []string
	for _, m := range a.gossip.Members() {
		if m.Role == gossip.Agent && m.Bucket == a.cfg.Bucket.Name() {
			ids = append(ids, m.ID)
		}
	}
	self := a.cfg.Gossip.ID
	if begun := record.Landings[a.cfg.Bucket.Name()]; begun.ExecutionID == record.ExecutionID && slices.Contains(ids, begun.Agent) {
		return begun.Agent == self
	}
	return rendezvous(record.ExecutionID, append(ids, self)) == self
}

// rendezvous picks one of ids by highest hash: everyone who knows the same ids
// picks the same, and another execution spreads differently.
func rendezvous(executionID string, ids []string) string {
	var best string
	var bestHash [sha256.Size]byte
	for _, id := range ids {
		if h := sha256.Sum256([]byte(executionID + "\x00" + id)); best == "" || slices.Compare(h[:], bestHash[:]) > 0 {
			best, bestHash = id, h
		}
	}
	return best
}
