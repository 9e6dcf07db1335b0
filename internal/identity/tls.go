package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
)

// Server is the configuration of who accepts connections of these protocols. A client
// shows a certificate; it is verified in VerifyConnection, since VerifyPeerCertificate
// is skipped where a session is resumed, and there is no resumption either. What is
// verified is the certificate: the caller asks PeerOf who it is, and decides. On a
// connection of CallProto an expired certificate passes that may be renewed: there
// PeerOf refuses it, and PeerForRenewal does not.
func (s *Source) Server(protos ...string) *tls.Config {
	return s.server(func(cs tls.ConnectionState) error {
		if cs.NegotiatedProtocol == CallProto {
			_, err := s.PeerForRenewal(cs)
			return err
		}
		_, err := s.PeerOf(cs)
		return err
	}, protos)
}

// ServerForRenewal is Server where a certificate that has expired and may be renewed passes
// by every protocol: whoever serves it asks PeerOf before anything but that.
func (s *Source) ServerForRenewal(protos ...string) *tls.Config {
	return s.server(func(cs tls.ConnectionState) error {
		_, err := s.PeerForRenewal(cs)
		return err
	}, protos)
}

func (s *Source) server(verify func(tls.ConnectionState) error, protos []string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             slices.Clone(protos),
		ClientAuth:             tls.RequestClientCert, // VerifyConnection refuses who shows none
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.current.Load().certificate, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			// A client that names no protocol is let in by crypto/tls.
			if !slices.Contains(protos, cs.NegotiatedProtocol) {
				return fmt.Errorf("no protocol was agreed on, expected one of %q", protos)
			}
			return verify(cs)
		},
	}
}

// Client is the configuration of who connects for one protocol. The server's certificate
// is verified in VerifyConnection, and who it is must be accepted by expect, which gets
// what was verified; nil accepts every member of the cluster.
func (s *Source) Client(proto string, expect func(ID) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{proto},
		SessionTicketsDisabled: true,
		// Names of DNS say nothing of members: VerifyConnection does what is needed.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.current.Load().certificate, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != proto {
				return fmt.Errorf("the other side does not speak %s", proto)
			}
			p, err := s.PeerOf(cs)
			if err != nil || expect == nil {
				return err
			}
			return Refuse(Misplaced, expect(p.ID))
		},
	}
}

// PeerOf says who is at the other end of a connection. It verifies what was shown anew,
// so that what has been denied meanwhile is refused.
func (s *Source) PeerOf(cs tls.ConnectionState) (Peer, error) {
	if len(cs.PeerCertificates) == 0 {
		return Peer{}, Refuse(Missing, errors.New("the other side has shown no certificate"))
	}
	return s.Verify(cs.PeerCertificates)
}

// PeerForRenewal is PeerOf for who may have expired and wants to renew itself.
func (s *Source) PeerForRenewal(cs tls.ConnectionState) (Peer, error) {
	if len(cs.PeerCertificates) == 0 {
		return Peer{}, Refuse(Missing, errors.New("the other side has shown no certificate"))
	}
	return s.VerifyForRenewal(cs.PeerCertificates)
}

// alertNoProtocol is TLS's alert no_application_protocol (RFC 7301, 3.2).
const alertNoProtocol = tls.AlertError(120)

// Alerted reports whether an error of a handshake is that the other side has refused it,
// and whether that was because it does not speak the protocol. crypto/tls has no type of
// its own for that beside QUIC.
func Alerted(err error) (refused, noProtocol bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false, false
	}
	return true, op.Err.Error() == alertNoProtocol.Error()
}

// Exactly accepts one identity, for Client.
func Exactly(want ID) func(ID) error {
	return func(got ID) error {
		if got != want {
			return fmt.Errorf("expected %s, the other side is %s", want, got)
		}
		return nil
	}
}
