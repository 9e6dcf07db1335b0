package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// started serves a handler within limits until the test ends, and returns the address.
func started(t *testing.T, h http.Handler, most limits) string {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serveWithin(ctx, l, h, slog.New(slog.DiscardHandler), most) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// short are limits that are reached at once where they are times, and not where they are
// counts.
func short() limits {
	l := usualLimits
	l.header, l.idle, l.body = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	return l
}

func status(t *testing.T, c net.Conn) int {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

// reading answers as those handlers do that read a body: as JSON, or as an upload.
func reading() http.Handler {
	m := mux(nil)
	m.JSON("POST /json", func(r *http.Request) (int, any, error) {
		var into map[string]any
		return http.StatusOK, nil, Read(r, &into)
	})
	m.JSON("PUT /upload", func(r *http.Request) (int, any, error) {
		_, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			err = fmt.Errorf("uploading: %w", err)
		}
		return http.StatusOK, nil, err
	})
	return m
}

func TestStalledBody(t *testing.T) {
	addr := started(t, reading(), short())
	for _, start := range []string{"POST /json HTTP/1.1\r\nContent-Type: application/json", "PUT /upload HTTP/1.1"} {
		for _, length := range []string{"Content-Length: 1000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "Content-Length: 10\r\n\r\n"} {
			c := dial(t, addr)
			fmt.Fprintf(c, "%s\r\nHost: localhost\r\n%s", start, length)
			if code := status(t, c); code != http.StatusRequestTimeout {
				t.Errorf("%s, %q: %d", start, length, code)
			}
		}
	}
}

// A process that stood still has not heard what came meanwhile: a late look ends no body.
func TestBodyOfWhoStoodStill(t *testing.T) {
	body := &slowBody{}
	b := &watchedBody{control: http.NewResponseController(body), within: time.Hour}
	b.begin()
	for range bodyLooks - 1 {
		b.look()
	}
	b.end()
	b.look() // was on its way
	b.begin()
	for range bodyLooks - 1 {
		b.look()
	}
	if len(body.deadlines) > 0 {
		t.Errorf("it is ended before the last look of %d", bodyLooks)
	}
	b.look()
	if b.end(); len(body.deadlines) != 1 {
		t.Errorf("it is not ended by the last look: %v", body.deadlines)
	}
}

// What is answered without a look at the body waits for it no longer than that, and not
// at all for a client that waits to be asked.
func TestBodyThatNobodyReads(t *testing.T) {
	m := mux(nil)
	m.JSON("PUT /refused", func(*http.Request) (int, any, error) {
		return 0, nil, Errorf(http.StatusRequestEntityTooLarge, "too long")
	})
	hours := usualLimits
	hours.body = time.Hour
	for expect, most := range map[string]limits{"": short(), "Expect: 100-continue\r\n": hours} {
		c := dial(t, started(t, m, most))
		fmt.Fprintf(c, "PUT /refused HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: 1000\r\n\r\n", expect)
		if code := status(t, c); code != http.StatusRequestEntityTooLarge {
			t.Errorf("%q: %d", expect, code)
		}
	}
}

// A body may take as long as it likes while something comes, and so may what is done
// with it.
func TestSlowBody(t *testing.T) {
	m := mux(nil)
	reached := make(chan struct{})
	m.JSON("PUT /upload", func(r *http.Request) (int, any, error) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return 0, nil, err
		}
		close(reached)
		select {
		case <-r.Context().Done():
			return 0, nil, errors.New("the request has ended while it is worked on")
		case <-time.After(200 * time.Millisecond): // four times what a byte may take
		}
		return http.StatusOK, nil, nil
	})
	most := usualLimits
	most.body = 50 * time.Millisecond
	c := dial(t, started(t, m, most))
	fmt.Fprintf(c, "PUT /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc")
	<-reached
	if code := status(t, c); code != http.StatusOK {
		t.Error(code)
	}
	// The clock starts anew with each byte.
	body := &slowBody{}
	w := &watchedBody{ReadCloser: body, control: http.NewResponseController(body), within: time.Minute}
	body.waits = func() {
		for range bodyLooks - 1 {
			w.look()
		}
	}
	for range 3 {
		if _, err := w.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range body.deadlines {
		if !d.IsZero() {
			t.Errorf("a body is ended of which something comes: %v", body.deadlines)
		}
	}
}

