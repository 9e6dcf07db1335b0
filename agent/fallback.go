package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/tracing"
)

const (
	// DefaultFallbackAfter is how long a build may get nothing from any peer
	// before its missing pieces are read from the source bucket.
	DefaultFallbackAfter = 30 * time.Second
	// fallbackGroup is how many neighbouring pieces one agent reads: 4 MiB of
	// most builds, one ranged GET.
	fallbackGroup = 32
	// The first reader of a group has a third of the patience to bring it to
	// the others; then the next in turn reads it as well.
	turnsPerPatience = 3
	// wholeRate is how fast, in bytes/s, the first reader of a whole build is
	// trusted to be: before he has all of it nobody can see how far he is.
	wholeRate = 16 << 20
	// fallbackLook is how often it is looked whether the time has come.
	fallbackLook = time.Second
)

// fallBack reads from the source bucket what no peer has. The agents of all
// destinations share that: each group of pieces has an order of agents, from a
// hash that all of them know, and only the first reads it as long as it arrives.
func (b *build) fallBack(ctx context.Context, d *download) {
	patience := b.agent.cfg.FallbackAfter
	ticker := time.NewTicker(min(fallbackLook, patience))
	defer ticker.Stop()
	wait := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		idle := time.Since(b.lastMove())
		if idle < patience || d.torrent.Done() {
			continue
		}
		err := b.readMissing(ctx, d, idle-patience, patience/turnsPerPatience)
		if err == nil || ctx.Err() != nil {
			wait = firstRetry
			continue
		}
		delay := rand.N(wait) + firstRetry/10
		wait = min(2*wait, maxRetry)
		b.complain(err, delay)
		b.waitFor(ctx, nil, delay)
	}
}

// readMissing reads this agent's share of what is missing; late is how long ago the
// first readers' time has come, each the time after which the next have theirs.
func (b *build) readMissing(ctx context.Context, d *download, late, each time.Duration) error {
	entry, infoKnown := b.agent.cfg.Cache.Pinned(b.ann.InfoHash)
	if !infoKnown {
		each += time.Duration(b.ann.Size/wholeRate) * time.Second
		if b.agent.placeOf(b.ann, "info") > int(late/each) {
			return nil
		}
		return b.readWhole(ctx, d)
	}
	defer entry.Unpin()
	turn := int(late / each)
	mine := make(map[int]bool)
	missing := slices.DeleteFunc(d.torrent.Missing(), func(piece int) bool {
		group := piece / fallbackGroup
		if _, known := mine[group]; !known {
			mine[group] = b.agent.placeOf(b.ann, strconv.Itoa(group)) <= turn
		}
		return !mine[group]
	})
	if len(missing) == 0 {
		return nil
	}
	from, err := b.agent.cfg.Sources.Get(ctx, b.ann.SourceBucket)
	if err != nil {
		return fallbackError(err)
	}
	tracing.Event(ctx, "read from the source bucket", attribute.Int("landfall.pieces", len(missing)))
	b.logger.Info("no peer has what is missing, reading it from the source bucket", "bucket", b.ann.SourceBucket, "pieces", len(missing), "turn", turn)
	err = source.Pieces(ctx, from, b.ann.Key, b.sourceETag(), entry.Manifest(), missing, func(ctx context.Context, piece int, content []byte) error {
		b.countSource(int64(len(content)))
		return d.torrent.Put(ctx, piece, content)
	})
	if err != nil {
		return fallbackError(err)
	}
	return nil
}

// readWhole pulls the build as a seeder does, when not even its info is to be had.
func (b *build) readWhole(ctx context.Context, d *download) error {
	from, err := b.agent.cfg.Sources.Get(ctx, b.ann.SourceBucket)
	if err != nil {
		return fallbackError(err)
	}
	object, err := from.Head(ctx, b.ann.Key)
	if err != nil {
		return fallbackError(err)
	}
	if etag := b.sourceETag(); object.Size != b.ann.Size || etag != "" && object.ETag != etag {
		return fallbackError(fmt.Errorf("%s in %s: %w", b.ann.Key, b.ann.SourceBucket, bucket.ErrChanged))
	}
	tracing.Event(ctx, "read from the source bucket", attribute.Int64("landfall.bytes", object.Size))
	b.logger.Info("no peer has the build, reading it from the source bucket", "bucket", b.ann.SourceBucket, "bytes", object.Size)
	b.agent.evict(object.Size)
	m, entry, err := b.agent.puller.Pull(ctx, from, object, b.ann.ExecutionID, func(int64) { b.move() })
	if err != nil {
		return fallbackError(err)
	}
	defer entry.Unpin()
	b.countSource(object.Size)
	if entry.InfoHash() != b.ann.InfoHash {
		return fallbackError(fmt.Errorf("%s in %s: %w: it has infohash %x", b.ann.Key, b.ann.SourceBucket, bucket.ErrChanged, entry.InfoHash()))
	}
	return d.torrent.Pulled(m)
}

func (b *build) countSource(bytes int64) {
	b.fromSource.Add(bytes)
	b.agent.sourceRead.Add(bytes)
}

// fallbackError says what kind of attempt has failed.
func fallbackError(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("no peer has what is missing, and the source bucket cannot be read (s3:GetObject; --source-fallback=false does without): %w", err)
}

// placeOf is this agent's place, from 0, in the order of the living agents that read
// a group of a build's pieces.
func (a *Agent) placeOf(ann *announce.Announcement, group string) int {
	self := a.cfg.Gossip.ID
	ids := []string{self}
	for _, m := range a.gossip.Members() {
		if m.Role == gossip.Agent && slices.Contains(ann.Destinations, m.Bucket) {
			ids = append(ids, m.ID)
		}
	}
	return place(ann.InfoHash.String()+"/"+group, self, ids)
}

// place is that of self in the order of ids that what gives, the highest hash
// first.
func place(what, self string, ids []string) int {
	hash := func(id string) [sha256.Size]byte { return sha256.Sum256([]byte(what + "\x00" + id)) }
	own := hash(self)
	before := 0
	for i, id := range ids {
		h := hash(id)
		if !slices.Contains(ids[:i], id) && slices.Compare(h[:], own[:]) > 0 {
			before++
		}
	}
	return before
}
