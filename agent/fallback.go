package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/handout"
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
	// wholeRate is how fast, in bytes/s, the first reader of a whole build is
	// trusted to be: before he has all of it nobody can see how far he is.
	wholeRate = 16 << 20
)

// sourceRead reads from the source bucket what no peer has. The agents of all
// destinations share that: each group of pieces has an order of agents, from a hash that
// all of them know, and only the first reads it as long as it arrives.
type sourceRead struct {
	build  *build
	ann    *announce.Announcement
	member *membership
	// late is how long ago the first readers' time has come.
	late time.Duration
	// stalled: nothing came any more when it was tried last.
	stalled bool
}

// read reads this agent's share of what is announced and missing now.
func (r sourceRead) read(ctx context.Context) error {
	for _, s := range r.member.all() {
		if s.download.torrent.Done() {
			continue
		}
		if err := r.segment(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (r sourceRead) segment(ctx context.Context, s *segment) error {
	a := r.build.agent
	// The first reader of a group has as long to bring it to the others; then the next in
	// turn reads it as well. Shorter than the patience, he would be overtaken by one to whom
	// something else came a moment earlier than to him.
	each := a.cfg.FallbackAfter
	offset, _ := r.ann.Layout().SegmentRange(s.index)
	entry, err := a.cfg.Cache.Pinned(s.download.infohash, s.build)
	if err != nil && !errors.Is(err, cache.ErrNotKept) {
		return fallbackError(err)
	}
	if err != nil { // not even the info is here
		each += time.Duration(r.ann.Size/wholeRate) * time.Second
		if a.turnToRead(r.ann, r.ann.ExecutionID) > int(r.late/each) {
			return nil
		}
		return r.whole(ctx)
	}
	defer entry.Unpin()
	if entry.Whole() { // it came into the cache by another way, and the torrent was not told
		return s.download.torrent.Pulled(entry.Manifest())
	}
	turn := int(r.late / each)
	mine := make(map[int]bool)
	missing := slices.DeleteFunc(s.download.torrent.Missing(), func(piece int) bool {
		group := piece / fallbackGroup
		if _, known := mine[group]; !known {
			mine[group] = a.turnToRead(r.ann, fmt.Sprintf("%s/%d", s.download.infohash, group)) <= turn
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
	r.build.log().Info("no peer has what is missing, reading it from the source bucket", "bucket", r.ann.SourceBucket,
		"segment", s.index, "pieces", len(missing), "turn", turn)
	return fallbackError(source.Pieces(ctx, from, r.ann.Key, r.ann.ETag, offset, entry.Manifest(), missing, func(ctx context.Context, piece int, content []byte) error {
		a.sourceRead.Add(int64(len(content)))
		r.build.owner.Tell(moved{int64(len(content))})
		return s.download.torrent.Put(ctx, piece, content)
	}))
}

// whole pulls the build as a seeder does, when not even the info of what is missing is to
// be had.
func (r sourceRead) whole(ctx context.Context) error {
	a, ann := r.build.agent, r.ann
	from, err := a.cfg.Sources.Get(ctx, ann.SourceBucket)
	if err != nil {
		return fallbackError(err)
	}
	turn := a.puller.TakeTurn(source.Want{
		Place: handout.Place{High: ann.High, Execution: ann.ExecutionID}, Bucket: ann.SourceBucket, Stalled: r.stalled,
	})
	defer turn.End()
	if err := turn.Begin(ctx); err != nil {
		return fallbackError(err)
	}
	object, err := from.Head(ctx, ann.Key)
	if err != nil {
		return fallbackError(err)
	}
	changed := func(what string) error {
		return fallbackError(fmt.Errorf("%s in %s: %w: %s", ann.Key, ann.SourceBucket, bucket.ErrChanged, what))
	}
	if object.Size != ann.Size || ann.ETag != "" && object.ETag != ann.ETag {
		return changed("it has another size or ETag")
	}
	tracing.Event(ctx, "read from the source bucket", attribute.Int64("landfall.bytes", object.Size))
	r.build.log().Info("no peer has the build, reading it from the source bucket", "bucket", ann.SourceBucket, "bytes", object.Size)
	before := a.puller.BytesRead()
	_, err = a.puller.Pull(ctx, source.Pull{
		Turn: turn, From: from, Object: object, Layout: ann.Layout(), Name: ann.ExecutionID, Room: r.member.reserved(),
		Progress: func(int64) { r.build.move() },
		Segment: func(i int, e *cache.Entry) error {
			defer e.Unpin()
			// It may have been announced since this began; else it is found in the cache then.
			if known := r.member.newest.Load().InfoHashes; i < known.Len() && e.InfoHash() != known.At(i) {
				return changed(fmt.Sprintf("segment %d has infohash %s", i, e.InfoHash()))
			}
			_, length := ann.Layout().SegmentRange(i)
			r.build.owner.Tell(moved{length})
			if t, ok := a.swarm.Torrent(e.InfoHash()); ok {
				return t.Pulled(e.Manifest())
			}
			return nil
		},
	})
	a.sourceRead.Add(a.puller.BytesRead() - before)
	return fallbackError(err)
}

// fallbackError says what kind of attempt has failed.
func fallbackError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("no peer has what is missing, and the source bucket cannot be read (s3:GetObject; --source-fallback=false does without): %w", err)
}

// turnToRead is this agent's place, from 0, in the order of the living agents that read
// something of a build.
func (a *Agent) turnToRead(ann *announce.Announcement, what string) int {
	return rendezvousRank(what, a.cfg.Gossip.ID, a.agentsOf(ann.Destinations...))
}
