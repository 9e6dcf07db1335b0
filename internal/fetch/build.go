package fetch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/survive"
)

const (
	// MaxOpenSegments bounds the segments of a build that are downloaded at a time, the
	// oldest ones: neighbours who lack older ones get them meanwhile. There are more than an
	// agent has, for a segment takes longer through a region's hosts. The engine
	// holds two more: with twelve a host took a quarter more memory.
	MaxOpenSegments = 6
	// roomRetry is how often disk is asked for that was lacking.
	roomRetry = 5 * time.Second
	// hangUpAfter is how long a whole segment keeps connections with peers that have all of
	// it: shorter, and those who are about to say so would look like lost copies.
	hangUpAfter = 5 * time.Second
	// stuckAfter is how long next to nothing, less than stuckBytes, may come of the first
	// segment that lacks from peers that are connected, before they are connected anew.
	stuckAfter = 15 * time.Second
	stuckBytes = 8 << 10
)

// Build is one build that is fetched, or is here. It is safe for concurrent use.
type Build struct {
	id      string // executionId
	fetcher *Fetcher
	layout  *manifest.Layout
	ctx     context.Context
	cancel  context.CancelFunc
	wake    chan struct{} // has a value when there is something to look at
	whole   chan struct{} // closed when all of it was here and checked for the first time
	arrived sync.Once     // closes whole
	ended   chan struct{} // closed when nothing works on it any more
	group   sync.WaitGroup

	mu       sync.Mutex // held for no I/O
	note     note
	err      error // why nothing comes at the moment, or ever; nil while it does
	wrong    error // why it never will
	verified int64 // bytes
	isWhole  bool  // at the moment
	dropped  bool
	failures map[int]failure // by segment, and under itself
	readers  int
	files    []*cache.Entry // kept, by segment; nil where it is not here
	room     *cache.Room

	// Of run's goroutine, until it has ended.
	roomAt, lookedAt time.Time
	segments         []*segment // nil where it is not begun
	written          note
	unwritten        bool
}

// itself is what a failure is counted under that is no segment's.
const itself = -1

// failure is what has gone wrong so many times since it last went well.
type failure struct {
	times   int
	err     error
	againAt time.Time
	begun   bool // anew
}

// told is why nothing comes; nil while it may.
func (f failure) told() error {
	if f.begun && f.times < MaxFailures {
		return nil
	}
	return f.err
}

func newBuild(f *Fetcher, layout *manifest.Layout, n note) *Build {
	b := &Build{
		id: n.ExecutionID, fetcher: f, layout: layout, note: n,
		wake: make(chan struct{}, 1), whole: make(chan struct{}), ended: make(chan struct{}),
		failures: make(map[int]failure),
		files:    make([]*cache.Entry, layout.NumSegments()), segments: make([]*segment, layout.NumSegments()),
	}
	b.ctx, b.cancel = context.WithCancel(f.ctx)
	return b
}

// ExecutionID names the build.
func (b *Build) ExecutionID() string { return b.id }

// Size is in bytes.
func (b *Build) Size() int64 { return b.layout.Size }

// Whole is closed when all bytes are here, and are those that the recipe's segments say.
// Whether they are the goal's is for Verify; whether the disk has lost some of them since,
// Progress says.
func (b *Build) Whole() <-chan struct{} { return b.whole }

// Recipe is what is known of the build.
func (b *Build) Recipe() Recipe {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.note.Recipe
}

