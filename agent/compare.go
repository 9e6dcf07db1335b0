package agent

import (
	"context"
	"errors"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/landing"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// comparedAhead is how many segments' info dictionaries are asked for at a time.
	comparedAhead = 4
	// infoPatience is how long one is waited for; without it the object is not compared any
	// further.
	infoPatience = 30 * time.Second
)

// comparable finds out whether what the bucket has can be compared with the build, part by
// part, going on with what was compared before. Nil when it cannot, or is known to differ.
func (b *build) comparable(ctx context.Context, object *bucket.Object, record *ledger.Record, layout *manifest.Layout, before *landing.Comparison) (*landing.Comparison, error) {
	switch {
	case object == nil || layout == nil || layout.NumSegments() == 0:
		return nil, nil
	case before != nil && before.ETag == object.ETag:
		if before.Differs || before.Composite() != "" { // and it has not been the build by that
			return nil, nil
		}
		return before, nil
	case object.Composite == "" || object.Size != record.Size:
		return nil, nil
	}
	parts, err := b.agent.cfg.Bucket.ObjectParts(ctx, object.Key, object.ETag)
	if errors.Is(err, bucket.ErrNotFound) || errors.Is(err, bucket.ErrChanged) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return landing.Compare(object, parts, record, layout), nil
}

// compare compares what the bucket has with the segments that are announced; nothing of
// those is fetched but their info dictionaries. The first part that differs ends it.
func (b *build) compare(ctx context.Context, ann *announce.Announcement, c landing.Comparison, f *finished) {
	defer func() { f.got, f.segments = &c, c.Segments }()
	var begun []*segment
	defer func() {
		for _, s := range begun {
			b.agent.release(s.download, s)
		}
	}()
	layout, next := ann.Layout(), c.Segments
	for c.Segments < ann.InfoHashes.Len() {
		for ; next < ann.InfoHashes.Len() && next < c.Segments+comparedAhead; next++ {
			if next > c.Segments && !b.agent.swarm.RoomToFetch() {
				break
			}
			s := &segment{index: next, build: b.id, move: b.move}
			if s.download, f.err = b.agent.acquire(ctx, s, ann.InfoHashes.At(next), layout.SegmentShape(next), ann.Destinations); f.err != nil {
				return
			}
			begun = append(begun, s)
			s.download.addPeers(b.agent.gossip.Members())
		}
		waiting, cancel := context.WithTimeout(ctx, infoPatience)
		m, err := begun[0].download.torrent.Info(waiting)
		cancel()
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			b.log().Info("nobody says what the next part of this build is, so that the bucket's object is not compared with it")
			f.alike = c.Alike
			return
		}
		if f.err = err; err != nil {
			return
		}
		b.agent.release(begun[0].download, begun[0])
		begun = begun[1:]
		if c.Next(m); c.Differs {
			b.log().Info("bucket holds another build", "bucket", b.agent.cfg.Bucket.Name(), "segmentsAlike", c.Segments)
			return
		}
		b.move()
	}
	f.agrees = true
}
