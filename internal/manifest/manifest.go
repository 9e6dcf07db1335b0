// Package manifest describes a build as the swarm and S3 see it: how it is cut
// into pieces (BEP 3) and parts (S3 multipart upload), the digests of both, and
// the info dictionary that carries all of it and whose SHA-1 is the infohash.
//
// It holds arithmetic and encoding only. Who reads the bytes, moves them or
// stores them is the business of other packages.
package manifest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/anacrolix/torrent/bencode"
)

const (
	// MinPieceLength is the piece length of every build up to 8 GiB. The last
	// piece goes from member to member, so its length is paid for at the end;
	// shorter ones cost an idle round trip each (docs/performance.md).
	MinPieceLength = 128 << 10
	// MaxPieces bounds the info dictionary (20 bytes a piece); piece length
	// doubles as long as a build would have more.
	MaxPieces = 65_536
	// MinPartLength is the part length as long as it does. S3's own minimum is
	// 5 MiB; 8 MiB is a whole number of pieces.
	MinPartLength = 8 << 20
	// MaxParts is S3's limit on the parts of one multipart upload.
	MaxParts = 10_000
	// MaxSize is S3's limit on one object in bytes.
	MaxSize = 5 << 40
	// MaxInfoLength bounds an encoded info dictionary in bytes: the most
	// pieces, the most parts, S3's 2 KiB of user metadata and some framing.
	MaxInfoLength = MaxPieces*sha1.Size + MaxParts*sha256.Size + 16<<10
	// maxContentType and maxMetadata bound what comes along from the source
	// object; S3 allows 2 KiB of user metadata in all.
	maxContentType = 1024
	maxMetadata    = 8 << 10
)

// ErrInvalid is wrapped by every error about a manifest that cannot be right.
var ErrInvalid = errors.New("invalid manifest")

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

// Manifest is one build. Two objects of equal bytes, content type and user
// metadata have equal manifests, whatever their keys, and so one infohash.
type Manifest struct {
	// Size, PieceLength and PartLength are in bytes. Only the last piece and
	// the last part may be shorter.
	Size, PieceLength, PartLength int64
	// Pieces holds the SHA-1 of each piece, one after the other (BEP 3). A
	// build of 0 bytes has none.
	Pieces []byte
	// Parts holds the SHA-256 of each part, one after the other.
	Parts []byte
	// SHA256 is that of the whole build.
	SHA256 [sha256.Size]byte
	// ContentType and Metadata are the source object's and come along.
	ContentType string
	Metadata    map[string]string
}

// infoDict is the BEP 3 info dictionary with Landfall's own key beside the
// standard ones. The name does not depend on the object's key: equal builds
// share a swarm.
type infoDict struct {
	Landfall    landfallDict `bencode:"landfall"`
	Length      int64        `bencode:"length"`
	Name        string       `bencode:"name"`
	PieceLength int64        `bencode:"piece length"`
	Pieces      []byte       `bencode:"pieces"`
	Private     int          `bencode:"private"` // BEP 27
}

type landfallDict struct {
	ContentType string            `bencode:"content type,omitempty"`
	Metadata    map[string]string `bencode:"metadata,omitempty"`
	PartLength  int64             `bencode:"part length"`
	Parts       []byte            `bencode:"parts"`
	SHA256      []byte            `bencode:"sha256"`
}

func (m *Manifest) landfall() landfallDict {
	return landfallDict{
		ContentType: m.ContentType,
		Metadata:    m.Metadata,
		PartLength:  m.PartLength,
		Parts:       m.Parts,
		SHA256:      m.SHA256[:],
	}
}

// InfoBytes returns the bencoded info dictionary of a build of at least one byte.
func (m *Manifest) InfoBytes() []byte {
	return bencode.MustMarshal(infoDict{
		Landfall:    m.landfall(),
		Length:      m.Size,
		Name:        m.SHA256Hex(),
		PieceLength: m.PieceLength,
		Pieces:      m.Pieces,
		Private:     1,
	})
}

// InlineBytes returns the bencoded landfall dictionary alone, which the
// announcement of a build of 0 bytes carries: there is no swarm to get it from.
func (m *Manifest) InlineBytes() []byte { return bencode.MustMarshal(m.landfall()) }