// Update follows a recipe that knows more, or again the same. The error wraps
// ErrContradiction where it is another build's, and is ErrDropped after Drop.
func (b *Build) Update(r Recipe) error {
	if _, err := r.check(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dropped {
		return ErrDropped
	}
	next, err := b.note.with(r)
	if err != nil {
		return err
	}
	b.note.Recipe = next
	ask(b.wake)
	return nil
}

// Progress is how far a build is.
type Progress struct {
	// Size and Bytes, which are here and verified, are in bytes.
	Size, Bytes int64
	// Segments there are, of which so many are announced, and whole here.
	Segments, Announced, Here int
	// Downloaded came from peers, Uploaded went to them, in bytes, since this start.
	Downloaded, Uploaded int64
	// Peers are connections, one for each segment.
	Peers int
	Whole bool
	// Err is why nothing comes at the moment; it wraps cache.ErrNoSpace where the disk
	// lacks room, ErrFailing where that has been so again and again, ErrWrongBuild where it
	// never will. Nil while all is well.
	Err error
}

// Progress says how far the build is.
func (b *Build) Progress() Progress {
	b.mu.Lock()
	p := Progress{Size: b.layout.Size, Bytes: b.verified, Segments: b.layout.NumSegments(), Announced: b.note.InfoHashes.Len(), Err: b.err}
	infohashes := b.note.InfoHashes
	p.Whole = b.isWhole
	for _, e := range b.files {
		if e != nil {
			p.Here++
		}
	}
	b.mu.Unlock()
	for i := range infohashes.Len() {
		if t, ok := b.fetcher.swarm.Torrent(infohashes.At(i)); ok {
			s := t.Stats()
			p.Downloaded, p.Uploaded, p.Peers = p.Downloaded+s.DownloadedBytes, p.Uploaded+s.UploadedBytes, p.Peers+len(s.Peers)
		}
	}
	return p
}

// Verify compares a whole build with what the goal says: its size and the composite
// SHA-256 of its parts ("base64-N"; whatever for a build of 0 bytes). ErrNotWhole before it is here. Where
// it is another one the error wraps ErrWrongBuild, and the build is dropped, with its bytes.
func (b *Build) Verify(size int64, composite string) error {
	b.mu.Lock()
	got, wrong, dropped, whole := b.note.Composite, b.wrong, b.dropped, b.isWhole
	b.mu.Unlock()
	if !whole {
		switch {
		case dropped:
			return fmt.Errorf("build %s: %w", b.ExecutionID(), ErrDropped)
		case wrong != nil:
			b.discard()
			return wrong
		}
		return fmt.Errorf("build %s: %w", b.ExecutionID(), ErrNotWhole)
	}
	if b.layout.Size == size && (got == composite || size == 0) {
		return nil
	}
	err := fmt.Errorf("build %s (%s) of %d bytes with SHA-256 %s: %w, which has %d bytes and %s",
		b.ExecutionID(), b.Recipe().Key, b.layout.Size, got, ErrWrongBuild, size, composite)
	b.fetcher.cfg.Logger.Error("what was fetched is not the build that the goal names, it is thrown away", "executionId", b.ExecutionID(), "error", err)
	b.discard()
	return err
}

// Drop ends the fetching and serving of a build that is not wanted any more; its bytes go,
// but for the cache's limit, when nobody reads them any more. It waits for what is under
// way. Again it does nothing.
func (b *Build) Drop() { b.leave(false) }

// discard is Drop with the bytes, whatever the limit.
func (b *Build) discard() { b.leave(true) }

func (b *Build) leave(bytes bool) {
	b.mu.Lock()
	again, readers := b.dropped, b.readers
	b.dropped = true
	b.mu.Unlock()
	if again {
		return
	}
	f := b.fetcher
	b.cancel()
	<-b.ended
	if readers == 0 {
		b.unkeep()
	}
	for _, s := range b.segments {
		if s != nil && f.release(s.torrent.InfoHash()) {
			f.drop(s.torrent.InfoHash())
		}
	}
	if err := f.recipes.forget(b.ExecutionID()); err != nil {
		f.cfg.Logger.Warn("a build that is not wanted any more is fetched again after a restart, until it is dropped", "error", err)
	}
	f.mu.Lock()
	delete(f.builds, b.ExecutionID())
	f.mu.Unlock()
	if bytes {
		if err := f.cache.Discard(b.ExecutionID(), f.drop); err != nil {
			f.cfg.Logger.Warn("a wrong build was not removed from the disk", "executionId", b.ExecutionID(), "error", err)
		}
	}
	f.evict(0)
}

// unkeep lets the cache have the entries' room.
func (b *Build) unkeep() {
	b.mu.Lock()
	files := slices.Clone(b.files)
	clear(b.files)
	b.mu.Unlock()
	for _, e := range files {
		if e != nil {
			e.Unkeep()
		}
	}
}

// run works on the build until it is dropped, or the fetcher ends.
func (b *Build) run() {
	defer close(b.ended)
	for b.ctx.Err() == nil {
		err := survive.Run(b.fetcher.cfg.Logger, func() error { b.follow(); return nil })
		if err == nil {
			break
		}
		f := b.failed(itself, err)
		b.fail(f.err)
		retry.Wait(b.ctx, time.Until(f.againAt))
	}
	b.cancel()
	b.group.Wait()
	b.freeRoom()
	b.mu.Lock()
	dropped := b.dropped
	b.mu.Unlock()
	if !dropped { // else Drop has the rest
		b.unkeep()
	}
}

// follow works on the build until it is dropped, or the fetcher ends.
func (b *Build) follow() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		b.step(time.Now())
		select {
		case <-b.ctx.Done():
			return
		case <-b.wake:
		case <-ticker.C:
		}
	}
}

