// Package source brings the bytes of builds from the buckets that they are in,
// whole and hashed on the way, in ranged reads that never mix two objects.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/tracing"
)

const (
	// blockLength is the length of one ranged GET in bytes: long enough that
	// its round trip does not count, short enough to hold several in memory.
	blockLength = 4 << 20
	// maxBlocks bounds the blocks in memory over all pulls: 48 MiB.
	maxBlocks = 12
	// pullParallel is how many ranges of one build are asked for at a time.
	pullParallel = 6
	// maxPulls is how many builds are pulled at a time.
	maxPulls = 4
	// rangeTries and rangeBackoff bound how often a range that broke off is
	// asked for again; the wait doubles, with full jitter.
	rangeTries   = 4
	rangeBackoff = 100 * time.Millisecond
	// stalledTries is how often a range is asked for of which nothing came for long:
	// a pull that waits keeps others from theirs. Whoever asked for it tries again.
	stalledTries = 2
)

// Puller brings objects to local disk and hashes them in the same pass. It is safe
// for concurrent use.
type Puller struct {
	cache  *cache.Cache
	logger *slog.Logger
	pulls  chan struct{}
	blocks chan []byte // free ones; nil means one not made yet
	read   atomic.Int64
}

// BytesRead is what was read from buckets so far, in bytes; what a former pull has
// left does not count.
func (p *Puller) BytesRead() int64 { return p.read.Load() }

// NewPuller pulls into a cache, and says what each build was compared with.
func NewPuller(c *cache.Cache, logger *slog.Logger) *Puller {
	p := &Puller{cache: c, logger: logger, pulls: make(chan struct{}, maxPulls), blocks: make(chan []byte, maxBlocks)}
	for range maxBlocks {
		p.blocks <- nil
	}
	return p
}

