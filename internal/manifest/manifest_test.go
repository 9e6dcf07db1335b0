package manifest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/anacrolix/torrent/metainfo"
	"golang.org/x/sync/errgroup"
)

func TestLengths(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		size, piece, part int64
	}{
		{0, 128 << 10, 5 << 20},
		{1, 128 << 10, 5 << 20},
		{8 * gib, 128 << 10, 5 << 20},
		{8*gib + 1, 256 << 10, 5 << 20},
		{32 * gib, 512 << 10, 5 << 20},
		{MaxParts * (5 << 20), 1 << 20, 5 << 20},
		{MaxParts*(5<<20) + 1, 1 << 20, 6 << 20},
		{64 * gib, 1 << 20, 7 << 20},
		{64*gib + 1, 2 << 20, 8 << 20},
		{MaxSize, 128 << 20, 640 << 20},
	} {
		piece, part := PieceLength(c.size), PartLength(c.size)
		if piece != c.piece || part != c.part {
			t.Errorf("size %d: piece %d and part %d, want %d and %d", c.size, piece, part, c.piece, c.part)
		}
		if part%piece != 0 {
			t.Errorf("size %d: part %d is not a whole number of pieces of %d", c.size, part, piece)
		}
		if count(c.size, piece) > MaxPieces || count(c.size, part) > MaxParts {
			t.Errorf("size %d: %d pieces, %d parts", c.size, count(c.size, piece), count(c.size, part))
		}
	}
}

