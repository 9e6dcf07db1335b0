package gossip

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
)

// maxTrusts bounds the keys that an agent's meta names, for the sake of its 512
// bytes. One that trusts more says nothing of it.
const maxTrusts = 8

// Trust is whether an agent takes a seeder's documents, by what both say of their
// keys.
type Trust int

// The answers. UnknownTrust is that of members that do not say.
const (
	UnknownTrust Trust = iota
	Trusted
	Untrusted
)

// TrustOf says whether an agent that trusts these keys takes what a seeder with that
// key signs; both as announce.KeyID has them, empty where a member does not say.
func TrustOf(key string, trusts []string) Trust {
	switch {
	case key == "" || len(trusts) == 0:
		return UnknownTrust
	case slices.Contains(trusts, key):
		return Trusted
	}
	return Untrusted
}

// bounded leaves out what does not fit.
func (m Meta) bounded() Meta {
	if len(m.Trusts) > maxTrusts {
		m.Trusts = nil
	}
	if len(m.Table) > maxTable {
		m.Table = ""
	}
	if len(m.ArrivalsTable) > maxTable {
		m.ArrivalsTable = ""
	}
	return m
}

// meta is what this member says of itself now.
func (g *Gossip) meta() Meta {
	meta := g.cfg.Meta
	if ids := g.trusts.Load(); ids != nil {
		meta.Trusts = *ids
	}
	return meta
}

// SetTrusts changes the keys that this member says it trusts.
func (g *Gossip) SetTrusts(ids []string) error {
	g.trusts.Store(&ids)
	return g.list.UpdateNode(sendTimeout)
}

// Refusals of documents, as the metric counts them.
const (
	refusedUntrusted = "untrusted"
	refusedInvalid   = "invalid"
	refusedFull      = "full"
)

// refusals counts the documents that were not taken.
type refusals struct {
	untrusted, invalid, full atomic.Int64

	mu     sync.Mutex
	last   time.Time // when a document of another key came
	reason error
}

// refused counts a document that was not taken, and says so once in a while.
func (g *Gossip) refused(err error) {
	kind := refusedInvalid
	switch {
	case errors.Is(err, announce.ErrUntrusted):
		kind = refusedUntrusted
		g.refusals.untrusted.Add(1)
		g.refusals.mu.Lock()
		g.refusals.last, g.refusals.reason = time.Now(), err
		g.refusals.mu.Unlock()
	case errors.Is(err, announce.ErrFull):
		kind = refusedFull
		g.refusals.full.Add(1)
	default:
		g.refusals.invalid.Add(1)
	}
	if omitted, due := g.every30s.Pass("document " + kind); due {
		g.cfg.Logger.Warn("document refused", "error", err, "omitted", omitted)
	}
}

// Untrusted returns why the newest document of a key that is not trusted was refused,
// where that was within the time given; else nil.
func (g *Gossip) Untrusted(within time.Duration) error {
	g.refusals.mu.Lock()
	defer g.refusals.mu.Unlock()
	if g.refusals.reason == nil || time.Since(g.refusals.last) > within {
		return nil
	}
	return fmt.Errorf("what a seeder announces is refused: %w", g.refusals.reason)
}