func (b *Build) freeRoom() {
	b.mu.Lock()
	room := b.room
	b.room = nil
	b.mu.Unlock()
	if room != nil {
		room.Free()
	}
}

// failed counts a failure.
func (b *Build) failed(of int, err error) failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := failure{times: b.failures[of].times + 1, err: err}
	if f.times >= MaxFailures {
		f.err = fmt.Errorf("fetching %s %w, %d times: %w", b.id, ErrFailing, f.times, err)
	}
	f.againAt = time.Now().Add(b.fetcher.cfg.Again.Delay(f.times))
	b.failures[of] = f
	return f
}

// fail shows why nothing comes; nil for that something may.
func (b *Build) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wrong != nil {
		return
	}
	b.err = err
	if errors.Is(err, ErrWrongBuild) {
		b.wrong = err
	}
}

// step begins what may be, and looks after what was begun.
func (b *Build) step(now time.Time) {
	b.fetcher.cfg.reached("step")
	b.findLosses(now)
	b.mu.Lock()
	n, wrong := b.note, b.wrong
	n.Checked = slices.Clone(n.Checked)
	b.mu.Unlock()
	b.keepNote(n)
	if wrong != nil || !b.reserve(now, n.Recipe) {
		return
	}
	peers, due := *b.fetcher.peers.Load(), now.Sub(b.lookedAt) >= tick/2
	if due {
		b.lookedAt = now
	}
	open, again := 0, b.failure(itself).told()
	var verified int64
	for i := range n.InfoHashes.Len() {
		if e, ok := b.fetcher.cache.Entry(n.InfoHashes.At(i)); ok {
			verified += e.VerifiedBytes()
		}
		s := b.segments[i]
		failed := b.failure(i)
		checked := b.checked(s)
		again = cmp.Or(again, failed.told())
		switch {
		case s != nil && (failed.err == nil || failed.begun):
			again = cmp.Or(again, b.refused(i, s))
			if due {
				s.look(now, peers, open == 0 && !checked)
			}
		case open > 0 && (open >= MaxOpenSegments || !b.fetcher.swarm.RoomToFetch()):
			continue
		case !now.Before(failed.againAt):
			if err := b.open(i, n, peers); err != nil {
				again = cmp.Or(again, b.failed(i, err).err)
				continue
			}
		}
		if !checked {
			open++
		}
	}
	if due {
		b.fetcher.expectMore(b, open > 0 || !n.Sealed)
	}
	b.mu.Lock()
	b.verified = verified
	b.mu.Unlock()
	b.fail(again)
	if again == nil && open == 0 && n.Sealed {
		b.complete()
	}
}

// checked reports whether a segment is here, and right.
func (b *Build) checked(s *segment) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return s != nil && s.checked
}

