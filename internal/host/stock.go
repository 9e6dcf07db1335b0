package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

const (
	// stockInterval is how often it is looked how far builds are.
	stockInterval = time.Second
	// maxRecipes bounds the recipes that are kept of builds which no goal names yet.
	maxRecipes = 64
)

// stock has the builds here that the goals name: it fetches the target and the stable one
// of each service, and lets go what is neither.
type stock struct {
	host *Host
	wake chan struct{}

	mu      sync.Mutex // held for a few lines
	recipes map[string]fetch.Recipe
	refused map[string]failure // recipes that were of no use, by executionId

	// Of run's goroutine.
	held map[string]bool // builds that an agent was told of
}

func newStock(h *Host) *stock {
	return &stock{host: h, wake: make(chan struct{}, 1), recipes: make(map[string]fetch.Recipe), refused: make(map[string]failure), held: make(map[string]bool)}
}

// recipe keeps what an agent says of a build.
func (s *stock) recipe(m *hostwire.Recipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.recipes[m.ExecutionID]; !known && len(s.recipes) >= maxRecipes {
		wanted := s.wanted()
		maps.DeleteFunc(s.recipes, func(id string, _ fetch.Recipe) bool { _, keep := wanted[id]; return !keep })
	}
	if len(s.recipes) < 2*maxRecipes {
		s.recipes[m.ExecutionID] = fetch.Recipe{ExecutionID: m.ExecutionID, Key: m.Key, Size: m.Size, Scheme: m.Scheme, InfoHashes: m.InfoHashes, Sealed: m.Sealed}
	}
	ask(s.wake)
}

// known is what an agent has said last of a build.
func (s *stock) known(id string) (fetch.Recipe, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.recipes[id]
	return r, ok
}

// wanted are the builds that a goal names, by executionId, but for recalled ones: those are
// neither fetched nor served.
func (s *stock) wanted() map[string]goal.Build {
	all := make(map[string]goal.Build)
	for _, name := range s.host.cfg.Services {
		g := s.host.shelf.Goal(name)
		if g == nil {
			continue
		}
		for _, b := range []*goal.Build{&g.Target, g.Stable} {
			if b != nil && !s.host.shelf.Recalled(b.SHA256) {
				all[b.ExecutionID] = *b
			}
		}
	}
	return all
}

// run follows the goals until ctx ends.
func (s *stock) run(ctx context.Context) {
	ticker := time.NewTicker(stockInterval)
	defer ticker.Stop()
	for {
		s.step()
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-ticker.C:
		}
	}
}

// step begins what is wanted, follows recipes that have grown, lets go what is not wanted,
// and says what is here.
func (s *stock) step() {
	h := s.host
	wanted := s.wanted()
	for id, b := range wanted {
		r, ok := s.known(id)
		switch {
		case !ok:
		case r.Scheme.Check() != nil:
			s.cannotFollow(r)
		case r.Size != b.Size:
			s.refuse(r, fmt.Errorf("agent's recipe is of a build of %d bytes, the goal's has %d", r.Size, b.Size))
		default:
			s.fetch(r)
		}
	}
	s.mu.Lock()
	maps.DeleteFunc(s.refused, func(id string, _ failure) bool { _, keep := wanted[id]; return !keep })
	s.mu.Unlock()
	if s.goalsKnown() {
		for _, b := range h.fetch.Builds() {
			if _, ok := wanted[b.ExecutionID()]; !ok {
				h.cfg.Logger.Info("build is not wanted any more", "executionId", b.ExecutionID())
				b.Drop()
			}
		}
	}
	holds := make(map[string]bool)
	for _, b := range h.fetch.Builds() {
		p := b.Progress()
		if want, ok := wanted[b.ExecutionID()]; ok && errors.Is(p.Err, fetch.ErrWrongBuild) {
			_ = b.Verify(want.Size, want.SHA256) // throws it away, and says so
			s.wrong(b.ExecutionID())
			continue
		}
		if p.Here > 0 || p.Whole {
			holds[b.ExecutionID()] = true
			h.link.has(hostwire.Holds{ExecutionID: b.ExecutionID(), Segments: p.Here, Whole: p.Whole})
		}
		if p.Whole {
			h.wakeFor(b.ExecutionID())
		}
	}
	for id := range s.held {
		if !holds[id] {
			h.link.has(hostwire.Holds{ExecutionID: id})
		}
	}
	s.held = holds
}

