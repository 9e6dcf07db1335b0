package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/admission"
)

const (
	// maxStream bounds what is read from one connection, in bytes: a member's state,
	// and what memberlist says of maxMembers living ones and as many that have left,
	// some 700 bytes each.
	maxStream = maxState + 1<<20
	// maxStreams bounds the connections at a time whose other side has shown no certificate
	// yet, or needs none; one that does nothing is closed after sendTimeout.
	// maxStreamsPerAddr bounds those of one network, behind whose address many members may
	// be, maxUnknownStreams those of addresses of which nobody knows. Who has to go for
	// another tries again.
	maxStreams, maxStreamsPerAddr, maxUnknownStreams = 256, 128, 128
	// maxMemberStreams bounds those of members with certificates, maxStreamsOfOne those of
	// one member, which meets one in one exchange and sends it documents beside.
	maxMemberStreams, maxStreamsOfOne = 256, 32
	// atATime is how many messages are unpacked at a time, each of which memberlist
	// may blow up to 40 MiB, and the answer sent. It takes a few milliseconds where the
	// other side has a key and means well; who has no key gets no place.
	atATime = 2
	// freeBytes of each message, and maxReceiving of all beyond that, may wait for
	// their rest or for a place.
	freeBytes, maxReceiving = 64 << 10, 32 << 20
	// encryptedMessage is memberlist's first byte of what is encrypted; four bytes of
	// length follow.
	encryptedMessage = 10
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
	g       *Gossip
	warn    func(message string, attrs ...any)
	streams chan net.Conn
	gate    *gate
	// strangers are connections whose other side has shown no certificate, members those of
	// who has one.
	strangers, members admission.Room[net.Conn]
	failures           *admission.Rates[netip.Addr]
	isKnown            func(netip.Addr) bool
	done               chan struct{}
	wg                 sync.WaitGroup
	once               sync.Once
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
		g:            g,
		warn:         g.warn,
		streams:      make(chan net.Conn),
		strangers:    admission.Room[net.Conn]{Most: maxStreams, PerOrigin: maxStreamsPerAddr, Unknown: maxUnknownStreams},
		members:      admission.Room[net.Conn]{Most: maxMemberStreams, PerOrigin: maxStreamsOfOne},
		failures:     admission.NewFailures(),
		isKnown:      g.knownAddrs(),
		gate:         &gate{ctx: g.ctx, places: make(chan struct{}, atATime)},
		done:         make(chan struct{}),
	}
	t.wg.Go(t.forward)
	return t, nil
}

// forward passes accepted connections on. Nobody who connects can take the places of others:
// beyond the bounds the oldest connection goes of who has most of them.
func (t *transport) forward() {
	for {
		select {
		case <-t.done:
			return
		case conn := <-t.NetTransport.StreamCh():
			from := t.origin(conn)
			t.place(&t.strangers, conn, from)
			if t.g.vouching != nil {
				t.wg.Go(func() { t.secure(conn, from) })
				continue
			}
			t.pass(conn, func() { t.strangers.Leave(conn) })
		}
	}
}

// origin is where a connection comes from.
func (t *transport) origin(conn net.Conn) admission.Origin {
	at, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	addr := at.Addr().Unmap()
	return admission.From(addr, addr.IsValid() && t.isKnown(addr))
}

// place has a connection in a room, and closes the one that has to go for it.
func (t *transport) place(room *admission.Room[net.Conn], conn net.Conn, from admission.Origin) {
	out, full := room.Enter(conn, from)
	if !full {
		return
	}
	t.warn("connection of a member closed, too many are open", "addr", out.RemoteAddr().String(), "most", room.Most, "ofOne", room.PerOrigin)
	out.Close() // who works on it sees that
}

// pass hands a connection to memberlist.
func (t *transport) pass(conn net.Conn, closed func()) {
	s := &stream{Conn: conn, left: maxStream, gate: t.gate, warn: t.warn, closed: closed}
	select {
	case t.streams <- s:
	case <-t.done:
		s.Close()
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
	conn, err := t.dial(ctx, a.Addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(t.ctx, func() { conn.Close() })
	return &stream{Conn: conn, left: maxStream, gate: t.gate, warn: t.warn, closed: func() { stop() }}, nil
}

// Shutdown frees the ports.
func (t *transport) Shutdown() error {
	err := t.NetTransport.Shutdown()
	t.once.Do(func() { close(t.done) })
	t.wg.Wait()
	return err
}

// gate lets a few messages at a time be unpacked.
type gate struct {
	ctx    context.Context
	places chan struct{}
	bytes  atomic.Int64 // that wait, beyond freeBytes of each
}

// stream is a connection that is read up to a bound. An encrypted message is passed on
// once it is whole and there is a place to unpack it, until the connection is closed.
type stream struct {
	net.Conn
	left   int
	gate   *gate // nil for none
	warn   func(message string, attrs ...any)
	closed func()

	begun   bool
	waiting bytes.Buffer
	held    int64 // of the gate's bytes
	placed  bool
	ending  sync.Once
}

func (s *stream) Read(b []byte) (int, error) {
	if !s.begun {
		s.begun = true
		if err := s.receive(); err != nil {
			return 0, err
		}
	}
	if s.waiting.Len() > 0 {
		return s.waiting.Read(b)
	}
	return s.read(b)
}

// read is bounded by what is left.
func (s *stream) read(b []byte) (int, error) {
	if s.left <= 0 {
		s.warn("connection of a member closed, it sends too much", "addr", s.RemoteAddr().String(), "most", maxStream)
		return 0, errStreamTooLong
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

// receive reads the first message if it is encrypted; anything else is left to
// memberlist, which takes it on loopback only.
func (s *stream) receive() error {
	if s.gate == nil {
		return nil
	}
	var head [5]byte
	n, err := io.ReadFull(readFunc(s.read), head[:1])
	if err == nil && head[0] == encryptedMessage {
		n, err = io.ReadFull(readFunc(s.read), head[1:])
		n++
	}
	s.waiting.Write(head[:n])
	if err != nil || head[0] != encryptedMessage {
		return err
	}
	length := int64(binary.BigEndian.Uint32(head[1:]))
	if length > maxStream {
		s.warn("connection of a member closed, it sends too much", "addr", s.RemoteAddr().String(), "most", maxStream)
		return errStreamTooLong
	}
	for length > 0 {
		n, err := io.CopyN(&s.waiting, readFunc(s.read), min(length, freeBytes))
		if err != nil {
			return err
		}
		if length -= n; length > 0 {
			s.held += n
			if s.gate.bytes.Add(n) > maxReceiving {
				return s.refuse("too much is being received")
			}
		}
	}
	timer := time.NewTimer(sendTimeout)
	defer timer.Stop()
	select {
	case s.gate.places <- struct{}{}:
		s.placed = true
		return nil
	case <-s.gate.ctx.Done():
		return s.gate.ctx.Err()
	case <-timer.C:
		return s.refuse("too many are being worked on")
	}
}

func (s *stream) refuse(reason string) error {
	s.warn("connection of a member closed, "+reason, "addr", s.RemoteAddr().String())
	return errors.New(reason)
}

func (s *stream) Close() error {
	s.ending.Do(func() {
		s.closed()
		if s.gate != nil {
			s.gate.bytes.Add(-s.held)
			if s.placed {
				<-s.gate.places
			}
		}
	})
	return s.Conn.Close()
}

// readFunc is an io.Reader.
type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }
