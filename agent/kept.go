package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/private"
	"github.com/landfall-dist/landfall/internal/seldom"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/swarm"
)

const (
	// maxRecipes bounds the builds of which it is remembered what they are made of: the newest,
	// beside those that goals name.
	maxRecipes = 1024
	// maxRecipeFile bounds one on disk, in bytes.
	maxRecipeFile = 64 << 10
	// settledFor is how long a build that is handed out in full is not looked at again.
	settledFor = 30 * time.Second
	// readBackAfter is how long a build that goals name may be neither here nor on its way
	// before it is read from the region's bucket: its announcement may come yet.
	readBackAfter = 10 * time.Second
	// readBackRetry is how long after a failure it is tried again, at first; it doubles up to
	// maxReadBackRetry.
	readBackRetry, maxReadBackRetry = 10 * time.Second, 5 * time.Minute
	recipeSuffix                    = ".json"
)

// kept are the builds that goals name, as target or as stable: they stay in the cache and
// are handed to hosts while their execution is under way, after it has ended, and after a
// restart. What is not here any more is read back from the region's bucket.
type kept struct {
	keptConfig
	wake    chan struct{}
	notices *seldom.Lines

	mu      sync.Mutex // held for no I/O
	recipes map[string]*recipe
	wanted  map[string]goal.Build // by executionId
	// whole is how many of those are here in full.
	whole atomic.Int64

	// Of run's goroutine.
	builds map[string]*keptBuild
	back   chan readBack
}

// keptConfig is what kept works with.
type keptConfig struct {
	// dir keeps recipes over a restart; empty for memory alone.
	dir    string
	cache  *cache.Cache
	swarm  *swarm.Swarm
	bucket *bucket.Bucket
	puller *source.Puller
	// busy reports whether an execution is under way here; evict makes room on the disk.
	busy  func(executionID string) bool
	evict func(room int64)
	// standby is how many other agents of the region hand a segment to hosts before this one.
	standby func(manifest.InfoHash) int
	// readBackAfter is the constant of that name, shortened by tests.
	readBackAfter time.Duration
	logger        *slog.Logger
}

// recipe is what a build is made of, as far as it was announced, and who may have it.
type recipe struct {
	hostwire.Recipe
	Destinations []string `json:"destinations"`
	High         bool     `json:"high,omitempty"`

	written bool
}

// keptBuild is what is done for one that is wanted.
type keptBuild struct {
	entries  map[manifest.InfoHash]*cache.Entry
	handed   map[manifest.InfoHash]bool
	settled  time.Time // when it was found to be handed out in full
	lackedAt time.Time // since when something lacks that nobody brings; zero for nothing
	reading  bool
	wait     time.Duration
}

// readBack is a build that was read back, or not: what has come of it is kept.
type readBack struct {
	id      string
	entries []*cache.Entry
}

func newKept(cfg keptConfig) (*kept, error) {
	k := &kept{
		keptConfig: cfg, wake: make(chan struct{}, 1), notices: seldom.New(time.Minute, 32),
		recipes: make(map[string]*recipe), wanted: make(map[string]goal.Build),
		builds: make(map[string]*keptBuild), back: make(chan readBack),
	}
	if k.readBackAfter == 0 {
		k.readBackAfter = readBackAfter
	}
	if cfg.dir == "" {
		return k, nil
	}
	err := private.MkdirAll(cfg.dir)
	if err == nil {
		err = errors.Join(private.Tighten(cfg.dir, "*"), private.RemoveUnfinished(cfg.dir))
	}
	var found []os.DirEntry
	if err == nil {
		found, err = os.ReadDir(cfg.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("keeping what builds are made of: %w; choose another --data-dir", err)
	}
	slices.Reverse(found) // the newest first
	for _, f := range found {
		id, ok := strings.CutSuffix(f.Name(), recipeSuffix)
		if !ok {
			continue
		}
		r, err := k.read(id)
		if err == nil && len(k.recipes) >= maxRecipes {
			err = fmt.Errorf("there are %d newer ones", maxRecipes)
		}
		if err != nil {
			cfg.logger.Warn("what a build is made of was forgotten, it is read from the bucket when hosts want it",
				"executionId", id, "error", errors.Join(err, k.forget(id)))
			continue
		}
		k.recipes[id] = r
	}
	return k, nil
}

func (k *kept) file(id string) string { return filepath.Join(k.dir, id+recipeSuffix) }

func (k *kept) read(id string) (*recipe, error) {
	text, err := private.Read(k.file(id), maxRecipeFile)
	r := &recipe{written: true}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err == nil {
		err = executionid.Check(id, time.Now())
	}
	var layout *manifest.Layout
	if err == nil {
		layout, err = manifest.NewLayout(r.Scheme, r.Size)
	}
	if err == nil && (r.ExecutionID != id || !r.Sealed || len(r.InfoHashes) != layout.NumSegments()*len(manifest.InfoHash{})) {
		err = errors.New("it does not agree with itself")
	}
	return r, err
}

func (k *kept) forget(id string) error {
	if k.dir == "" {
		return nil
	}
	return os.Remove(k.file(id))
}

// note remembers what a build is made of, as an announcement says.
func (k *kept) note(ann *announce.Announcement) {
	if k == nil {
		return
	}
	k.learn(&recipe{
		Recipe: hostwire.Recipe{
			ExecutionID: ann.ExecutionID, Key: ann.Key, Size: ann.Size, Scheme: ann.Scheme,
			PieceLength: ann.PieceLength, PartLength: ann.PartLength, InfoHashes: ann.InfoHashes, Sealed: ann.Sealed(),
		},
		Destinations: ann.Destinations, High: ann.High,
	})
}

func (k *kept) learn(r *recipe) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.recipes[r.ExecutionID]; old != nil && len(old.InfoHashes) >= len(r.InfoHashes) && (old.Sealed || !r.Sealed) {
		return
	}
	k.recipes[r.ExecutionID] = r
	ask(k.wake)
}

