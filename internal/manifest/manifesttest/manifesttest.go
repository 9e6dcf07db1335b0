// Package manifesttest describes builds for tests.
package manifesttest

import (
	"crypto/sha1"
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// Segment describes b as one segment, however long it is.
func Segment(b []byte) *manifest.Manifest {
	m := &manifest.Manifest{Shape: manifest.ShapeOf(int64(len(b)))}
	for piece := range slices.Chunk(b, int(m.PieceLength)) {
		sum := sha1.Sum(piece)
		m.Pieces = append(m.Pieces, sum[:]...)
	}
	for part := range slices.Chunk(b, int(m.PartLength)) {
		sum := sha256.Sum256(part)
		m.Parts = append(m.Parts, sum[:]...)
	}
	return m
}

// Build describes b, all of it known and sealed.
func Build(t testing.TB, b []byte) *manifest.Build {
	t.Helper()
	l, err := manifest.NewLayout(manifest.Ramp, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	h := manifest.NewHasher(l)
	if _, err := h.Write(b); err != nil {
		t.Fatal(err)
	}
	sum, err := h.SHA256Hex()
	if err != nil {
		t.Fatal(err)
	}
	known := manifest.NewBuild(l)
	for i := range l.NumSegments() {
		if err := known.Know(i, h.Segment(i)); err != nil {
			t.Fatal(err)
		}
	}
	known.Seal(sum)
	return known
}
