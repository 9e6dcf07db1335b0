package seeder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
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
	"github.com/landfall-dist/landfall/internal/web"
)

// mendInterval is how often it is looked whether a segment was found damaged on this disk.
const mendInterval = time.Second

// held is a build's bytes as an execution has them, segment by segment. It is safe for
// concurrent use.
type held struct {
	layout    *manifest.Layout
	execution string

	mu       sync.Mutex
	segments []segment
	sha256   string // empty while there are more to come
	former   int64  // bytes that were sent of segments that are not held any more
	released bool
	high     bool
	turn     *source.Turn // to pull; nil when it is not pulled
}

// segment is pinned, and its torrent seeds it.
type segment struct {
	entry   *cache.Entry
	torrent *swarm.Torrent
	before  int64 // bytes that were sent when this execution came to the torrent
}

// sent is how many bytes went to peers for this execution, or others at the same time.
func (s segment) sent() int64 { return s.torrent.Stats().UploadedBytes - s.before }

func newHeld(r *ledger.Record) (*held, error) {
	layout, err := layoutOf(r)
	if err != nil {
		return nil, err
	}
	return &held{layout: layout, execution: r.ExecutionID, high: r.High}, nil
}

// place is where a segment is handed out, and the first one's where the build is pulled.
func (h *held) place(segment int) handout.Place {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.placeOf(segment)
}

// placeOf is place for who has mu.
func (h *held) placeOf(segment int) handout.Place {
	return handout.Place{High: h.high, Execution: h.execution, Segment: segment, More: segment+1 < h.layout.NumSegments()}
}

// raise has the build go before those that are not high, from now on.
func (h *held) raise(s *swarm.Swarm) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.high = true
	for i, of := range h.segments {
		s.Raise(of.entry.InfoHash(), h.placeOf(i))
	}
	if h.turn != nil {
		h.turn.Raise()
	}
}

// takeTurn returns the build's turn to pull.
func (h *held) takeTurn(p *source.Puller, bucket string, stalled bool) *source.Turn {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turn = p.TakeTurn(source.Want{Place: h.placeOf(0), Bucket: bucket, Stalled: stalled})
	return h.turn
}

func (h *held) endTurn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turn.End()
	h.turn = nil
}

// put takes in a segment, in place of the one that was there.
func (h *held) put(i int, s segment) {
	s.before = s.torrent.Stats().UploadedBytes
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.released:
		s.entry.Unpin()
	case i < len(h.segments):
		h.former += h.segments[i].sent()
		h.segments[i].entry.Unpin()
		h.segments[i] = s
	default:
		h.segments = append(h.segments, s)
	}
}

func (h *held) seal(sha256 string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sha256 = sha256
}

// all returns the segments so far, and the whole's SHA-256 once it is known.
func (h *held) all() ([]segment, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.segments), h.sha256
}

// sent is how many bytes went to peers since the execution has the segments.
func (h *held) sent() (bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.former + h.sentNow()
}

// sentNow is sent without what is not held any more. Equal segments share a torrent. The
// caller holds mu.
func (h *held) sentNow() (bytes int64) {
	counted := make(map[*swarm.Torrent]bool, len(h.segments))
	for _, s := range h.segments {
		if !counted[s.torrent] {
			counted[s.torrent] = true
			bytes += s.sent()
		}
	}
	return bytes
}

// release gives back what is held; nil holds nothing. What was sent is known still.
func (h *held) release() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.former += h.sentNow()
	for _, s := range h.segments {
		s.entry.Unpin()
	}
	h.segments, h.released = nil, true
}

// content is what the table says of them.
func (h *held) content() content {
	segments, sha256 := h.all()
	c := content{size: h.layout.Size, sha256: sha256}
	if len(segments) > 0 {
		c.infohash = segments[0].entry.InfoHash().String()
	}
	return c
}

// fetch has the build ready to be seeded: from the cache, or pulled. Each segment is
// handed out as soon as it is here. stalled says that nothing came any more in the last try.
func (c *carrier) fetch(ctx context.Context, r *ledger.Record, h *held, stalled bool) done {
	if err := bucket.ParseHeaders(r.Headers).Check(landing.AddedMetadata); err != nil {
		return done{err: err}
	}
	take := func(i int, entry *cache.Entry) error {
		torrent, err := c.swarm.HandOut(entry, h.place(i), r.Destinations, c.receivers(r) == 1)
		if err != nil {
			entry.Unpin()
			return err
		}
		h.put(i, segment{entry: entry, torrent: torrent})
		c.swarm.Raise(entry.InfoHash(), h.place(i)) // which may have changed
		c.owner.Tell(handedOut{i + 1})
		return nil
	}
	if _, sha256 := h.all(); sha256 == "" {
		var err error
		switch {
		case r.Uploading:
			sha256, err = c.receive(ctx, r, h, take)
		default:
			if sha256, err = c.cached(r, h.layout, take); sha256 == "" && err == nil {
				sha256, err = c.pull(ctx, r, h, stalled, take)
			}
		}
		if err != nil {
			return done{err: err}
		}
		h.seal(sha256)
	}
	err := c.noteContent(ctx, h.content())
	switch {
	case errors.Is(err, ledger.ErrSuperseded), ctx.Err() != nil:
		return done{err: err}
	case err != nil:
		// The agents can download meanwhile; it is written when the table is read.
		c.logger.Warn("table not written, announcing all the same", "error", err)
	}
	c.evict(0)
	return done{content: h.content()}
}

