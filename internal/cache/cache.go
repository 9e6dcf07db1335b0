// Package cache keeps the segments of builds on local disk, whole or on their way: for
// each a directory named by the infohash, with the bytes (data), the info dictionary
// (info) and a bitmap of the verified pieces (have). All of it survives a kill
// -9: a bit is written after its piece, and the page cache outlives the process.
//
// It knows nothing of peers or S3; who may be evicted is said by pins.
package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// maxEntries bounds the segments kept: each has hashes in memory, and two files open.
	maxEntries = 4096
	// minFree is left free on the disk, for logs and everyone else.
	minFree = 64 << 20
	pulls   = "pulls"
)

var (
	// ErrNoSpace says that the disk lacks room; the text says how much.
	ErrNoSpace = errors.New("not enough disk space")
	// ErrInUse says that another process has the directory.
	ErrInUse = errors.New("directory is in use by another process")
	// errDamaged says that an entry's files do not agree with each other.
	errDamaged = errors.New("damaged entry")
)

// Cache is a directory of entries. It is safe for concurrent use.
type Cache struct {
	dir   string
	limit int64
	lock  *flock.Flock
	free  func() (int64, error) // bytes that may still be written

	mu      sync.Mutex // never held over the disk
	entries map[manifest.InfoHash]*Entry
	// changing are the entries that come or go; each is closed when that is done.
	changing map[manifest.InfoHash]chan struct{}
	promised int64 // bytes of entries that come, and of Rooms
	kept     kept
	pulling  map[*Pulling]struct{}
	evicted  int // so far
	refused  int // builds that found no room, so far
}

// Open locks and reads a directory, which is made when missing, and is closed to the
// other users of the machine. ErrInUse when
// another process has it. Entries that are damaged are removed; pulls that were not
// finished stay until ForgetPulls. limit is what Evict keeps the entries below, in bytes.
func Open(dir string, limit int64) (_ *Cache, err error) {
	if err := errors.Join(private.MkdirAll(dir), private.MkdirAll(filepath.Join(dir, pulls))); err != nil {
		return nil, fmt.Errorf("cache: %w; choose another --data-dir", err)
	}
	c := &Cache{
		dir:      dir,
		limit:    limit,
		lock:     flock.New(filepath.Join(dir, "lock")),
		free:     func() (int64, error) { return freeSpace(dir) },
		entries:  make(map[manifest.InfoHash]*Entry),
		changing: make(map[manifest.InfoHash]chan struct{}),
		pulling:  make(map[*Pulling]struct{}),
	}
	locked, err := c.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	if !locked {
		return nil, fmt.Errorf("cache %s: %w", dir, ErrInUse)
	}
	if err = private.Tighten(dir, "*"); err == nil {
		err = c.load()
	}
	if err != nil {
		return nil, errors.Join(err, c.lock.Close())
	}
	return c, nil
}

func freeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("asking for the free space of %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

func (c *Cache) load() error {
	leftovers, err := os.ReadDir(filepath.Join(c.dir, pulls))
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	for _, f := range leftovers {
		if !f.IsDir() {
			continue // of a pull that somebody may go on with
		}
		if err := os.RemoveAll(filepath.Join(c.dir, pulls, f.Name())); err != nil {
			return fmt.Errorf("cache: removing what was left of an eviction: %w", err)
		}
	}
	found, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	for _, d := range found {
		infohash, err := manifest.ParseInfoHash(d.Name())
		if err != nil || !d.IsDir() {
			continue
		}
		e, err := load(c.path(infohash), infohash)
		switch {
		case err == nil:
			c.entries[e.infohash] = e
		case errors.Is(err, errDamaged), errors.Is(err, fs.ErrNotExist), errors.Is(err, manifest.ErrInvalid):
			if err := os.RemoveAll(c.path(infohash)); err != nil {
				return fmt.Errorf("cache: removing a damaged entry: %w", err)
			}
		default:
			return fmt.Errorf("cache: %w", err)
		}
	}
	return nil
}

func (c *Cache) path(infohash manifest.InfoHash) string {
	return filepath.Join(c.dir, infohash.String())
}

// Close closes all files and frees the directory. Again it does nothing.
func (c *Cache) Close() error {
	c.mu.Lock()
	entries := c.entries
	c.entries = nil
	c.mu.Unlock()
	var errs []error
	for _, e := range entries {
		errs = append(errs, e.close())
	}
	return errors.Join(append(errs, c.lock.Close())...)
}

// Entry returns the entry of an infohash, whole or not. It can be evicted at any
// time; whoever works with it asks for it Pinned.
func (c *Cache) Entry(infohash manifest.InfoHash) (*Entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[infohash]
	return e, ok
}

// Pinned is Entry with the entry pinned, for the caller to Unpin.
func (c *Cache) Pinned(infohash manifest.InfoHash) (*Entry, bool) {
	c.mu.Lock()
	e, ok := c.entries[infohash]
	if ok {
		e.pins.Add(1)
	}
	c.mu.Unlock()
	if ok {
		e.touch()
	}
	return e, ok
}

// claim returns the entry of an infohash, pinned; or nil, and then nobody else makes or
// removes it before done.
func (c *Cache) claim(infohash manifest.InfoHash) (e *Entry, done func()) {
	for {
		c.mu.Lock()
		if e, ok := c.entries[infohash]; ok {
			e.pins.Add(1)
			c.mu.Unlock()
			e.touch()
			return e, func() {}
		}
		changing, ok := c.changing[infohash]
		if !ok {
			done := c.change(infohash)
			c.mu.Unlock()
			return nil, done
		}
		c.mu.Unlock()
		<-changing
	}
}

// change is called with the lock held, done without.
func (c *Cache) change(infohash manifest.InfoHash) (done func()) {
	changing := make(chan struct{})
	c.changing[infohash] = changing
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.changing, infohash)
		close(changing)
	}
}

// add takes in an entry that was made.
func (c *Cache) add(e *Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		return errors.Join(fmt.Errorf("cache %s is closed", c.dir), e.close())
	}
	c.entries[e.infohash] = e
	return nil
}

// Size is the length of all builds kept, whole or not, in bytes.
func (c *Cache) Size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size()
}

func (c *Cache) size() (n int64) {
	for _, e := range c.entries {
		n += e.m.Size
	}
	return n
}

// Room is disk that is reserved for the segments of a build.
type Room struct {
	cache *Cache
	left  int64 // guarded by the cache's mutex
}

// Reserve keeps so many bytes of the disk free for a build's segments: ErrNoSpace. End it
// with Free. What a high build has asked for in vain is kept free of others for a while, so
// that it has it first when it asks again.
func (c *Cache) Reserve(size int64, high bool) (*Room, error) {
	now := time.Now()
	c.mu.Lock()
	keep := c.kept.of(now)
	c.mu.Unlock()
	if high {
		keep = 0
	}
	err := c.take(size+keep, func() {
		c.promised += size
		if high {
			c.kept = kept{}
		}
	})
	switch {
	case err == nil:
		return &Room{c, size}, nil
	case high && errors.Is(err, ErrNoSpace):
		c.mu.Lock()
		c.kept.ask(size, now)
		c.mu.Unlock()
	case keep > 0:
		err = fmt.Errorf("%w, since %d are kept for a build of high priority", err, keep)
	}
	return nil, err
}

const (
	// keepFor is how long disk is kept free for a high build: who waits asks again within
	// about a minute.
	keepFor = 2 * time.Minute
	// keepMost is how long that goes on at most, and then for as long not: it may be
	// larger than the disk.
	keepMost = 10 * time.Minute
)

// kept is disk for the high build that has asked for it last.
type kept struct {
	size         int64
	since, asked time.Time
}

func (k *kept) ask(size int64, now time.Time) {
	if k.since.IsZero() || now.Sub(k.since) >= 2*keepMost {
		k.since = now
	}
	k.size, k.asked = size, now
}

// of is how many bytes are kept now.
func (k *kept) of(now time.Time) int64 {
	if now.Sub(k.asked) >= keepFor || now.Sub(k.since) >= keepMost {
		return 0
	}
	return k.size
}

// Free gives back what was not used.
func (r *Room) Free() { r.use(math.MaxInt64) }

// use has so many bytes of it be somebody's who counts for himself. A nil Room has none.
func (r *Room) use(size int64) {
	if r == nil {
		return
	}
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	size = min(size, r.left)
	r.left -= size
	r.cache.promised -= size
}

