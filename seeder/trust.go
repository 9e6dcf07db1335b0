package seeder

import (
	"fmt"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
)

const (
	// distrustInterval is how often an agent that does not trust this seeder is
	// named in the log, maxDistrust bounds those that are told apart.
	distrustInterval = 10 * time.Minute
	maxDistrust      = 64
)

// keyID names the key that this seeder signs with.
func (s *Seeder) keyID() string {
	return s.cfg.Signer.Public().ID()
}

// trustChanged takes other rules of trust: what others have announced whom this seeder does
// not trust any more is dropped. What it signs itself the agents decide about, so it goes
// on, and says when its own key is among those that are revoked.
func (s *Seeder) trustChanged() {
	s.cfg.Logger.Info("trusted keys changed", "keys", s.cfg.Trust.IDs())
	for _, end := range s.book.Recheck() {
		s.cfg.Logger.Warn("announcement dropped: its key is not trusted any more", "key", end.Key, "executionId", end.ExecutionID)
	}
	if err := s.cfg.Trust.CheckKey(s.cfg.Signer.Public()); err != nil {
		s.cfg.Logger.Error("this seeder's own signing key is not trusted any more: start it with another one, which the agents trust", "error", err)
	}
}

// trustedBy reports whether an agent takes what this seeder signs, as far as it says.
func (s *Seeder) trustedBy(agent gossip.Member) bool {
	return gossip.TrustOf(s.keyID(), agent.Trusts) != gossip.Untrusted
}

// servedBy returns the buckets that have an agent which understands and takes what this
// seeder signs, and for the others that have agents why nothing comes there.
func (s *Seeder) servedBy(members []gossip.Member) (served map[string]bool, distrust map[string]string) {
	served, distrust = make(map[string]bool), make(map[string]string)
	for _, m := range members {
		if m.Role != gossip.Agent {
			continue
		}
		if age := m.Age(); age != "" {
			distrust[m.Bucket] = fmt.Sprintf("agent %s is of an %s version and %s: upgrade the %s", m.ID, age, api.OtherVersion,
				map[string]string{"older": "agent", "newer": "seeder"}[age])
			if _, due := s.distrust.Pass(m.Name); due {
				s.cfg.Logger.Warn("an agent does not understand what this seeder announces, it is of an "+age+" version", "member", m.Name, "region", m.Region, "bucket", m.Bucket)
			}
			continue
		}
		if s.trustedBy(m) {
			served[m.Bucket] = true
			continue
		}
		distrust[m.Bucket] = fmt.Sprintf("agent %s %s: start it with --trust and the public key of %s…", m.ID, api.Distrust, s.keyID())
		if _, due := s.distrust.Pass(m.Name); due {
			s.cfg.Logger.Warn("an agent does not trust this seeder's key", "member", m.Name, "region", m.Region, "bucket", m.Bucket, "key", s.keyID())
		}
	}
	for bucket := range served {
		delete(distrust, bucket)
	}
	return served, distrust
}

// unservedOf returns those of the buckets that nobody takes builds to, in their order.
func (x *index) unservedOf(buckets []string) (out []api.Unserved) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range buckets {
		if x.served[b].IsZero() && !slices.ContainsFunc(out, func(u api.Unserved) bool { return u.Bucket == b }) {
			out = append(out, api.Unserved{Bucket: b, Error: x.distrust[b]})
		}
	}
	return out
}
