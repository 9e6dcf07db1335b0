package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// maxRemembered bounds the members kept in the file, the newest first.
	maxRemembered = maxMembers
	// rememberedFor is how long a member that was not seen since is kept: as long
	// as an announcement holds.
	rememberedFor = 7 * 24 * time.Hour
	// maxRememberedFile bounds the file in bytes: 512 times an id of 64 characters,
	// an address and a time, in JSON, with room.
	maxRememberedFile = 256 << 10
	// saveInterval is the least time between two writes of the file.
	saveInterval = 100 * time.Millisecond
	// refreshInterval is how often it is written though nobody came or left, so that
	// its times are true.
	refreshInterval = time.Hour
	// maxStartAhead is how far the last start may lie ahead of the clock and still
	// be believed.
	maxStartAhead = 24 * time.Hour
)

// remembered is who was a member, over a restart: a seeder that starts again at a
// new address is known to the others before they ask for it.
type remembered struct {
	file string // empty: nothing is kept

	mu      sync.Mutex
	start   string // the ULID of this start, greater than those before
	members map[string]acquaintance
}

// acquaintance is one remembered member; the file has a list of them.
type acquaintance struct {
	ID   string         `json:"id"`
	Addr netip.AddrPort `json:"addr"`
	Seen time.Time      `json:"seen"`
}

type rememberedFile struct {
	Start   string         `json:"start"`
	Members []acquaintance `json:"members"`
}

// remember opens the file. What cannot be read is nothing, and an error that is not
// fatal.
func remember(file string, now time.Time) (*remembered, error) {
	r := &remembered{file: file, start: newStart(now, ""), members: make(map[string]acquaintance)}
	if file == "" {
		return r, nil
	}
	var kept rememberedFile
	err := errors.Join(readRemembered(file, &kept), private.RemoveUnfinished(filepath.Dir(file)))
	r.start = newStart(now, kept.Start)
	for _, m := range kept.Members {
		if m.ID != "" && len(m.ID) <= maxName && m.Addr.IsValid() && now.Sub(m.Seen) < rememberedFor {
			r.members[m.ID] = m
		}
	}
	r.bound()
	return r, err
}

func readRemembered(file string, kept *rememberedFile) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the members of before: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRememberedFile+1))
	if err == nil && len(b) > maxRememberedFile {
		err = fmt.Errorf("more than %d bytes", maxRememberedFile)
	}
	if err == nil {
		err = json.Unmarshal(b, kept)
	}
	if err != nil {
		*kept = rememberedFile{}
		return fmt.Errorf("reading the members of before from %s: %w", file, err)
	}
	return nil
}

// newStart is a ULID greater than that of the last start, should the clock have been
// set back: of two starts of a member, the greater one is the member.
func newStart(now time.Time, last string) string {
	id := ulid.MustNew(ulid.Timestamp(now), ulid.DefaultEntropy())
	before, err := ulid.ParseStrict(last)
	if err != nil || ulid.Time(before.Time()).After(now.Add(maxStartAhead)) {
		return id.String()
	}
	if id.Time() <= before.Time() {
		// Cannot fail: the time is not the greatest there is.
		_ = id.SetTime(before.Time() + 1)
	}
	return id.String()
}

// addresses are where the remembered members were, the last seen first.
func (r *remembered) addresses() []string {
	var out []string
	for _, m := range r.list() {
		out = append(out, m.Addr.String())
	}
	return out
}

func (r *remembered) list() []acquaintance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sorted()
}

func (r *remembered) sorted() []acquaintance {
	out := make([]acquaintance, 0, len(r.members))
	for _, m := range r.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b acquaintance) int { return b.Seen.Compare(a.Seen) })
	return out
}

// bound forgets the oldest beyond maxRemembered, and who is too old.
func (r *remembered) bound() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, m := range r.sorted() {
		if i >= maxRemembered || time.Since(m.Seen) > rememberedFor {
			delete(r.members, m.ID)
		}
	}
}

// save writes the file with those that are members now.
func (r *remembered) save(now *snapshot, self string) error {
	if r.file == "" {
		return nil
	}
	r.mu.Lock()
	for i, m := range now.members {
		if addr, err := netip.ParseAddrPort(now.nodes[i].Address()); err == nil && m.ID != self {
			r.members[m.ID] = acquaintance{m.ID, addr, time.Now().UTC().Truncate(time.Second)}
		}
	}
	r.mu.Unlock()
	r.bound()
	b, err := json.Marshal(rememberedFile{r.start, r.list()})
	if err != nil {
		return fmt.Errorf("keeping the members: %w", err)
	}
	if err := private.Replace(r.file, b); err != nil {
		return fmt.Errorf("keeping the members: %w", err)
	}
	return nil
}

// keepMembers writes the file when members come or go.
func (g *Gossip) keepMembers(ctx context.Context) {
	save := func() {
		if err := g.remembered.save(g.roster.now(), g.cfg.ID); err != nil {
			g.warn("members not remembered, after a restart the others are found by --join alone", "error", err)
		}
	}
	for {
		save()
		select {
		case <-ctx.Done():
			return
		case <-time.After(saveInterval):
		}
		select {
		case <-ctx.Done():
			save()
			return
		case <-g.toKeep:
		case <-time.After(refreshInterval):
		}
	}
}
