package call

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/identity"
)

// maxConns bounds the connections that are served at a time, maxOfOne those of one
// identity: each member keeps one, and a renewal may be a second.
const (
	maxConns = 1024
	maxOfOne = 4
	// maxStrangers bounds the connections at a time of who has no certificate yet,
	// maxOfAddress those from one network.
	maxStrangers = 32
	maxOfAddress = 4
)

// What one identity may ask for: allowance units at once and refill more each second. A message
// costs one, of which an agent sends some each second; one about the fleet is longer, of which
// there is about one a second, and a second's worth when a member has just come; a hello is read once by each member, and
// a certificate, which is signed and logged, is renewed once a day; a deny list may be long, and
// is read when it is another one.
const (
	allowance, refill                                          = 512, 64
	costMessage, costFleet, costHello, costDenied, costRenewal = 1, 8, 8, 64, 64
	// maxAllowances bounds the identities whose allowance is remembered: every member, and
	// who was one lately.
	maxAllowances = 2048
)

// Handlers answer calls. The peers they get were verified as the call came.
type Handlers struct {
	// Hello is what this member says of itself.
	Hello func() Hello
	// Message takes a message; the error is told to who sent it.
	Message func(from identity.Peer, message []byte) error
	// Fleet takes a message about the fleet; nil where nobody does.
	Fleet func(from identity.Peer, message []byte) error
	// Denied are the certificates that this seeder denies; nil of who is none.
	Denied func() string
	// Renew makes a certificate for a request (PKCS #10, DER) of who has one that is
	// valid or has ended lately, and returns it in PEM, with what is between it and the
	// root. Nil where this member can make none.
	Renew func(from identity.Peer, request []byte) ([]byte, error)
	// Enrolment gives first certificates; nil where this member can give none.
	Enrolment *Enrolment
}

// Server answers the calls on connections that it is handed.
type Server struct {
	source   *identity.Source
	handlers Handlers
	http     *http.Server
	conns    chan net.Conn
	done     chan struct{}
	wg       sync.WaitGroup

	mu        sync.Mutex
	total     int
	counts    map[identity.ID]int
	rates     map[identity.ID]*rate.Limiter
	strangers admission.Room[*served]
}

// NewServer serves until Close.
func NewServer(source *identity.Source, handlers Handlers, logger *slog.Logger) *Server {
	s := &Server{
		source: source, handlers: handlers,
		conns: make(chan net.Conn), done: make(chan struct{}),
		counts: make(map[identity.ID]int), rates: make(map[identity.ID]*rate.Limiter),
		strangers: admission.Room[*served]{Most: maxStrangers, PerOrigin: maxOfAddress},
	}
	enrolment := http.NewServeMux()
	enrolment.HandleFunc("POST /enrol", s.enrol)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", s.hello)
	mux.HandleFunc("GET /denied", s.denied)
	mux.HandleFunc("POST /message", s.messages(costMessage, MaxMessage, handlers.Message))
	mux.HandleFunc("POST /fleet", s.messages(costFleet, MaxFleet, handlers.Fleet))
	mux.HandleFunc("POST /renew", s.renew)
	s.http = &http.Server{
		// Who has no certificate gets to nothing but enrolment.
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c, ok := r.Context().Value(connKey{}).(*served); ok && !c.stranger {
				mux.ServeHTTP(w, r)
			} else {
				enrolment.ServeHTTP(w, r)
			}
		}),
		ReadHeaderTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: idle,
		MaxHeaderBytes: 8 << 10,
		ErrorLog:       log.New(quiet{logger}, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	s.wg.Go(func() { _ = s.http.Serve(listener{s}) }) // ErrServerClosed
	return s
}

// Hand serves a connection whose handshake is done, for CallProto. It never blocks for
// long; a connection that finds no place is closed.
func (s *Server) Hand(conn *tls.Conn) {
	p, err := s.source.PeerForRenewal(conn.ConnectionState())
	if err != nil || !s.enter(p.ID) {
		conn.Close()
		return
	}
	s.pass(&served{Conn: conn, since: s.source.Now(), left: sync.OnceFunc(func() { s.leave(p.ID) })})
}

// HandStranger is Hand for EnrolProto, whose client has shown no certificate. Where there are
// too many such, the oldest of the network that has most goes.
func (s *Server) HandStranger(conn *tls.Conn) {
	if s.handlers.Enrolment == nil || conn.ConnectionState().NegotiatedProtocol != identity.EnrolProto {
		conn.Close()
		return
	}
	c := &served{Conn: conn, since: s.source.Now(), stranger: true}
	c.left = func() { s.strangers.Leave(c) }
	out, full := s.strangers.Enter(c, admission.From(addressOf(conn.RemoteAddr()), false))
	if full {
		out.Close()
	}
	s.pass(c)
}

