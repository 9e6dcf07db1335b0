package seeder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/swarm"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// held is a build's bytes as an execution has them.
type held struct {
	manifest *manifest.Manifest
	// entry is pinned, and torrent seeds it; nil for a build of 0 bytes.
	entry   *cache.Entry
	torrent *swarm.Torrent
}

func (h *held) unpin() {
	if h != nil && h.entry != nil {
		h.entry.Unpin()
	}
}

// content is what the table says of them.
func (h *held) content() content {
	c := content{size: h.manifest.Size, sha256: h.manifest.SHA256Hex()}
	if h.entry != nil {
		c.infohash = h.entry.InfoHash().String()
	}
	return c
}

// fetch has the build ready to be seeded: from the cache, or pulled. before is what the
// execution has of it, nil for nothing.
func (c *carrier) fetch(ctx context.Context, r *ledger.Record, before *held) (d done) {
	var h *held
	defer func() {
		if d.held == nil { // after a panic, too
			h.unpin()
		}
	}()
	if err := bucket.ParseHeaders(r.Headers).Check(landing.AddedMetadata); err != nil {
		return done{err: err}
	}
	if h = c.cached(r.InfoHash); h == nil {
		var err error
		if h, err = c.pull(ctx, r, before); err != nil {
			return done{err: err}
		}
		err = c.noteContent(ctx, h.content())
		switch {
		case errors.Is(err, ledger.ErrSuperseded), ctx.Err() != nil:
			return done{err: err}
		case err != nil:
			// The agents can download meanwhile; it is written when the table is read.
			c.logger.Warn("table not written, announcing all the same", "error", err)
		}
	}
	found := done{content: h.content(), held: h}
	if h.entry != nil {
		torrent, err := c.swarm.HandOut(h.entry, handout.Place{Execution: c.id}, c.receivers(r) == 1)
		if err != nil {
			return done{err: err}
		}
		sent := torrent.Stats().UploadedBytes
		h.torrent, found.sent = torrent, func() int64 { return torrent.Stats().UploadedBytes - sent }
		c.evict(0)
	}
	return found
}

// noteContent adds what the pull has found to the record.
func (c *carrier) noteContent(ctx context.Context, of content) error {
	updated, err := c.cfg.Ledger.SetContent(ctx, c.key, c.id, of.infohash, of.sha256)
	if err == nil {
		c.put(updated)
	}
	return err
}

// pull brings the build here, unless that was done before and the table does not know.
func (c *carrier) pull(ctx context.Context, r *ledger.Record, before *held) (*held, error) {
	if before != nil && before.entry == nil {
		return before, nil
	}
	if before != nil {
		if h := c.cached(before.content().infohash); h != nil {
			return h, nil
		}
	}
	c.owner.Tell(turned{api.PhaseQueued})
	// Before it has its turn, which a bucket that does not answer would waste.
	from, err := c.sources.Get(ctx, r.SourceBucket)
	if err != nil {
		return nil, err
	}
	release, err := c.puller.Slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	c.owner.Tell(turned{api.PhasePulling})
	object, err := from.Head(ctx, r.FileKey)
	if err != nil {
		return nil, err
	}
	if object.ETag != r.SourceETag {
		return nil, fmt.Errorf("%w: ETag is %s, was %s", bucket.ErrChanged, object.ETag, r.SourceETag)
	}
	if names := differ(r, object); len(names) > 0 {
		return nil, fmt.Errorf("%w: it has other headers now: %s", bucket.ErrChanged, strings.Join(names, ", "))
	}
	c.logger.Info("pulling", "bytes", r.Size, "sourceBucket", r.SourceBucket)
	started := time.Now()
	ctx, span := tracing.Start(ctx, "pull", attribute.Int64("landfall.bytes", r.Size))
	m, entry, err := c.puller.Pull(ctx, from, object, c.id, func(bytes int64) { c.owner.Tell(pulled{bytes}) })
	span.End(err)
	if err != nil {
		if errors.Is(err, cache.ErrNoSpace) {
			c.evict(r.Size) // for the next try
		}
		return nil, fmt.Errorf("pulling %s from %s: %w", r.FileKey, r.SourceBucket, err)
	}
	took := time.Since(started)
	c.metrics.pulls.Observe(took.Seconds())
	c.logger.Info("pulled", "bytes", m.Size, "seconds", took.Seconds())
	return &held{manifest: m, entry: entry}, nil
}

// differ names the headers that an object has otherwise than its execution knows;
// none where an older version has begun that.
func differ(r *ledger.Record, o *bucket.Object) []string {
	if r.Headers == nil {
		return nil
	}
	return bucket.ParseHeaders(r.Headers).Differ(o.Headers)
}

// cached is the whole entry of a build that was pulled before, nil where there is none.
func (c *carrier) cached(hex string) *held {
	infohash, err := manifest.ParseInfoHash(hex)
	if err != nil { // not known yet, or none
		return nil
	}
	entry, ok := c.cfg.Cache.Pinned(infohash)
	if !ok {
		return nil
	}
	if !entry.Whole() {
		entry.Unpin()
		return nil
	}
	return &held{manifest: entry.Manifest(), entry: entry}
}

// keepWhole reads from the source again what is found damaged on this disk, until ctx
// ends.
func (c *carrier) keepWhole(ctx context.Context, r *ledger.Record, h *held) {
	if h.torrent == nil {
		return
	}
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.torrent.Lost():
		case <-ticker.C:
		}
		if h.torrent.Done() {
			continue
		}
		from, err := c.sources.Get(ctx, r.SourceBucket)
		if err == nil {
			err = source.Pieces(ctx, from, r.FileKey, r.SourceETag, h.manifest, h.torrent.Missing(),
				func(ctx context.Context, piece int, b []byte) error {
					c.metrics.repaired.Add(int64(len(b)))
					return h.torrent.Put(ctx, piece, b)
				})
		}
		if err != nil && ctx.Err() == nil {
			c.logger.Warn("damaged pieces not read again yet", "error", err, "retryIn", lookInterval.String())
		}
	}
}

// evict brings the cache below its limit, and makes room for a build of so many
// bytes if it can.
func (s *Seeder) evict(room int64) {
	err := s.cfg.Cache.Evict(room, func(infohash manifest.InfoHash) {
		if t, ok := s.swarm.Torrent(infohash); ok {
			t.Drop()
		}
	})
	if err != nil {
		s.cfg.Logger.Warn("cache not cleaned", "error", err)
	}
}

// torrentFile returns the bencoded .torrent of an execution (BEP 3), for
// ordinary clients.
func (s *Seeder) torrentFile(r *ledger.Record) ([]byte, error) {
	infohash, err := manifest.ParseInfoHash(r.InfoHash)
	if err != nil {
		return nil, errors.New("the build was not pulled yet, or has 0 bytes")
	}
	entry, ok := s.cfg.Cache.Entry(infohash)
	if !ok {
		return nil, errors.New("the build is not in the seeder's cache any more")
	}
	return swarm.TorrentFile(entry.Manifest()), nil
}
