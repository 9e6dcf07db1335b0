package fetch

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/landfall-dist/landfall/internal/cache"
)

// Reader reads a whole build. Each piece is read whole and hashed once more, and what is
// asked of it comes from those bytes: what the disk has changed or lost meanwhile is an error
// that wraps ErrLost, and is fetched again. It is safe for concurrent use.
type Reader struct {
	build *Build
	close sync.Once

	mu    sync.Mutex // held while reading, for one segment is open at a time
	index int        // of the segment that is open
	entry *cache.Entry
	held  []byte // the piece that was read last, of the build's; at most one is in memory
	piece int
}

// Open returns the build's bytes, which stay until the Reader is closed, should the build be
// dropped meanwhile. ErrNotWhole before all of it is here. Whether they are the goal's is
// for Verify to say, before.
func (b *Build) Open() (*Reader, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.dropped:
		return nil, fmt.Errorf("build %s: %w", b.note.ExecutionID, ErrDropped)
	case !b.isWhole:
		return nil, fmt.Errorf("build %s: %w", b.note.ExecutionID, ErrNotWhole)
	}
	b.readers++
	return &Reader{build: b, index: -1, piece: -1}, nil
}

// Size is in bytes.
func (r *Reader) Size() int64 { return r.build.layout.Size }

// Close lets the bytes go. Again it does nothing.
func (r *Reader) Close() error {
	r.close.Do(func() {
		r.mu.Lock()
		if r.entry != nil {
			r.entry.Unpin()
			r.entry = nil
		}
		r.mu.Unlock()
		b := r.build
		b.mu.Lock()
		b.readers--
		last := b.readers == 0 && b.dropped
		b.mu.Unlock()
		if last {
			b.unkeep()
			if b.fetcher.ctx.Err() == nil { // else the next start does
				b.fetcher.evict(0)
			}
		}
	})
	return nil
}

// ReadAt reads as io.ReaderAt does.
func (r *Reader) ReadAt(p []byte, offset int64) (n int, err error) {
	if offset < 0 {
		return 0, fmt.Errorf("reading %s at %d", r.build.ExecutionID(), offset)
	}
	for n < len(p) && err == nil {
		var some int
		some, err = r.read(p[n:], offset+int64(n))
		n += some
	}
	return n, err
}

// WriteTo writes all of the build, each piece hashed and read at once.
func (r *Reader) WriteTo(w io.Writer) (written int64, err error) {
	layout := r.build.layout
	buffer := make([]byte, layout.PieceLength)
	for piece := range layout.NumPieces() {
		offset, length := layout.PieceRange(piece)
		if _, err := r.ReadAt(buffer[:length], offset); err != nil {
			return written, err
		}
		n, err := w.Write(buffer[:length])
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// read reads bytes of one piece.
func (r *Reader) read(p []byte, offset int64) (int, error) {
	layout := r.build.layout
	if offset >= layout.Size {
		return 0, io.EOF
	}
	i := layout.SegmentOf(int(offset / layout.PartLength))
	start, _ := layout.SegmentRange(i)
	piece := int((offset - start) / layout.PieceLength)
	r.mu.Lock()
	defer r.mu.Unlock()
	entry, err := r.open(i)
	if errors.Is(err, cache.ErrNotKept) {
		return 0, r.lost(i, err)
	}
	if err != nil {
		return 0, fmt.Errorf("reading %s: segment %d: %w", r.build.ExecutionID(), i, err)
	}
	from, length := entry.Shape().PieceRange(piece)
	within := offset - start - from
	p = p[:min(int64(len(p)), length-within)]
	whole := int64(len(p)) == length
	if held := int(offset / layout.PieceLength); held == r.piece && !whole {
		return copy(p, r.held[within:]), nil
	}
	if !entry.Complete(piece) { // found damaged before
		return 0, r.lost(i, fmt.Errorf("piece %d: %w", piece, ErrNotWhole))
	}
	into := p
	if !whole {
		r.held, r.piece = slices.Grow(r.held[:0], int(length))[:length], -1
		into = r.held
	}
	_, err = entry.ReadVerified(piece, into, 0)
	switch {
	case errors.Is(err, cache.ErrCorrupt):
		if t, ok := r.build.fetcher.swarm.Torrent(entry.InfoHash()); ok {
			t.Damaged(piece, err)
		}
		return 0, r.lost(i, err)
	case err != nil:
		return 0, fmt.Errorf("reading %s: segment %d: %w", r.build.ExecutionID(), i, err)
	case whole:
		return len(p), nil
	}
	r.piece = int(offset / layout.PieceLength)
	return copy(p, into[within:]), nil
}

// lost has the build look at once for what of a segment the disk has lost.
func (r *Reader) lost(i int, err error) error {
	ask(r.build.wake)
	return fmt.Errorf("reading %s: segment %d: %w: %w", r.build.ExecutionID(), i, ErrLost, err)
}

// open has a segment's entry be open. The caller holds mu.
func (r *Reader) open(i int) (*cache.Entry, error) {
	if r.entry != nil && r.index == i {
		return r.entry, nil
	}
	if r.entry != nil {
		r.entry.Unpin()
		r.entry = nil
	}
	b := r.build
	b.mu.Lock()
	kept := b.files[i]
	b.mu.Unlock()
	if kept == nil {
		return nil, cache.ErrNotKept
	}
	if err := kept.Pin(); err != nil {
		return nil, err
	}
	r.index, r.entry = i, kept
	return kept, nil
}