// findLosses has segments begin anew of which the disk has lost or changed something since
// they were here: what is damaged is fetched again, and checked.
func (b *Build) findLosses(now time.Time) {
	for i, s := range b.segments {
		if !b.checked(s) {
			continue
		}
		cached, there := b.fetcher.cache.Entry(s.torrent.InfoHash())
		b.mu.Lock()
		kept := b.files[i]
		there = there && cached == kept
		if kept == nil || there && kept.Whole() { // nil once it is dropped
			b.mu.Unlock()
			continue
		}
		s.checked, b.isWhole, b.files[i] = false, false, nil
		b.note.Checked = slices.DeleteFunc(slices.Clone(b.note.Checked), func(c int) bool { return c == i })
		b.failures[i] = failure{times: 1, err: fmt.Errorf("segment %d of %s: %w", i, b.id, ErrLost), againAt: now}
		b.mu.Unlock()
		b.fetcher.cfg.Logger.Warn("the disk has changed or lost some of a build, which is fetched again", "executionId", b.id, "segment", i, "all", !there)
		kept.Unkeep()
		if !there {
			s.torrent.Drop() // it is of an entry that is gone
			b.freeRoom()     // and more is to be reserved than is left of it
		}
	}
}

// failure is what has gone wrong last; the zero value for nothing.
func (b *Build) failure(of int) failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures[of]
}

// keepNote has the disk know what is known of the build.
func (b *Build) keepNote(n note) {
	w := b.written
	if len(w.InfoHashes) == len(n.InfoHashes) && w.Sealed == n.Sealed && len(w.Checked) == len(n.Checked) && w.Composite == n.Composite && w.ExecutionID != "" {
		return
	}
	if err := b.fetcher.recipes.write(n); err != nil {
		if !b.unwritten { // once
			b.fetcher.cfg.Logger.Warn("a restart has to ask an agent for this build again", "executionId", n.ExecutionID, "error", err)
		}
		b.unwritten = true
		return
	}
	b.written, b.unwritten = n, false
}

// reserve has disk for what is not here yet.
func (b *Build) reserve(now time.Time, r Recipe) bool {
	b.mu.Lock()
	reserved := b.room != nil || b.isWhole
	b.mu.Unlock()
	if reserved {
		return true
	}
	if now.Before(b.roomAt) {
		return false
	}
	var kept int64 // in entries, which count for themselves, whole or not
	for i := range r.InfoHashes.Len() {
		if _, ok := b.fetcher.cache.Entry(r.InfoHashes.At(i)); ok {
			_, length := b.layout.SegmentRange(i)
			kept += length
		}
	}
	size := max(0, b.layout.Size-kept)
	room, err := b.fetcher.cache.Reserve(size, false)
	if errors.Is(err, cache.ErrNoSpace) {
		b.fetcher.evict(size)
		room, err = b.fetcher.cache.Reserve(size, false)
	}
	if err != nil {
		b.roomAt = now.Add(roomRetry)
		b.fail(fmt.Errorf("fetching %s: %w; free some of the disk", r.ExecutionID, err))
		return false
	}
	b.mu.Lock()
	b.room = room
	b.mu.Unlock()
	return true
}

// complete says that all of the build is here.
func (b *Build) complete() {
	b.mu.Lock()
	whole, composite, infohashes := b.isWhole, b.note.Composite, b.note.InfoHashes
	b.mu.Unlock()
	if whole {
		return
	}
	if composite == "" && b.layout.Size > 0 {
		all := sha256.New()
		for i := range infohashes.Len() {
			entry, err := b.fetcher.cache.Pinned(infohashes.At(i), b.ExecutionID())
			if err != nil {
				b.fail(fmt.Errorf("segment %d of %s: %w", i, b.ExecutionID(), err))
				return
			}
			all.Write(entry.Manifest().Parts)
			entry.Unpin()
		}
		composite = fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(all.Sum(nil)), b.layout.NumParts())
	}
	b.freeRoom()
	b.mu.Lock()
	b.isWhole, b.note.Composite = true, composite
	b.mu.Unlock()
	b.arrived.Do(func() { close(b.whole) })
	ask(b.wake)
}

// ask leaves a value in c, unless one is there already.
func ask(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