// ParseInfo decodes and checks an info dictionary from the network. Every error
// wraps ErrInvalid.
func ParseInfo(b []byte) (*Manifest, error) {
	if len(b) > MaxInfoLength {
		return nil, fmt.Errorf("%w: info dictionary of %d bytes, at most %d allowed", ErrInvalid, len(b), MaxInfoLength)
	}
	var d infoDict
	if err := bencode.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	m, err := d.Landfall.manifest()
	if err != nil {
		return nil, err
	}
	m.Size, m.PieceLength, m.Pieces = d.Length, d.PieceLength, d.Pieces
	if d.Length == 0 {
		return nil, fmt.Errorf("%w: a build of 0 bytes has no info dictionary", ErrInvalid)
	}
	if d.Name != m.SHA256Hex() {
		return nil, fmt.Errorf("%w: name %q is not the build's SHA-256", ErrInvalid, d.Name)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if !bytes.Equal(m.InfoBytes(), b) {
		// The infohash of what InfoBytes returns would be another one.
		return nil, fmt.Errorf("%w: not encoded as Landfall does, or with keys it does not know", ErrInvalid)
	}
	return m, nil
}

// ParseInline decodes and checks the landfall dictionary of a build of 0 bytes.
// Every error wraps ErrInvalid.
func ParseInline(b []byte) (*Manifest, error) {
	if len(b) > maxContentType+2*maxMetadata {
		return nil, fmt.Errorf("%w: landfall dictionary of %d bytes", ErrInvalid, len(b))
	}
	var d landfallDict
	if err := bencode.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	m, err := d.manifest()
	if err != nil {
		return nil, err
	}
	m.PieceLength = PieceLength(0)
	return m, m.check()
}

func (d landfallDict) manifest() (*Manifest, error) {
	m := &Manifest{PartLength: d.PartLength, Parts: d.Parts, ContentType: d.ContentType, Metadata: d.Metadata}
	if copy(m.SHA256[:], d.SHA256) != sha256.Size || len(d.SHA256) != sha256.Size {
		return nil, fmt.Errorf("%w: SHA-256 of %d bytes", ErrInvalid, len(d.SHA256))
	}
	return m, nil
}

// check verifies that the numbers agree with each other and with the rules that
// every seeder follows, so that no later arithmetic can go wrong on them.
func (m *Manifest) check() error {
	var metadata int
	for k, v := range m.Metadata {
		metadata += len(k) + len(v)
	}
	switch {
	case m.Size < 0 || m.Size > MaxSize:
		return fmt.Errorf("%w: size %d", ErrInvalid, m.Size)
	case m.PieceLength != PieceLength(m.Size):
		return fmt.Errorf("%w: piece length %d for a build of %d bytes", ErrInvalid, m.PieceLength, m.Size)
	case m.PartLength != PartLength(m.Size):
		return fmt.Errorf("%w: part length %d for a build of %d bytes", ErrInvalid, m.PartLength, m.Size)
	case len(m.Pieces) != m.NumPieces()*sha1.Size:
		return fmt.Errorf("%w: %d bytes of piece hashes for %d pieces", ErrInvalid, len(m.Pieces), m.NumPieces())
	case len(m.Parts) != m.NumParts()*sha256.Size:
		return fmt.Errorf("%w: %d bytes of part digests for %d parts", ErrInvalid, len(m.Parts), m.NumParts())
	case len(m.ContentType) > maxContentType:
		return fmt.Errorf("%w: content type of %d bytes", ErrInvalid, len(m.ContentType))
	case metadata > maxMetadata:
		return fmt.Errorf("%w: user metadata of %d bytes", ErrInvalid, metadata)
	case m.Size == 0 && m.SHA256 != sha256.Sum256(nil):
		return fmt.Errorf("%w: SHA-256 of an empty build", ErrInvalid)
	}
	return nil
}

// SHA256Hex is the whole build's SHA-256 in lower-case hexadecimal.
func (m *Manifest) SHA256Hex() string { return hex.EncodeToString(m.SHA256[:]) }

// NumPieces is 0 for a build of 0 bytes.
func (m *Manifest) NumPieces() int { return count(m.Size, m.PieceLength) }

// NumParts is 0 for a build of 0 bytes.
func (m *Manifest) NumParts() int { return count(m.Size, m.PartLength) }

// PiecesPerPart is the number of pieces in every part but perhaps the last.
func (m *Manifest) PiecesPerPart() int { return int(m.PartLength / m.PieceLength) }

// PartOf returns the part, from 0, that a piece belongs to.
func (m *Manifest) PartOf(piece int) int { return piece / m.PiecesPerPart() }

// PartPieces returns the pieces of a part, from first up to but without end.
func (m *Manifest) PartPieces(part int) (first, end int) {
	per := m.PiecesPerPart()
	return part * per, min((part+1)*per, m.NumPieces())
}

// PartRange returns a part's offset in the build and its length, in bytes.
func (m *Manifest) PartRange(part int) (offset, length int64) {
	return span(m.Size, m.PartLength, part)
}

// PieceRange returns a piece's offset in the build and its length, in bytes.
func (m *Manifest) PieceRange(piece int) (offset, length int64) {
	return span(m.Size, m.PieceLength, piece)
}

// PieceSHA1 returns a piece's hash. The caller must not change it.
func (m *Manifest) PieceSHA1(piece int) []byte {
	return m.Pieces[piece*sha1.Size : (piece+1)*sha1.Size]
}

// PartSHA256 returns a part's digest. The caller must not change it.
func (m *Manifest) PartSHA256(part int) []byte {
	return m.Parts[part*sha256.Size : (part+1)*sha256.Size]
}

// Equal reports whether both describe the same build.
func (m *Manifest) Equal(o *Manifest) bool {
	return m.Size == o.Size && bytes.Equal(m.InlineBytes(), o.InlineBytes())
}

func count(size, length int64) int { return int((size + length - 1) / length) }

func span(size, length int64, i int) (int64, int64) {
	offset := int64(i) * length
	return offset, min(length, size-offset)
}
