package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

// MaxSignature bounds a signature in bytes: ECDSA P-256 in ASN.1.
const MaxSignature = 72

var errSignature = errors.New("the signature does not fit")

// statement is what is signed: the purpose keeps what was signed for one thing from
// being used as another.
func statement(purpose string, message []byte) ([]byte, error) {
	if purpose == "" || strings.ContainsRune(purpose, 0) {
		return nil, fmt.Errorf("purpose %q of a signature: expected text without NUL", purpose)
	}
	return append([]byte("landfall\x00"+purpose+"\x00"), message...), nil
}

// Sign signs a message for one purpose with the certificate's key. The signature has at
// most MaxSignature bytes and belongs to the certificate that Chain returns at that
// moment.
func (s *Source) Sign(purpose string, message []byte) ([]byte, error) {
	return s.current.Load().sign(purpose, message)
}

func (st *state) sign(purpose string, message []byte) ([]byte, error) {
	text, err := statement(purpose, message)
	if err != nil {
		return nil, err
	}
	var signature []byte
	if _, ok := st.key.(ed25519.PrivateKey); ok {
		signature, err = st.key.Sign(rand.Reader, text, crypto.Hash(0))
	} else {
		digest := sha256.Sum256(text)
		signature, err = st.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("signing a %s: %w", purpose, err)
	}
	return signature, nil
}

// Check reports whether the peer's key has signed a message for that purpose.
func (p Peer) Check(purpose string, message, signature []byte) error {
	text, err := statement(purpose, message)
	if err != nil {
		return err
	}
	if p.Certificate == nil || len(signature) > MaxSignature {
		return fmt.Errorf("%s of %s: %w", purpose, p.ID, errSignature)
	}
	fits := false
	switch key := p.Certificate.PublicKey.(type) {
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(text)
		fits = ecdsa.VerifyASN1(key, digest[:], signature)
	case ed25519.PublicKey:
		fits = ed25519.Verify(key, text, signature)
	}
	if !fits {
		return fmt.Errorf("%s of %s: %w", purpose, p.ID, errSignature)
	}
	return nil
}
