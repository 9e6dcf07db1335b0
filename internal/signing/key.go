// Package signing is who may say what: the keys that documents are signed with, wherever
// they lie, and the rules by which a member trusts them.
package signing

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
)

// SignatureSize is the length of every signature in bytes: Ed25519's, and of ECDSA with
// P-256 and SHA-256 the two numbers r and s, 32 bytes each.
const SignatureSize = 64

const (
	ed25519Size = ed25519.PublicKeySize
	// p256Size is that of a compressed point (SEC 1, 2.3.3).
	p256Size = 33
)

// PublicKey checks signatures: an Ed25519 key, or a P-256 key for ECDSA. It can be
// compared with ==; the zero value checks nothing.
type PublicKey struct{ raw string }

// Ed25519Key is the PublicKey of an Ed25519 key.
func Ed25519Key(key ed25519.PublicKey) PublicKey { return PublicKey{string(key)} }

// ECDSAKey is the PublicKey of a P-256 key.
func ECDSAKey(key *ecdsa.PublicKey) (PublicKey, error) {
	if key.Curve != elliptic.P256() {
		return PublicKey{}, fmt.Errorf("public key on the curve %s, only P-256 is known", key.Curve.Params().Name)
	}
	text, err := key.Bytes() // uncompressed: 4, x, y
	if err != nil {
		return PublicKey{}, err
	}
	x, y := text[1:1+32], text[1+32:]
	return PublicKey{string(append([]byte{2 | y[31]&1}, x...))}, nil
}

// PublicKeyOf takes the bytes of a key as Bytes returns them: 32 of Ed25519, 33 of P-256.
func PublicKeyOf(raw []byte) (PublicKey, error) {
	switch len(raw) {
	case ed25519Size:
		return PublicKey{string(raw)}, nil
	case p256Size:
		if x, _ := elliptic.UnmarshalCompressed(elliptic.P256(), raw); x == nil {
			return PublicKey{}, fmt.Errorf("public key of %d bytes: no point of P-256", len(raw))
		}
		return PublicKey{string(raw)}, nil
	}
	return PublicKey{}, fmt.Errorf("public key of %d bytes: %d are Ed25519's, %d P-256's", len(raw), ed25519Size, p256Size)
}

// Bytes are the key's, as PublicKeyOf takes them.
func (k PublicKey) Bytes() []byte { return []byte(k.raw) }

// IsP256 says of which of the two kinds a key is.
func (k PublicKey) IsP256() bool { return len(k.raw) == p256Size }

// String is the base64 form that --trust takes.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString([]byte(k.raw)) }

// idLength is enough to tell keys apart, and is not meant for more.
const idLength = 12

// ID names a key in few characters: the beginning of String, so that a person finds it in
// the key's file; empty for the zero value.
func (k PublicKey) ID() string {
	if k.raw == "" {
		return ""
	}
	return k.String()[:idLength]
}

// ParsePublicKey decodes what String made.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err == nil {
		var key PublicKey
		if key, err = PublicKeyOf(b); err == nil {
			return key, nil
		}
	}
	return PublicKey{}, fmt.Errorf("public key %.60q: not as `seeder keygen` or `seeder public-key` prints it", s)
}

// Verify reports whether a signature is this key's of the message.
func (k PublicKey) Verify(message, signature []byte) bool {
	if len(signature) != SignatureSize {
		return false
	}
	switch len(k.raw) {
	case ed25519Size:
		return ed25519.Verify(ed25519.PublicKey(k.raw), message, signature)
	case p256Size:
		x, y := elliptic.UnmarshalCompressed(elliptic.P256(), []byte(k.raw))
		if x == nil {
			return false
		}
		point := make([]byte, 1+32+32) // uncompressed (SEC 1, 2.3.3)
		point[0] = 4
		x.FillBytes(point[1:33])
		y.FillBytes(point[33:])
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil {
			return false
		}
		digest := sha256.Sum256(message)
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		return ecdsa.Verify(key, digest[:], r, s)
	}
	return false
}
