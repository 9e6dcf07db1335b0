package manifest

import (
	"encoding/hex"
	"fmt"
)

// InfoHash names a build's torrent: the SHA-1 of its info dictionary (BEP 3). It is zero
// for a build of 0 bytes, which has none.
type InfoHash [20]byte

// ParseInfoHash reads hexadecimal of exactly 20 bytes.
func ParseInfoHash(text string) (h InfoHash, err error) {
	err = h.UnmarshalText([]byte(text))
	return h, err
}

// String is lower-case hexadecimal.
func (h InfoHash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText encodes as lower-case hexadecimal.
func (h InfoHash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText decodes hexadecimal of exactly 20 bytes.
func (h *InfoHash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return fmt.Errorf("infohash of %d characters, expected %d", len(b), 2*len(h))
	}
	if _, err := hex.Decode(h[:], b); err != nil {
		return fmt.Errorf("infohash: %w", err)
	}
	return nil
}
