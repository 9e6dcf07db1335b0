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
	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// journalSuffix ends the name of the file that says which blocks of a pull
	// are on disk: a fingerprint of what is pulled, then a record for each block.
	journalSuffix = ".blocks"
	recordLength  = 16 // offset, length, checksum
	// segmentsSuffix ends the name of the file that lists the segments of a pull that are
	// entries already, after a fingerprint; maxSegmentsFile bounds it in bytes.
	segmentsSuffix  = ".segments"
	maxSegmentsFile = sha256.Size + manifest.MaxSegments*20
	// maxJournal bounds a journal that is read back, in bytes: the blocks of the
	// largest build.
	maxJournal = 32 << 20
)

// castagnoli detects blocks that did not reach the disk whole, at the speed of
// memory. Whoever wants to know whether the source sent the right bytes has their
// SHA-256.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Pulling is a segment being written whose infohash is not known yet.
type Pulling struct {
	cache   *Cache
	name    string // of the build
	file    *os.File
	size    int64
	written atomic.Int64

	journal *os.File
	kept    map[int64]keptBlock // by offset: what a former Pull has left
}

type keptBlock struct{ length, checksum uint32 }

// Pull begins a segment of size bytes of what is pulled under a name unique to it, which
// is that of the build, or goes on with what a former one of that name, number and tag has left; the tag stands for the
// bytes, as an ETag does. What is to come of its length comes out of the room. End it with Commit, Abort or
// Leave.
func (c *Cache) Pull(name string, segment int, tag string, size int64, room *Room) (*Pulling, error) {
	p := &Pulling{cache: c, name: name, size: size}
	if err := p.open(filepath.Join(c.dir, pulls, fmt.Sprintf("%s.%d", name, segment)), tag); err != nil {
		return nil, errors.Join(fmt.Errorf("cache: %w", err), p.close())
	}
	for _, b := range p.kept {
		p.written.Add(int64(b.length))
	}
	c.mu.Lock()
	c.pulling[p] = struct{}{}
	c.mu.Unlock()
	room.use(max(0, size-p.written.Load()))
	return p, nil
}

// Left is how much of a pull of that name is on the disk already, in bytes: it need not
// be reserved.
func (c *Cache) Left(name string) (bytes int64) {
	for _, file := range c.left(name) {
		if stat, err := os.Stat(file); err == nil {
			bytes += stat.Size()
		}
	}
	return bytes
}