// build returns size bytes that are the same in every run.
func build(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// hashed cuts b by Ramp and returns its segments.
func hashed(t testing.TB, b []byte, chunk int) (*Layout, []*Manifest, string) {
	t.Helper()
	l, err := NewLayout(Ramp, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	h := NewHasher(l)
	for chunk := range slices.Chunk(b, chunk) {
		if _, err := h.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := h.SHA256Hex()
	if err != nil {
		t.Fatal(err)
	}
	var segments []*Manifest
	for i := range l.NumSegments() {
		segments = append(segments, h.Segment(i))
	}
	return l, segments, sum
}

// segment is a build of one segment.
func segment(t testing.TB, b []byte) *Manifest {
	t.Helper()
	_, segments, _ := hashed(t, b, 1<<20)
	if len(segments) != 1 {
		t.Fatalf("%d segments", len(segments))
	}
	return segments[0]
}

func TestHasher(t *testing.T) {
	for _, size := range []int{0, 1, MinPieceLength, MinPieceLength + 1, MinPartLength, MinPartLength + 1, 5*MinPartLength + 12345} {
		b := build(size)
		for _, chunk := range []int{1000, 64 << 10, 1 << 20, size + 1} {
			l, segments, sum := hashed(t, b, chunk)
			if want := sha256.Sum256(b); sum != hex.EncodeToString(want[:]) {
				t.Fatalf("size %d, chunk %d: wrong SHA-256", size, chunk)
			}
			known := NewBuild(l)
			for i, m := range segments {
				offset, length := l.SegmentRange(i)
				of := b[offset : offset+length]
				if m.Size != length {
					t.Fatalf("segment %d has %d bytes, want %d", i, m.Size, length)
				}
				for piece := range m.NumPieces() {
					offset, length := m.PieceRange(piece)
					if want := sha1.Sum(of[offset : offset+length]); !bytes.Equal(m.PieceSHA1(piece), want[:]) {
						t.Fatalf("size %d, chunk %d: wrong hash of piece %d", size, chunk, piece)
					}
				}
				if again, err := ParseInfo(m.InfoBytes()); err != nil || again.InfoHash() != m.InfoHash() {
					t.Fatal(err)
				}
				if err := known.Know(i, m); err != nil {
					t.Fatal(err)
				}
			}
			composite := sha256.New()
			for part := range l.NumParts() {
				offset, length := l.PartRange(part)
				want := sha256.Sum256(b[offset : offset+length])
				if !bytes.Equal(known.PartSHA256(part), want[:]) {
					t.Fatalf("size %d, chunk %d: wrong digest of part %d", size, chunk, part)
				}
				composite.Write(want[:])
			}
			want := fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(composite.Sum(nil)), l.NumParts())
			if got := known.Composite(); size > 0 && got != want || size == 0 && got != "" {
				t.Errorf("composite %q, want %q", got, want)
			}
		}
	}
}

// Segments are runs of whole parts that make the build, short at both ends, and few.
func TestRamp(t *testing.T) {
	sizes := []int64{0, 1, MinPartLength - 1, MinPartLength, MinPartLength + 1, 2 * MinPartLength, 10 << 30, MaxParts * MinPartLength, MaxSize}
	for parts := range int64(300) {
		sizes = append(sizes, parts*MinPartLength, parts*MinPartLength+1)
	}
	most := 0
	for _, size := range sizes {
		l, err := NewLayout(Ramp, size)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, l.NumSegments())
		var at int64
		part, piece, longest := 0, 0, (l.NumParts()+rampShare-1)/rampShare
		for i := range l.NumSegments() {
			offset, length := l.SegmentRange(i)
			first, end := l.SegmentParts(i)
			firstPiece, endPiece := l.SegmentPieces(i)
			if offset != at || length <= 0 || first != part || end <= first || end-first > longest || firstPiece != piece || endPiece <= firstPiece {
				t.Fatalf("size %d, segment %d: at %d, %d bytes, parts %d to %d, pieces %d to %d", size, i, offset, length, first, end, firstPiece, endPiece)
			}
			if s := l.SegmentShape(i); s.NumParts() != end-first || s.NumPieces() != endPiece-firstPiece {
				t.Fatalf("size %d, segment %d is %+v", size, i, s)
			}
			if l.SegmentOf(first) != i || l.SegmentOf(end-1) != i {
				t.Fatalf("size %d: part %d or %d is not of segment %d", size, first, end-1, i)
			}
			at, part, piece = at+length, end, endPiece
		}
		if at != size || part != l.NumParts() || piece != l.NumPieces() {
			t.Fatalf("size %d: segments make %d bytes, %d parts, %d pieces", size, at, part, piece)
		}
		if n := l.NumSegments(); n > 1 {
			first, _ := l.SegmentRange(0)
			if _, length := l.SegmentRange(n - 1); length > l.PartLength || first != 0 {
				t.Errorf("size %d: the last segment has %d bytes", size, length)
			}
		}
	}
	if most > 80 {
		t.Errorf("%d segments at most", most)
	}
	if _, err := NewLayout("even", 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("an unknown scheme: %v", err)
	}
	if _, err := NewLayout(Ramp, MaxSize+1); !errors.Is(err, ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
}

// A scheme's borders never change: whoever has announced by them is followed by them.
func TestRampStaysAsItIs(t *testing.T) {
	for parts, want := range map[int][]int{
		1: {1}, 2: {1, 2}, 5: {1, 2, 3, 4, 5}, 70: {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63, 65, 67, 69, 70},
	} {
		if got := ramp(parts); !slices.Equal(got, want) {
			t.Errorf("%d parts: %v", parts, got)
		}
	}
}

func TestSegmentOfAnotherShape(t *testing.T) {
	l, err := NewLayout(Ramp, 3*MinPartLength)
	if err != nil {
		t.Fatal(err)
	}
	b := NewBuild(l)
	if err := b.Know(1, segment(t, build(1000))); !errors.Is(err, ErrInvalid) || b.Segment(1) != nil || b.PartSHA256(1) != nil {
		t.Errorf("%v", err)
	}
}

func TestLanesAtTheirOwnPace(t *testing.T) {
	b := build(2*MinPartLength + 12345)
	l, want, sum := hashed(t, b, len(b))
	h := NewHasher(l)
	var group errgroup.Group
	for i, lane := range h.Lanes() {
		group.Go(func() error {
			for chunk := range slices.Chunk(b, 1000+i*12345) {
				if _, err := lane.Write(chunk); err != nil {
					return err
				}
			}
			_, err := lane.Write([]byte{1})
			if !errors.Is(err, ErrInvalid) {
				return fmt.Errorf("lane %d took more than was promised: %w", i, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, err := h.SHA256Hex(); err != nil || got != sum {
		t.Errorf("%s, %v", got, err)
	}
	for i, m := range want {
		if h.Segment(i).InfoHash() != m.InfoHash() {
			t.Error("lanes and Write disagree")
		}
	}
}

func TestHasherRefusesWrongSize(t *testing.T) {
	l, err := NewLayout(Ramp, 10)
	if err != nil {
		t.Fatal(err)
	}
	h := NewHasher(l)
	for i, lane := range h.Lanes() {
		if _, err := lane.Write(make([]byte, 10-i/2)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.SHA256Hex(); !errors.Is(err, ErrInvalid) {
		t.Errorf("one byte short: %v", err)
	}
	if _, err := h.Write(make([]byte, 2)); !errors.Is(err, ErrInvalid) {
		t.Errorf("one byte over: %v", err)
	}
}

// The info dictionary is one that ordinary BitTorrent clients read.
func TestInfoIsBEP3(t *testing.T) {
	m := segment(t, build(3*MinPieceLength+1))
	mi := metainfo.MetaInfo{InfoBytes: m.InfoBytes()}
	info, err := mi.UnmarshalInfo()
	if err != nil {
		t.Fatal(err)
	}
	if info.Length != m.Size || info.PieceLength != m.PieceLength || info.NumPieces() != 4 || !*info.Private {
		t.Errorf("info is %+v", info)
	}
}

// Equal segments are one torrent, wherever they are in a build.
func TestEqualSegmentsAreOneTorrent(t *testing.T) {
	_, segments, _ := hashed(t, make([]byte, 5*MinPartLength), 1<<20)
	for i, m := range segments {
		if m.InfoHash() != segments[0].InfoHash() {
			t.Errorf("segment %d has another infohash", i)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"negative size":        func(m *Manifest) { m.Size = -1 },
		"zero size":            func(m *Manifest) { m.Size = 0 },
		"huge size":            func(m *Manifest) { m.Size = MaxSize + 1 },
		"other piece length":   func(m *Manifest) { m.PieceLength = 1 },
		"odd piece length":     func(m *Manifest) { m.PieceLength = MinPieceLength + 1 },
		"zero piece length":    func(m *Manifest) { m.PieceLength = 0 },
		"short part":           func(m *Manifest) { m.PartLength = 1 << 10 },
		"broken part":          func(m *Manifest) { m.PartLength++ },
		"missing piece":        func(m *Manifest) { m.Pieces = m.Pieces[20:] },
		"half a part's digest": func(m *Manifest) { m.Parts = m.Parts[16:] },
		"too many pieces":      func(m *Manifest) { m.Size = (MaxPieces + 1) * MinPieceLength },
	} {
		m := *segment(t, build(MinPartLength))
		spoil(&m)
		if _, err := ParseInfo(m.InfoBytes()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(segment(f, build(MinPieceLength+1)).InfoBytes())
	f.Add([]byte("d8:landfalld6:sha2560:ee"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseInfo(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error is not ErrInvalid: %v", err)
			}
			return
		}
		if !bytes.Equal(m.InfoBytes(), b) {
			t.Error("what was parsed has another infohash")
		}
	})
}

func BenchmarkHasher(b *testing.B) {
	const block = 4 << 20
	data := build(block)
	feed := map[string]func(h *Hasher) error{
		"lanes": func(h *Hasher) error {
			var group errgroup.Group
			for _, lane := range h.Lanes() {
				group.Go(func() error { _, err := lane.Write(data); return err })
			}
			return group.Wait()
		},
		"write": func(h *Hasher) error { _, err := h.Write(data); return err },
	}
	l, err := NewLayout(Ramp, block)
	if err != nil {
		b.Fatal(err)
	}
	for name, feed := range feed {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(block)
			b.ReportAllocs()
			for b.Loop() {
				if err := feed(NewHasher(l)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
