// Package cache keeps the segments of builds on local disk, whole or on their way: for
// each a directory named by the infohash, with the bytes (data), the info dictionary
// (info), a bitmap of the verified pieces (have) and the name of a build that it is of
// (build). All of it survives a kill -9: a bit is written after its piece, and the page
// cache outlives the process.
//
// What nobody uses is cold: on disk only, but for the few numbers that lists, lookups and
// eviction need. It is read again when somebody wants it. Builds are evicted one after the
// other, the one that was used least recently first.
//
// It knows nothing of peers or S3; which segments have to stay is said by pins.
package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// maxBuilds bounds the builds kept, beside the bytes (the limit).
	maxBuilds = 4096
	// maxSegments bounds their segments, far beyond what builds have: one that nobody uses
	// takes some 200 bytes of memory (TestMemoryOfEntries), all of them 50 MiB.
	maxSegments = 256 << 10
	// loadParallel is how many entries are read at a time at the start: each waits for the
	// disk several times.
	loadParallel = 8
	// minFree is left free on the disk, for logs and everyone else.
	minFree = 64 << 20
	pulls   = "pulls"
)

var (
	// ErrNotKept says that an entry is not in the cache, or not any more.
	ErrNotKept = errors.New("not in the cache")
	// ErrNoSpace says that the disk lacks room; the text says how much.
	ErrNoSpace = errors.New("not enough disk space")
	// ErrInUse says that another process has the directory.
	ErrInUse = errors.New("directory is in use by another process")
	// errDamaged says that an entry's files do not agree with each other.
	errDamaged = errors.New("damaged entry")
)

// Cache is a directory of entries. It is safe for concurrent use.
type Cache struct {
	dir                    string
	limit                  int64
	maxBuilds, maxSegments int
	lock                   *flock.Flock
	free                   func() (int64, error) // bytes that may still be written
	logger                 *slog.Logger
	lacking                atomic.Int64 // bytes that entries have not got yet

	mu      sync.Mutex // never held over the disk
	entries map[manifest.InfoHash]*Entry
	builds  map[string]*keptBuild
	bytes   int64 // the length of all entries
	// opening are the entries that are read; each is closed when that is done.
	opening map[*Entry]chan struct{}
	// changing are the entries that come or go; each is closed when that is done.
	changing map[manifest.InfoHash]chan struct{}
	promised int64 // bytes of entries that come, and of Rooms
	kept     kept
	pulling  map[*Pulling]struct{}
	evicted  int // builds, so far
	aside    int // entries that were moved out of the way, so far
	refused  int // builds that found no room, so far
}