// keep says which builds goals name now; those named before go as the cache has it.
func (k *kept) keep(builds []goal.Build) {
	if k == nil {
		return
	}
	wanted := make(map[string]goal.Build, len(builds))
	for _, b := range builds {
		if b.SHA256 != "" || wanted[b.ExecutionID].ExecutionID == "" {
			wanted[b.ExecutionID] = b
		}
	}
	k.mu.Lock()
	k.wanted = wanted
	k.mu.Unlock()
	ask(k.wake)
}

// look has what came just now handed to hosts before the next tick.
func (k *kept) look() {
	if k != nil {
		ask(k.wake)
	}
}

// recipe is what hosts are told of a build; false while nothing is known of it.
func (k *kept) recipe(executionID string) (hostwire.Recipe, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.recipes[executionID]
	if !ok {
		return hostwire.Recipe{}, false
	}
	return r.Recipe, true
}

// run keeps and hands out until ctx ends.
func (k *kept) run(ctx context.Context) error {
	var reading sync.WaitGroup
	defer func() {
		reading.Wait()
		for _, b := range k.builds {
			b.leave(nil)
		}
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		_ = survive.Run(k.logger, func() error { k.step(ctx, time.Now(), &reading); return nil }) // said there
		select {
		case <-ctx.Done():
			return nil
		case back := <-k.back:
			b := k.builds[back.id] // which stays as long as it is read
			b.reading = false
			for _, e := range back.entries {
				if b.entries[e.InfoHash()] != nil {
					e.Unkeep()
					continue
				}
				b.entries[e.InfoHash()] = e
			}
		case <-k.wake:
		case <-ticker.C:
		}
	}
}

// step looks at each build that is wanted, and lets go of those that are not any more.
func (k *kept) step(ctx context.Context, now time.Time, reading *sync.WaitGroup) {
	k.mu.Lock()
	wanted := k.wanted
	known := make(map[string]*recipe, len(wanted))
	var fresh []*recipe
	for id, r := range k.recipes {
		if _, ok := wanted[id]; ok {
			known[id] = r
		}
		if r.Sealed && !r.written {
			r.written = true
			fresh = append(fresh, r)
		}
	}
	gone := k.surplus()
	k.mu.Unlock()
	for _, r := range fresh {
		k.write(r)
	}
	for _, id := range gone {
		_ = k.forget(id) // it may never have been there
	}
	still := make(map[manifest.InfoHash]bool)
	for id := range wanted {
		if b := k.builds[id]; b != nil {
			for infohash := range b.handed {
				still[infohash] = true
			}
		}
	}
	for id, b := range k.builds {
		if _, ok := wanted[id]; !ok && !b.reading {
			delete(k.builds, id)
			b.leave(func(infohash manifest.InfoHash) {
				if t, ok := k.swarm.Torrent(infohash); ok && !still[infohash] {
					t.KeepFromHosts()
				}
			})
			k.evict(0)
		}
	}
	defer func() {
		n := int64(0)
		for _, b := range k.builds {
			if !b.settled.IsZero() {
				n++
			}
		}
		k.whole.Store(n)
	}()
	for id, of := range wanted {
		b := k.builds[id]
		if b == nil {
			b = &keptBuild{entries: make(map[manifest.InfoHash]*cache.Entry), handed: make(map[manifest.InfoHash]bool)}
			k.builds[id] = b
		}
		if now.Sub(b.settled) < settledFor {
			continue
		}
		whole := k.hand(b, known[id])
		if whole || k.busy(id) {
			b.lackedAt = time.Time{}
			if b.settled = (time.Time{}); whole {
				b.settled, b.wait = now, 0
			}
			continue
		}
		b.settled = time.Time{}
		switch {
		case b.lackedAt.IsZero():
			b.lackedAt = now.Add(k.readBackAfter)
		case now.Before(b.lackedAt) || b.reading || of.SHA256 == "":
		default:
			b.reading = true
			b.wait = min(max(2*b.wait, readBackRetry), maxReadBackRetry)
			b.lackedAt = now.Add(b.wait)
			reading.Go(func() {
				var entries []*cache.Entry
				err := survive.Run(k.logger, func() error {
					return k.readBack(ctx, of, known[id], func(e *cache.Entry) { entries = append(entries, e) })
				})
				if err != nil && ctx.Err() == nil {
					if omitted, due := k.notices.Pass(id); due {
						k.logger.Warn("a build that hosts are to have is not here, and was not read from the region's bucket; it is tried again",
							"key", of.Key, "executionId", id, "error", err, "omitted", omitted)
					}
				}
				select {
				case k.back <- readBack{id, entries}:
				case <-ctx.Done():
					for _, e := range entries {
						e.Unkeep()
					}
				}
			})
		}
	}
}

