package manifest

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
)

// Shape is how a run of bytes, a build or a segment of one, is cut into pieces (BEP 3)
// and parts (S3 multipart upload).
type Shape struct {
	// Size, PieceLength and PartLength are in bytes. Only the last piece and the last
	// part may be shorter.
	Size, PieceLength, PartLength int64
}

// ShapeOf returns the shape of a build of size bytes.
func ShapeOf(size int64) Shape { return Shape{size, PieceLength(size), PartLength(size)} }

// PieceLength returns the piece length in bytes of a build of size bytes: a
// power of two.
func PieceLength(size int64) int64 {
	length := int64(MinPieceLength)
	for length*MaxPieces < size {
		length *= 2
	}
	return length
}

// PartLength returns the part length in bytes of a build of size bytes: a whole
// number of pieces, so that a part is complete when its pieces are.
func PartLength(size int64) int64 {
	length := max(MinPartLength, PieceLength(size))
	if need := (size + MaxParts - 1) / MaxParts; need > length {
		piece := PieceLength(size)
		length = (need + piece - 1) / piece * piece
	}
	return length
}

// check verifies that no arithmetic can go wrong on the numbers.
func (s Shape) check() error {
	switch {
	case s.Size < 0 || s.Size > MaxSize:
		return fmt.Errorf("%w: size %d", ErrInvalid, s.Size)
	case s.PieceLength < MinPieceLength || s.PieceLength > PieceLength(MaxSize) || s.PieceLength&(s.PieceLength-1) != 0:
		return fmt.Errorf("%w: piece length %d", ErrInvalid, s.PieceLength)
	case s.PartLength < s.PieceLength || s.PartLength > PartLength(MaxSize) || s.PartLength%s.PieceLength != 0:
		return fmt.Errorf("%w: part length %d with pieces of %d", ErrInvalid, s.PartLength, s.PieceLength)
	case s.Size > MaxPieces*s.PieceLength || s.Size > MaxParts*s.PartLength:
		return fmt.Errorf("%w: %d bytes in pieces of %d and parts of %d", ErrInvalid, s.Size, s.PieceLength, s.PartLength)
	}
	return nil
}

// NumPieces is 0 for 0 bytes.
func (s Shape) NumPieces() int { return count(s.Size, s.PieceLength) }

// NumParts is 0 for 0 bytes.
func (s Shape) NumParts() int { return count(s.Size, s.PartLength) }

// PiecesPerPart is the number of pieces in every part but perhaps the last.
func (s Shape) PiecesPerPart() int { return int(s.PartLength / s.PieceLength) }

// InfoLength is the length of the info dictionary, in bytes.
func (s Shape) InfoLength() int {
	m := Manifest{s, make([]byte, s.NumPieces()*sha1.Size), make([]byte, s.NumParts()*sha256.Size)}
	return len(m.InfoBytes())
}

// PartOf returns the part, from 0, that a piece belongs to.
func (s Shape) PartOf(piece int) int { return piece / s.PiecesPerPart() }

// PartPieces returns the pieces of a part, from first up to but without end.
func (s Shape) PartPieces(part int) (first, end int) {
	per := s.PiecesPerPart()
	return part * per, min((part+1)*per, s.NumPieces())
}

// PartRange returns a part's offset and its length, in bytes.
func (s Shape) PartRange(part int) (offset, length int64) { return span(s.Size, s.PartLength, part) }

// PieceRange returns a piece's offset and its length, in bytes.
func (s Shape) PieceRange(piece int) (offset, length int64) {
	return span(s.Size, s.PieceLength, piece)
}

func count(size, length int64) int { return int((size + length - 1) / length) }

func span(size, length int64, i int) (int64, int64) {
	offset := int64(i) * length
	return offset, min(length, size-offset)
}
