package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/identity"
)

// The gossip's TCP with TLS: connections of memberlist, calls, and those of who has no
// certificate yet, told apart by what is agreed on (ALPN).

// recordHandshake is the first byte of a TLS connection (RFC 8446, 5.1), and of none of
// memberlist's messages.
const recordHandshake = 22

var (
	errNoTLS    = identity.Refuse(identity.Missing, errors.New("it does not speak TLS"))
	errTooOften = errors.New("too many of its address have shown no certificate that holds, just now")
)

// secure finds out what an accepted connection is for.
func (t *transport) secure(raw net.Conn, from admission.Origin) {
	v := t.g.vouching
	stop := context.AfterFunc(t.ctx, func() { raw.Close() })
	conn, plain, err := t.open(raw, from)
	if stopped := stop(); err != nil || !stopped {
		// Who had to go for another has nothing to answer for.
		if err != nil && t.ctx.Err() == nil && t.strangers.Has(raw) {
			v.source.Count(err)
			t.warn("connection of a member closed, it is not known whose it is", "addr", raw.RemoteAddr().String(), "error", err)
		}
		raw.Close()
		t.strangers.Leave(raw)
		return
	}
	if plain != nil {
		t.pass(plain, func() { t.strangers.Leave(raw) })
		return
	}
	t.strangers.Leave(raw)
	switch conn.ConnectionState().NegotiatedProtocol {
	case identity.CallProto: // which has bounds of its own
		v.server.Hand(conn)
	case identity.EnrolProto:
		v.server.HandStranger(conn)
	default:
		// The certificate was verified just now.
		if id, err := identity.Of(conn.ConnectionState().PeerCertificates[0]); err == nil {
			from = admission.Of(id)
		}
		t.place(&t.members, raw, from)
		t.pass(conn, func() { t.members.Leave(raw) })
	}
}

// open makes the handshake, or returns a connection without TLS where that is accepted. Those
// of whose address too many have failed just now are not heard: a handshake costs both sides
// the same.
func (t *transport) open(raw net.Conn, from admission.Origin) (conn *tls.Conn, plain net.Conn, err error) {
	v := t.g.vouching
	if err := raw.SetReadDeadline(time.Now().Add(sendTimeout)); err != nil {
		return nil, nil, err
	}
	first := make([]byte, 1)
	if _, err := raw.Read(first); err != nil {
		return nil, nil, err
	}
	if err := raw.SetReadDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	spoken := &begun{Conn: raw, first: first}
	switch {
	case first[0] != recordHandshake && v.mode == identity.Prefer:
		return nil, spoken, nil
	case first[0] != recordHandshake:
		return nil, nil, errNoTLS
	case !t.failures.Left(from.Addr, from.Known, time.Now()):
		return nil, nil, errTooOften
	}
	cfg := v.source.Server(identity.GossipProto, identity.CallProto)
	if e := t.g.cfg.Enrolment; e != nil {
		cfg = v.source.WithEnrolment(cfg, e.Authority.Certificate())
	}
	conn = tls.Server(spoken, cfg)
	if err = v.handshake(t.ctx, conn); err != nil && t.strangers.Has(raw) {
		t.failures.Take(from.Addr, from.Known, time.Now())
	}
	return conn, nil, err
}

// begun is a connection whose first bytes were read already.
type begun struct {
	net.Conn
	first []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}

// dial connects to a member: with TLS where it is required or the member is known to have
// a certificate; where that is not known and TLS only preferred, it is tried first.
func (t *transport) dial(ctx context.Context, addr string) (net.Conn, error) {
	v := t.g.vouching
	if v == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	certified, known := t.g.speaksTLS(addr)
	if v.mode == identity.Prefer && known && !certified {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, v.source.Client(identity.GossipProto, expectMember))
	if err = v.handshake(ctx, conn); err == nil {
		return conn, nil
	}
	raw.Close()
	v.source.Count(err)
	refused, _ := identity.Alerted(err)
	var ofCertificate *tls.CertificateVerificationError
	if v.mode == identity.Prefer && !known && !refused && !errors.As(err, &ofCertificate) && ctx.Err() == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	return nil, fmt.Errorf("TLS with %s: %w", addr, err)
}
