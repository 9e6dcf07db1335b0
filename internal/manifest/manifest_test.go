package manifest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
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
		{0, 128 << 10, 8 << 20},
		{1, 128 << 10, 8 << 20},
		{8 * gib, 128 << 10, 8 << 20},
		{8*gib + 1, 256 << 10, 8 << 20},
		{32 * gib, 512 << 10, 8 << 20},
		{MaxParts * (8 << 20), 2 << 20, 8 << 20},
		{MaxParts*(8<<20) + 1, 2 << 20, 10 << 20},
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

func hashed(t testing.TB, b []byte, chunk int) *Manifest {
	t.Helper()
	h, err := NewHasher(int64(len(b)), "application/zip", map[string]string{"commit": "abc"})
	if err != nil {
		t.Fatal(err)
	}
	for rest := b; len(rest) > 0; {
		n := min(chunk, len(rest))
		if _, err := h.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	m, err := h.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestHasher(t *testing.T) {
	for _, size := range []int{0, 1, MinPieceLength, MinPieceLength + 1, MinPartLength, 2*MinPartLength + 12345} {
		b := build(size)
		for _, chunk := range []int{1000, 64 << 10, 1 << 20, size + 1} {
			m := hashed(t, b, chunk)
			if m.SHA256 != sha256.Sum256(b) {
				t.Fatalf("size %d, chunk %d: wrong SHA-256", size, chunk)
			}
			for piece := range m.NumPieces() {
				offset, length := m.PieceRange(piece)
				if want := sha1.Sum(b[offset : offset+length]); !bytes.Equal(m.PieceSHA1(piece), want[:]) {
					t.Fatalf("size %d, chunk %d: wrong hash of piece %d", size, chunk, piece)
				}
			}
			for part := range m.NumParts() {
				offset, length := m.PartRange(part)
				if want := sha256.Sum256(b[offset : offset+length]); !bytes.Equal(m.PartSHA256(part), want[:]) {
					t.Fatalf("size %d, chunk %d: wrong digest of part %d", size, chunk, part)
				}
			}
		}
	}
}

func TestLanesAtTheirOwnPace(t *testing.T) {
	b := build(2*MinPartLength + 12345)
	h, err := NewHasher(int64(len(b)), "", nil)
	if err != nil {
		t.Fatal(err)
	}
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
	m, err := h.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	want := hashed(t, b, len(b))
	if !bytes.Equal(m.Pieces, want.Pieces) || !bytes.Equal(m.Parts, want.Parts) || m.SHA256 != want.SHA256 {
		t.Error("lanes and Write disagree")
	}
}

func TestLaneThatIsShort(t *testing.T) {
	h, err := NewHasher(10, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, lane := range h.Lanes() {
		if _, err := lane.Write(make([]byte, 10-i/2)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Manifest(); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, expected ErrInvalid", err)
	}
}

func TestHasherRefusesWrongSize(t *testing.T) {
	h, err := NewHasher(10, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Write(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Manifest(); !errors.Is(err, ErrInvalid) {
		t.Errorf("one byte short: %v", err)
	}
	if _, err := h.Write(make([]byte, 2)); !errors.Is(err, ErrInvalid) {
		t.Errorf("one byte over: %v", err)
	}
}

func TestPartsAndPieces(t *testing.T) {
	m := hashed(t, build(2*MinPartLength+MinPieceLength+7), 1<<20)
	if m.NumParts() != 3 || m.NumPieces() != 130 {
		t.Fatalf("%d parts, %d pieces", m.NumParts(), m.NumPieces())
	}
	first, end := m.PartPieces(2)
	if first != 128 || end != 130 || m.PartOf(129) != 2 || m.PartOf(127) != 1 {
		t.Errorf("last part has pieces %d to %d", first, end)
	}
	if _, length := m.PartRange(2); length != MinPieceLength+7 {
		t.Errorf("last part has %d bytes", length)
	}
}

// The info dictionary is one that ordinary BitTorrent clients read.
func TestInfoIsBEP3(t *testing.T) {
	m := hashed(t, build(3*MinPieceLength+1), 1<<20)
	mi := metainfo.MetaInfo{InfoBytes: m.InfoBytes()}
	info, err := mi.UnmarshalInfo()
	if err != nil {
		t.Fatal(err)
	}
	if info.Length != m.Size || info.PieceLength != m.PieceLength || info.NumPieces() != 4 || !*info.Private {
		t.Errorf("info is %+v", info)
	}
}

func TestInfoDependsOnTheBuildAlone(t *testing.T) {
	b := build(MinPieceLength)
	if !bytes.Equal(hashed(t, b, 1000).InfoBytes(), hashed(t, b, 1<<20).InfoBytes()) {
		t.Error("same build, different info")
	}
}

func TestParse(t *testing.T) {
	m := hashed(t, build(MinPartLength+1), 1<<20)
	got, err := ParseInfo(m.InfoBytes())
	if err != nil || !got.Equal(m) || got.Metadata["commit"] != "abc" || got.ContentType != "application/zip" {
		t.Errorf("ParseInfo: %+v, %v", got, err)
	}
	empty := hashed(t, nil, 1)
	got, err = ParseInline(empty.InlineBytes())
	if err != nil || !got.Equal(empty) {
		t.Errorf("ParseInline: %+v, %v", got, err)
	}
}

func TestNoMetadataIsEncodedAsNone(t *testing.T) {
	for _, metadata := range []map[string]string{nil, {}} {
		h, err := NewHasher(1, "", metadata)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		m, err := h.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseInfo(m.InfoBytes())
		if err != nil || !bytes.Equal(again.InfoBytes(), m.InfoBytes()) {
			t.Errorf("metadata %v: %v", metadata, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"negative size":          func(m *Manifest) { m.Size = -1 },
		"zero size":              func(m *Manifest) { m.Size = 0 },
		"huge size":              func(m *Manifest) { m.Size = MaxSize + 1 },
		"other piece length":     func(m *Manifest) { m.PieceLength = 1 },
		"zero piece length":      func(m *Manifest) { m.PieceLength = 0 },
		"other part length":      func(m *Manifest) { m.PartLength = 5 << 20 },
		"missing piece":          func(m *Manifest) { m.Pieces = m.Pieces[20:] },
		"half a part's digest":   func(m *Manifest) { m.Parts = m.Parts[16:] },
		"too much user metadata": func(m *Manifest) { m.Metadata = map[string]string{"a": string(make([]byte, maxMetadata))} },
		"long content type":      func(m *Manifest) { m.ContentType = string(make([]byte, maxContentType+1)) },
	} {
		m := *hashed(t, build(MinPartLength+1), 1<<20)
		spoil(&m)
		if _, err := ParseInfo(m.InfoBytes()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(hashed(f, build(MinPieceLength+1), 1<<20).InfoBytes())
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

func FuzzParseInline(f *testing.F) {
	f.Add(hashed(f, nil, 1).InlineBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseInline(b); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("error is not ErrInvalid: %v", err)
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
	for name, feed := range feed {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(block)
			b.ReportAllocs()
			for b.Loop() {
				h, err := NewHasher(block, "", nil)
				if err == nil {
					err = feed(h)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
