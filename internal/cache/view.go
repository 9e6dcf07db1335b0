package cache

import (
	"slices"

	"github.com/landfall-dist/landfall/internal/api"
)

// View is the cache as HTTP shows it, the entry used last first.
func View(c *Cache) api.Cache {
	v := api.Cache{Limit: c.limit, Entries: []api.CacheEntry{}}
	if free, err := c.free(); err == nil {
		v.Free = free
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for infohash, e := range c.entries {
		v.Bytes += e.m.Size
		v.Entries = append(v.Entries, api.CacheEntry{
			InfoHash:      infohash.String(),
			Size:          e.m.Size,
			VerifiedBytes: e.VerifiedBytes(),
			Pinned:        e.pins.Load() > 0,
			UsedAt:        e.used().UTC(),
		})
	}
	slices.SortFunc(v.Entries, func(a, b api.CacheEntry) int { return b.UsedAt.Compare(a.UsedAt) })
	return v
}
