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

// errCold is what the use of an entry fails with that is neither pinned nor open.
var errCold = errors.New("segment is not open")

// Entry is one segment on disk. It is safe for concurrent use.
//
// While nobody has it pinned or open it is cold: no file is open, and no hash in memory.
// Its InfoHash, Shape, Whole and VerifiedBytes are known all the time; the rest is for
// those who have it pinned or open.
type Entry struct {
	cache    *Cache
	infohash manifest.InfoHash
	shape    manifest.Shape
	files    atomic.Pointer[files] // nil while it is cold

	// Guarded by the cache's mutex.
	build       *keptBuild // nil when it is out of the cache
	lastUse     int64      // Unix nanoseconds
	pins, users int32      // who pin it are users, too

	mu       sync.Mutex // guards what is in files, too
	verified int64      // bytes
	missing  int32      // pieces
	out      bool       // of the cache, and does not count
}

func hashOf(info []byte) manifest.InfoHash { return sha1.Sum(info) }

// newEntry makes a cold entry of what was read. It is not in the cache yet, but what it
// lacks counts already.
func (c *Cache) newEntry(infohash manifest.InfoHash, f *files) *Entry {
	e := &Entry{cache: c, infohash: infohash, shape: f.m.Shape}
	e.verified, e.missing = f.count()
	c.lacking.Add(e.shape.Size - e.verified)
	return e
}

// InfoHash names the segment in the swarm.
func (e *Entry) InfoHash() manifest.InfoHash { return e.infohash }

// Shape is how the segment is cut.
func (e *Entry) Shape() manifest.Shape { return e.shape }

// Manifest describes the segment; nil while the entry is cold.
func (e *Entry) Manifest() *manifest.Manifest {
	if f := e.files.Load(); f != nil {
		return f.m
	}
	return nil
}

func (e *Entry) inUse() (*files, error) {
	if f := e.files.Load(); f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("segment %s: %w", e.infohash, errCold)
}

// ReadAt reads the segment's bytes as they are on disk; those of pieces that are not
// complete are undefined. See ReadVerified.
func (e *Entry) ReadAt(p []byte, offset int64) (int, error) {
	f, err := e.inUse()
	if err != nil {
		return 0, err
	}
	return f.data.ReadAt(p, offset)
}

// WriteAt writes bytes of pieces that are not complete. It fails beyond the
// segment's end.
func (e *Entry) WriteAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset+int64(len(p)) > e.shape.Size {
		return 0, fmt.Errorf("write of %d bytes at %d, beyond the segment's %d", len(p), offset, e.shape.Size)
	}
	f, err := e.inUse()
	if err != nil {
		return 0, err
	}
	return f.data.WriteAt(p, offset)
}

// Complete reports whether a piece is there and verified; false while the entry is cold.
func (e *Entry) Complete(piece int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.files.Load()
	return f != nil && f.bit(piece)
}

// SetComplete notes that a piece was verified, or found bad.
func (e *Entry) SetComplete(piece int, complete bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	f, err := e.inUse()
	if err != nil {
		return err
	}
	if f.bit(piece) == complete {
		return nil
	}
	f.bits[piece/8] ^= 0x80 >> (piece % 8)
	_, length := e.shape.PieceRange(piece)
	if complete {
		e.note(e.verified+length, e.missing-1)
	} else {
		e.note(e.verified-length, e.missing+1)
	}
	f.unsaved = append(f.unsaved, piece/8)
	if f.saving {
		return nil // whoever does goes on with this one
	}
	return e.save(f)
}

// note takes note of what is here. The caller holds mu.
func (e *Entry) note(verified int64, missing int32) {
	if !e.out {
		e.cache.lacking.Add(e.verified - verified)
	}
	e.verified, e.missing = verified, missing
}

// save writes the unsaved bits, in the order in which they have changed. It is called
// with the lock held, and gives it away while it writes.
func (e *Entry) save(f *files) (err error) {
	f.saving = true
	for len(f.unsaved) > 0 {
		i := f.unsaved[0]
		f.unsaved = f.unsaved[1:]
		b := f.bits[i]
		e.mu.Unlock()
		if _, failed := f.have.WriteAt([]byte{b}, int64(i)); failed != nil && err == nil {
			err = fmt.Errorf("cache: noting pieces %d to %d: %w", 8*i, 8*i+7, failed)
		}
		e.mu.Lock()
	}
	f.saving = false
	return err
}

// Whole reports whether all pieces are complete.
func (e *Entry) Whole() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.missing == 0
}

