package seeder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
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
	// maxSources bounds the source buckets kept open.
	maxSources = 64
)

// puller brings objects to local disk and hashes them in the same pass.
type puller struct {
	cache  *cache.Cache
	pulls  chan struct{}
	blocks chan []byte // free ones; nil means one not made yet
}

func newPuller(c *cache.Cache) *puller {
	p := &puller{cache: c, pulls: make(chan struct{}, maxPulls), blocks: make(chan []byte, maxBlocks)}
	for range maxBlocks {
		p.blocks <- nil
	}
	return p
}

// slot waits for its turn to pull.
func (p *puller) slot(ctx context.Context) (release func(), err error) {
	select {
	case p.pulls <- struct{}{}:
		return func() { <-p.pulls }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// block is one range on its way: filled by a GET, then taken in order.
type block struct {
	offset int64
	buf    []byte
	done   chan error
}

// pull fetches an object in parallel ranges, each If-Match on the ETag, writes
// it to the cache and hashes it in order as it comes. An object that changes
// underneath is bucket.ErrChanged, never a mix of two. A build of 0 bytes has a
// manifest and no entry.
//
// Blocks are taken from the common store in the order of the object, so the
// next one to be hashed always has its block and several pulls cannot block each
// other.
func (p *puller) pull(ctx context.Context, from *bucket.Bucket, o *bucket.Object, name string, progress func(pulled int64)) (*manifest.Manifest, *cache.Entry, error) {
	hasher, err := manifest.NewHasher(o.Size, o.ContentType, o.Metadata)
	if err != nil {
		return nil, nil, err
	}
	if o.Size == 0 {
		m, err := hasher.Manifest()
		return m, nil, err
	}
	file, err := p.cache.Pull(name, o.Size)
	if err != nil {
		return nil, nil, err
	}
	if err := p.copy(ctx, from, o, file, hasher, progress); err != nil {
		return nil, nil, errors.Join(err, file.Abort())
	}
	m, err := hasher.Manifest()
	if err != nil {
		return nil, nil, errors.Join(err, file.Abort())
	}
	entry, err := file.Commit(m)
	return m, entry, err
}

func (p *puller) copy(ctx context.Context, from *bucket.Bucket, o *bucket.Object, file io.WriterAt, hasher io.Writer, progress func(int64)) error {
	group, ctx := errgroup.WithContext(ctx)
	ordered := make(chan *block, pullParallel)
	group.Go(func() error {
		defer close(ordered)
		return p.request(ctx, group, from, o, ordered)
	})
	group.Go(func() error {
		for b := range ordered {
			if err := p.take(ctx, b, file, hasher); err != nil {
				return err
			}
			progress(b.offset + int64(len(b.buf)))
		}
		return nil
	})
	err := group.Wait()
	for b := range ordered { // what was asked for and not taken
		p.blocks <- b.buf[:cap(b.buf)]
	}
	return err
}

// request starts the ranged GETs, in order, as blocks and slots come free.
func (p *puller) request(ctx context.Context, group *errgroup.Group, from *bucket.Bucket, o *bucket.Object, ordered chan<- *block) error {
	for offset := int64(0); offset < o.Size; offset += blockLength {
		length := min(blockLength, o.Size-offset)
		var buf []byte
		select {
		case buf = <-p.blocks:
		case <-ctx.Done():
			return ctx.Err()
		}
		if buf == nil {
			buf = make([]byte, blockLength)
		}
		b := &block{offset: offset, buf: buf[:length], done: make(chan error, 1)}
		select {
		case ordered <- b:
		case <-ctx.Done():
			p.blocks <- buf
			return ctx.Err()
		}
		group.Go(func() error {
			b.done <- readRange(ctx, from, o, b)
			return nil
		})
	}
	return nil
}

// readRange fills a block. A connection that breaks in the middle of a body is
// beyond the SDK's own retries, so it is asked for again here.
func readRange(ctx context.Context, from *bucket.Bucket, o *bucket.Object, b *block) error {
	var err error
	for try := range rangeTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(rand.N(rangeBackoff << try)):
			}
		}
		err = readRangeOnce(ctx, from, o, b)
		if err == nil || errors.Is(err, bucket.ErrChanged) || errors.Is(err, bucket.ErrNotFound) || ctx.Err() != nil {
			return err
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

// take waits for a block, then writes and hashes it at the same time.
func (p *puller) take(ctx context.Context, b *block, file io.WriterAt, hasher io.Writer) error {
	defer func() { p.blocks <- b.buf[:cap(b.buf)] }()
	if err := <-b.done; err != nil {
		return err
	}
	var wg sync.WaitGroup
	var writeErr error
	wg.Go(func() { _, writeErr = file.WriteAt(b.buf, b.offset) })
	_, err := hasher.Write(b.buf)
	wg.Wait()
	return errors.Join(err, writeErr)
}

// sources are the buckets that builds come from: the global one, and others that
// POST /deploy named.
type sources struct {
	aws  aws.Config
	mu   *sync.Mutex
	open map[string]*bucket.Bucket
}

func newSources(cfg aws.Config, global *bucket.Bucket) sources {
	return sources{cfg, new(sync.Mutex), map[string]*bucket.Bucket{global.Name(): global}}
}

// get opens a bucket, or returns it when it is open.
func (s sources) get(ctx context.Context, name string) (*bucket.Bucket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.open[name]; ok {
		return b, nil
	}
	if len(s.open) >= maxSources {
		return nil, fmt.Errorf("source bucket %s: %d others are open already", name, maxSources)
	}
	b, err := bucket.Open(ctx, s.aws, name, bucket.Options{})
	if err != nil {
		return nil, err
	}
	s.open[name] = b
	return b, nil
}
