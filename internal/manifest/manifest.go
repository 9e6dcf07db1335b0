// Package manifest describes a build as the swarm and S3 see it: how it is cut into
// segments (layout.go), pieces and parts (shape.go), the digests of those, and the info
// dictionary that carries a segment's, and whose SHA-1 is its infohash.
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
	// MinPartLength is the part length as long as it does, S3's own minimum: the first
	// segment of a build, which is waited for whole, is one part.
	MinPartLength = 5 << 20
	// MaxParts is S3's limit on the parts of one multipart upload.
	MaxParts = 10_000
	// MaxSize is S3's limit on one object in bytes.
	MaxSize = 5 << 40
	// MaxInfoLength bounds an encoded info dictionary in bytes: the most
	// pieces, the most parts and some framing.
	MaxInfoLength = MaxPieces*sha1.Size + MaxParts*sha256.Size + 16<<10
)

// ErrInvalid is wrapped by every error about a manifest that cannot be right.
var ErrInvalid = errors.New("invalid manifest")

// Manifest is one segment of a build: a torrent. It depends on bytes and borders alone,
// so that equal segments have equal infohashes, in whatever build they are.
type Manifest struct {
	Shape
	// Pieces holds the SHA-1 of each piece, one after the other (BEP 3).
	Pieces []byte
	// Parts holds the SHA-256 of each part, one after the other.
	Parts []byte
}

// infoDict is the BEP 3 info dictionary with Landfall's own key beside the
// standard ones.
type infoDict struct {
	Landfall    landfallDict `bencode:"landfall"`
	Length      int64        `bencode:"length"`
	Name        string       `bencode:"name"`
	PieceLength int64        `bencode:"piece length"`
	Pieces      []byte       `bencode:"pieces"`
	Private     int          `bencode:"private"` // BEP 27
}

type landfallDict struct {
	PartLength int64  `bencode:"part length"`
	Parts      []byte `bencode:"parts"`
}

// InfoBytes returns the bencoded info dictionary.
func (m *Manifest) InfoBytes() []byte {
	return bencode.MustMarshal(infoDict{
		Landfall:    landfallDict{m.PartLength, m.Parts},
		Length:      m.Size,
		Name:        m.name(),
		PieceLength: m.PieceLength,
		Pieces:      m.Pieces,
		Private:     1,
	})
}

// name is the SHA-256 of the parts' digests, in hexadecimal.
func (m *Manifest) name() string {
	sum := sha256.Sum256(m.Parts)
	return hex.EncodeToString(sum[:])
}

// InfoHash is the SHA-1 of the info dictionary.
func (m *Manifest) InfoHash() InfoHash { return sha1.Sum(m.InfoBytes()) }

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
	m := &Manifest{Shape: Shape{d.Length, d.PieceLength, d.Landfall.PartLength}, Pieces: d.Pieces, Parts: d.Landfall.Parts}
	if err := m.check(); err != nil {
		return nil, err
	}
	if !bytes.Equal(m.InfoBytes(), b) {
		// The infohash of what InfoBytes returns would be another one.
		return nil, fmt.Errorf("%w: not encoded as Landfall does, or with keys it does not know", ErrInvalid)
	}
	return m, nil
}

// check verifies that the numbers agree with each other, so that no later arithmetic can
// go wrong on them.
func (m *Manifest) check() error {
	if err := m.Shape.check(); err != nil {
		return err
	}
	switch {
	case m.Size == 0:
		return fmt.Errorf("%w: a segment of 0 bytes", ErrInvalid)
	case len(m.Pieces) != m.NumPieces()*sha1.Size:
		return fmt.Errorf("%w: %d bytes of piece hashes for %d pieces", ErrInvalid, len(m.Pieces), m.NumPieces())
	case len(m.Parts) != m.NumParts()*sha256.Size:
		return fmt.Errorf("%w: %d bytes of part digests for %d parts", ErrInvalid, len(m.Parts), m.NumParts())
	}
	return nil
}

// PieceSHA1 returns a piece's hash. The caller must not change it.
func (m *Manifest) PieceSHA1(piece int) []byte {
	return m.Pieces[piece*sha1.Size : (piece+1)*sha1.Size]
}

// PartSHA256 returns a part's digest. The caller must not change it.
func (m *Manifest) PartSHA256(part int) []byte {
	return m.Parts[part*sha256.Size : (part+1)*sha256.Size]
}
