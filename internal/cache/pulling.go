package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// journalSuffix ends the name of the file that says which blocks of a pull
	// are on disk: a fingerprint of what is pulled, then a record for each block.
	journalSuffix = ".blocks"
	recordLength  = 16 // offset, length, checksum
	// maxJournal bounds a journal that is read back, in bytes: the blocks of the
	// largest build.
	maxJournal = 32 << 20
)

// castagnoli detects blocks that did not reach the disk whole, at the speed of
// memory. Whoever wants to know whether the source sent the right bytes has their
// SHA-256.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Pulling is a build being written whose infohash is not known yet.
type Pulling struct {
	cache   *Cache
	file    *os.File
	size    int64
	written atomic.Int64

	journal *os.File
	kept    map[int64]keptBlock // by offset: what a former Pull has left
}

type keptBlock struct{ length, checksum uint32 }

// Pull begins a build of size bytes under a name unique to it, or goes on with what
// a former one of that name and tag has left; the tag stands for the bytes, as an
// ETag does. The whole length is reserved: ErrNoSpace. End it with Commit, Abort or
// Leave.
func (c *Cache) Pull(name, tag string, size int64) (*Pulling, error) {
	p := &Pulling{cache: c, size: size}
	if err := p.open(filepath.Join(c.dir, pulls, name), tag); err != nil {
		return nil, errors.Join(fmt.Errorf("cache: %w", err), p.close())
	}
	for _, b := range p.kept {
		p.written.Add(int64(b.length))
	}
	if err := c.take(size-p.written.Load(), func() { c.pulling[p] = struct{}{} }); err != nil {
		if len(p.kept) == 0 {
			return nil, errors.Join(err, p.remove())
		}
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// open opens both files and reads the journal.
func (p *Pulling) open(name, tag string) (err error) {
	if p.file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if p.journal, err = os.OpenFile(name+journalSuffix, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	fingerprint := sha256.Sum256(fmt.Appendf(nil, "%d %s", p.size, tag))
	b, err := io.ReadAll(io.LimitReader(p.journal, maxJournal))
	if err != nil {
		return err
	}
	p.kept = make(map[int64]keptBlock)
	records, same := bytes.CutPrefix(b, fingerprint[:])
	if !same {
		err := errors.Join(p.file.Truncate(0), p.journal.Truncate(0))
		if err == nil {
			_, err = p.journal.WriteAt(fingerprint[:], 0)
		}
		if err == nil {
			_, err = p.journal.Seek(int64(len(fingerprint)), io.SeekStart)
		}
		return err
	}
	whole := len(records) / recordLength * recordLength // the last may be cut short
	for r := records[:whole]; len(r) > 0; r = r[recordLength:] {
		offset := int64(binary.BigEndian.Uint64(r))
		p.kept[offset] = keptBlock{binary.BigEndian.Uint32(r[8:]), binary.BigEndian.Uint32(r[12:])}
	}
	_, err = p.journal.Seek(int64(len(fingerprint)+whole), io.SeekStart)
	return err
}

// Kept fills b with a block that a former Pull has written at the offset; false
// when there was none of that length, or not all of it has reached the disk.
func (p *Pulling) Kept(b []byte, offset int64) bool {
	k, ok := p.kept[offset]
	if !ok || int(k.length) != len(b) {
		return false
	}
	_, err := p.file.ReadAt(b, offset)
	return err == nil && crc32.Checksum(b, castagnoli) == k.checksum
}

// WriteAt writes a block of the build, each once.
func (p *Pulling) WriteAt(b []byte, offset int64) (int, error) {
	n, err := p.file.WriteAt(b, offset)
	p.written.Add(int64(n))
	if err != nil {
		return n, err
	}
	record := binary.BigEndian.AppendUint64(make([]byte, 0, recordLength), uint64(offset))
	record = binary.BigEndian.AppendUint32(record, uint32(len(b)))
	record = binary.BigEndian.AppendUint32(record, crc32.Checksum(b, castagnoli))
	_, err = p.journal.Write(record) // whole: a file's writes come one after the other
	return n, err
}

// Abort removes what was written.
func (p *Pulling) Abort() error {
	p.forget()
	return p.remove()
}

// Leave keeps what was written for the next Pull of that name.
func (p *Pulling) Leave() error {
	p.forget()
	return p.close()
}

func (p *Pulling) close() error {
	var errs []error
	for _, f := range []*os.File{p.file, p.journal} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func (p *Pulling) remove() error {
	return errors.Join(p.close(), os.Remove(p.file.Name()), os.Remove(p.journal.Name()))
}

// ForgetPull removes what a Pull of that name has left.
func (c *Cache) ForgetPull(name string) error {
	for _, file := range []string{name, name + journalSuffix} {
		if err := os.Remove(filepath.Join(c.dir, pulls, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cache: %w", err)
		}
	}
	return nil
}

// ForgetPulls removes what Pulls of former processes have left, but for the names
// to keep.
func (c *Cache) ForgetPulls(keep func(name string) bool) error {
	left, err := os.ReadDir(filepath.Join(c.dir, pulls))
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	c.mu.Lock()
	busy := make(map[string]bool)
	for p := range c.pulling {
		busy[filepath.Base(p.file.Name())] = true
	}
	c.mu.Unlock()
	for _, f := range left {
		name := strings.TrimSuffix(f.Name(), journalSuffix)
		if busy[name] || keep(name) || f.IsDir() {
			continue
		}
		if err := os.Remove(filepath.Join(c.dir, pulls, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cache: removing what was left of a pull: %w", err)
		}
	}
	return nil
}

// Commit makes a whole entry of what was written, which must be all of the
// manifest's build, pinned, for the caller to Unpin. When the cache has that build
// whole already, or a part of it, the pulled bytes take over.
func (p *Pulling) Commit(m *manifest.Manifest) (*Entry, error) {
	info := m.InfoBytes()
	infohash := hashOf(info)
	c := p.cache
	e, done := c.claim(infohash)
	defer done()
	if e != nil {
		if err := errors.Join(p.fill(e), p.Abort()); err != nil {
			e.Unpin()
			return nil, err
		}
		return e, nil
	}
	p.forget()
	dir := c.path(infohash)
	err := errors.Join(p.close(), os.Remove(p.journal.Name()), os.MkdirAll(dir, 0o700))
	if err == nil {
		err = os.Rename(p.file.Name(), filepath.Join(dir, "data"))
	}
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	have := bytes.Repeat([]byte{0xff}, bitmapLength(m))
	if spare := 8*len(have) - m.NumPieces(); spare > 0 {
		have[len(have)-1] <<= spare
	}
	e, err = c.finish(dir, info, infohash, have)
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
