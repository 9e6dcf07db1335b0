package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/swarm"
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
)

// sourceRead reads from the source bucket what no peer has. The agents of all
// destinations share that: each group of pieces has an order of agents, from a hash that
// all of them know, and only the first reads it as long as it arrives.
type sourceRead struct {
	build   *build
	ann     *announce.Announcement
	torrent *swarm.Torrent
	etag    string // of the source object; empty for any
	// late is how long ago the first readers' time has come.
	late time.Duration
}

// read reads this agent's share of what is missing now.
func (r sourceRead) read(ctx context.Context) error {
	a := r.build.agent
	if r.torrent.Done() {
		return nil
	}
	each := a.cfg.FallbackAfter / turnsPerPatience // the next readers have their turn after it
	entry, infoKnown := a.cfg.Cache.Pinned(r.ann.InfoHash)
	if !infoKnown {
		each += time.Duration(r.ann.Size/wholeRate) * time.Second
		if a.turnToRead(r.ann, "info") > int(r.late/each) {
			return nil
		}
		return r.whole(ctx)
	}
	defer entry.Unpin()
	turn := int(r.late / each)
	mine := make(map[int]bool)
	missing := slices.DeleteFunc(r.torrent.Missing(), func(piece int) bool {
		group := piece / fallbackGroup
		if _, known := mine[group]; !known {
			mine[group] = a.turnToRead(r.ann, strconv.Itoa(group)) <= turn
		}
		return !mine[group]
	})
	if len(missing) == 0 {
		return nil
	}
	from, err := a.cfg.Sources.Get(ctx, r.ann.SourceBucket)
	if err != nil {
		return fallbackError(err)
	}
	tracing.Event(ctx, "read from the source bucket", attribute.Int("landfall.pieces", len(missing)))
	r.build.log().Info("no peer has what is missing, reading it from the source bucket", "bucket", r.ann.SourceBucket, "pieces", len(missing), "turn", turn)
	return fallbackError(source.Pieces(ctx, from, r.ann.Key, r.etag, entry.Manifest(), missing, func(ctx context.Context, piece int, content []byte) error {
		a.sourceRead.Add(int64(len(content)))
		r.build.owner.Tell(moved{int64(len(content))})
		return r.torrent.Put(ctx, piece, content)
	}))
}

// whole pulls the build as a seeder does, when not even its info is to be had.
func (r sourceRead) whole(ctx context.Context) error {
	a, ann := r.build.agent, r.ann
	from, err := a.cfg.Sources.Get(ctx, ann.SourceBucket)
	if err != nil {
		return fallbackError(err)
	}
	object, err := from.Head(ctx, ann.Key)
	if err != nil {
		return fallbackError(err)
	}
	if object.Size != ann.Size || r.etag != "" && object.ETag != r.etag {
		return fallbackError(fmt.Errorf("%s in %s: %w", ann.Key, ann.SourceBucket, bucket.ErrChanged))
	}
	tracing.Event(ctx, "read from the source bucket", attribute.Int64("landfall.bytes", object.Size))
	r.build.log().Info("no peer has the build, reading it from the source bucket", "bucket", ann.SourceBucket, "bytes", object.Size)
	a.evict(object.Size)
	m, entry, err := a.puller.Pull(ctx, from, object, ann.ExecutionID, func(int64) { r.build.move() })
	if err != nil {
		return fallbackError(err)
	}
	defer entry.Unpin()
	a.sourceRead.Add(object.Size)
	r.build.owner.Tell(moved{object.Size})
	if entry.InfoHash() != ann.InfoHash {
		return fallbackError(fmt.Errorf("%s in %s: %w: it has infohash %s", ann.Key, ann.SourceBucket, bucket.ErrChanged, entry.InfoHash()))
	}
	return r.torrent.Pulled(m)
}

// fallbackError says what kind of attempt has failed.
func fallbackError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("no peer has what is missing, and the source bucket cannot be read (s3:GetObject; --source-fallback=false does without): %w", err)
}

// turnToRead is this agent's place, from 0, in the order of the living agents that read
// a group of a build's pieces.
func (a *Agent) turnToRead(ann *announce.Announcement, group string) int {
	return rendezvousRank(ann.InfoHash.String()+"/"+group, a.cfg.Gossip.ID, a.agentsOf(ann.Destinations...))
}
