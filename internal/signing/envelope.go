package signing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// ErrInvalid is wrapped by errors about a document that is malformed or breaks a bound.
var ErrInvalid = errors.New("invalid document")

// Envelope is how signed documents travel:
//
//	"KIND\n"
//	32 bytes  Ed25519 public key
//	64 bytes  Ed25519 signature over the first line and the body
//	JSON      body
//
// or, signed with ECDSA on P-256 and SHA-256,
//
//	"KIND-p256\n"
//	33 bytes  public key, a compressed point (SEC 1, 2.3.3)
//	64 bytes  signature over the first line and the body: r and s, big-endian
//	JSON      body
//
// so the signature covers the exact bytes sent, and a body of one kind, version or
// algorithm can never be taken for another.
type Envelope struct {
	// Kinds are those that are known, each with its version.
	Kinds []string
	// MaxLength bounds a document on the wire in bytes.
	MaxLength int
}

// Opened is a document whose signature is that of a trusted key; what it says is still to
// be checked.
type Opened struct {
	Kind string
	Body []byte
	Key  PublicKey
}

func firstLine(kind string, p256 bool) []byte {
	if p256 {
		kind += "-p256"
	}
	return []byte(kind + "\n")
}

// Sign encodes and signs what the caller has checked.
func (e Envelope) Sign(ctx context.Context, signer Signer, kind string, doc any) ([]byte, error) {
	public := signer.Public()
	line := firstLine(kind, public.IsP256())
	encoded := bytes.NewBuffer(slices.Clone(line))
	encoder := json.NewEncoder(encoded)
	encoder.SetEscapeHTML(false) // which makes six bytes of one
	if err := encoder.Encode(doc); err != nil {
		return nil, fmt.Errorf("encoding %T: %w", doc, err)
	}
	signed := encoded.Bytes()
	key := public.Bytes()
	if length := len(signed) + len(key) + SignatureSize; length > e.MaxLength {
		return nil, fmt.Errorf("%w: %d bytes, at most %d allowed", ErrInvalid, length, e.MaxLength)
	}
	signature, err := signer.Sign(ctx, signed)
	if err != nil {
		return nil, err
	}
	return slices.Concat(line, key, signature, signed[len(line):]), nil
}

// Open checks a document from the network against what is trusted. Errors wrap ErrInvalid
// or ErrUntrusted; both when a trusted key is named and the signature is wrong.
func (e Envelope) Open(wire []byte, trust *Trust) (Opened, error) {
	if len(wire) > e.MaxLength {
		return Opened{}, fmt.Errorf("%w: %d bytes, at most %d allowed", ErrInvalid, len(wire), e.MaxLength)
	}
	for _, kind := range e.Kinds {
		for _, p256 := range []bool{false, true} {
			line := firstLine(kind, p256)
			if rest, ok := bytes.CutPrefix(wire, line); ok {
				return open(kind, line, rest, keyLength(p256), trust)
			}
		}
	}
	return Opened{}, fmt.Errorf("%w: unknown kind", ErrInvalid)
}

func keyLength(p256 bool) int {
	if p256 {
		return p256Size
	}
	return ed25519Size
}

func open(kind string, line, rest []byte, keyLength int, trust *Trust) (Opened, error) {
	if len(rest) < keyLength+SignatureSize {
		return Opened{}, fmt.Errorf("%w: cut short", ErrInvalid)
	}
	key, err := PublicKeyOf(rest[:keyLength])
	if err != nil {
		return Opened{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	rest = rest[keyLength:]
	signature, body := rest[:SignatureSize], rest[SignatureSize:]
	if err := trust.CheckKey(key); err != nil {
		return Opened{}, err
	}
	if !key.Verify(slices.Concat(line, body), signature) {
		return Opened{}, fmt.Errorf("%w: the signature does not match (%w)", ErrUntrusted, ErrInvalid)
	}
	return Opened{kind, body, key}, nil
}

// Decode reads the body into doc, which has all the fields there may be. Errors wrap
// ErrInvalid.
func (o Opened) Decode(doc any) error {
	d := json.NewDecoder(bytes.NewReader(o.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(doc); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}
