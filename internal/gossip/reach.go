package gossip

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// sayInterval is the time between two lines about the same trouble that lasts.
	sayInterval = 30 * time.Second
	// joinPatience is how long an address of --join may fail before that is said:
	// members of a new cluster start within a few seconds of each other.
	joinPatience = 3 * time.Second
	// maxSaid bounds the troubles told apart: addresses of --join, above all.
	maxSaid = 256
)

// reach is how the tries to reach the addresses of --join went.
type reach struct {
	mu       sync.Mutex
	failures map[string]failure // of those that are not reached
}

type failure struct {
	since time.Time // of the first try that failed
	err   error     // of the last
}

// only forgets the failures of addresses that are not missing any more.
func (r *reach) only(missing []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for addr := range r.failures {
		if !slices.Contains(missing, addr) {
			delete(r.failures, addr)
		}
	}
}

// note keeps the outcome of a try that began at some time, and returns since when
// there is nothing but failures.
func (r *reach) note(addr string, begun time.Time, err error) (since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.failures, addr)
		return time.Time{}
	}
	f, ok := r.failures[addr]
	if !ok {
		f.since = begun
	}
	f.err = err
	if r.failures == nil {
		r.failures = make(map[string]failure)
	}
	r.failures[addr] = f
	return f.since
}

// reachOut looks up the addresses of --join, every one of each name, and meets who is
// at those at which no living member is known. A name is looked up each time, so that
// who has moved is found.
func (g *Gossip) reachOut(ctx context.Context) {
	begun := time.Now()
	found, errs := make([][]string, len(g.cfg.Join)), make([]error, len(g.cfg.Join))
	var wg sync.WaitGroup
	for i, addr := range g.cfg.Join {
		wg.Go(func() {
			found[i], errs[i] = g.cfg.network.resolve(ctx, addr)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	all := slices.Concat(found...)
	g.named.Store(&all)
	g.roster.prefer(all...)
	var missing []string
	for i, addr := range g.cfg.Join {
		if errs[i] != nil || len(g.absent(found[i])) == len(found[i]) {
			missing = append(missing, addr)
		}
	}
	g.reach.only(missing)
	for i, join := range g.cfg.Join {
		if errs[i] != nil {
			g.tried(join, begun, errs[i])
		}
		isMissing := slices.Contains(missing, join)
		for _, addr := range g.absent(found[i]) {
			g.meet(addr, func(err error) {
				if isMissing {
					g.tried(join, begun, err)
				}
			})
		}
	}
}

// tried notes how a try to reach an address of --join went, and says so where it goes
// on failing.
func (g *Gossip) tried(join string, begun time.Time, err error) {
	if err != nil {
		err = plainJoinError(err)
	}
	since := g.reach.note(join, begun, err)
	if err == nil || time.Since(since) < joinPatience {
		return
	}
	if _, due := g.every30s.Pass("join " + join); due {
		g.cfg.Logger.Warn("no member reached", "join", join, "error", err, "since", since.UTC().Format(time.RFC3339))
	}
}

// Unreached says of each address of --join at which no member was reached why; nil
// when there is none, or none was tried yet.
func (g *Gossip) Unreached() error {
	g.reach.mu.Lock()
	defer g.reach.mu.Unlock()
	var errs []error
	for _, addr := range g.cfg.Join {
		if f, ok := g.reach.failures[addr]; ok {
			errs = append(errs, fmt.Errorf("--join %s: %w", addr, f.err))
		}
	}
	return oneLine(errs)
}

// oneLine joins errors in one line; nil for none.
func oneLine(errs []error) error {
	if len(errs) < 2 {
		return errors.Join(errs...)
	}
	var texts []string
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return errors.New(strings.Join(texts, "; "))
}

// plainJoinError says in one line why memberlist could not join.
func plainJoinError(err error) error {
	errs := []error{err}
	if many, ok := err.(interface{ WrappedErrors() []error }); ok {
		errs = many.WrappedErrors()
	}
	for i, err := range errs {
		text := err.Error()
		for _, before := range []string{"failed to join ", "failed to resolve "} {
			if rest, ok := strings.CutPrefix(text, before); ok {
				if _, reason, ok := strings.Cut(rest, ": "); ok {
					text = reason
				}
			}
		}
		if hint := keyTrouble(text); hint != "" {
			text = hint
		} else if text == "EOF" || strings.Contains(text, "msgType") {
			text += ": it answers, but not as a member's gossip port does"
		}
		errs[i] = errors.New(text)
	}
	return oneLine(errs)
}

// keyTrouble says plainly what memberlist says of a key that does not fit; empty for
// anything else.
func keyTrouble(text string) string {
	switch {
	case strings.Contains(text, "no installed keys could decrypt"), strings.Contains(text, "unsupported encryption version"):
		return "the other side has another --gossip-key"
	case strings.Contains(text, "encryption is not configured"):
		return "the other side has a --gossip-key and this one has none"
	case strings.Contains(text, "remote state is not encrypted"):
		return "the other side has no --gossip-key and this one has"
	}
	return ""
}