// noteContent adds what the pull has found to the record.
func (c *carrier) noteContent(ctx context.Context, of content) error {
	if r, ok := c.index.get(c.id); ok && r.SHA256 == of.sha256 && r.InfoHash == of.infohash {
		return nil
	}
	updated, err := c.cfg.Ledger.SetContent(ctx, c.key, c.id, of.infohash, of.sha256)
	if err == nil {
		c.put(updated)
	}
	return err
}

// pull brings the build here, segment by segment, and returns its SHA-256.
func (c *carrier) pull(ctx context.Context, r *ledger.Record, h *held, stalled bool, take func(int, *cache.Entry) error) (string, error) {
	c.owner.Tell(turned{api.PhaseQueued})
	// Before it has its turn, which a bucket that does not answer would waste.
	from, err := c.sources.Get(ctx, r.SourceBucket)
	if err != nil {
		return "", err
	}
	turn := h.takeTurn(c.puller, r.SourceBucket, stalled)
	defer h.endTurn()
	if err := turn.Begin(ctx); err != nil {
		return "", err
	}
	c.owner.Tell(turned{api.PhasePulling})
	object, err := from.Head(ctx, r.FileKey)
	if err != nil {
		return "", err
	}
	if object.Size != h.layout.Size {
		return "", fmt.Errorf("%w: it has %d bytes, the table says %d", bucket.ErrChanged, object.Size, h.layout.Size)
	}
	if object.ETag != r.SourceETag {
		return "", fmt.Errorf("%w: ETag is %s, was %s", bucket.ErrChanged, object.ETag, r.SourceETag)
	}
	if names := differ(r, object); len(names) > 0 {
		return "", fmt.Errorf("%w: it has other headers now: %s", bucket.ErrChanged, strings.Join(names, ", "))
	}
	c.logger.Info("pulling", "bytes", r.Size, "sourceBucket", r.SourceBucket, "segments", h.layout.NumSegments())
	started := time.Now()
	ctx, span := tracing.Start(ctx, "pull", attribute.Int64("landfall.bytes", r.Size))
	sha256, err := c.puller.Pull(ctx, source.Pull{
		Turn: turn, From: from, Object: object, Layout: h.layout, Name: c.id,
		Progress: func(bytes int64) { c.owner.Tell(pulled{bytes}) },
		Waits: func(others bool) {
			if others {
				c.owner.Tell(turned{api.PhaseQueued})
			} else {
				c.owner.Tell(turned{api.PhasePulling})
			}
		},
		Segment: take,
	})
	span.End(err)
	if err != nil {
		if errors.Is(err, cache.ErrNoSpace) {
			c.evict(r.Size) // for the next try
		}
		return "", fmt.Errorf("pulling %s from %s: %w", r.FileKey, r.SourceBucket, err)
	}
	took := time.Since(started)
	c.metrics.pulls.Observe(took.Seconds())
	c.logger.Info("pulled", "bytes", r.Size, "seconds", took.Seconds())
	return sha256, nil
}

// cached takes the segments of a build that was pulled before and is in the cache whole,
// and returns its SHA-256; empty when it is not.
func (c *carrier) cached(r *ledger.Record, layout *manifest.Layout, take func(int, *cache.Entry) error) (sha256 string, err error) {
	if r.SHA256 == "" || layout.NumSegments() == 0 {
		return "", nil
	}
	entries, err := c.segmentsOf(r, layout)
	if entries == nil {
		return "", err
	}
	for i, e := range entries {
		if err := take(i, e); err != nil {
			for _, e := range entries[i+1:] {
				e.Unpin()
			}
			return "", err
		}
	}
	return r.SHA256, nil
}

// differ names the headers that an object has otherwise than its execution knows;
// none where an older version has begun that.
func differ(r *ledger.Record, o *bucket.Object) []string {
	if r.Headers == nil {
		return nil
	}
	return bucket.ParseHeaders(r.Headers).Differ(o.Headers)
}

