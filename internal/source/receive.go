package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// receivedBlock is the length of a block of a body in bytes: a slow one is on the disk
	// soon, and many at a time need little memory.
	receivedBlock = 1 << 20
	// receivedBlocks is how many of them one body has. They are its own: one that comes
	// slowly must not keep those of pulls.
	receivedBlocks = 4
)

// Received is a body to be kept as a Pull keeps an object.
type Received struct {
	// Body gives exactly as many bytes as the layout says, and then io.EOF.
	Body   io.Reader
	Layout *manifest.Layout
	// Name, Progress and Segment are as those of Pull.
	Name     string
	Progress func(bytes int64)
	Segment  func(i int, e *cache.Entry) error
	// Room is the disk for it.
	Room *cache.Room
}

// Receive is Pull for bytes that pass through on their way into a bucket: it keeps and
// hashes them by the same code. When ctx ends, a Read of the body that is under way is
// waited for. Of a body that breaks off only whole segments stay, as entries of the cache.
func (p *Puller) Receive(ctx context.Context, of Received) (sha256 string, err error) {
	pool := make(chan []byte, receivedBlocks)
	for range receivedBlocks {
		pool <- nil
	}
	j := p.job(Pull{
		Object: &bucket.Object{Size: of.Layout.Size}, Layout: of.Layout, Name: of.Name, Progress: of.Progress, Segment: of.Segment,
		Room: of.Room,
	}, func(b []byte) { pool <- b[:cap(b)] })
	if j.list, err = p.cache.PulledSegments(of.Name, ReceivedTag(of.Layout)); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, j.end(false), j.list.Close()) }()
	read := func(ctx context.Context, _ context.CancelCauseFunc, _ *sync.WaitGroup, lanes []chan *block) error {
		return j.readBody(ctx, of.Body, pool, lanes)
	}
	if err := j.copy(ctx, j.hasher.Lanes(), read); err != nil {
		return "", err
	}
	return j.hasher.SHA256Hex()
}

// ReceivedTag is the Tag of what Receive keeps, until its object has an ETag: then
// cache.RetagSegments has it stand for that.
func ReceivedTag(l *manifest.Layout) string { return Tag("", l) }

// readBody fills the blocks from a body, one after the other.
func (j *job) readBody(ctx context.Context, body io.Reader, pool <-chan []byte, lanes []chan *block) error {
	for i := range j.Layout.NumSegments() {
		first, length := j.Layout.SegmentRange(i)
		file, err := j.store(i)
		if err != nil {
			return err
		}
		for offset := first; offset < first+length; offset += receivedBlock {
			var buf []byte
			select {
			case buf = <-pool:
			case <-ctx.Done():
				return ctx.Err()
			}
			if buf == nil {
				buf = make([]byte, receivedBlock)
			}
			b := &block{offset: offset, buf: buf[:min(receivedBlock, first+length-offset)], filled: make(chan struct{})}
			if err := j.fill(b, body); err != nil {
				return err
			}
			if _, err := file.WriteAt(b.buf, offset-first); err != nil {
				return err
			}
			close(b.filled)
			b.lanes.Store(int32(len(lanes)))
			for _, lane := range lanes {
				lane <- b
			}
		}
	}
	return ctx.Err()
}

// fill reads a block; after the last one the body has to end, which is when it says
// whether its bytes are those that were promised.
func (j *job) fill(b *block, body io.Reader) error {
	if n, err := io.ReadFull(body, b.buf); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%d of %d bytes: %w", b.offset+int64(n), j.Layout.Size, io.ErrUnexpectedEOF)
		}
		return fmt.Errorf("after %d bytes: %w", b.offset+int64(n), err)
	}
	if b.offset+int64(len(b.buf)) < j.Layout.Size {
		return nil
	}
	switch n, err := io.ReadFull(body, make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("more than the %d bytes promised", j.Layout.Size)
	case err != io.EOF:
		return fmt.Errorf("after %d bytes: %w", j.Layout.Size, err)
	}
	return nil
}
