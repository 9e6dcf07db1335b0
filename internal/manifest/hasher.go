package manifest

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
)

// Hasher makes the segments of a build from its bytes in one pass: feed it the build in
// order, with Write or through its Lanes. It keeps no data.
type Hasher struct {
	layout *Layout
	pieces digester
	parts  digester
	whole  digester
}

// NewHasher prepares for a build.
func NewHasher(l *Layout) *Hasher {
	return &Hasher{
		layout: l,
		pieces: newDigester(sha1.New(), l.PieceLength, l.Size),
		parts:  newDigester(sha256.New(), l.PartLength, l.Size),
		whole:  newDigester(sha256.New(), max(l.Size, 1), l.Size),
	}
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

// Segment returns a segment whose last byte every lane has taken; others may go on
// meanwhile.
func (h *Hasher) Segment(i int) *Manifest {
	firstPiece, endPiece := h.layout.SegmentPieces(i)
	firstPart, endPart := h.layout.SegmentParts(i)
	return &Manifest{
		Shape:  h.layout.SegmentShape(i),
		Pieces: h.pieces.sums[firstPiece*sha1.Size : endPiece*sha1.Size : endPiece*sha1.Size],
		Parts:  h.parts.sums[firstPart*sha256.Size : endPart*sha256.Size : endPart*sha256.Size],
	}
}

// SHA256Hex returns the digest of the whole. It fails when fewer bytes than promised
// were written.
func (h *Hasher) SHA256Hex() (string, error) {
	for _, d := range []*digester{&h.whole, &h.parts, &h.pieces} {
		if d.written != h.layout.Size {
			return "", fmt.Errorf("%w: %d of %d bytes written", ErrInvalid, d.written, h.layout.Size)
		}
	}
	if h.layout.Size == 0 {
		return hex.EncodeToString(h.whole.hash.Sum(nil)), nil
	}
	return hex.EncodeToString(h.whole.sums), nil
}

// digester hashes each stretch of length bytes on its own, size bytes in all.
type digester struct {
	hash            hash.Hash
	length, size    int64
	written, filled int64
	done            int    // stretches
	sums            []byte // of all stretches, in place from the start
}

func newDigester(h hash.Hash, length, size int64) digester {
	return digester{hash: h, length: length, size: size, sums: make([]byte, count(size, length)*h.Size())}
}

func (d *digester) Write(p []byte) (int, error) {
	if d.written+int64(len(p)) > d.size {
		return 0, fmt.Errorf("%w: more than the %d bytes promised", ErrInvalid, d.size)
	}
	for rest := p; len(rest) > 0; {
		n := min(int64(len(rest)), d.length-d.filled)
		d.hash.Write(rest[:n])
		rest = rest[n:]
		d.written += n
		if d.filled += n; d.filled == d.length || d.written == d.size {
			at := d.done * d.hash.Size()
			d.hash.Sum(d.sums[at:at])
			d.hash.Reset()
			d.done, d.filled = d.done+1, 0
		}
	}
	return len(p), nil
}