// left are the files of a pull.
func (c *Cache) left(name string) []string {
	files, err := private.Glob(filepath.Join(c.dir, pulls), name+".*")
	if err != nil { // of a name that is no ULID
		return nil
	}
	return files
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

// ForgetPull removes what a Pull of that name has left, and the list of its segments
// unless that is to stay.
func (c *Cache) ForgetPull(name string, keepList bool) error {
	for _, file := range c.left(name) {
		if keepList && strings.HasSuffix(file, segmentsSuffix) {
			continue
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
	pullOf := func(file string) string {
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		return name
	}
	c.mu.Lock()
	busy := make(map[string]bool)
	for p := range c.pulling {
		busy[pullOf(p.file.Name())] = true
	}
	c.mu.Unlock()
	for _, f := range left {
		name := pullOf(f.Name())
		if busy[name] || keep(name) || f.IsDir() {
			continue
		}
		if err := os.Remove(filepath.Join(c.dir, pulls, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cache: removing what was left of a pull: %w", err)
		}
	}
	return nil
}

// Segments are the infohashes of what was pulled whole under a name and tag, in order, for
// the next process to go on.
type Segments struct {
	file  *os.File
	Known []manifest.InfoHash
}

// PulledSegments opens the list of a pull's segments; End it with Close.
func (c *Cache) PulledSegments(name, tag string) (*Segments, error) {
	file, err := os.OpenFile(c.listOf(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	s := &Segments{file: file}
	fingerprint := sha256.Sum256([]byte(tag))
	var same bool
	if s.Known, same, err = readList(file, fingerprint); err == nil && !same {
		err = file.Truncate(0)
		if err == nil {
			_, err = file.WriteAt(fingerprint[:], 0)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cache: %w", err), file.Close())
	}
	return s, nil
}

// KnownSegments is PulledSegments for who only looks: it returns what is listed under a
// name and tag, nil for nothing, and leaves the disk as it is.
func (c *Cache) KnownSegments(name, tag string) ([]manifest.InfoHash, error) {
	file, err := os.Open(c.listOf(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	known, _, err := readList(file, sha256.Sum256([]byte(tag)))
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return known, nil
}

// listOf is the file that lists the segments of a pull.
func (c *Cache) listOf(name string) string { return filepath.Join(c.dir, pulls, name+segmentsSuffix) }

// readList reads a list of segments; same is false, and there are none, where it is of
// another tag.
func readList(file io.Reader, fingerprint [sha256.Size]byte) (known []manifest.InfoHash, same bool, err error) {
	b, err := io.ReadAll(io.LimitReader(file, maxSegmentsFile))
	if err != nil {
		return nil, false, err
	}
	hashes, same := bytes.CutPrefix(b, fingerprint[:])
	if !same {
		return nil, false, nil
	}
	for ; len(hashes) >= len(manifest.InfoHash{}); hashes = hashes[len(manifest.InfoHash{}):] {
		known = append(known, manifest.InfoHash(hashes))
	}
	return known, true, nil
}

// RetagSegments has the list of a pull's segments stand for bytes of another tag, which
// are the same. Where it stands for neither, or is none, it changes nothing.
func (c *Cache) RetagSegments(name, from, to string) error {
	file, err := os.OpenFile(c.listOf(name), os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	before, after := sha256.Sum256([]byte(from)), sha256.Sum256([]byte(to))
	found := make([]byte, len(before))
	if _, err = io.ReadFull(file, found); err == nil && bytes.Equal(found, before[:]) {
		_, err = file.WriteAt(after[:], 0)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return nil
}

// Add notes that one more segment was pulled.
func (s *Segments) Add(infohash manifest.InfoHash) error {
	at := int64(sha256.Size + len(s.Known)*len(infohash))
	if _, err := s.file.WriteAt(infohash[:], at); err != nil {
		return fmt.Errorf("cache: noting a segment: %w", err)
	}
	s.Known = append(s.Known, infohash)
	return nil
}

// Cut forgets all but the first n.
func (s *Segments) Cut(n int) error {
	s.Known = s.Known[:n]
	if err := s.file.Truncate(int64(sha256.Size + n*len(manifest.InfoHash{}))); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return nil
}

// Close closes the list.
func (s *Segments) Close() error { return s.file.Close() }

// Commit makes a whole entry of what was written, which must be all of the
// manifest's segment, pinned, for the caller to Unpin. When the cache has that one
// whole already, or a part of it, the pulled bytes take over.
func (p *Pulling) Commit(m *manifest.Manifest) (*Entry, error) {
	info := m.InfoBytes()
	infohash := hashOf(info)
	c := p.cache
	e, done, err := c.claim(infohash, p.name)
	if err != nil {
		return nil, errors.Join(err, p.Abort())
	}
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
	err = errors.Join(p.close(), os.Remove(p.journal.Name()), os.MkdirAll(dir, 0o700))
	if err == nil {
		err = os.Rename(p.file.Name(), filepath.Join(dir, dataFile))
	}
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	have := bytes.Repeat([]byte{0xff}, bitmapLength(m.Shape))
	if spare := 8*len(have) - m.NumPieces(); spare > 0 {
		have[len(have)-1] <<= spare
	}
	e, err = c.finish(p.name, info, infohash, have)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return e, nil
}

// fill completes an entry that another execution of the same bytes has begun.
func (p *Pulling) fill(e *Entry) error {
	buf := make([]byte, e.shape.PieceLength)
	for piece := range e.shape.NumPieces() {
		if e.Complete(piece) {
			continue
		}
		offset, length := e.shape.PieceRange(piece)
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
