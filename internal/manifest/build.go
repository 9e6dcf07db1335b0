package manifest

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"sync"
)

// Build is what is known of a build while its segments become known, one after the
// other, until the seal says the SHA-256 of the whole. It is safe for concurrent use.
type Build struct {
	*Layout

	mu       sync.Mutex
	segments []*Manifest
	lacking  int // segments that are not known
	sha256   string
	sealed   chan struct{}
}

// NewBuild returns a build of which no segment is known.
func NewBuild(l *Layout) *Build {
	return &Build{Layout: l, segments: make([]*Manifest, l.NumSegments()), lacking: l.NumSegments(), sealed: make(chan struct{})}
}

// Know takes in a segment, whose shape must be the layout's. Again it changes nothing.
// The error wraps ErrInvalid.
func (b *Build) Know(i int, m *Manifest) error {
	if want := b.SegmentShape(i); m.Shape != want {
		return fmt.Errorf("%w: segment %d is %+v, by the build's size it is %+v", ErrInvalid, i, m.Shape, want)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.segments[i] == nil {
		b.segments[i] = m
		b.lacking--
	}
	return nil
}

// Segment returns a segment; nil when it is not known.
func (b *Build) Segment(i int) *Manifest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.segments[i]
}

// Seal says the SHA-256 of the whole, in hexadecimal. Again it changes nothing.
func (b *Build) Seal(sha256 string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sha256 == "" {
		b.sha256 = sha256
		close(b.sealed)
	}
}

// Sealed is closed when the whole's SHA-256 is known.
func (b *Build) Sealed() <-chan struct{} { return b.sealed }

// SHA256Hex is the whole build's SHA-256 in lower-case hexadecimal; empty before the
// seal.
func (b *Build) SHA256Hex() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sha256
}

// PartSHA256 returns a part's digest, nil when its segment is not known. The caller must
// not change it.
func (b *Build) PartSHA256(part int) []byte {
	i := b.SegmentOf(part)
	first, _ := b.SegmentParts(i)
	if m := b.Segment(i); m != nil {
		return m.PartSHA256(part - first)
	}
	return nil
}

// Composite returns the checksum that S3 gives an object of these parts: the SHA-256 of
// the parts' digests, in base64, and their number. Empty while a segment is not known,
// and for a build of 0 bytes.
func (b *Build) Composite() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lacking > 0 || len(b.segments) == 0 {
		return ""
	}
	h := sha256.New()
	for _, m := range b.segments {
		h.Write(m.Parts)
	}
	return fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(h.Sum(nil)), b.NumParts())
}