// slowBody remembers which deadlines it is given.
type slowBody struct {
	httptest.ResponseRecorder
	waits     func() // before a byte comes
	deadlines []time.Time
}

func (b *slowBody) Read(p []byte) (int, error) { b.waits(); return copy(p, "x"), nil }
func (b *slowBody) Close() error               { return nil }
func (b *slowBody) SetReadDeadline(d time.Time) error {
	b.deadlines = append(b.deadlines, d)
	return nil
}

func TestIdleConnections(t *testing.T) {
	addr := started(t, reading(), short())
	for name, sent := range map[string]string{
		"nothing":         "",
		"half a header":   "GET /healthz HTTP/1.1\r\nHost: loc",
		"a whole request": "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		c := dial(t, addr)
		io.WriteString(c, sent)                  //nolint:errcheck // reading says
		if _, err := io.ReadAll(c); err != nil { // until the server closes
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLongHeaders(t *testing.T) {
	c := dial(t, started(t, reading(), usualLimits))
	go fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*usualLimits.headerBytes))
	if code := status(t, c); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Error(code)
	}
}

// Connections that idle give way; one address cannot have all.
func TestConnectionsAreBounded(t *testing.T) {
	most := usualLimits
	most.conns, most.connsPerAddress = 8, 4
	addr := started(t, reading(), most)
	first := dial(t, addr)
	for range most.connsPerAddress {
		c := dial(t, addr)
		fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if code := status(t, c); code != http.StatusOK {
			t.Fatal(code)
		}
	}
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !isReset(err) {
		t.Errorf("the one that idled for longest: %v", err)
	}

	conns := newConnections(most)
	at := func(ip string) net.Conn { return &fakeConn{addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}} }
	busy := at("192.0.2.9")
	conns.changed(busy, http.StateNew)
	conns.changed(busy, http.StateActive)
	for i := range 4 * most.conns {
		conns.changed(at(fmt.Sprintf("192.0.2.%d", 10+i)), http.StateNew)
		conns.changed(at("2001:db8::"+fmt.Sprint(i)), http.StateNew)
	}
	if len(conns.open) != most.conns || conns.open[busy] == nil {
		t.Errorf("%d connections, the busy one is there: %v", len(conns.open), conns.open[busy] != nil)
	}
	for addr, n := range conns.from {
		if n > most.connsPerAddress {
			t.Errorf("%s has %d", addr, n)
		}
	}
	for c := range conns.open {
		conns.changed(c, http.StateClosed)
	}
	if len(conns.open)+len(conns.from) != 0 {
		t.Errorf("left: %v %v", conns.open, conns.from)
	}
}

func isReset(err error) bool { return err != nil && strings.Contains(err.Error(), "reset") }

type fakeConn struct {
	net.Conn
	addr net.Addr
}

func (c *fakeConn) RemoteAddr() net.Addr { return c.addr }
func (c *fakeConn) Close() error         { return nil }

func TestCostlyRequestsAreBounded(t *testing.T) {
	busy := make(turns, maxAtOnce)
	r := httptest.NewRequest("GET", "/", nil)
	var last func()
	for range maxAtOnce {
		done, err := busy.take(r, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		last = done
	}
	_, err := busy.take(r, time.Millisecond)
	if e := new(Error); !errors.As(err, &e) || e.Code != http.StatusServiceUnavailable || e.RetryAfter == 0 {
		t.Errorf("one too many: %v", err)
	}
	last()
	if _, err := busy.take(r, time.Minute); err != nil {
		t.Error(err)
	}

	m := mux(nil)
	m.JSON("GET /busy", func(*http.Request) (int, any, error) {
		return 0, nil, &Error{Code: http.StatusServiceUnavailable, Err: errors.New("busy"), RetryAfter: 1500 * time.Millisecond}
	})
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/busy", nil))
	if w.Code != 503 || w.Header().Get("Retry-After") != "2" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}
