package hostwire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/retry"
)

// acceptAgain is when connections are taken again after none could be.
const acceptAgain = 100 * time.Millisecond

// secured is a listener whose connections have TLS spoken already: in goroutines that end
// with the handshake. The checks of certificates need 8 KiB more of stack than anything
// after them, and the stack of a goroutine that lives as long as the stream would keep them.
type secured struct {
	net.Listener
	cfg     *tls.Config
	refused func(from netip.AddrPort, err error)
	ready   chan net.Conn
	failed  chan error
	ctx     context.Context
	cancel  context.CancelFunc
	group   sync.WaitGroup
}

func secure(l *entrance, own *identity.Source, refused func(netip.AddrPort, error)) *secured {
	s := &secured{Listener: l, cfg: own.ServerForRenewal(proto), refused: refused, ready: make(chan net.Conn), failed: make(chan error, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.group.Go(s.accept)
	return s
}

func (s *secured) accept() {
	for {
		c, err := s.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			s.failed <- err
			return
		case err != nil: // such as too many open files
			s.refused(netip.AddrPort{}, err)
			retry.Wait(s.ctx, acceptAgain)
			continue
		}
		s.group.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, helloTimeout)
			defer cancel()
			t := tls.Server(c, s.cfg)
			if err := t.HandshakeContext(ctx); err != nil {
				if s.ctx.Err() == nil {
					from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
					s.refused(from, err)
					c.(*guest).failed()
				}
				c.Close()
				return
			}
			// The certificate was verified just now.
			if id, err := identity.Of(t.ConnectionState().PeerCertificates[0]); err == nil {
				c.(*guest).showed(id)
			}
			select {
			case s.ready <- t:
			case <-s.ctx.Done():
				t.Close()
			}
		})
	}
}

// Accept returns a connection whose handshake is done.
func (s *secured) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case err := <-s.failed:
		return nil, err
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends handshakes, too, and waits for them.
func (s *secured) Close() error {
	s.cancel()
	err := s.Listener.Close()
	s.group.Wait()
	return err
}