// Slot waits for its turn to pull.
func (p *Puller) Slot(ctx context.Context) (release func(), err error) {
	select {
	case p.pulls <- struct{}{}:
		return func() { <-p.pulls }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// store keeps blocks: *cache.Pulling.
type store interface {
	io.WriterAt
	Kept(b []byte, offset int64) bool
}

// block is one range on its way: filled by a GET and written to disk, then
// hashed in every lane.
type block struct {
	offset int64
	buf    []byte
	filled chan struct{} // closed when the GET has ended
	err    error         // how
	lanes  atomic.Int32  // that have not hashed it yet
}

// pull is Pull with one try.
//
// Blocks are taken from the common store in the order of the object, so the
// next one to be hashed always has its block and several pulls cannot block each
// other.
func (p *Puller) pull(ctx context.Context, from *bucket.Bucket, o *bucket.Object, name string, progress func(pulled int64)) (*manifest.Manifest, *cache.Entry, error) {
	hasher, err := manifest.NewHasher(o.Size, o.ContentType, o.Metadata)
	if err != nil {
		return nil, nil, err
	}
	if o.Size == 0 {
		m, err := hasher.Manifest()
		return m, nil, err
	}
	file, err := p.cache.Pull(name, o.ETag, o.Size)
	if err != nil {
		return nil, nil, err
	}
	stored := compare(from, o)
	var m *manifest.Manifest
	err = p.copy(ctx, from, o, file, stored.lanes(hasher.Lanes()), progress)
	if err == nil {
		m, err = hasher.Manifest()
	}
	if err == nil {
		err = stored.check(ctx, m, p.logger.With("executionId", name))
	}
	if err != nil {
		for _, of := range []error{bucket.ErrChanged, bucket.ErrNotFound, bucket.ErrChecksum, manifest.ErrInvalid} {
			if errors.Is(err, of) { // what is here is of no use
				return nil, nil, errors.Join(err, file.Abort())
			}
		}
		return nil, nil, errors.Join(err, file.Leave())
	}
	entry, err := file.Commit(m)
	return m, entry, err
}

// copy writes the object to the file, and to each writer in order.
func (p *Puller) copy(ctx context.Context, from *bucket.Bucket, o *bucket.Object, file store, writers []io.Writer, progress func(int64)) error {
	group, ctx := errgroup.WithContext(ctx)
	lanes := make([]chan *block, len(writers))
	var mu sync.Mutex
	var pulled int64
	hashed := func(length int) {
		mu.Lock()
		defer mu.Unlock()
		pulled += int64(length)
		progress(pulled)
	}
	for i, w := range writers {
		lanes[i] = make(chan *block, maxBlocks) // all there are: nobody waits
		group.Go(func() error { return p.hash(ctx, w, lanes[i], hashed) })
	}
	group.Go(func() error {
		defer func() {
			for _, lane := range lanes {
				close(lane)
			}
		}()
		return p.request(ctx, group, from, o, file, lanes)
	})
	return group.Wait()
}

// request starts the ranged GETs, in order, as blocks and slots come free.
func (p *Puller) request(ctx context.Context, group *errgroup.Group, from *bucket.Bucket, o *bucket.Object, file store, lanes []chan *block) error {
	slots := make(chan struct{}, pullParallel)
	for offset := int64(0); offset < o.Size; offset += blockLength {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		var buf []byte
		select {
		case buf = <-p.blocks:
		case <-ctx.Done():
			return ctx.Err()
		}
		if buf == nil {
			buf = make([]byte, blockLength)
		}
		b := &block{offset: offset, buf: buf[:min(blockLength, o.Size-offset)], filled: make(chan struct{})}
		b.lanes.Store(int32(len(lanes)))
		for _, lane := range lanes {
			lane <- b
		}
		group.Go(func() error {
			defer func() { <-slots }()
			defer close(b.filled)
			if file.Kept(b.buf, b.offset) {
				return nil
			}
			if b.err = readRange(ctx, from, o, b); b.err == nil {
				p.read.Add(int64(len(b.buf)))
				_, b.err = file.WriteAt(b.buf, b.offset)
			}
			return b.err
		})
	}
	return nil
}

// hash feeds one lane, and gives a block back when it was the last to need it.
// After a failure it goes on to do so.
func (p *Puller) hash(ctx context.Context, w io.Writer, blocks <-chan *block, hashed func(length int)) (err error) {
	for b := range blocks {
		<-b.filled
		if err == nil && b.err == nil && ctx.Err() == nil {
			_, err = w.Write(b.buf)
		}
		if b.lanes.Add(-1) == 0 {
			if err == nil && b.err == nil && ctx.Err() == nil {
				hashed(len(b.buf))
			}
			p.blocks <- b.buf[:cap(b.buf)]
		}
	}
	return err
}

// readRange fills a block. A connection that breaks in the middle of a body is
// beyond the SDK's own retries, so it is asked for again here.
func readRange(ctx context.Context, from *bucket.Bucket, o *bucket.Object, b *block) error {
	var err error
	stalled := 0
	for try := range rangeTries {
		if try > 0 {
			tracing.Failed(ctx, "retry", err, attribute.Int64("landfall.offset", b.offset))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(rand.N(rangeBackoff << try)):
			}
		}
		err = readRangeOnce(ctx, from, o, b)
		if err == nil || errors.Is(err, bucket.ErrChanged) || errors.Is(err, bucket.ErrNotFound) ||
			bucket.Permanent(err) || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, answers.ErrStalled) {
			if stalled++; stalled == stalledTries {
				return err
			}
		}
	}
	return err
}

func readRangeOnce(ctx context.Context, from *bucket.Bucket, o *bucket.Object, b *block) error {
	body, err := from.GetRange(ctx, o.Key, o.ETag, b.offset, int64(len(b.buf)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, b.buf); err != nil {
		return fmt.Errorf("reading %s at %d: %w", o.Key, b.offset, err)
	}
	return nil
}