// goalsKnown reports whether each service has a goal: before that a start must not throw
// away what the goal may name.
func (s *stock) goalsKnown() bool {
	return !slices.ContainsFunc(s.host.cfg.Services, func(name string) bool { return s.host.shelf.Goal(name) == nil })
}

// fetch fetches a build, or follows what is said of it now. One that is in its place for
// each service that wants it is not fetched anew.
func (s *stock) fetch(r fetch.Recipe) {
	h := s.host
	b, known := h.fetch.Known(r.ExecutionID)
	if !known {
		if s.placed(r.ExecutionID) {
			return
		}
		if _, err := h.fetch.Build(r); err != nil {
			s.refuse(r, err)
		}
		return
	}
	switch err := b.Update(r); {
	case err == nil:
		s.mu.Lock()
		delete(s.refused, r.ExecutionID)
		s.mu.Unlock()
	case errors.Is(err, fetch.ErrContradiction) && !b.Progress().Whole:
		h.warn("agent says otherwise than before of what a build is made of, it is fetched anew", "executionId", r.ExecutionID, "key", r.Key, "error", err)
		b.Drop()
		ask(s.wake)
	case errors.Is(err, fetch.ErrDropped):
	case b.Progress().Whole:
		h.warn("agent says otherwise than before of a build that is here", "executionId", r.ExecutionID, "key", r.Key, "error", err)
	default:
		s.refuse(r, err)
	}
}

// refuse takes note that a recipe is of no use. Another agent is asked for one, now and
// then: where all of the region say the same, that helps nobody.
func (s *stock) refuse(r fetch.Recipe, err error) {
	s.mu.Lock()
	f := s.refused[r.ExecutionID]
	due := !f.waits(time.Now())
	if due {
		s.refused[r.ExecutionID] = f.more(err, s.host.cfg.again)
	}
	s.mu.Unlock()
	if due {
		s.host.warn("agent's recipe not followed", "executionId", r.ExecutionID, "key", r.Key, "error", err)
		s.wrong(r.ExecutionID)
	}
}

// cannotFollow takes note of a recipe that is a newer version's. Other agents have no other
// one: nobody is asked.
func (s *stock) cannotFollow(r fetch.Recipe) {
	err := fmt.Errorf("%w: %w", errNewer, r.Scheme.Check())
	s.mu.Lock()
	again := errors.Is(s.refused[r.ExecutionID].err, errNewer)
	s.refused[r.ExecutionID] = failure{err: err}
	s.mu.Unlock()
	if !again {
		s.host.cfg.Logger.Error("agent's recipe cannot be followed", "executionId", r.ExecutionID, "key", r.Key, "error", err)
		for _, of := range s.host.services {
			ask(of.wake)
		}
	}
}

// unusable is why what agents say of a build is of no use; nil while it is.
func (s *stock) unusable(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[id].err
}

// placed reports whether a build is a release of each service that wants it.
func (s *stock) placed(id string) bool {
	for _, name := range s.host.cfg.Services {
		g := s.host.shelf.Goal(name)
		if g != nil && (g.Target.ExecutionID == id || g.Stable != nil && g.Stable.ExecutionID == id) && !s.host.services[name].release.Placed(id) {
			return false
		}
	}
	return true
}

// wrong has a recipe be of no use: it has led to other bytes than the goal's. Another
// agent is asked.
func (s *stock) wrong(id string) {
	s.mu.Lock()
	delete(s.recipes, id)
	s.mu.Unlock()
	s.host.link.another()
}

// wakeFor has services look that want a build and lack it.
func (h *Host) wakeFor(id string) {
	for name, s := range h.services {
		g := h.shelf.Goal(name)
		if g != nil && (g.Target.ExecutionID == id || g.Stable != nil && g.Stable.ExecutionID == id) && !s.release.Placed(id) {
			ask(s.wake)
		}
	}
}