func (s *Server) pass(c *served) {
	select {
	case s.conns <- c:
	case <-s.done:
		c.Close()
	}
}

// Close ends the connections and waits for the handlers.
func (s *Server) Close() error {
	close(s.done)
	err := s.http.Close()
	s.wg.Wait()
	return err
}

func (s *Server) enter(id identity.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= maxConns || s.counts[id] >= maxOfOne {
		return false
	}
	s.total++
	s.counts[id]++
	return true
}

func (s *Server) leave(id identity.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.counts[id]--; s.counts[id] == 0 {
		delete(s.counts, id)
	}
}

// mayCost reports whether an identity has not asked for too much lately.
func (s *Server) mayCost(id identity.ID, n int, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rates[id]
	if r == nil {
		if len(s.rates) >= maxAllowances {
			maps.DeleteFunc(s.rates, func(_ identity.ID, r *rate.Limiter) bool { return r.TokensAt(now) >= allowance })
		}
		if len(s.rates) >= maxAllowances {
			return false
		}
		r = rate.NewLimiter(refill, allowance)
		s.rates[id] = r
	}
	return r.AllowN(now, n)
}

// served hides the type of a connection: net/http would look for a protocol of its own.
type served struct {
	net.Conn
	since    time.Time
	left     func()
	stranger bool
}

func (c *served) Close() error {
	c.left()
	return c.Conn.Close()
}

type connKey struct{}

// peer is who calls, verified anew; false, and answered, for who is refused or asks for too
// much.
func (s *Server) peer(w http.ResponseWriter, r *http.Request, of func(tls.ConnectionState) (identity.Peer, error), cost int) (identity.Peer, bool) {
	c, ok := r.Context().Value(connKey{}).(*served)
	if !ok {
		http.Error(w, "no connection", http.StatusInternalServerError)
		return identity.Peer{}, false
	}
	if s.source.Now().Sub(c.since) > identity.MaxConnectionAge {
		w.Header().Set("Connection", "close")
	}
	p, err := of(c.Conn.(*tls.Conn).ConnectionState())
	if err != nil {
		w.Header().Set("Connection", "close")
		http.Error(w, err.Error(), http.StatusForbidden)
		return p, false
	}
	if !s.mayCost(p.ID, cost, time.Now()) {
		w.Header().Set("Connection", "close")
		http.Error(w, p.ID.String()+" asks for too much at once, wait a second", http.StatusTooManyRequests)
		return p, false
	}
	return p, true
}

func (s *Server) hello(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.peer(w, r, s.source.PeerOf, costHello); !ok {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.handlers.Hello()) // who asked has gone
}

func (s *Server) denied(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.peer(w, r, s.source.PeerOf, costDenied); !ok {
		return
	}
	if s.handlers.Denied == nil {
		http.Error(w, "what is denied is for seeders to say", http.StatusNotImplemented)
		return
	}
	_, _ = io.WriteString(w, s.handlers.Denied()) // who asked has gone
}

// messages takes messages of one sort, each of which costs so much and has at most so many
// bytes.
func (s *Server) messages(cost, most int, take func(identity.Peer, []byte) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, ok := s.peer(w, r, s.source.PeerOf, cost)
		if !ok {
			return
		}
		if take == nil {
			http.Error(w, "this member takes no such messages", http.StatusNotImplemented)
			return
		}
		b, err := readAll(r.Body, most)
		if err == nil {
			err = take(p, b)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request) {
	p, ok := s.peer(w, r, s.source.PeerForRenewal, costRenewal)
	if !ok {
		return
	}
	if s.handlers.Renew == nil {
		http.Error(w, "this member has no authority's key to renew certificates with (seeder run --ca DIR)", http.StatusNotImplemented)
		return
	}
	b, err := readAll(r.Body, maxRequest)
	if err == nil {
		b, err = s.handlers.Renew(p, b)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	_, _ = w.Write(b) // who asked has gone
}

// listener is what net/http accepts from.
type listener struct{ s *Server }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.conns:
		return c, nil
	case <-l.s.done:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "tcp" }
func (addr) String() string  { return identity.CallProto }

// quiet is net/http's log, which others can write to.
type quiet struct{ logger *slog.Logger }

func (q quiet) Write(b []byte) (int, error) {
	q.logger.Debug("call", "text", string(b))
	return len(b), nil
}

var _ io.Writer = quiet{}

// errRefused is what the other side has said.
var errRefused = errors.New("the other side refuses")
