package devcloud

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// shutdownGrace is how long requests in flight may go on once the end is asked
// for; after it their connections are cut.
const shutdownGrace = 3 * time.Second

// httpServer hands connections to a fasthttp server, one goroutine each, and knows
// which of them are idle, so that it can end without waiting for kept-alive
// ones and without leaving a goroutine behind.
type httpServer struct {
	http  *fasthttp.Server
	slots chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	active map[net.Conn]bool // false while a connection waits for a request
	ending bool
}

func newHTTPServer(http *fasthttp.Server) *httpServer {
	s := &httpServer{
		http:   http,
		slots:  make(chan struct{}, maxConns),
		active: make(map[net.Conn]bool),
	}
	http.ConnState = s.track
	return s
}

// serve accepts connections on ln until ctx ends, and returns nil then. It
// closes ln and every connection.
func (s *httpServer) serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	err := s.accept(ctx, ln)
	ln.Close()
	s.end()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *httpServer) accept(ctx context.Context, ln net.Listener) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s.slots <- struct{}{}:
		}
		conn, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("accepting a connection: %w", err)
		}
		s.mu.Lock()
		s.active[conn] = false
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() { <-s.slots }()
			// Its errors are those of the peer: a reset, half a request.
			_ = s.http.ServeConn(conn)
			s.mu.Lock()
			delete(s.active, conn)
			s.mu.Unlock()
		})
	}
}

// track is fasthttp's ConnState hook.
func (s *httpServer) track(conn net.Conn, state fasthttp.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.active[conn]; !ok {
		return
	}
	s.active[conn] = state == fasthttp.StateActive
	if s.ending && state == fasthttp.StateIdle {
		conn.Close()
	}
}

// end closes idle connections now, the others when their request is answered
// or shutdownGrace is over, and returns when all are gone.
func (s *httpServer) end() {
	s.mu.Lock()
	s.ending = true
	for conn, active := range s.active {
		if !active {
			conn.Close()
		}
	}
	s.mu.Unlock()
	cut := time.AfterFunc(shutdownGrace, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for conn := range s.active {
			conn.Close()
		}
	})
	defer cut.Stop()
	s.wg.Wait()
}
