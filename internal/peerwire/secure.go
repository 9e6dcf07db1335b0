package peerwire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

const (
	// handshakeTimeout bounds the handshake of TLS: three round trips with the dial, on a
	// link that loses some of it.
	handshakeTimeout = 5 * time.Second
	// recheckInterval is how often the certificates behind open connections are looked at
	// again: they may have been denied.
	recheckInterval = 10 * time.Second
	// tlsRecord is the first byte of a connection over TLS (a handshake record), as 0x13
	// is of BEP 3's.
	tlsRecord = 0x16
)

var (
	errNoTLS    = identity.Refuse(identity.Missing, errors.New("it does not speak TLS"))
	errTooOften = errors.New("too many of its address have not, just now")
	errBorrowed = identity.Refuse(identity.Misplaced, errors.New("the peer id is another member's than the certificate's"))
)

// link is a connection without what is judged: the socket, or TLS over it.
type link struct {
	net.Conn
	socket *socket
	// peer is who has shown its certificate, nil without TLS; proven is the same for those
	// who do not know that it is set already.
	peer   *identity.Peer
	proven atomic.Pointer[identity.Peer]
	since  time.Time
}

// Close ends it at once.
func (l *link) Close() error { return l.socket.Close() }

func (w *Wire) newLink(c net.Conn) *link {
	s := newSocket(c, w.cfg.Upload, w.cfg.Download)
	return &link{Conn: s, socket: s, since: time.Now()}
}

// greetSecurely has TLS spoken from now on, as who has made the connection; it is an error
// when the other side is not whom expect accepts.
func (w *Wire) greetSecurely(ctx context.Context, l *link, expect func(identity.ID) error) error {
	return l.secure(ctx, w, nil, func(below net.Conn) *tls.Conn {
		return tls.Client(below, w.cfg.Identity.Client(identity.PeerProto, expect))
	})
}

// answerSecurely is greetSecurely for who has accepted the connection, and has read its
// first bytes.
func (w *Wire) answerSecurely(l *link, first []byte) error {
	return l.secure(w.ctx, w, first, func(below net.Conn) *tls.Conn {
		return tls.Server(below, w.cfg.Identity.Server(identity.PeerProto))
	})
}

func (l *link) secure(ctx context.Context, w *Wire, first []byte, over func(net.Conn) *tls.Conn) error {
	self := w.cfg.Identity
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	below := &gathered{Conn: l.socket, rest: first}
	conn := over(below)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS with %s: %w", l.socket.RemoteAddr(), err)
	}
	peer, err := self.PeerOf(conn.ConnectionState())
	if err != nil {
		return fmt.Errorf("TLS with %s: %w", l.socket.RemoteAddr(), err)
	}
	if !w.mine(peer.ID) {
		return identity.Refuse(identity.Misplaced, fmt.Errorf("TLS with %s: %s has no business here", l.socket.RemoteAddr(), peer.ID))
	}
	l.Conn, l.peer, l.since = secured{conn, below}, &peer, self.Now()
	l.proven.Store(&peer)
	return nil
}

// speaksTLS reports whether a member is to be spoken to over TLS alone.
func (w *Wire) speaksTLS(m Member) bool {
	return w.cfg.TLS == identity.Require || w.cfg.TLS == identity.Prefer && m.Certified
}

// identityOf is whose certificate a member shows.
func (w *Wire) identityOf(m Member) identity.ID {
	id := identity.ID{Cluster: w.cfg.Identity.ID().Cluster, Kind: identity.Agent, Region: m.Region, Name: m.ID}
	switch {
	case m.Seeder:
		id.Kind, id.Region = identity.Seeder, ""
	case m.Host:
		id.Kind = identity.Host
	}
	return id
}

// mine reports whether who has a certificate may be spoken to at all.
func (w *Wire) mine(id identity.ID) bool {
	if w.cfg.Mine != nil {
		return w.cfg.Mine(id)
	}
	return id.Kind == identity.Seeder || id.Kind == identity.Agent
}

// expects is who may be where a peer was named to be.
func (w *Wire) expects(id [20]byte) func(identity.ID) error {
	if m := w.Member(id); m.Name != "" {
		return identity.Exactly(w.identityOf(m))
	}
	return nil
}

// recheck ends the connections whose certificates do not hold any more, or were looked at
// too long ago.
func (w *Wire) recheck(now time.Time) {
	verdicts := make(map[identity.Fingerprint]error)
	for _, c := range w.Conns() {
		p := c.peer
		if p == nil {
			continue
		}
		err, known := verdicts[p.Fingerprint]
		if !known {
			err = w.cfg.Identity.Recheck(*p)
			verdicts[p.Fingerprint] = err
		}
		if err != nil {
			w.warnInsecure(c, err)
		}
		if err != nil || now.Sub(c.since) >= identity.MaxConnectionAge {
			c.Close()
		}
	}
}

// secured is a connection over TLS.
type secured struct {
	*tls.Conn
	below *gathered
}

// Write writes all records of b in as few calls as fit the buffer. When it returns, all of
// it is in the socket. After an error nothing can be written any more, after a passed
// deadline too.
func (s secured) Write(b []byte) (int, error) {
	s.below.gather()
	n, err := s.Conn.Write(b)
	if flushed := s.below.flush(); err == nil && flushed != nil {
		return 0, flushed
	}
	return n, err
}

// Close ends the connection at once: TLS would wait up to 5 s to say so to a peer that
// reads nothing.
func (s secured) Close() error { return s.below.Close() }
