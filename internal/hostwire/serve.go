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
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/internal/admission"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// helloTimeout bounds the time until a host has said hello, its handshakes before
	// that, and how long a connection is kept that carries no stream.
	helloTimeout = 10 * time.Second
	// spareConns are connections that may be open beside MaxStreams: those of hosts that
	// come while their former ones are not known to be lost. As many as both may be open of
	// who has not shown yet who it is: all hosts at once.
	spareConns = 1024
	// streamsPerConn bounds the streams of one connection; a host has one.
	streamsPerConn = 2
	// maxHeader bounds the headers of a request in bytes.
	maxHeader = 8 << 10
	// shutdownTimeout is how long the ends of streams may take when the process ends.
	shutdownTimeout = 3 * time.Second
	// A host may send so many messages and bytes a second, pings among them, and some more at
	// once: a hello of the longest kind, and what it says of a switch of all its services.
	maxMessageRate, maxMessageBurst = 4, 64
	maxByteRate, maxByteBurst       = 16 << 10, 2 * (MaxFrame + headerLength)
	// renewPath is where certificates are renewed; maxRequest bounds what is asked with,
	// maxCerts the answer, in bytes. So many are made a second, and some more at once: 10,000 hosts after a night cut
	// off are through in three minutes.
	renewPath                       = "/renew"
	maxRequest, maxCerts            = 8 << 10, 64 << 10
	maxRenewalRate, maxRenewalBurst = 50, 200
	// One host may ask for so many a minute, and some more at once, whatever comes of it: it
	// needs one in eight hours, and tries again after half a minute or more.
	maxRenewalsOfOne, maxRenewalBurstOfOne = 1, 4
	// retryAfter is told to who is refused since there is no room, in seconds.
	retryAfter = "10"
)

// ServeConfig says who may have streams with an agent.
type ServeConfig struct {
	// Listener is where hosts connect; Serve closes it.
	Listener net.Listener
	// Identity is this agent's: TLS is spoken with hosts of its region alone. Nil for none.
	Identity *identity.Source
	// MaxStreams bounds the streams at a time.
	MaxStreams int
	// Handle has a stream from its hello on; when it returns, the stream ends. ctx ends
	// with the process, the host's certificate and the time that a connection may live.
	Handle func(ctx context.Context, s *Stream, h *Hello)
	// Renew makes the next certificate for a request (PKCS #10, DER) of a host of the region
	// whose certificate holds or has ended lately, and returns it in PEM. Nil where this
	// agent can make none. Hosts ask by Renewals.
	Renew func(from identity.Peer, request []byte) ([]byte, error)
	// Refused is called for each host that got no stream; nil for nobody. It must be short.
	Refused func(from netip.AddrPort, err error)
	// Slowed is called with a host's name each time that it has sent more than it may, and
	// is not read for a moment; nil for nobody. It must be short.
	Slowed func(host string)
	// Counters count what passes over all streams; nil for nobody.
	Counters *Counters
	Logger   *slog.Logger
	// timing is shortened by tests; the zero value means usualTiming.
	timing timing
}

// server is ServeConfig at work.
type server struct {
	ServeConfig
	streams  atomic.Int64
	renewals *rate.Limiter
	// renewalsOf are the same of each host.
	renewalsOf admission.Rates[identity.ID]
}

// guestKey finds a connection without TLS.
type guestKey struct{}

