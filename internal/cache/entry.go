package cache

import (
	"crypto/sha1"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// Entry is one build on disk. It is safe for concurrent use.
type Entry struct {
	infohash   manifest.InfoHash
	dir        string
	m          *manifest.Manifest
	data, have *os.File
	pins       atomic.Int32

	mu       sync.Mutex
	bits     []byte // as in the have file: piece i is bit 7-i%8 of byte i/8, as in BEP 3
	verified int64  // bytes
	missing  int    // pieces
	lastUse  time.Time
	good     map[int]time.Time // pieces that were verified just now, until when that counts
	unsaved  []int             // bytes of bits that the have file lacks
	saving   bool              // somebody writes them
}

func hashOf(info []byte) manifest.InfoHash { return sha1.Sum(info) }

func bitmapLength(m *manifest.Manifest) int { return (m.NumPieces() + 7) / 8 }

// load opens the entry in a directory. errDamaged when its files do not agree.
func load(dir string, infohash manifest.InfoHash) (_ *Entry, err error) {
	stat, err := os.Stat(filepath.Join(dir, "info"))
	if err != nil {
		return nil, err
	}
	if stat.Size() > manifest.MaxInfoLength {
		return nil, fmt.Errorf("%w: info of %d bytes", errDamaged, stat.Size())
	}
	info, err := os.ReadFile(filepath.Join(dir, "info"))
	if err != nil {
		return nil, err
	}
	if hashOf(info) != infohash {
		return nil, fmt.Errorf("%w: the info is another build's", errDamaged)
	}
	e := &Entry{infohash: infohash, dir: dir, lastUse: stat.ModTime(), good: make(map[int]time.Time)}
	if e.m, err = manifest.ParseInfo(info); err != nil {
		return nil, err
	}
	if e.bits, err = os.ReadFile(filepath.Join(dir, "have")); err != nil {
		return nil, err
	}
	if len(e.bits) != bitmapLength(e.m) {
		return nil, fmt.Errorf("%w: bitmap of %d bytes", errDamaged, len(e.bits))
	}
	for piece := range e.m.NumPieces() {
		if e.bit(piece) {
			_, length := e.m.PieceRange(piece)
			e.verified += length
		} else {
			e.missing++
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.data, err = os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if stat, err = e.data.Stat(); err != nil {
		return nil, err
	}
	if stat.Size() != e.m.Size {
		return nil, fmt.Errorf("%w: %d bytes of data, expected %d", errDamaged, stat.Size(), e.m.Size)
	}
	e.have, err = os.OpenFile(filepath.Join(dir, "have"), os.O_RDWR, 0)
	return e, err
}

// InfoHash names the build in the swarm.
func (e *Entry) InfoHash() manifest.InfoHash { return e.infohash }

// Manifest describes the build.
func (e *Entry) Manifest() *manifest.Manifest { return e.m }

// ReadAt reads the build's bytes as they are on disk; those of pieces that are not
// complete are undefined. See ReadVerified.
func (e *Entry) ReadAt(p []byte, offset int64) (int, error) { return e.data.ReadAt(p, offset) }

// WriteAt writes bytes of pieces that are not complete. It fails beyond the
// build's end.
func (e *Entry) WriteAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset+int64(len(p)) > e.m.Size {
		return 0, fmt.Errorf("write of %d bytes at %d, beyond the build's %d", len(p), offset, e.m.Size)
	}
	return e.data.WriteAt(p, offset)
}

// Complete reports whether a piece is there and verified.
func (e *Entry) Complete(piece int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bit(piece)
}

func (e *Entry) bit(piece int) bool { return e.bits[piece/8]&(0x80>>(piece%8)) != 0 }

// SetComplete notes that a piece was verified, or found bad.
func (e *Entry) SetComplete(piece int, complete bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bit(piece) == complete {
		return nil
	}
	e.bits[piece/8] ^= 0x80 >> (piece % 8)
	_, length := e.m.PieceRange(piece)
	if complete {
		e.verified += length
		e.missing--
	} else {
		e.verified -= length
		e.missing++
	}
	e.unsaved = append(e.unsaved, piece/8)
	if e.saving {
		return nil // whoever does goes on with this one
	}
	return e.save()
}

// save writes the unsaved bits, in the order in which they have changed. It is called
// with the lock held, and gives it away while it writes.
func (e *Entry) save() (err error) {
	e.saving = true
	for len(e.unsaved) > 0 {
		i := e.unsaved[0]
		e.unsaved = e.unsaved[1:]
		b := e.bits[i]
		e.mu.Unlock()
		if _, failed := e.have.WriteAt([]byte{b}, int64(i)); failed != nil && err == nil {
			err = fmt.Errorf("cache: noting pieces %d to %d: %w", 8*i, 8*i+7, failed)
		}
		e.mu.Lock()
	}
	e.saving = false
	return err
}

// Whole reports whether all pieces are complete.
func (e *Entry) Whole() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.missing == 0
}

// Missing returns the pieces that are not complete, in order.
func (e *Entry) Missing() []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	missing := make([]int, 0, e.missing)
	for piece := range e.m.NumPieces() {
		if !e.bit(piece) {
			missing = append(missing, piece)
		}
	}
	return missing
}

// VerifiedBytes is the length of all complete pieces.
func (e *Entry) VerifiedBytes() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.verified
}

// Pin keeps the entry from being evicted until as many Unpin: while it is
// downloaded, landed or sent.
func (e *Entry) Pin() {
	e.pins.Add(1)
	e.touch()
}

// Unpin takes back one Pin.
func (e *Entry) Unpin() {
	e.touch()
	e.pins.Add(-1)
}

// touch notes the time of use, for the next start in the info's own time.
func (e *Entry) touch() {
	e.mu.Lock()
	e.lastUse = time.Now()
	dir, used := e.dir, e.lastUse
	e.mu.Unlock()
	// Only the order of eviction hangs on it.
	_ = os.Chtimes(filepath.Join(dir, "info"), used, used)
}

func (e *Entry) used() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lastUse
}

func (e *Entry) close() error {
	var errs []error
	for _, f := range []*os.File{e.data, e.have} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// remove closes the files and deletes them, the info first: without it what is
// left does not count as an entry.
func (e *Entry) remove() error {
	err := errors.Join(e.close(), os.Remove(filepath.Join(e.dir, "info")), os.RemoveAll(e.dir))
	if err != nil {
		return fmt.Errorf("cache: removing %s: %w", e.infohash, err)
	}
	return nil
}