// Create makes the entry of a segment whose bytes will come from peers; one that
// exists is returned as it is. Either is pinned, for the caller to Unpin. Its length
// comes out of the room.
func (c *Cache) Create(m *manifest.Manifest, room *Room) (*Entry, error) {
	info := m.InfoBytes()
	infohash := hashOf(info)
	e, done := c.claim(infohash)
	defer room.use(m.Size)
	if e != nil {
		return e, nil
	}
	defer done()
	dir := c.path(infohash)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	data, err := os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(data.Truncate(m.Size), data.Close())
	}
	if err == nil {
		e, err = c.finish(dir, info, infohash, make([]byte, bitmapLength(m)))
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return e, nil
}

// finish writes the files beside the data and takes the entry in, pinned. The
// info comes last: without it an entry does not count. The caller has a claim on it.
func (c *Cache) finish(dir string, info []byte, infohash manifest.InfoHash, have []byte) (*Entry, error) {
	for _, f := range []struct {
		name string
		b    []byte
	}{{"have", have}, {"info", info}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.b, 0o600); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	e, err := load(dir, infohash)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	e.Pin()
	if err := c.add(e); err != nil {
		return nil, err
	}
	return e, nil
}

// take reserves the disk for a build that comes now; keep is called with the lock held
// and takes note of it.
func (c *Cache) take(size int64, keep func()) error {
	free, err := c.free()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fits(size, free); err != nil {
		c.refused++
		return err
	}
	keep()
	return nil
}

// fits reports, with ErrNoSpace, whether size bytes more fit into what is free beside
// what is promised already. The caller holds mu.
func (c *Cache) fits(size, free int64) error {
	free -= minFree + c.promised
	for _, e := range c.entries {
		free -= e.m.Size - e.VerifiedBytes()
	}
	for p := range c.pulling {
		free -= p.size - p.written.Load()
	}
	if size > free {
		return fmt.Errorf("cache %s: %w: %d bytes are missing", c.dir, ErrNoSpace, size-free)
	}
	return nil
}

// Evict removes entries that nobody has pinned, the longest unused first, until
// the rest is within the limit and a build of room bytes would find space, if it
// can at all. drop is called with each before its files go.
func (c *Cache) Evict(room int64, drop func(manifest.InfoHash)) error {
	for {
		e, err := c.victim(room)
		if e == nil || err != nil {
			return err
		}
		drop(e.infohash)
		if err := e.remove(); err != nil {
			return err
		}
	}
}

// victim takes the next entry to go out of the cache; nil when none must or may.
// Its files move aside, so that the same build can come again meanwhile.
func (c *Cache) victim(room int64) (*Entry, error) {
	var free int64
	if room > 0 {
		var err error
		if free, err = c.free(); err != nil {
			free = 0 // as if there were none
		}
	}
	oldest, aside, done := c.choose(room, free)
	if oldest == nil {
		return nil, nil
	}
	defer done()
	if err := os.Rename(oldest.dir, aside); err != nil {
		return nil, errors.Join(fmt.Errorf("cache: %w", err), c.add(oldest))
	}
	oldest.mu.Lock()
	oldest.dir = aside
	oldest.mu.Unlock()
	return oldest, nil
}

// choose takes the entry that was not used the longest out of the map, when one must
// go, and says where its files are to go. Nobody makes it anew before done.
func (c *Cache) choose(room, free int64) (oldest *Entry, aside string, done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var unpinned []*Entry
	reach := free // what would be free without all of them
	for _, e := range c.entries {
		if e.pins.Load() == 0 {
			unpinned = append(unpinned, e)
			reach += e.m.Size
		}
	}
	fits := room == 0 || c.fits(room, free) == nil || c.fits(room, reach) != nil // for which nothing need go in vain
	if len(unpinned) == 0 || c.size() <= c.limit && len(c.entries) <= maxEntries && fits {
		return nil, "", nil
	}
	oldest = slices.MinFunc(unpinned, func(a, b *Entry) int { return a.used().Compare(b.used()) })
	c.evicted++
	delete(c.entries, oldest.infohash)
	return oldest, filepath.Join(c.dir, pulls, fmt.Sprintf("evicted-%d", c.evicted)), c.change(oldest.infohash)
}