// Serve takes streams until ctx ends.
func Serve(ctx context.Context, cfg ServeConfig) error {
	if cfg.timing == (timing{}) {
		cfg.timing = usualTiming
	}
	s := &server{ServeConfig: cfg, renewals: rate.NewLimiter(maxRenewalRate, maxRenewalBurst)}
	s.renewalsOf = admission.Rates[identity.ID]{
		Burst: maxRenewalBurstOfOne, PerSecond: maxRenewalsOfOne / rate.Limit(60), Most: cfg.MaxStreams + spareConns,
	}
	var protocols http.Protocols
	protocols.SetHTTP2(cfg.Identity != nil)
	protocols.SetUnencryptedHTTP2(cfg.Identity == nil)
	h := &http.Server{
		Handler:           s,
		Protocols:         &protocols,
		ReadHeaderTimeout: helloTimeout,
		IdleTimeout:       helloTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: streamsPerConn, MaxReadFrameSize: maxTransportFrame, MaxEncoderHeaderTableSize: headerTable,
			MaxReceiveBufferPerConnection: minBuffer, MaxReceiveBufferPerStream: minBuffer,
			SendPingTimeout: cfg.timing.lost, PingTimeout: cfg.timing.ping, WriteByteTimeout: cfg.timing.lost,
		},
		ErrorLog:    slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	entrance := newEntrance(cfg.Listener, cfg.MaxStreams+spareConns, cfg.Identity != nil, s.refuse)
	var l net.Listener = entrance
	if cfg.Identity != nil {
		secured := secure(entrance, cfg.Identity, s.refuse)
		l, h.TLSConfig = secured, secured.cfg.Clone() // which the server changes
	} else {
		h.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, guestKey{}, c) }
	}
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }()
	select {
	case err := <-done:
		l.Close()
		return fmt.Errorf("serving hosts on %s: %w", cfg.Listener.Addr(), err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := h.Shutdown(end); err != nil {
		h.Close()
	}
	<-done
	return nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	serve := s.serve
	if r.TLS != nil && r.URL.Path == renewPath {
		serve = s.renew
	}
	code, err := serve(w, r, from)
	if err == nil {
		return
	}
	s.refuse(from, err)
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	http.Error(w, err.Error(), code)
}

func (s *server) refuse(from netip.AddrPort, err error) {
	if s.Refused != nil {
		s.Refused(from, err)
	}
}

// serve has a stream until its end. The error is why there is none.
func (s *server) serve(w http.ResponseWriter, r *http.Request, from netip.AddrPort) (code int, _ error) {
	switch {
	case r.URL.Path != Path:
		return http.StatusNotFound, fmt.Errorf("nothing is at %.80q, streams of hosts are at %s", r.URL.Path, Path)
	case r.Method != http.MethodPost || r.ProtoMajor != 2:
		return http.StatusMethodNotAllowed, fmt.Errorf("%.20s by %s, a stream is a POST by HTTP/2", r.Method, r.Proto)
	}
	ctx := r.Context()
	stream := &Stream{counters: s.Counters, Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), timing: s.timing}
	if own := s.Identity; own != nil {
		var peer identity.Peer
		var err error
		var check sync.WaitGroup
		check.Go(func() { // for the sake of this one's stack, as in secured
			if peer, err = own.PeerOf(*r.TLS); err == nil {
				err = ofRegion(peer.ID, own.ID().Region)
			}
		})
		check.Wait()
		if err != nil {
			return http.StatusForbidden, err
		}
		stream.Peer = peer
		until := own.Now().Add(identity.MaxConnectionAge)
		if ends := peer.Certificate.NotAfter; ends.Before(until) {
			until = ends
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, until.Sub(own.Now()))
		defer cancel()
	}
	if s.streams.Add(1) > int64(s.MaxStreams) {
		s.streams.Add(-1)
		return http.StatusServiceUnavailable, fmt.Errorf("%d hosts have a stream here already", s.MaxStreams)
	}
	defer s.streams.Add(-1)
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return http.StatusInternalServerError, err
	}
	m, n, err := Read(r.Body)
	if err != nil {
		return http.StatusBadRequest, fmt.Errorf("reading the hello: %w", err)
	}
	hello, ok := m.(*Hello)
	if !ok {
		return http.StatusBadRequest, fmt.Errorf("the first message is %T, expected a hello", m)
	}
	if name := stream.Peer.ID.Name; s.Identity != nil && name != hello.Host {
		return http.StatusForbidden, fmt.Errorf("the hello is of %s, the certificate of %s", hello.Host, name)
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return http.StatusInternalServerError, err
	}
	if g, ok := ctx.Value(guestKey{}).(*guest); ok {
		g.showed(identity.ID{})
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return 0, nil // it is gone
	}
	stream.counters.in(hello, n)
	stream.body = r.Body
	stream.write = func(b []byte) error {
		if _, err := w.Write(b); err != nil {
			return err
		}
		return rc.Flush()
	}
	stream.pace = s.pace(ctx, hello.Host)
	stream.hangUp = func() {}
	stream.end = func() {
		past := time.Unix(1, 0)
		rc.SetReadDeadline(past)  //nolint:errcheck // the stream is over already
		rc.SetWriteDeadline(past) //nolint:errcheck // as above
	}
	stream.begin()
	defer context.AfterFunc(ctx, func() { stream.fail(fmt.Errorf("this agent has ended the stream: %w", context.Cause(ctx))) })()
	s.Handle(ctx, stream, hello)
	// Nobody may write once this has returned.
	stream.over.Do(func() { stream.finish(errServed) })
	stream.writing.Lock()
	defer stream.writing.Unlock()
	return 0, nil
}

// renew gives a host its next certificate.
func (s *server) renew(w http.ResponseWriter, r *http.Request, _ netip.AddrPort) (code int, _ error) {
	peer, err := s.Identity.PeerForRenewal(*r.TLS)
	if err == nil {
		err = ofRegion(peer.ID, s.Identity.ID().Region)
	}
	switch {
	case err != nil:
		return http.StatusForbidden, err
	case r.Method != http.MethodPost:
		return http.StatusMethodNotAllowed, fmt.Errorf("%.20s by %s, a certificate is renewed by POST", r.Method, peer.ID)
	case s.Renew == nil:
		return http.StatusNotImplemented, errors.New("this agent has no key of the authority of its region's hosts (agent run --host-authority DIR)")
	case !s.renewalsOf.Take(peer.ID, false, time.Now()):
		return http.StatusServiceUnavailable, fmt.Errorf("%s has asked for several certificates just now, one a minute is enough", peer.ID)
	case !s.renewals.Allow():
		return http.StatusServiceUnavailable, fmt.Errorf("%s wants a certificate, too many were made just now", peer.ID)
	}
	request, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return http.StatusBadRequest, fmt.Errorf("reading the request of %s for a certificate: %w", peer.ID, err)
	}
	pem, err := s.Renew(peer, request)
	if err != nil {
		return http.StatusForbidden, err
	}
	_, _ = w.Write(pem) // who asked has gone
	return 0, nil
}

// pace holds up who reads from a host that sends more than it may: what comes meanwhile
// waits at the host.
func (s *server) pace(ctx context.Context, host string) func(bytes int) {
	messages := rate.NewLimiter(maxMessageRate, maxMessageBurst)
	bytes := rate.NewLimiter(maxByteRate, maxByteBurst)
	return func(n int) {
		now := time.Now()
		wait := max(messages.ReserveN(now, 1).DelayFrom(now), bytes.ReserveN(now, n).DelayFrom(now))
		if wait == 0 {
			return
		}
		if s.Slowed != nil {
			s.Slowed(host)
		}
		retry.Wait(ctx, wait)
	}
}

var errServed = errors.New("the stream was served to its end")

func ofRegion(id identity.ID, region string) error {
	if id.Kind != identity.Host || id.Region != region {
		return fmt.Errorf("%s is no host of %s", id, region)
	}
	return nil
}
