package identity

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
)

// maxEnclosed bounds a signature with its certificates, in bytes: a leaf and what is
// between it and the root, some 700 bytes each.
const maxEnclosed = 8 << 10

// enclosed is a signature with the certificates that are needed to check it, for who has
// no connection with the signer.
type enclosed struct {
	Chain     [][]byte `json:"c"`
	Signature []byte   `json:"s"`
}

// Signer signs as Sign does, and puts the certificates beside the signature.
type Signer struct{ Source *Source }

// Sign returns a signature that CheckEnclosed takes, of at most 8 KiB.
func (s Signer) Sign(purpose string, message []byte) ([]byte, error) {
	st := s.Source.current.Load()
	signature, err := st.sign(purpose, message)
	if err != nil {
		return nil, err
	}
	e := enclosed{Signature: signature}
	for _, c := range st.chain {
		e.Chain = append(e.Chain, c.Raw)
	}
	b, err := json.Marshal(e)
	if err == nil && len(b) > maxEnclosed {
		err = fmt.Errorf("its certificates have %d bytes, at most %d", len(b), maxEnclosed)
	}
	if err != nil {
		return nil, fmt.Errorf("signing a %s: %w", purpose, err)
	}
	return b, nil
}

// CheckEnclosed says who has signed a message, by what Signer has made. A certificate
// that has ended since, and could still be renewed, will do: what it has signed was read
// late.
func (s *Source) CheckEnclosed(purpose string, message, signature []byte) (Peer, error) {
	if len(signature) > maxEnclosed {
		return Peer{}, fmt.Errorf("signature of %d bytes, at most %d", len(signature), maxEnclosed)
	}
	var e enclosed
	if err := json.Unmarshal(signature, &e); err != nil {
		return Peer{}, fmt.Errorf("signature: %w", err)
	}
	if len(e.Chain) > maxChain {
		return Peer{}, errors.New("signature with too many certificates")
	}
	var chain []*x509.Certificate
	for _, der := range e.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Peer{}, fmt.Errorf("signature: %w", err)
		}
		chain = append(chain, c)
	}
	p, err := s.VerifyForRenewal(chain)
	if err != nil {
		return Peer{}, err
	}
	return p, p.Check(purpose, message, e.Signature)
}
