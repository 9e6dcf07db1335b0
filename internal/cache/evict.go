package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// maxBuildName bounds the name of a build that is read from disk, in bytes.
const maxBuildName = 255

// keptBuild is a build's entries. An entry is of one build, though others may have the same
// segment: of the one that has asked for it last. All of it is guarded by the cache's mutex.
type keptBuild struct {
	name          string
	entries       []*Entry
	pinned        int   // entries
	unpinnedBytes int64 // of the others
	lastUse       int64 // of any of its entries, in Unix nanoseconds
	goes          bool  // it counts as evicted
}

// join has an entry be of a build; an empty name stands for one of its own. The caller
// holds mu.
func (c *Cache) join(e *Entry, name string) {
	if name == "" {
		name = e.infohash.String()
	}
	if e.build != nil {
		if e.build.name == name {
			return
		}
		c.part(e)
	}
	b := c.builds[name]
	if b == nil {
		b = &keptBuild{name: name}
		c.builds[name] = b
	}
	b.entries = append(b.entries, e)
	b.lastUse = max(b.lastUse, e.lastUse)
	if e.pins > 0 {
		b.pinned++
	} else {
		b.unpinnedBytes += e.shape.Size
	}
	e.build = b
}

// part has an entry be of no build. The caller holds mu.
func (c *Cache) part(e *Entry) {
	b := e.build
	i := slices.Index(b.entries, e)
	last := len(b.entries) - 1
	b.entries[i], b.entries[last] = b.entries[last], nil
	b.entries = b.entries[:last]
	if e.pins > 0 {
		b.pinned--
	} else {
		b.unpinnedBytes -= e.shape.Size
	}
	if last == 0 {
		delete(c.builds, b.name)
	}
	e.build = nil
}

