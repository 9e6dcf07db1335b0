package hostwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serving is an agent's side on loopback, until the test ends.
type serving struct {
	url     string
	refused chan error
	end     func()
}

func serve(t *testing.T, cfg ServeConfig) *serving {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &serving{url: "http://" + l.Addr().String(), refused: make(chan error, 100)}
	if cfg.Identity != nil {
		s.url = "https://" + l.Addr().String()
	}
	cfg.Listener, cfg.Logger = l, slog.New(slog.DiscardHandler)
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 10
	}
	cfg.Refused = func(_ netip.AddrPort, err error) { s.refused <- err }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, cfg) }()
	var ended atomic.Bool
	s.end = func() {
		if cancel(); ended.CompareAndSwap(false, true) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(s.end)
	return s
}

func dialTo(t *testing.T, s *serving, cfg DialConfig) *Stream {
	t.Helper()
	cfg.URL = s.url
	if cfg.Hello == nil {
		cfg.Hello = hello()
	}
	stream, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stream.Close)
	return stream
}

// echo answers every holds with a leave whose version is the segments.
func echo(_ context.Context, s *Stream, _ *Hello) {
	for {
		m, err := s.Receive()
		if err != nil {
			return
		}
		if h, ok := m.(*Holds); ok {
			if s.Send(&Leave{"web", int64(h.Segments), 30}) != nil {
				return
			}
		}
	}
}

func TestMessagesGoBothWays(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, ServeConfig{Handle: func(ctx context.Context, s *Stream, h *Hello) {
		if h.Host != "host-1" || !s.Remote.Addr().IsLoopback() {
			t.Errorf("%+v from %s", h, s.Remote)
		}
		echo(ctx, s, h)
		ended <- s.Err()
	}})
	var passed Counters
	stream := dialTo(t, s, DialConfig{Counters: &passed})
	for i := range 20 {
		if err := stream.Send(&Holds{ulid1, i + 1, false}); err != nil {
			t.Fatal(err)
		}
		m, err := stream.Receive()
		if l, ok := m.(*Leave); err != nil || !ok || l.Version != int64(i+1) {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	for kind, want := range map[string][2]int64{"hello": {1, 0}, "holds": {20, 0}, "leave": {0, 20}, "goal": {}, otherKind: {}} {
		if sent, received := passed.Messages(kind); sent != want[0] || received != want[1] {
			t.Errorf("%s: %d sent, %d received", kind, sent, received)
		}
	}
	if sent, received := passed.Bytes(); sent < 21*10 || received < 20*10 {
		t.Errorf("%d bytes sent, %d received", sent, received)
	}
	if !stream.Remote.Addr().IsLoopback() {
		t.Errorf("remote %s", stream.Remote)
	}
	go stream.Receive() //nolint:errcheck // somebody reads while it is closed
	stream.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("an orderly end is %v", err)
	}
	if err := stream.Send(&Ping{}); err == nil {
		t.Error("sent after the end")
	}
}

// A process that ends breaks its streams in order, too.
func TestAgentEnds(t *testing.T) {
	s := serve(t, ServeConfig{Handle: echo})
	stream := dialTo(t, s, DialConfig{})
	go s.end()
	if _, err := stream.Receive(); err == nil {
		t.Error("received after the agent's end")
	}
}

// A connection that breaks is no orderly end.
func TestBrokenConnection(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	s := serve(t, ServeConfig{Handle: func(ctx context.Context, s *Stream, h *Hello) {
		close(begun)
		echo(ctx, s, h)
		ended <- s.Err()
	}})
	relay := newRelay(t, strings.TrimPrefix(s.url, "http://"))
	stream, err := Dial(t.Context(), DialConfig{URL: "http://" + relay.addr, Hello: hello()})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	<-begun // else the agent may find that it is gone before it is handed on
	relay.cut()
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a broken connection is %v", err)
	}
	if _, err := stream.Receive(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a broken connection is %v", err)
	}
}

