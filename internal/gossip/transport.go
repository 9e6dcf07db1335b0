package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxStream bounds what is read from one connection, in bytes: a member's state,
	// and what memberlist says of maxMembers living ones and as many that have left,
	// some 700 bytes each.
	maxStream = maxState + 1<<20
	// maxStreams bounds the connections worked on at a time; one that does nothing
	// is closed after sendTimeout.
	maxStreams = 256
	// autoPortTries is how often a free port is looked for: the one that is free for
	// TCP may be taken for UDP.
	autoPortTries = 10
)

var errStreamTooLong = fmt.Errorf("more than %d bytes on one connection", maxStream)

// transport is memberlist's own with bounds on what comes in, and whose connections
// end with a context.
type transport struct {
	*memberlist.NetTransport
	ctx     context.Context
	warn    func(message string, attrs ...any)
	streams chan net.Conn
	slots   chan struct{}
	done    chan struct{}
	wg      sync.WaitGroup
	once    sync.Once
}

func newTransport(g *Gossip, mc *memberlist.Config) (*transport, error) {
	var inner *memberlist.NetTransport
	var err error
	for range autoPortTries {
		inner, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{mc.BindAddr}, BindPort: mc.BindPort, Logger: mc.Logger,
		})
		if err == nil || mc.BindPort != 0 || !(errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), syscall.EADDRINUSE.Error())) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	t := &transport{
		NetTransport: inner,
		ctx:          g.ctx,
		warn:         g.warn,
		streams:      make(chan net.Conn),
		slots:        make(chan struct{}, maxStreams),
		done:         make(chan struct{}),
	}
	t.wg.Go(t.forward)
	return t, nil
}

// forward passes accepted connections on, as many as may be worked on.
func (t *transport) forward() {
	for {
		select {
		case <-t.done:
			return
		case conn := <-t.NetTransport.StreamCh():
			select {
			case t.slots <- struct{}{}:
			default:
				t.warn("connection of a member closed, too many are open", "addr", conn.RemoteAddr().String(), "most", maxStreams)
				conn.Close()
				continue
			}
			s := &stream{Conn: conn, left: maxStream, warn: t.warn, closed: sync.OnceFunc(func() { <-t.slots })}
			select {
			case t.streams <- s:
			case <-t.done:
				s.Close()
			}
		}
	}
}

// StreamCh has the connections that were accepted.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout is DialAddressTimeout without a name.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout connects; the connection is closed when the context ends.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(t.ctx, func() { conn.Close() })
	return &stream{Conn: conn, left: maxStream, warn: t.warn, closed: func() { stop() }}, nil
}

// Shutdown frees the ports.
func (t *transport) Shutdown() error {
	err := t.NetTransport.Shutdown()
	t.once.Do(func() { close(t.done) })
	t.wg.Wait()
	return err
}

// stream is a connection that is read up to a bound.
type stream struct {
	net.Conn
	left   int
	warn   func(message string, attrs ...any)
	closed func()
}

func (s *stream) Read(b []byte) (int, error) {
	if s.left <= 0 {
		s.warn("connection of a member closed, it sends too much", "addr", s.RemoteAddr().String(), "most", maxStream)
		return 0, errStreamTooLong
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

func (s *stream) Close() error {
	s.closed()
	return s.Conn.Close()
}