// surplus takes out the oldest recipes beyond their bound that no goal names. The caller
// holds mu.
func (k *kept) surplus() (gone []string) {
	if len(k.recipes) <= maxRecipes {
		return nil
	}
	var ids []string
	for id := range k.recipes {
		if _, ok := k.wanted[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids) // the oldest first
	gone = ids[:min(len(ids), len(k.recipes)-maxRecipes)]
	for _, id := range gone {
		delete(k.recipes, id)
	}
	return gone
}

func (k *kept) write(r *recipe) {
	if k.dir == "" {
		return
	}
	text, err := json.Marshal(r)
	if err == nil {
		err = private.Replace(k.file(r.ExecutionID), text)
	}
	if err != nil {
		k.logger.Warn("what a build is made of is not known after a restart, it is read from the bucket then", "executionId", r.ExecutionID, "error", err)
	}
}

// hand has hosts get what is here of a build, and reports whether that is all of it.
func (k *kept) hand(b *keptBuild, r *recipe) (whole bool) {
	if r == nil {
		return false
	}
	whole = r.Sealed
	for i := range r.InfoHashes.Len() {
		infohash := r.InfoHashes.At(i)
		entry := b.entries[infohash]
		if entry == nil {
			var err error
			if entry, err = k.cache.Keep(infohash, r.ExecutionID); err != nil {
				whole = false
				continue
			}
			b.entries[infohash] = entry
		}
		if _, ok := k.cache.Entry(infohash); !ok { // found damaged, and removed
			entry.Unkeep()
			delete(b.entries, infohash)
			whole = false
			continue
		}
		t, ok := k.swarm.Torrent(infohash)
		if !ok && entry.Whole() {
			t, ok = k.seed(infohash, r), true
		}
		if !ok || t == nil || !entry.Whole() {
			whole = false
		}
		if t == nil {
			continue
		}
		place := handout.Place{High: r.High, Execution: r.ExecutionID, Segment: i, More: i < r.InfoHashes.Len()-1 || !r.Sealed}
		switch err := t.HandToHosts(place, k.standby(infohash)); {
		case err == nil:
			b.handed[infohash] = true
		case !errors.Is(err, swarm.ErrNoFleet):
			whole = false // its info dictionary is not here yet
		}
	}
	return whole
}

// seed has the engine know a segment that is whole; nil when it is gone.
func (k *kept) seed(infohash manifest.InfoHash, r *recipe) *swarm.Torrent {
	entry, err := k.cache.Pinned(infohash, r.ExecutionID)
	var t *swarm.Torrent
	if err == nil {
		t, err = k.swarm.Seed(entry, r.ExecutionID, append([]string{}, r.Destinations...))
		entry.Unpin()
	}
	if err != nil && !errors.Is(err, cache.ErrNotKept) {
		if omitted, due := k.notices.Pass("seed"); due {
			k.logger.Warn("segment not handed to hosts", "infohash", infohash.String(), "error", err, "omitted", omitted)
		}
	}
	return t
}

// readBack reads a build from the region's bucket, where it has landed; keep takes the
// entries, each kept in the cache.
func (k *kept) readBack(ctx context.Context, of goal.Build, r *recipe, keep func(*cache.Entry)) error {
	scheme := manifest.Ramp
	if r != nil {
		scheme = r.Scheme
	}
	layout, err := manifest.NewLayout(scheme, of.Size)
	if err != nil {
		return err
	}
	turn := k.puller.TakeTurn(source.Want{Place: handout.Place{Execution: of.ExecutionID}, Bucket: k.bucket.Name()})
	defer turn.End()
	if err := turn.Begin(ctx); err != nil {
		return err
	}
	object, err := k.bucket.Head(ctx, of.Key)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		return fmt.Errorf("%s in %s: %w", of.Key, k.bucket.Name(), err)
	case err != nil:
		return err
	case object.Size != of.Size || object.Composite != "" && object.Composite != of.SHA256:
		return fmt.Errorf("%s in %s: it is another build there: %d bytes with SHA-256 %s, the goal says %d and %s",
			of.Key, k.bucket.Name(), object.Size, cmp.Or(object.Composite, "unknown"), of.Size, of.SHA256)
	}
	k.evict(of.Size)
	k.logger.Info("hosts are to have a build that is not here, reading it from the region's bucket",
		"key", of.Key, "executionId", of.ExecutionID, "bucket", k.bucket.Name(), "bytes", of.Size)
	known := manifest.NewBuild(layout)
	next := recipe{Recipe: hostwire.Recipe{
		ExecutionID: of.ExecutionID, Key: of.Key, Size: of.Size, Scheme: layout.Scheme, PieceLength: layout.PieceLength, PartLength: layout.PartLength,
	}, Destinations: []string{k.bucket.Name()}}
	if r != nil {
		next.Destinations, next.High = r.Destinations, r.High
	}
	_, err = k.puller.Pull(ctx, source.Pull{
		Turn: turn, From: k.bucket, Object: object, Layout: layout, Name: of.ExecutionID, Progress: func(int64) {},
		Segment: func(i int, e *cache.Entry) error {
			defer e.Unpin()
			next.InfoHashes = next.InfoHashes.Append(e.InfoHash())
			if kept, err := k.cache.Keep(e.InfoHash(), of.ExecutionID); err == nil { // it is pinned
				keep(kept)
			}
			if t, ok := k.swarm.Torrent(e.InfoHash()); ok {
				if err := t.Pulled(e.Manifest()); err != nil {
					return err
				}
			}
			return known.Know(i, e.Manifest())
		},
	})
	if err != nil {
		return err
	}
	if got := known.Composite(); got != of.SHA256 && of.Size > 0 {
		return fmt.Errorf("%s in %s: it is another build there: its SHA-256 is %s, the goal says %s", of.Key, k.bucket.Name(), got, of.SHA256)
	}
	next.Sealed = true
	if r != nil && !bytes.HasPrefix(next.InfoHashes, r.InfoHashes) {
		k.logger.Warn("what was announced of a build was not what its bucket and its goal say", "key", of.Key, "executionId", of.ExecutionID)
		k.mu.Lock()
		delete(k.recipes, of.ExecutionID)
		k.mu.Unlock()
	}
	k.learn(&next)
	return nil
}

