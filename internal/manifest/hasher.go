package manifest

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"maps"
)

// Hasher makes a Manifest from the bytes of a build in one pass: feed it the
// build in order, with Write or through its Lanes, then call Manifest. It keeps
// no data.
type Hasher struct {
	m      Manifest
	pieces digester
	parts  digester
	whole  digester
}

// NewHasher prepares for a build of size bytes. The content type and the user
// metadata become part of the manifest.
func NewHasher(size int64, contentType string, metadata map[string]string) (*Hasher, error) {
	h := new(Hasher)
	h.m = Manifest{
		Size:        size,
		PieceLength: PieceLength(size),
		PartLength:  PartLength(size),
		ContentType: contentType,
	}
	if len(metadata) > 0 {
		h.m.Metadata = maps.Clone(metadata) // an empty map would be encoded
	}
	if size < 0 || size > MaxSize {
		return nil, fmt.Errorf("%w: size %d", ErrInvalid, size)
	}
	h.pieces = digester{hash: sha1.New(), length: h.m.PieceLength, size: size}
	h.parts = digester{hash: sha256.New(), length: h.m.PartLength, size: size}
	h.whole = digester{hash: sha256.New(), length: max(size, 1), size: size}
	return h, nil
}

// Lanes returns a writer for each kind of digest. All of them want the whole
// build in order, but none waits for another, so that a goroutine each keeps all
// cores busy. They fail as Write does.
func (h *Hasher) Lanes() []io.Writer { return []io.Writer{&h.whole, &h.parts, &h.pieces} }

// Write hashes p in every lane. It fails only when more than the promised size
// is written.
func (h *Hasher) Write(p []byte) (int, error) {
	for _, lane := range h.Lanes() {
		if _, err := lane.Write(p); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Manifest returns the finished manifest. It fails when fewer bytes than
// promised were written, or when what came along is too large.
func (h *Hasher) Manifest() (*Manifest, error) {
	for _, d := range []*digester{&h.whole, &h.parts, &h.pieces} {
		if d.written != h.m.Size {
			return nil, fmt.Errorf("%w: %d of %d bytes written", ErrInvalid, d.written, h.m.Size)
		}
	}
	m := h.m
	m.Pieces, m.Parts = h.pieces.finish(), h.parts.finish()
	if whole := h.whole.finish(); m.Size > 0 {
		copy(m.SHA256[:], whole)
	} else {
		m.SHA256 = sha256.Sum256(nil)
	}
	return &m, m.check()
}

// digester hashes each stretch of length bytes on its own, size bytes in all.
type digester struct {
	hash            hash.Hash
	length, size    int64
	written, filled int64
	sums            []byte
}

func (d *digester) Write(p []byte) (int, error) {
	if d.written+int64(len(p)) > d.size {
		return 0, fmt.Errorf("%w: more than the %d bytes promised", ErrInvalid, d.size)
	}
	d.written += int64(len(p))
	for rest := p; len(rest) > 0; {
		n := min(int64(len(rest)), d.length-d.filled)
		d.hash.Write(rest[:n])
		rest = rest[n:]
		if d.filled += n; d.filled == d.length {
			d.cut()
		}
	}
	return len(p), nil
}

func (d *digester) cut() {
	d.sums = d.hash.Sum(d.sums)
	d.hash.Reset()
	d.filled = 0
}

func (d *digester) finish() []byte {
	if d.filled > 0 {
		d.cut()
	}
	return d.sums
}
