package cache

import (
	"cmp"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
)

// maxListed bounds the entries that a View shows.
const maxListed = 4096

// View is the cache as HTTP shows it, the entry used last first, and at most maxListed of
// them.
func View(c *Cache) api.Cache {
	v := api.Cache{Limit: c.limit, Entries: []api.CacheEntry{}}
	if free, err := c.free(); err == nil {
		v.Free = free
	}
	type line struct {
		e      *Entry
		pinned bool
		used   int64
	}
	c.mu.Lock()
	v.Bytes = c.bytes
	lines := make([]line, 0, len(c.entries))
	for _, e := range c.entries {
		lines = append(lines, line{e, e.pins > 0, e.lastUse})
	}
	c.mu.Unlock()
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(b.used, a.used) })
	for _, l := range lines[:min(len(lines), maxListed)] {
		v.Entries = append(v.Entries, api.CacheEntry{
			InfoHash:      l.e.infohash.String(),
			Size:          l.e.shape.Size,
			VerifiedBytes: l.e.VerifiedBytes(),
			Pinned:        l.pinned,
			UsedAt:        time.Unix(0, l.used).UTC(),
		})
	}
	return v
}