// keepWhole reads from the source again what is found damaged on this disk, until ctx
// ends.
func (c *carrier) keepWhole(ctx context.Context, r *ledger.Record, h *held) {
	ticker := time.NewTicker(mendInterval)
	defer ticker.Stop()
	rest := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if now.Before(rest) {
				continue
			}
		}
		segments, _ := h.all()
		for i, s := range segments {
			if s.torrent.Done() {
				s.torrent.DisconnectComplete() // each connection costs memory, and there are many
				continue
			}
			if newest, ok := c.index.get(c.id); ok {
				r = newest
			}
			if r.Uploading {
				continue // the source does not have it yet
			}
			offset, _ := h.layout.SegmentRange(i)
			from, err := c.sources.Get(ctx, r.SourceBucket)
			if err == nil {
				err = source.Pieces(ctx, from, r.FileKey, r.SourceETag, offset, s.entry.Manifest(), s.torrent.Missing(),
					func(ctx context.Context, piece int, b []byte) error {
						c.metrics.repaired.Add(int64(len(b)))
						return s.torrent.Put(ctx, piece, b)
					})
			}
			if err != nil && ctx.Err() == nil {
				c.logger.Warn("damaged pieces not read again yet", "error", err, "retryIn", rereadInterval.String())
				rest = time.Now().Add(rereadInterval)
				break
			}
		}
	}
}

// evict brings the cache below its limit, and makes room for a build of so many
// bytes if it can.
func (s *Seeder) evict(room int64) {
	evicted := false
	err := s.cfg.Cache.Evict(room, func(infohash manifest.InfoHash) {
		evicted = true
		s.swarm.DropSegment(infohash)
		if t, ok := s.swarm.Torrent(infohash); ok {
			t.Drop()
		}
	})
	if evicted {
		err = errors.Join(err, s.forgetPulls())
	}
	if err != nil {
		s.cfg.Logger.Warn("cache not cleaned", "error", err)
	}
}

// forgetPulls removes what pulls have left of executions that have arrived everywhere and
// whose segments the cache does not have any more, and of those that nobody knows.
func (s *Seeder) forgetPulls() error {
	return s.cfg.Cache.ForgetPulls(func(id string) bool {
		r, ok := s.index.get(id)
		if !ok || r.Status != ledger.Completed {
			return ok
		}
		infohash, err := manifest.ParseInfoHash(r.InfoHash)
		if err != nil {
			return false
		}
		_, here := s.cfg.Cache.Entry(infohash)
		return here
	})
}

// torrentFile returns the bencoded .torrent of an execution (BEP 3), for
// ordinary clients, and seeds the build as that. Where there is none the error is a 404.
func (s *Seeder) torrentFile(r *ledger.Record) ([]byte, error) {
	switch {
	case r.SHA256 == "":
		return nil, web.Errorf(http.StatusNotFound, "the seeder has not read all of the build yet, which its .torrent needs; ask again later")
	case r.Size == 0:
		return nil, web.Errorf(http.StatusNotFound, "a build of 0 bytes has no torrent")
	}
	layout, err := layoutOf(r)
	if err != nil {
		return nil, err
	}
	entries, err := s.segmentsOf(r, layout)
	if err != nil {
		return nil, err
	}
	if entries == nil {
		return nil, web.Errorf(http.StatusNotFound, "the build is not in the seeder's cache any more; a larger --cache-size keeps builds for longer")
	}
	defer func() {
		for _, e := range entries {
			e.Unpin()
		}
	}()
	return s.swarm.SeedWhole(r.SHA256, layout.Shape, entries)
}

// segmentsOf are the segments of a build that was pulled before, pinned; nil when the cache
// has not all of them whole.
func (s *Seeder) segmentsOf(r *ledger.Record, layout *manifest.Layout) ([]*cache.Entry, error) {
	known, err := s.cfg.Cache.KnownSegments(r.ExecutionID, source.Tag(r.SourceETag, layout))
	if err != nil || len(known) < layout.NumSegments() {
		return nil, err
	}
	var entries []*cache.Entry
	for _, infohash := range known {
		e, err := s.cfg.Cache.Pinned(infohash, r.ExecutionID)
		if err == nil {
			entries = append(entries, e)
		} else if !errors.Is(err, cache.ErrNotKept) {
			for _, e := range entries {
				e.Unpin()
			}
			return nil, err
		}
	}
	if len(entries) < len(known) || slices.ContainsFunc(entries, func(e *cache.Entry) bool { return !e.Whole() }) {
		for _, e := range entries {
			e.Unpin()
		}
		return nil, nil
	}
	return entries, nil
}
