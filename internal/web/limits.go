package web

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/admission"
)

// limits are what a server lets one client, and all of them together, take.
type limits struct {
	// header bounds how slowly a client may send its headers, and before them what TLS
	// needs (net/http takes it for the handshake as well), idle how long a
	// connection may wait for its next request.
	header, idle time.Duration
	// body is how long the next byte of a request's body may take, while this process runs:
	// a client that is slow is waited for as long as it sends, one that has gone is not.
	body time.Duration
	// answer is how long a client may take to read an answer; what streams sets its own.
	answer time.Duration
	// headerBytes bounds a request's headers.
	headerBytes int
	// conns bounds the connections, connsPerAddress those of one address. Beyond them
	// the one that has been idle for longest goes, and where none is the new one.
	conns, connsPerAddress int
}

// usualLimits are those of every daemon.
var usualLimits = limits{
	header: 10 * time.Second,
	idle:   2 * time.Minute,
	body:   2 * time.Minute, // so that 1 MiB a minute in one go is far from it
	answer: 2 * time.Minute, // the largest, 1,000 executions, has some MB
	// The longest header is the token's, of at most 4 KiB.
	headerBytes: 64 << 10,
	// Each costs some 20 KiB. A proxy has one address, so that one gets half.
	conns: 1024, connsPerAddress: 512,
}

// maxAtOnce bounds the requests under way that cost something, such as a list of 1,000
// executions or a search; the next ones wait for maxWait.
const (
	maxAtOnce = 8
	maxWait   = 10 * time.Second
)

// turns lets so many in at a time.
type turns chan struct{}

// take waits for a turn; call the function it returns when it is over.
func (t turns) take(r *http.Request, wait time.Duration) (func(), error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-timer.C:
		return nil, &Error{Code: http.StatusServiceUnavailable, RetryAfter: wait,
			Err: fmt.Errorf("%d requests of this kind are under way already; ask again later", cap(t))}
	}
}

// hold makes h keep to the limits.
func (l limits) hold(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		answer := &boundedAnswer{ResponseWriter: w, control: control, within: l.answer}
		if r.Body != nil && r.Body != http.NoBody {
			answer.body = &watchedBody{ReadCloser: r.Body, control: control, within: l.body}
			// In a copy: by the body of its own request the server knows whether the client
			// still waits to be asked for it, and does not wait for what is never sent.
			own := *r
			own.Body = answer.body
			r = &own
		} else {
			control.SetWriteDeadline(time.Now().Add(l.answer)) //nolint:errcheck // a recorder has none
		}
		h.ServeHTTP(answer, r)
		answer.begin()
	})
}

// boundedAnswer gives the client a time to read what it is answered once it begins: the
// body may have taken hours.
type boundedAnswer struct {
	http.ResponseWriter
	control *http.ResponseController
	within  time.Duration
	body    *watchedBody // nil without one
	begun   bool
}

func (a *boundedAnswer) begin() {
	if !a.begun {
		a.begun = true
		a.control.SetWriteDeadline(time.Now().Add(a.within)) //nolint:errcheck // a recorder has none
		if a.body != nil && !a.body.ended {
			// The server reads some of what is left before it answers.
			a.control.SetReadDeadline(time.Now().Add(a.body.within)) //nolint:errcheck // the same
		}
	}
}

func (a *boundedAnswer) WriteHeader(code int) {
	a.begin()
	a.ResponseWriter.WriteHeader(code)
}

func (a *boundedAnswer) Write(p []byte) (int, error) {
	a.begin()
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *boundedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// bodyLooks is how often it is looked whether something came of a body until the time for
// that is over. A look that is late, since this process stood still, counts as one: what has
// come meanwhile is read before the next.
const bodyLooks = 4

// watchedBody ends a body of which nothing comes any more while this process runs.
type watchedBody struct {
	io.ReadCloser
	control *http.ResponseController
	within  time.Duration
	ended   bool

	mu      sync.Mutex
	next    *time.Timer // calls look; nil before the first Read
	reading bool
	looks   int // since the Read under way has begun
}

func (b *watchedBody) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading, b.looks = true, 0
	if b.next == nil {
		b.next = time.AfterFunc(b.within/bodyLooks, b.look)
	} else {
		b.next.Reset(b.within / bodyLooks)
	}
}

func (b *watchedBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	b.next.Stop()
}

// look ends a Read to which nothing has come for too long.
func (b *watchedBody) look() {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !b.reading:
	case b.looks+1 < bodyLooks:
		b.looks++
		b.next.Reset(b.within / bodyLooks)
	default:
		b.control.SetReadDeadline(time.Now()) //nolint:errcheck // a recorder has none
	}
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.begin()
	n, err := b.ReadCloser.Read(p)
	b.end()
	b.ended = b.ended || err == io.EOF
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, Errorf(http.StatusRequestTimeout, "nothing of the body came for %s", b.within)
	}
	// Whoever handles it may take longer than that before it reads on; and after the
	// end the server reads on itself, to notice that the client goes.
	b.control.SetReadDeadline(time.Time{}) //nolint:errcheck // a recorder has none
	return n, err
}

// connections keeps a server's connections within the limits.
type connections struct {
	limits limits

	mu   sync.Mutex
	open map[net.Conn]*connection
	from map[netip.Addr]int
}

type connection struct {
	addr netip.Addr
	idle bool // no request is under way
	// since is when it became idle.
	since time.Time
}

func newConnections(l limits) *connections {
	return &connections{limits: l, open: make(map[net.Conn]*connection), from: make(map[netip.Addr]int)}
}

// changed is the server's ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	var close net.Conn
	switch known := c.open[conn]; state {
	case http.StateNew:
		addr := client(conn.RemoteAddr().String())
		c.open[conn] = &connection{addr: addr, idle: true, since: time.Now()}
		c.from[addr]++
		if c.from[addr] > c.limits.connsPerAddress {
			close = c.idlest(conn, addr)
		} else if len(c.open) > c.limits.conns {
			close = c.idlest(conn, netip.Addr{})
		}
	case http.StateActive, http.StateIdle:
		if known != nil {
			known.idle, known.since = state == http.StateIdle, time.Now()
		}
	case http.StateClosed, http.StateHijacked:
		c.forget(conn)
	}
	if close != nil {
		c.forget(close)
	}
	c.mu.Unlock()
	if close != nil {
		hangUp(close)
	}
}

// hangUp closes a connection at once: what TLS says at its end would wait for a client that
// does not read.
func hangUp(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	conn.Close()
}

// idlest is the connection, of an address where one is given, that has been idle for
// longest; the new one itself where no other is.
func (c *connections) idlest(fresh net.Conn, addr netip.Addr) net.Conn {
	found := fresh
	for conn, k := range c.open {
		if conn == fresh || !k.idle || addr.IsValid() && k.addr != addr {
			continue
		}
		if found == fresh || k.since.Before(c.open[found].since) {
			found = conn
		}
	}
	return found
}

func (c *connections) forget(conn net.Conn) {
	k := c.open[conn]
	if k == nil {
		return
	}
	delete(c.open, conn)
	if c.from[k.addr]--; c.from[k.addr] == 0 {
		delete(c.from, k.addr)
	}
}

// client is whom an address belongs to: with IPv6 one has a network of 64 bits.
func client(remote string) netip.Addr {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return admission.Network(a.Addr())
}
