package manifest

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"hash"
	"maps"
	"sync"
)

// parallelFrom is the length of a Write from which its digests are computed on
// separate goroutines; below it starting them costs more than it gains.
const parallelFrom = 64 << 10

// Hasher makes a Manifest from the bytes of a build in one pass: feed it the
// build in order with Write, then call Manifest. It keeps no data. It must not
// be used from several goroutines at once.
type Hasher struct {
	m       Manifest
	written int64
	pieces  digester
	parts   digester
	whole   hash.Hash
}

// NewHasher prepares for a build of size bytes. The content type and the user
// metadata become part of the manifest.
func NewHasher(size int64, contentType string, metadata map[string]string) (*Hasher, error) {
	h := &Hasher{whole: sha256.New()}
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
	h.pieces = digester{hash: sha1.New(), length: h.m.PieceLength}
	h.parts = digester{hash: sha256.New(), length: h.m.PartLength}
	return h, nil
}

// Write hashes p and returns when all digests have taken it. It fails only when
// more than the promised size is written.
func (h *Hasher) Write(p []byte) (int, error) {
	if h.written+int64(len(p)) > h.m.Size {
		return 0, fmt.Errorf("%w: more than the %d bytes promised", ErrInvalid, h.m.Size)
	}
	h.written += int64(len(p))
	if len(p) < parallelFrom {
		h.whole.Write(p)
		h.pieces.write(p)
		h.parts.write(p)
		return len(p), nil
	}
	var wg sync.WaitGroup
	wg.Go(func() { h.pieces.write(p) })
	wg.Go(func() { h.parts.write(p) })
	h.whole.Write(p)
	wg.Wait()
	return len(p), nil
}

// Manifest returns the finished manifest. It fails when fewer bytes than
// promised were written, or when what came along is too large.
func (h *Hasher) Manifest() (*Manifest, error) {
	if h.written != h.m.Size {
		return nil, fmt.Errorf("%w: %d of %d bytes written", ErrInvalid, h.written, h.m.Size)
	}
	m := h.m
	m.Pieces, m.Parts = h.pieces.finish(), h.parts.finish()
	h.whole.Sum(m.SHA256[:0])
	return &m, m.check()
}

// digester hashes each stretch of length bytes on its own.
type digester struct {
	hash   hash.Hash
	length int64
	filled int64
	sums   []byte
}

func (d *digester) write(p []byte) {
	for len(p) > 0 {
		n := min(int64(len(p)), d.length-d.filled)
		d.hash.Write(p[:n])
		p = p[n:]
		if d.filled += n; d.filled == d.length {
			d.cut()
		}
	}
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
