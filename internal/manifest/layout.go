package manifest

import (
	"fmt"
	"slices"
	"sort"
)

// Scheme names a way to cut builds into segments. Whoever announces a build says which
// one he has used; a scheme's borders never change.
type Scheme string

// Ramp begins and ends with segments of one part, doubles from there to the middle, and
// has none longer than a 64th of the build: the first one leaves early, and where the
// source is the slow link, the last one, which is waited for whole, is short. A longer
// one would be waited for wherever it stands, when the source is as fast as the
// seeder's uplink.
const Ramp Scheme = "ramp"

const (
	// rampShare is how many of the longest segments of Ramp make the build at least.
	rampShare = 64
	// MaxSegments bounds the segments of a build, whatever the scheme.
	MaxSegments = 256
)

// Layout is a build cut into segments, each a run of whole parts.
type Layout struct {
	Shape
	Scheme Scheme
	ends   []int // of each segment: the part after its last
}

// Check is an error for a scheme that this version does not know; it wraps ErrInvalid.
func (s Scheme) Check() error {
	if s != Ramp {
		return fmt.Errorf("%w: segments by scheme %.40q, which this version does not know", ErrInvalid, s)
	}
	return nil
}

// NewLayout cuts a build of size bytes. The error wraps ErrInvalid.
func NewLayout(scheme Scheme, size int64) (*Layout, error) {
	if err := scheme.Check(); err != nil {
		return nil, err
	}
	l := &Layout{Shape: ShapeOf(size), Scheme: scheme}
	if err := l.check(); err != nil {
		return nil, err
	}
	l.ends = ramp(l.NumParts())
	return l, nil
}

// ramp cuts so many parts.
func ramp(parts int) (ends []int) {
	longest := (parts + rampShare - 1) / rampShare
	var up []int // lengths, the same at both ends
	left := parts
	for length := 1; length < longest && left >= 2*length; length *= 2 {
		up = append(up, length)
		left -= 2 * length
	}
	lengths := slices.Clone(up)
	for left > 0 {
		length := min(longest, left)
		lengths = append(lengths, length)
		left -= length
	}
	slices.Reverse(up)
	end := 0
	for _, length := range append(lengths, up...) {
		end += length
		ends = append(ends, end)
	}
	return ends
}

// NumSegments is 0 for a build of 0 bytes.
func (l *Layout) NumSegments() int { return len(l.ends) }

// SegmentParts returns the parts of a segment, from first up to but without end.
func (l *Layout) SegmentParts(i int) (first, end int) {
	if i > 0 {
		first = l.ends[i-1]
	}
	return first, l.ends[i]
}

// SegmentPieces returns the pieces of a segment, from first up to but without end.
func (l *Layout) SegmentPieces(i int) (first, end int) {
	part, endPart := l.SegmentParts(i)
	first, _ = l.PartPieces(part)
	_, end = l.PartPieces(endPart - 1)
	return first, end
}

// SegmentRange returns a segment's offset in the build and its length, in bytes.
func (l *Layout) SegmentRange(i int) (offset, length int64) {
	first, end := l.SegmentParts(i)
	offset = int64(first) * l.PartLength
	return offset, min(int64(end)*l.PartLength, l.Size) - offset
}

// SegmentShape returns a segment's shape: the build's pieces and parts.
func (l *Layout) SegmentShape(i int) Shape {
	_, length := l.SegmentRange(i)
	return Shape{length, l.PieceLength, l.PartLength}
}

// SegmentOf returns the segment that a part belongs to.
func (l *Layout) SegmentOf(part int) int {
	return sort.Search(len(l.ends), func(i int) bool { return part < l.ends[i] })
}