// readBuild returns the name of the build that an entry is of; empty when none is known.
func readBuild(dir string) string {
	name := filepath.Join(dir, buildFile)
	stat, err := os.Stat(name)
	if err != nil || stat.Size() > maxBuildName {
		return ""
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

// takeOut takes an entry out of the maps, and returns where its files are to go. Nobody
// makes it anew before done. The caller holds mu.
func (c *Cache) takeOut(e *Entry) (aside string, done func()) {
	delete(c.entries, e.infohash)
	c.bytes -= e.shape.Size
	c.part(e)
	e.mu.Lock()
	e.out = true
	c.lacking.Add(e.verified - e.shape.Size)
	e.mu.Unlock()
	c.aside++
	return filepath.Join(c.dir, pulls, fmt.Sprintf("evicted-%d", c.aside)), c.change(e.infohash)
}

// putBack is takeOut undone.
func (c *Cache) putBack(e *Entry, build string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		return
	}
	c.entries[e.infohash] = e
	c.bytes += e.shape.Size
	c.join(e, build)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.out = false
	c.lacking.Add(e.shape.Size - e.verified)
}

// remove takes out an entry whose files were found damaged, and reports whether it is out.
func (c *Cache) remove(e *Entry, why error) bool {
	c.mu.Lock()
	if e.build == nil || e.files.Load() != nil {
		gone := e.build == nil
		c.mu.Unlock()
		return gone
	}
	_, done := c.takeOut(e)
	c.mu.Unlock()
	defer done()
	if err := c.discard(e.infohash, why); err != nil {
		c.logger.Warn("damaged segment not removed", "infohash", e.infohash.String(), "error", err)
	}
	return true
}

// Keep keeps an entry in the cache until Unkeep, and leaves it cold: what is served now and
// then need not be open. It is of the build of that name from now on. ErrNotKept where there
// is none.
func (c *Cache) Keep(infohash manifest.InfoHash, build string) (*Entry, error) {
	c.mu.Lock()
	e, ok := c.entries[infohash]
	if !ok {
		c.mu.Unlock()
		return nil, fmt.Errorf("segment %s: %w", infohash, ErrNotKept)
	}
	another := build != "" && e.build.name != build
	if another {
		c.join(e, build)
	}
	e.pin()
	c.mu.Unlock()
	if another {
		// Only the order of eviction hangs on it.
		_ = os.WriteFile(filepath.Join(c.path(infohash), buildFile), []byte(build), 0o600)
	}
	return e, nil
}

// Unkeep takes back one Keep.
func (e *Entry) Unkeep() {
	e.cache.mu.Lock()
	defer e.cache.mu.Unlock()
	e.unpin()
}

// Discard removes the entries of a build that nobody has pinned, whatever the limits; drop
// is called as by Evict.
func (c *Cache) Discard(build string, drop func(manifest.InfoHash)) error {
	for gone := true; gone; {
		c.mu.Lock()
		b := c.builds[build]
		if b == nil {
			c.mu.Unlock()
			return nil
		}
		as := b.use()
		c.mu.Unlock()
		var err error
		if gone, err = c.evictOne(b, as, drop); err != nil {
			return err
		}
	}
	return nil
}

// Evict removes builds, the one that was used least recently first, each with all of its
// entries that nobody has pinned, until the rest is within the limits and a build of room
// bytes would find space, if it can at all. drop is called with each entry before its files
// go.
func (c *Cache) Evict(room int64, drop func(manifest.InfoHash)) error {
	for {
		b, as := c.oldest(room)
		if b == nil {
			return nil
		}
		for gone := true; gone; {
			var err error
			if gone, err = c.evictOne(b, as, drop); err != nil {
				return err
			}
		}
	}
}

// use is how a build is used.
type use struct {
	pinned int
	last   int64
}

func (b *keptBuild) use() use { return use{b.pinned, b.lastUse} }

// oldest returns the build to go out of the cache next; nil when none must or may.
func (c *Cache) oldest(room int64) (*keptBuild, use) {
	var free int64
	if room > 0 {
		var err error
		if free, err = c.free(); err != nil {
			free = 0 // as if there were none
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var oldest *keptBuild
	reach := free // what would be free without all of them
	for _, b := range c.builds {
		reach += b.unpinnedBytes
		if b.pinned < len(b.entries) && (oldest == nil || b.before(oldest)) {
			oldest = b
		}
	}
	if oldest == nil {
		return nil, use{}
	}
	fits := room == 0 || c.fits(room, free) == nil || c.fits(room, reach) != nil // for which nothing need go in vain
	if c.bytes <= c.limit && len(c.entries) <= c.maxSegments && fits && (len(c.builds) <= c.maxBuilds || oldest.pinned > 0) {
		return nil, use{}
	}
	return oldest, oldest.use()
}

// before reports whether a build has to go before another: of those that are in use,
// single entries go when nothing else is left.
func (b *keptBuild) before(o *keptBuild) bool {
	if used, other := b.pinned > 0, o.pinned > 0; used != other {
		return other
	}
	return b.lastUse < o.lastUse
}

// evictOne removes an entry of a build that nobody has pinned; none when the build was used
// since it was looked at. The files move aside first, so that the same segment can come
// again meanwhile.
func (c *Cache) evictOne(b *keptBuild, as use, drop func(manifest.InfoHash)) (gone bool, err error) {
	c.mu.Lock()
	i := slices.IndexFunc(b.entries, func(e *Entry) bool { return e.pins == 0 })
	if i < 0 || b.use() != as {
		c.mu.Unlock()
		return false, nil
	}
	e := b.entries[i]
	aside, done := c.takeOut(e)
	if !b.goes {
		b.goes = true
		c.evicted++
	}
	c.mu.Unlock()
	if err := os.Rename(c.path(e.infohash), aside); err != nil {
		c.putBack(e, b.name)
		done()
		return false, fmt.Errorf("cache: %w", err)
	}
	done()
	drop(e.infohash)
	// The info first: without it what is left does not count as an entry.
	err = errors.Join(e.files.Swap(nil).close(), os.Remove(filepath.Join(aside, infoFile)), os.RemoveAll(aside))
	if err != nil {
		return false, fmt.Errorf("cache: removing %s: %w", e.infohash, err)
	}
	return true, nil
}
