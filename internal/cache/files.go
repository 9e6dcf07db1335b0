package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// The files of an entry.
const (
	dataFile  = "data"
	infoFile  = "info"
	haveFile  = "have"
	buildFile = "build"
)

// files are what an entry has in memory and open while somebody uses it. What changes in
// it is guarded by the entry's mutex.
type files struct {
	m          *manifest.Manifest
	data, have *os.File
	used       time.Time         // last, when it was read
	bits       []byte            // as in the have file: piece i is bit 7-i%8 of byte i/8, as in BEP 3
	good       map[int]time.Time // pieces that were verified just now, until when that counts
	unsaved    []int             // bytes of bits that the have file lacks
	saving     bool              // somebody writes them
}

func bitmapLength(s manifest.Shape) int { return (s.NumPieces() + 7) / 8 }

// openFiles reads and opens what is in an entry's directory. An error that damage knows
// when its files do not agree.
func openFiles(dir string, infohash manifest.InfoHash) (_ *files, err error) {
	stat, err := os.Stat(filepath.Join(dir, infoFile))
	if err != nil {
		return nil, err
	}
	if stat.Size() > manifest.MaxInfoLength {
		return nil, fmt.Errorf("%w: info of %d bytes", errDamaged, stat.Size())
	}
	info, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		return nil, err
	}
	if hashOf(info) != infohash {
		return nil, fmt.Errorf("%w: the info is another segment's", errDamaged)
	}
	f := &files{used: stat.ModTime(), good: make(map[int]time.Time)}
	if f.m, err = manifest.ParseInfo(info); err != nil {
		return nil, err
	}
	if f.bits, err = os.ReadFile(filepath.Join(dir, haveFile)); err != nil {
		return nil, err
	}
	if len(f.bits) != bitmapLength(f.m.Shape) {
		return nil, fmt.Errorf("%w: bitmap of %d bytes", errDamaged, len(f.bits))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.data, err = os.OpenFile(filepath.Join(dir, dataFile), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if stat, err = f.data.Stat(); err != nil {
		return nil, err
	}
	if stat.Size() != f.m.Size {
		return nil, fmt.Errorf("%w: %d bytes of data, expected %d", errDamaged, stat.Size(), f.m.Size)
	}
	f.have, err = os.OpenFile(filepath.Join(dir, haveFile), os.O_RDWR, 0)
	return f, err
}

// damage reports whether an error of openFiles says that the entry is of no use any more.
func damage(err error) bool {
	return errors.Is(err, errDamaged) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, manifest.ErrInvalid)
}

func (f *files) bit(piece int) bool { return f.bits[piece/8]&(0x80>>(piece%8)) != 0 }

// count is how much is complete, in bytes, and how many pieces are not.
func (f *files) count() (verified int64, missing int32) {
	for piece := range f.m.NumPieces() {
		if f.bit(piece) {
			_, length := f.m.PieceRange(piece)
			verified += length
		} else {
			missing++
		}
	}
	return verified, missing
}

// close closes the files; nil has none.
func (f *files) close() error {
	if f == nil {
		return nil
	}
	var errs []error
	for _, file := range []*os.File{f.data, f.have} {
		if file != nil {
			errs = append(errs, file.Close())
		}
	}
	return errors.Join(errs...)
}
