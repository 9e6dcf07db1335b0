package handout

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// errMisused ends a connection whose peer asks for what it was not offered.
var errMisused = errors.New("pieces were asked for that were not offered")

// conn stands between the engine and one peer. Read watches what the peer
// announces; Write hides what the engine announces and puts the queue's offers
// between its messages.
type conn struct {
	net.Conn
	set  *Set
	in   inbound              // of the one who reads
	link atomic.Pointer[Link] // set when the peer's handshake named a torrent

	writing sync.Mutex // held while writing to the socket
	out     outbound
	failed  error // the socket's; a message may have been cut off, nothing can follow

	pendingMu sync.Mutex
	pending   []int // offers not written yet
	// waiting is set when there are some, so that Write need not lock to see
	// that there are none.
	waiting atomic.Bool
	wake    chan struct{}
	bye     atomic.Bool // the connection is to end

	departed   chan struct{}
	departOnce sync.Once
}

func newConn(c net.Conn, s *Set) *conn {
	return &conn{
		Conn:     c,
		set:      s,
		wake:     make(chan struct{}, 1),
		departed: make(chan struct{}),
	}
}

// Read reads from the peer. The bytes go to the engine unchanged. An error other
// than a passed deadline makes the peer leave the queue.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.in.feed(b[:n], c)
	if c.in.misused {
		n, err = 0, errMisused
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.depart()
	}
	return n, err
}

// Close closes the connection; the peer leaves the queue.
func (c *conn) Close() error {
	c.depart()
	return c.Conn.Close()
}

func (c *conn) depart() {
	c.departOnce.Do(func() {
		close(c.departed)
		if l := c.link.Load(); l != nil {
			l.Leave()
		}
	})
}

// greeted makes the connection a peer of its torrent's queue.
func (c *conn) greeted(infohash manifest.InfoHash, peerID [20]byte) (pieces int) {
	l, pieces := c.set.Connect(infohash, peerID, c.offer, c.hangUp)
	switch {
	case pieces == 0:
		return 0
	case l == nil:
		c.set.logger.Warn("too many peers, one is refused",
			"infohash", hex.EncodeToString(infohash[:]), "peer", c.RemoteAddr().String(), "limit", maxPeers)
		_ = c.Conn.Close() // the engine sees its next read fail
		return 0
	}
	c.link.Store(l)
	c.in.asks = c.set.thrifty
	select {
	case <-c.departed: // meanwhile, without seeing the link
		l.Leave()
		return 0
	default:
	}
	go c.inject()
	return pieces
}

func (c *conn) announced(piece int) {
	c.link.Load().Have(piece)
}

func (c *conn) opened(has bitmap) {
	l := c.link.Load()
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.queue.join(l.peer, has)
}

// offer takes offers of the queue. It does not block: they are written by
// whoever has the socket next.
func (c *conn) offer(pieces ...int) {
	c.pendingMu.Lock()
	c.pending = append(c.pending, pieces...)
	c.waiting.Store(true)
	c.pendingMu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// hangUp has the connection end. It does not block.
func (c *conn) hangUp() {
	c.bye.Store(true)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// requested reports whether the peer may ask for what it asks for.
func (c *conn) requested(piece int, length int64) bool {
	l := c.link.Load()
	l.set.mu.Lock()
	may := l.queue.mayAsk(l.peer, piece, length)
	l.set.mu.Unlock()
	if !may {
		from := c.RemoteAddr().String()
		host, _, _ := net.SplitHostPort(from)
		if omitted, due := c.set.notices.Pass(host); due {
			c.set.logger.Warn("peer disconnected: it asks for pieces that it was not offered, or too often", "peer", from, "piece", piece, "omitted", omitted)
		}
	}
	return may
}

// inject writes offers while the engine has nothing to write, until the peer
// departs.
func (c *conn) inject() {
	for {
		select {
		case <-c.departed:
			return
		case <-c.wake:
		}
		if c.bye.Load() {
			_ = c.Close() // the engine sees its next read fail
			return
		}
		if err := c.flush(); err != nil {
			return // the engine gets it from its next Write
		}
	}
}

// flush writes what is pending, unless the engine is within a message: then it is
// Write that does, at the message's end.
func (c *conn) flush() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.failed != nil || !c.out.between() {
		return c.failed
	}
	return c.writeOffers()
}

// writeOffers writes what is pending. The caller holds writing and is between
// two messages.
func (c *conn) writeOffers() error {
	c.pendingMu.Lock()
	pieces := c.pending
	c.pending = nil
	c.waiting.Store(false)
	c.pendingMu.Unlock()
	b := make([]byte, 0, len(pieces)*haveLength)
	for _, i := range pieces {
		b = append(b, 0, 0, 0, haveLength-4, kindHave)
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	return c.writeAll(b)
}

// Write writes the engine's bytes to the peer, without what they tell of its
// pieces. After an error every further Write fails with the same one, a passed
// deadline too: offers of the queue may be cut off, and the engine does not know
// of them.
func (c *conn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.failed != nil {
		return 0, c.failed
	}
	ours, peerFast := c.link.Load() != nil, c.in.fast.Load()
	written, at := 0, 0 // what lies between them passes
	for at < len(b) {
		if c.out.handshake == handshakeLength && !ours {
			c.out.through = true // the engine has answered a peer that is not in a queue
		}
		n, pass, instead := c.out.next(b[at:], peerFast)
		if !pass {
			if err := c.writeAll(b[written:at]); err != nil {
				return written, err
			}
			written = at + n
			if err := c.writeAll(instead); err != nil {
				return written, err
			}
		}
		at += n
		if c.waiting.Load() && c.out.between() {
			if err := c.writeAll(b[written:at]); err != nil {
				return written, err
			}
			written = at
			if err := c.writeOffers(); err != nil {
				return written, err
			}
		}
	}
	if err := c.writeAll(b[written:]); err != nil {
		return written, err
	}
	return len(b), nil
}

// writeAll writes to the socket and keeps its error. The caller holds writing.
func (c *conn) writeAll(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, c.failed = c.Conn.Write(b)
	return c.failed
}
