package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// WithEnrolment lets in, beside those of a Server's configuration, who has no certificate
// yet and speaks EnrolProto. Such a connection is of that protocol and no other. authority
// is shown there too, for who knows it by its fingerprint alone.
func (s *Source) WithEnrolment(members *tls.Config, authority *x509.Certificate) *tls.Config {
	enrolment := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{EnrolProto},
		ClientAuth:             tls.NoClientCert,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			shown := *s.current.Load().certificate
			shown.Certificate = append(slices.Clone(shown.Certificate), authority.Raw)
			return &shown, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != EnrolProto {
				return fmt.Errorf("no protocol was agreed on, expected %s", EnrolProto)
			}
			return nil
		},
	}
	both := members.Clone()
	both.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, EnrolProto) {
			return enrolment, nil
		}
		return nil, nil // members
	}
	return both
}

// Anchor is whom a process believes that has no certificate yet: the authority with a
// fingerprint, or those that it was given.
type Anchor struct {
	Pin   Fingerprint // the zero value for none
	Roots []*x509.Certificate
	Clock Clock
}

// ErrOtherAuthority says that somebody is no member of the authority that is expected.
var ErrOtherAuthority = errors.New("the other side is not of the authority that is expected")

// Seeder says which seeder has shown a chain, the leaf first. Everybody else is refused.
func (a Anchor) Seeder(chain []*x509.Certificate) (Peer, error) {
	p, err := a.verify(chain)
	switch {
	case errors.Is(err, ErrExpired), errors.Is(err, ErrNotYet): // which may pass
		return Peer{}, err
	case err == nil && p.ID.Kind != Seeder:
		err = fmt.Errorf("expected a seeder, the other side is %s", p.ID)
	}
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrOtherAuthority, err)
	}
	return p, nil
}

func (a Anchor) verify(chain []*x509.Certificate) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, errors.New("no certificate was shown")
	}
	roots := a.Roots
	if a.Pin != (Fingerprint{}) {
		pinned := func(c *x509.Certificate) bool { return FingerprintOf(c) == a.Pin }
		at := slices.IndexFunc(chain[1:], pinned)
		if at < 0 {
			return Peer{}, fmt.Errorf("the authority with the fingerprint %s is not among what was shown", a.Pin)
		}
		roots, chain = chain[1+at:2+at], slices.Delete(slices.Clone(chain), 1+at, 2+at)
	}
	id, err := Of(chain[0])
	if err != nil {
		return Peer{}, err
	}
	return (&state{cluster: id.Cluster, roots: poolOf(roots)}).verify(chain, a.Clock.Now(), false)
}

// Verify says whose a chain is that a seeder of the authority has made.
func (a Anchor) Verify(chain []*x509.Certificate) (Peer, error) {
	return Anchor{Roots: a.Roots, Clock: a.Clock}.verify(chain)
}

// Client is the configuration of who asks a seeder for the first certificate.
func (a Anchor) Client() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{EnrolProto},
		SessionTicketsDisabled: true,
		// Names of DNS say nothing of members: VerifyConnection does what is needed.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != EnrolProto {
				return fmt.Errorf("the other side does not speak %s", EnrolProto)
			}
			_, err := a.Seeder(cs.PeerCertificates)
			return err
		},
	}
}