// Open locks and reads a directory, which is made when missing, and is closed to the
// other users of the machine. ErrInUse when
// another process has it. Entries that are damaged are removed; pulls that were not
// finished stay until ForgetPulls. limit is what Evict keeps the entries below, in bytes.
func Open(dir string, limit int64, logger *slog.Logger) (_ *Cache, err error) {
	if err := errors.Join(private.MkdirAll(dir), private.MkdirAll(filepath.Join(dir, pulls))); err != nil {
		return nil, fmt.Errorf("cache: %w; choose another --data-dir", err)
	}
	c := &Cache{
		dir:         dir,
		limit:       limit,
		maxBuilds:   maxBuilds,
		maxSegments: maxSegments,
		lock:        flock.New(filepath.Join(dir, "lock")),
		free:        func() (int64, error) { return freeSpace(dir) },
		logger:      logger,
		entries:     make(map[manifest.InfoHash]*Entry),
		builds:      make(map[string]*keptBuild),
		opening:     make(map[*Entry]chan struct{}),
		changing:    make(map[manifest.InfoHash]chan struct{}),
		pulling:     make(map[*Pulling]struct{}),
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
	return int64(s.Bavail) * int64(s.Bsize), nil
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
	var reading errgroup.Group
	reading.SetLimit(loadParallel)
	for _, d := range found {
		infohash, err := manifest.ParseInfoHash(d.Name())
		if err != nil || !d.IsDir() {
			continue
		}
		reading.Go(func() error { return c.loadEntry(infohash) })
	}
	return reading.Wait()
}

// loadEntry takes in what a former process has left; it is read again when somebody wants
// it.
func (c *Cache) loadEntry(infohash manifest.InfoHash) error {
	f, err := openFiles(c.path(infohash), infohash)
	switch {
	case err == nil:
	case damage(err):
		return c.discard(infohash, err)
	default:
		return fmt.Errorf("cache: %w", err)
	}
	e := c.newEntry(infohash, f)
	if err := f.close(); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return c.add(e, readBuild(c.path(infohash)), f.used)
}

// discard removes an entry whose files do not agree with each other.
func (c *Cache) discard(infohash manifest.InfoHash, why error) error {
	c.logger.Warn("damaged segment removed from the cache", "infohash", infohash.String(), "error", why)
	if err := os.RemoveAll(c.path(infohash)); err != nil {
		return fmt.Errorf("cache: removing a damaged entry: %w", err)
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
		errs = append(errs, e.files.Swap(nil).close())
	}
	return errors.Join(append(errs, c.lock.Close())...)
}

// Entry returns the entry of an infohash, whole or not, as it is: cold, unless somebody
// uses it. It can be evicted at any time; whoever works with it asks for it Pinned.
func (c *Cache) Entry(infohash manifest.InfoHash) (*Entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[infohash]
	return e, ok
}

// Pinned is Entry with the entry pinned, for the caller to Unpin. It is of the build of
// that name from now on. ErrNotKept where there is none, also when its files are found
// damaged: then they are removed.
func (c *Cache) Pinned(infohash manifest.InfoHash, build string) (*Entry, error) {
	e, ok := c.Entry(infohash)
	if !ok {
		return nil, fmt.Errorf("segment %s: %w", infohash, ErrNotKept)
	}
	if err := e.use(true, build); err != nil {
		return nil, err
	}
	return e, nil
}

// claim returns the entry of an infohash, pinned; or nil, and then nobody else makes or
// removes it before done.
func (c *Cache) claim(infohash manifest.InfoHash, build string) (e *Entry, done func(), err error) {
	for {
		c.mu.Lock()
		_, ok := c.entries[infohash]
		changing, busy := c.changing[infohash]
		if !ok && !busy {
			done := c.change(infohash)
			c.mu.Unlock()
			return nil, done, nil
		}
		c.mu.Unlock()
		if !ok {
			<-changing
			continue
		}
		e, err := c.Pinned(infohash, build)
		switch {
		case err == nil:
			return e, func() {}, nil
		case !errors.Is(err, ErrNotKept): // it goes, or went
			return nil, nil, err
		}
	}
}

// change is called with the lock held, done without.
func (c *Cache) change(infohash manifest.InfoHash) (done func()) {
	changing := make(chan struct{})
	c.changing[infohash] = changing
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.changing[infohash] == changing { // or it was put back, and goes again
			delete(c.changing, infohash)
		}
		close(changing)
	}
}

// add takes in an entry, of the build of that name, that was used last at a time.
func (c *Cache) add(e *Entry, build string, used time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		return fmt.Errorf("cache %s is closed", c.dir)
	}
	c.entries[e.infohash] = e
	c.bytes += e.shape.Size
	e.lastUse = used.UnixNano()
	c.join(e, build)
	return nil
}

// Size is the length of all builds kept, whole or not, in bytes.
func (c *Cache) Size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
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
// exists is returned as it is. Either is pinned, for the caller to Unpin, and of the build
// of that name from now on. Its length comes out of the room.
func (c *Cache) Create(build string, m *manifest.Manifest, room *Room) (*Entry, error) {
	info := m.InfoBytes()
	infohash := hashOf(info)
	e, done, err := c.claim(infohash, build)
	if err != nil {
		return nil, err
	}
	defer room.use(m.Size)
	if e != nil {
		return e, nil
	}
	defer done()
	dir := c.path(infohash)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	data, err := os.OpenFile(filepath.Join(dir, dataFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(data.Truncate(m.Size), data.Close())
	}
	if err == nil {
		e, err = c.finish(build, info, infohash, make([]byte, bitmapLength(m.Shape)))
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return e, nil
}

// finish writes the files beside the data and takes the entry in, pinned. The
// info comes last: without it an entry does not count. The caller has a claim on it.
func (c *Cache) finish(build string, info []byte, infohash manifest.InfoHash, have []byte) (*Entry, error) {
	dir := c.path(infohash)
	for _, f := range []struct {
		name string
		b    []byte
	}{{buildFile, []byte(build)}, {haveFile, have}, {infoFile, info}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.b, 0o600); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	f, err := openFiles(dir, infohash)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	e := c.newEntry(infohash, f)
	e.files.Store(f)
	e.pins, e.users = 1, 1
	if err := c.add(e, build, time.Now()); err != nil {
		return nil, errors.Join(err, f.close())
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
	free -= minFree + c.promised + c.lacking.Load()
	for p := range c.pulling {
		free -= p.size - p.written.Load()
	}
	if size > free {
		return fmt.Errorf("cache %s: %w: %d bytes are missing", c.dir, ErrNoSpace, size-free)
	}
	return nil
}