// leave lets the cache have the entries' room.
func (b *keptBuild) leave(handed func(manifest.InfoHash)) {
	for _, e := range b.entries {
		e.Unkeep()
	}
	if handed != nil {
		for infohash := range b.handed {
			handed(infohash)
		}
	}
}

// openKept has builds be kept for hosts; nil where none are served.
func (a *Agent) openKept() (*kept, error) {
	if a.hosts == nil {
		return nil, nil
	}
	return newKept(keptConfig{
		dir: a.cfg.Fleet.Recipes, cache: a.cfg.Cache, swarm: a.swarm, bucket: a.cfg.Bucket, puller: a.puller,
		busy: a.fetches, evict: a.evict, standby: a.standsBy, logger: a.cfg.Logger,
	})
}

// keepBuilds has those builds be kept that goals name now.
func (a *Agent) keepBuilds() {
	var builds []goal.Build
	for _, g := range a.hosts.shelf.Goals() {
		for _, b := range []*goal.Build{&g.Target, g.Stable} {
			if b != nil && b.ExecutionID != "" && !a.hosts.shelf.Recalled(b.SHA256) {
				builds = append(builds, *b)
			}
		}
	}
	a.kept.keep(builds)
}

// fetches reports whether an execution is under way here, so that its build is on its way,
// or is held.
func (a *Agent) fetches(executionID string) bool {
	a.mu.Lock()
	b := a.builds[executionID]
	over := b == nil || b.over
	a.mu.Unlock()
	if over {
		return false
	}
	s := b.seen.Load()
	return s == nil || s.member != nil || s.state != api.StateLanded && s.state != api.StateFailed
}

// standsBy is how many other agents of the region hand a segment to hosts before this one.
func (a *Agent) standsBy(infohash manifest.InfoHash) int {
	var ids []string
	for _, m := range a.gossip.Members() {
		if m.Role == gossip.Agent && m.Region == a.cfg.Region && m.FleetPeers != 0 {
			ids = append(ids, m.ID)
		}
	}
	if !slices.Contains(ids, a.cfg.Gossip.ID) {
		return 0
	}
	return rendezvousRank(infohash.String(), a.cfg.Gossip.ID, ids)
}
