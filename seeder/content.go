package seeder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// content has the build ready to be seeded: from the cache, or pulled.
func (d *distribution) content(ctx context.Context, r *ledger.Record) (*manifest.Manifest, error) {
	if d.cached(r) {
		return d.entry.Manifest(), d.seed(r)
	}
	if d.pulled == nil {
		if err := d.pull(ctx, r); err != nil {
			return nil, err
		}
	}
	updated, err := d.noteContent(ctx)
	switch {
	case errors.Is(err, ledger.ErrSuperseded), ctx.Err() != nil:
		return nil, err
	case err != nil:
		// The agents can download meanwhile; follow tries again.
		d.logger.Warn("table not written, announcing all the same", "error", err)
		updated = r
	}
	if d.entry == nil {
		return d.pulled, nil
	}
	return d.pulled, d.seed(updated)
}

// noteContent adds what the pull has found to the record.
func (d *distribution) noteContent(ctx context.Context) (*ledger.Record, error) {
	infohash := ""
	if d.entry != nil {
		infohash = announce.InfoHash(d.entry.InfoHash()).String()
	}
	updated, err := d.cfg.Ledger.SetContent(ctx, d.key, d.id, infohash, d.pulled.SHA256Hex())
	if err != nil {
		return nil, err
	}
	d.put(updated)
	return updated, nil
}

// pull brings the build here.
func (d *distribution) pull(ctx context.Context, r *ledger.Record) error {
	d.phase(api.PhaseQueued)
	// Before it has its turn, which a bucket that does not answer would waste.
	from, err := d.sources.Get(ctx, r.SourceBucket)
	if err != nil {
		return err
	}
	release, err := d.puller.Slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	if _, _, ok := d.index.get(d.id); !ok {
		return ledger.ErrSuperseded
	}
	d.phase(api.PhasePulling)
	object, err := from.Head(ctx, r.FileKey)
	if err != nil {
		return err
	}
	if object.ETag != r.SourceETag {
		return fmt.Errorf("%w: ETag is %s, was %s", bucket.ErrChanged, object.ETag, r.SourceETag)
	}
	if names := differ(r, object); len(names) > 0 {
		return fmt.Errorf("%w: it has other headers now: %s", bucket.ErrChanged, strings.Join(names, ", "))
	}
	d.logger.Info("pulling", "bytes", r.Size, "sourceBucket", r.SourceBucket)
	started := time.Now()
	d.index.update(d.id, func(l *live) {
		if l.began.IsZero() {
			l.began = started
		}
	})
	ctx, span := tracing.Start(ctx, "pull", attribute.Int64("landfall.bytes", r.Size))
	m, entry, err := d.puller.Pull(ctx, from, object, d.id, func(pulled int64) {
		if pulled > d.farthest { // not what was there already
			d.farthest = pulled
			d.pulling.Store(time.Now().UnixNano())
		}
		d.index.update(d.id, func(l *live) { l.pulled = pulled })
	})
	span.End(err)
	if err != nil {
		if errors.Is(err, cache.ErrNoSpace) {
			d.evict(r.Size) // for the next try
		}
		return fmt.Errorf("pulling %s from %s: %w", r.FileKey, r.SourceBucket, err)
	}
	d.pulled = m
	d.index.update(d.id, func(l *live) { l.whole = time.Now() })
	if entry != nil {
		d.hold(entry)
	}
	took := time.Since(started)
	d.metrics.pulls.Observe(took.Seconds())
	d.logger.Info("pulled", "bytes", m.Size, "seconds", took.Seconds())
	return nil
}

// differ names the headers that an object has otherwise than its execution knows;
// none where an older version has begun that.
func differ(r *ledger.Record, o *bucket.Object) []string {
	if r.Headers == nil {
		return nil
	}
	return bucket.ParseHeaders(r.Headers).Differ(o.Headers)
}

// cached holds the whole entry of a build that was pulled before, if there is
// one.
func (d *distribution) cached(r *ledger.Record) bool {
	var infohash announce.InfoHash
	if r.InfoHash == "" || infohash.UnmarshalText([]byte(r.InfoHash)) != nil {
		return false
	}
	entry, ok := d.cfg.Cache.Pinned(infohash)
	if ok {
		d.hold(entry)
	}
	return ok && entry.Whole()
}

// hold keeps a pinned entry until unpin.
func (d *distribution) hold(entry *cache.Entry) {
	d.unpin()
	d.entry = entry
}

func (d *distribution) seed(r *ledger.Record) error {
	entry := d.entry
	torrent, err := d.swarm.Seed(entry, d.receivers(r) > 1)
	if err != nil {
		return err
	}
	d.torrent = torrent
	before := torrent.Stats().UploadedBytes
	d.index.update(d.id, func(l *live) {
		l.pulled = entry.Manifest().Size
		l.sent = func() int64 { return torrent.Stats().UploadedBytes - before }
	})
	d.evict(0)
	return nil
}

// lost has a value when pieces on this disk were found damaged; nil for a build of
// 0 bytes.
func (d *distribution) lost() <-chan struct{} {
	if d.torrent == nil {
		return nil
	}
	return d.torrent.Lost()
}

// mend reads from the source again what was found damaged on this disk.
func (d *distribution) mend(ctx context.Context, r *ledger.Record) {
	if d.torrent == nil || d.torrent.Done() {
		return
	}
	from, err := d.sources.Get(ctx, r.SourceBucket)
	if err == nil {
		err = source.Pieces(ctx, from, r.FileKey, r.SourceETag, d.entry.Manifest(), d.torrent.Missing(),
			func(ctx context.Context, piece int, b []byte) error {
				d.metrics.repaired.Add(int64(len(b)))
				return d.torrent.Put(ctx, piece, b)
			})
	}
	if err != nil && ctx.Err() == nil {
		d.logger.Warn("damaged pieces are not here again yet", "error", err, "retryIn", lookInterval.String())
	}
}
