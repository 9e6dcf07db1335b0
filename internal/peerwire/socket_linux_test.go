package peerwire

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// A request that waits on our own uplink, behind what goes to the same peer, has not
// reached it.
func TestRequestHasReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()

	c := new(Wire).watch(new(Wire).newLink(ours), [20]byte{}, "")
	var m Mark
	reached := func() bool { return c.Reached(&m) }
	if reached() {
		t.Error("reached before anything was written")
	}
	request := []byte("request")
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	eventually(t, reached)

	// Now behind more than both machines buffer.
	m = c.Mark()
	ours.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for err = nil; err == nil; {
		_, err = c.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if reached() {
		t.Error("reached a peer that reads nothing")
	}
	go io.Copy(io.Discard, theirs)
	eventually(t, reached)
}

// The same through TLS: what the peer's machine has not acknowledged is read from the socket.
func TestRequestHasReachedThroughTLS(t *testing.T) {
	agent, seeder, below := securePair(t)
	agent.socket.Conn = below.Conn // as it is where nobody counts
	c := new(Wire).watch(agent, [20]byte{}, "")
	var m Mark
	reached := func() bool { return c.Reached(&m) }
	if _, err := c.Write([]byte("request")); err != nil {
		t.Fatal(err)
	}
	eventually(t, reached)
	m = c.Mark()
	c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	var err error
	for err == nil {
		_, err = c.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if reached() || unacknowledged(below.Conn) == 0 {
		t.Error("reached a peer that reads nothing")
	}
	go io.Copy(io.Discard, seeder)
	eventually(t, reached)
}