// Both sides say that they are there, and find out when the other is silent.
func TestSilence(t *testing.T) {
	quick := timing{ping: 20 * time.Millisecond, lost: 10 * time.Second}
	var atAgent, atHost Counters
	s := serve(t, ServeConfig{timing: quick, Counters: &atAgent, Handle: echo})
	stream := dialTo(t, s, DialConfig{timing: quick, Counters: &atHost})
	done := make(chan error, 1)
	go func() { _, err := stream.Receive(); done <- err }()
	for {
		agentSent, agentReceived := atAgent.Messages("ping")
		if _, received := atHost.Messages("ping"); agentReceived > 3 && agentSent > 3 && received > 3 {
			break
		}
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	stream.Close()
	<-done
}

func TestSilentSideIsLost(t *testing.T) {
	mute := timing{ping: time.Hour, lost: time.Hour}
	quick := timing{ping: time.Hour, lost: 100 * time.Millisecond}
	ended := make(chan error, 1)
	handle := func(ctx context.Context, s *Stream, h *Hello) {
		echo(ctx, s, h)
		ended <- s.Err()
	}
	t.Run("host", func(t *testing.T) {
		s := serve(t, ServeConfig{timing: quick, Handle: handle})
		dialTo(t, s, DialConfig{timing: mute})
		if err := <-ended; !errors.Is(err, ErrLost) {
			t.Error(err)
		}
	})
	t.Run("agent", func(t *testing.T) {
		s := serve(t, ServeConfig{timing: mute, Handle: handle})
		stream := dialTo(t, s, DialConfig{timing: quick})
		if _, err := stream.Receive(); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		<-ended
	})
}

// A host that takes nothing does not hold up who sends for ever.
func TestHostThatDoesNotRead(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, ServeConfig{timing: timing{ping: time.Hour, lost: time.Second}, Handle: func(_ context.Context, s *Stream, _ *Hello) {
		defer func() { ended <- s.Err() }()
		go func() {
			for {
				if _, err := s.Receive(); err != nil {
					return
				}
			}
		}()
		for s.Send(&Goal{make([]byte, MaxDocument)}) == nil {
			continue
		}
	}})
	stream := dialTo(t, s, DialConfig{timing: timing{ping: 100 * time.Millisecond, lost: time.Hour}})
	if err := <-ended; !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	_ = stream
}

// Who may have no stream hears why.
func TestRefused(t *testing.T) {
	s := serve(t, ServeConfig{MaxStreams: 1, Handle: echo})
	dialTo(t, s, DialConfig{})
	second := hello()
	second.Host = "host-2"
	_, err := Dial(t.Context(), DialConfig{URL: s.url, Hello: second})
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != http.StatusServiceUnavailable {
		t.Errorf("beyond the most: %v", err)
	}
	if err := <-s.refused; err == nil {
		t.Error("nobody heard of it")
	}
}

func TestWrongRequests(t *testing.T) {
	s := serve(t, ServeConfig{Handle: echo})
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	c := &http.Client{Transport: &http.Transport{Protocols: &protocols}}
	defer c.CloseIdleConnections()
	for name, want := range map[string]int{
		"GET " + Path:             http.StatusMethodNotAllowed,
		"POST /":                  http.StatusNotFound,
		"POST " + Path:            http.StatusBadRequest,
		"POST " + Path + " leave": http.StatusBadRequest,
	} {
		var method, path, body string
		fmt.Sscan(name, &method, &path, &body)
		if body != "" {
			e, err := Encode(&Leave{"web", 1, 1})
			if err != nil {
				t.Fatal(err)
			}
			body = string(e)
		}
		r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.Do(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %d, expected %d", name, answer.StatusCode, want)
		}
	}
}

// A host that lies in a later message is out, and the agent says why.
func TestMalformedMessageEndsTheStream(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, ServeConfig{Handle: func(ctx context.Context, s *Stream, h *Hello) {
		echo(ctx, s, h)
		ended <- s.Err()
	}})
	stream := dialTo(t, s, DialConfig{})
	if err := stream.SendEncoded(Encoded{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// relay passes one connection on until it is cut.
type relay struct {
	addr  string
	conns chan net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String(), conns: make(chan net.Conn, 2)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		from, err := l.Accept()
		if err != nil {
			return
		}
		on, err := net.Dial("tcp", to)
		if err != nil {
			from.Close()
			return
		}
		r.conns <- from
		r.conns <- on
		back := make(chan struct{})
		go func() { io.Copy(from, on); close(back) }() //nolint:errcheck // it ends when cut
		io.Copy(on, from)                              //nolint:errcheck // as above
		from.Close()
		on.Close()
		<-back
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return r
}

func (r *relay) cut() {
	for range 2 {
		c := <-r.conns
		c.(*net.TCPConn).SetLinger(0) //nolint:errcheck // then it ends in order
		c.Close()
	}
}

// A host that floods its agent is slowed and named; what it sends waits at the host.
func TestFlood(t *testing.T) {
	slowed := make(chan string, 1)
	s := serve(t, ServeConfig{Handle: echo, Slowed: func(host string) {
		select {
		case slowed <- host:
		default:
		}
	}})
	stream := dialTo(t, s, DialConfig{})
	const many = 200_000
	sent := make(chan int)
	go func() {
		n := 0
		for ; n < many && stream.SendEncoded(encodedPing) == nil; n++ {
			continue
		}
		sent <- n
	}()
	if host := <-slowed; host != "host-1" {
		t.Errorf("%s is named", host)
	}
	go stream.Receive() //nolint:errcheck // somebody reads while it is closed
	stream.Close()
	if n := <-sent; n == many {
		t.Error("all of it was taken")
	}
}
