package cache

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// trustedFor is how long a piece that was found good is not hashed again,
	// where it is read in chunks: a few chunks of one piece are asked for
	// together.
	trustedFor = 5 * time.Second
	// maxTrusted bounds the pieces of one entry remembered for that.
	maxTrusted = 64
)

// ErrCorrupt says that the bytes on disk are not those of a piece that was
// verified before: the disk, or somebody who wrote to it, has changed them.
var ErrCorrupt = errors.New("piece is damaged on disk")

// ReadVerified reads bytes of a complete piece, from an offset within it, after
// its hash was looked at: what a disk has changed goes to nobody. A damaged piece
// is ErrCorrupt, once: then it is not complete any more. So is one that is not to be read
// any more, for the file was cut or the disk has lost the place.
func (e *Entry) ReadVerified(piece int, b []byte, offset int64) (int, error) {
	f, err := e.inUse()
	if err != nil {
		return 0, err
	}
	start, length := e.shape.PieceRange(piece)
	whole := offset == 0 && int64(len(b)) == length
	if !whole && !e.trusted(piece) {
		if err := e.Verify(piece); err != nil {
			return 0, err
		}
		e.trust(piece)
	}
	n, err := f.data.ReadAt(b, start+offset)
	if lost(err) && offset+int64(len(b)) <= length {
		return 0, errors.Join(e.corrupt(piece), err)
	}
	if err != nil || !whole {
		return n, err
	}
	if sum := sha1.Sum(b); !bytes.Equal(sum[:], f.m.PieceSHA1(piece)) {
		return 0, e.corrupt(piece)
	}
	return n, nil
}

// Verify hashes a complete piece. A damaged one is ErrCorrupt, and not complete
// any more.
func (e *Entry) Verify(piece int) error {
	f, err := e.inUse()
	if err != nil {
		return err
	}
	start, length := e.shape.PieceRange(piece)
	h := sha1.New()
	_, err = io.Copy(h, io.NewSectionReader(f.data, start, length))
	if lost(err) {
		return errors.Join(e.corrupt(piece), err)
	}
	if err != nil {
		return fmt.Errorf("cache: reading piece %d: %w", piece, err)
	}
	if !bytes.Equal(h.Sum(nil), f.m.PieceSHA1(piece)) {
		return e.corrupt(piece)
	}
	return nil
}

// lost reports whether an error of reading says that bytes are not there any more: the file
// ends before them, or the disk cannot read them, as it may again once they are written anew.
func lost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.EIO)
}

func (e *Entry) corrupt(piece int) error {
	return errors.Join(fmt.Errorf("piece %d of %s: %w", piece, e.infohash, ErrCorrupt), e.SetComplete(piece, false))
}

func (e *Entry) trusted(piece int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.files.Load()
	return f != nil && time.Now().Before(f.good[piece])
}

func (e *Entry) trust(piece int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.files.Load()
	if f == nil {
		return
	}
	if len(f.good) >= maxTrusted {
		clear(f.good)
	}
	f.good[piece] = time.Now().Add(trustedFor)
}
