package peerwire

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/landfall-dist/landfall/internal/limits"
)

// smallMessage is what passes a limit without waiting, in bytes, and is counted: a
// handshake, a request, a Have. Held back for a second they would cost whole pieces.
const smallMessage = 512

// socket is a connection as the machine has it: its bytes are counted, and pass as the
// limits allow.
type socket struct {
	net.Conn
	upload, download *limits.Limiter
	// greeted: the peer is known; before that nothing waits for a limit.
	greeted atomic.Bool

	closing sync.Once
	gone    chan struct{} // closed by the first Close

	owed     int // bytes that were read and not waited for yet; of the one who reads
	heldBack heldBack
	in, out  atomic.Int64 // bytes
}

func newSocket(c net.Conn, upload, download *limits.Limiter) *socket {
	if tcp, ok := c.(*net.TCPConn); ok {
		// The engine would do this, did it see the type: a connection that it
		// closes is to be gone at once.
		_ = tcp.SetLinger(0)
	}
	return &socket{Conn: c, upload: upload, download: download, gone: make(chan struct{})}
}

// Read waits for what was read before, and reads how much is to be read now. The peer's
// bytes wait in the sockets meanwhile, and then at the peer.
func (s *socket) Read(b []byte) (int, error) {
	if s.owed > 0 {
		begun := time.Now()
		s.heldBack.since.Store(begun.UnixNano())
		passed := s.download.Wait(s.gone, s.owed)
		s.heldBack.total.Add(int64(time.Since(begun)))
		s.heldBack.since.Store(0)
		if s.owed = 0; !passed {
			return 0, net.ErrClosed
		}
	}
	n, err := s.Conn.Read(b[:min(len(b), s.download.Slice())])
	s.in.Add(int64(n))
	switch {
	case s.download.Rate() == 0:
	case n <= smallMessage || !s.greeted.Load():
		s.download.Charge(n)
	default:
		s.owed = n
	}
	return n, err
}

// Write writes a slice at a time, as the limit allows.
func (s *socket) Write(b []byte) (written int, err error) {
	for {
		part := b[written:]
		if len(b) <= smallMessage {
			s.upload.Charge(len(b))
		} else {
			part = part[:min(len(part), s.upload.Slice())]
			if !s.upload.Wait(s.gone, len(part)) {
				return written, net.ErrClosed
			}
		}
		n, err := s.Conn.Write(part)
		s.out.Add(int64(n))
		if written += n; err != nil || written == len(b) {
			return written, err
		}
	}
}

func (s *socket) Close() error {
	s.closing.Do(func() { close(s.gone) })
	return s.Conn.Close()
}

// acknowledged is how many of the written bytes have reached the peer's machine.
func (s *socket) acknowledged() int64 {
	out := s.out.Load()
	return out - unacknowledged(s.Conn)
}

// heldBack is how long a connection was not read, since the limit did not allow it.
type heldBack struct {
	total atomic.Int64 // nanoseconds
	since atomic.Int64 // Unix nanoseconds; 0 when it is read
}

// until is the time up to now. One wait may be counted a moment too late.
func (h *heldBack) until(now time.Time) time.Duration {
	total := h.total.Load()
	if since := h.since.Load(); since != 0 {
		total += max(0, now.UnixNano()-since)
	}
	return time.Duration(total)
}
