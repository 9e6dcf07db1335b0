package cache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// Pulling is a build being written whose infohash is not known yet.
type Pulling struct {
	cache   *Cache
	file    *os.File
	size    int64
	written atomic.Int64
}

// Pull begins a build of size bytes under a name unique to it. The whole length
// is reserved: ErrNoSpace. End it with Commit or Abort.
func (c *Cache) Pull(name string, size int64) (*Pulling, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.reserve(size); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(c.dir, pulls, name))
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	p := &Pulling{cache: c, file: f, size: size}
	c.pulling[p] = struct{}{}
	return p, nil
}

// WriteAt writes bytes of the build, each once.
func (p *Pulling) WriteAt(b []byte, offset int64) (int, error) {
	n, err := p.file.WriteAt(b, offset)
	p.written.Add(int64(n))
	return n, err
}

// Abort removes what was written.
func (p *Pulling) Abort() error {
	p.forget()
	return errors.Join(p.file.Close(), os.Remove(p.file.Name()))
}

// Commit makes a whole entry of what was written, which must be all of the
// manifest's build, pinned, for the caller to Unpin. When the cache has that build
// whole already, or a part of it, the pulled bytes take over.
func (p *Pulling) Commit(m *manifest.Manifest) (*Entry, error) {
	info := m.InfoBytes()
	infohash := hashOf(info)
	c := p.cache
	if e, known := c.Pinned(infohash); known {
		if err := errors.Join(p.fill(e), p.Abort()); err != nil {
			e.Unpin()
			return nil, err
		}
		return e, nil
	}
	p.forget()
	dir := c.path(infohash)
	err := errors.Join(p.file.Close(), os.MkdirAll(dir, 0o755))
	if err == nil {
		err = os.Rename(p.file.Name(), filepath.Join(dir, "data"))
	}
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	have := bytes.Repeat([]byte{0xff}, bitmapLength(m))
	if spare := 8*len(have) - m.NumPieces(); spare > 0 {
		have[len(have)-1] <<= spare
	}
	e, err := c.finish(dir, info, infohash, have)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return e, nil
}

// fill completes an entry that another execution of the same bytes has begun.
func (p *Pulling) fill(e *Entry) error {
	buf := make([]byte, e.m.PieceLength)
	for piece := range e.m.NumPieces() {
		if e.Complete(piece) {
			continue
		}
		offset, length := e.m.PieceRange(piece)
		if _, err := p.file.ReadAt(buf[:length], offset); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
		if _, err := e.WriteAt(buf[:length], offset); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
		if err := e.SetComplete(piece, true); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pulling) forget() {
	p.cache.mu.Lock()
	defer p.cache.mu.Unlock()
	delete(p.cache.pulling, p)
}