// Missing returns the pieces that are not complete, in order; nil while the entry is cold.
func (e *Entry) Missing() []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.files.Load()
	if f == nil {
		return nil
	}
	missing := make([]int, 0, e.missing)
	for piece := range e.shape.NumPieces() {
		if !f.bit(piece) {
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
// downloaded, landed or sent by somebody who needs all of it. It is open meanwhile.
// ErrNotKept when it is out of the cache, or its files are found damaged: then they are
// removed.
func (e *Entry) Pin() error { return e.use(true, "") }

// Unpin takes back one Pin.
func (e *Entry) Unpin() { e.leave(true) }

// Open reads the entry, if nobody has, until as many Close. It may be evicted all the
// same. Errors are those of Pin.
func (e *Entry) Open() error { return e.use(false, "") }

// Close takes back one Open.
func (e *Entry) Close() { e.leave(false) }

// use reads the entry, one after the other, and counts one who uses it. It is of the build
// of that name from then on, where there is a name.
func (e *Entry) use(pin bool, build string) error {
	c := e.cache
	c.mu.Lock()
	if e.build == nil {
		c.mu.Unlock()
		return e.notKept()
	}
	another := build != "" && e.build.name != build
	if another {
		c.join(e, build)
	}
	if pin {
		e.pin() // from now on, so that it stays while it is read
	}
	err := e.open()
	if err != nil && pin {
		e.unpin()
	}
	c.mu.Unlock()
	if damage(err) && c.remove(e, err) {
		return fmt.Errorf("%w: %w", e.notKept(), err)
	}
	if err != nil {
		return err
	}
	e.touch()
	if another {
		// As in touch.
		_ = os.WriteFile(filepath.Join(c.path(e.infohash), buildFile), []byte(build), 0o600)
	}
	return nil
}

func (e *Entry) notKept() error { return fmt.Errorf("segment %s: %w", e.infohash, ErrNotKept) }

// open has the files be there, for one user more. It is called with the cache's lock held,
// and gives it away while it reads.
func (e *Entry) open() error {
	c := e.cache
	for {
		if c.entries == nil {
			return fmt.Errorf("cache %s is closed", c.dir)
		}
		if e.build == nil {
			return e.notKept()
		}
		if e.files.Load() != nil {
			e.users++
			return nil
		}
		if opening, busy := c.opening[e]; busy {
			c.mu.Unlock()
			<-opening
			c.mu.Lock()
			continue
		}
		break
	}
	opening := make(chan struct{})
	c.opening[e] = opening
	c.mu.Unlock()
	f, err := openFiles(c.path(e.infohash), e.infohash)
	c.mu.Lock()
	delete(c.opening, e)
	close(opening)
	if err != nil {
		return fmt.Errorf("cache: opening segment %s: %w", e.infohash, err)
	}
	if e.build == nil || c.entries == nil { // meanwhile
		c.mu.Unlock()
		err := f.close()
		c.mu.Lock()
		return errors.Join(e.notKept(), err)
	}
	e.mu.Lock()
	e.note(f.count())
	e.files.Store(f)
	e.mu.Unlock()
	e.users++
	return nil
}

// leave counts one user less; the last one closes the files.
func (e *Entry) leave(pinned bool) {
	if pinned {
		e.touch()
	}
	c := e.cache
	c.mu.Lock()
	if pinned {
		e.unpin()
	}
	var f *files
	if e.users--; e.users == 0 {
		f = e.files.Swap(nil)
	}
	c.mu.Unlock()
	if err := f.close(); err != nil {
		c.logger.Warn("segment not closed", "infohash", e.infohash.String(), "error", err)
	}
}

// pin, unpin: the caller holds the cache's mutex.
func (e *Entry) pin() {
	if e.pins++; e.pins == 1 && e.build != nil {
		e.build.pinned++
		e.build.unpinnedBytes -= e.shape.Size
	}
}

func (e *Entry) unpin() {
	if e.pins--; e.pins == 0 && e.build != nil {
		e.build.pinned--
		e.build.unpinnedBytes += e.shape.Size
	}
}

// touch notes the time of use, for the next start in the info's own time.
func (e *Entry) touch() {
	now := time.Now()
	c := e.cache
	c.mu.Lock()
	kept := e.build != nil
	if kept {
		e.lastUse, e.build.lastUse, e.build.goes = now.UnixNano(), now.UnixNano(), false
	}
	c.mu.Unlock()
	if kept {
		// Only the order of eviction hangs on it.
		_ = os.Chtimes(filepath.Join(c.path(e.infohash), infoFile), now, now)
	}
}
