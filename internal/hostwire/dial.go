package hostwire

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

const (
	// dialTimeout bounds connecting, and dialing until the agent has answered.
	dialTimeout, answerTimeout = 10 * time.Second, 20 * time.Second
	// closeTimeout is how long the end of a stream waits for the agent's.
	closeTimeout = 2 * time.Second
	// proto is what TLS connections of streams carry, as ALPN names it (RFC 9113, 3.1).
	proto = "h2"
	// maxRefusal bounds the text of an agent that refuses, in bytes.
	maxRefusal = 1 << 10
	// minBuffer is the least that the implementation of HTTP/2 allows for what has come
	// and was not read yet, in bytes.
	minBuffer = 64 << 10
	// maxTransportFrame bounds frames of HTTP/2 in bytes: the least that there may be.
	maxTransportFrame = 16 << 10
	// headerTable bounds what is kept of headers, so as to send them shorter the next time
	// (RFC 7541, 2.3.2), in bytes, by both ends: nothing, since a stream has headers once. It
	// would be 1 KiB a stream.
	headerTable = 1
)

// RefusedError is an agent's answer to who may not have a stream, or not now.
type RefusedError struct {
	Code int // of HTTP
	Text string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the agent has refused the stream: %s (%d)", e.Text, e.Code)
}

// DialConfig says where a host's stream goes.
type DialConfig struct {
	// URL is an agent's address for hosts, such as http://10.0.0.1:7090.
	URL string
	// TLS is what ClientTLS makes; nil without.
	TLS *tls.Config
	// Hello is what is said first.
	Hello *Hello
	// Counters count what passes; nil for nobody.
	Counters *Counters
	// timing is shortened by tests; the zero value means usualTiming.
	timing timing
}

// ClientTLS is the configuration of a host, which speaks to agents of its own region.
func ClientTLS(own *identity.Source) *tls.Config {
	region := own.ID().Region
	return own.Client(proto, func(id identity.ID) error {
		if id.Kind != identity.Agent || id.Region != region {
			return fmt.Errorf("expected an agent of %s, the other side is %s", region, id)
		}
		return nil
	})
}

// Order is in which order a host asks its region's agents, by their URLs, for a stream: by
// rendezvous, so that each agent has about as many hosts, and a host the same one after a
// restart. An agent that is named twice is in it once.
func Order(host string, agents []string) []string {
	agents = slices.Compact(slices.Sorted(slices.Values(agents)))
	rank := func(agent string) uint64 {
		sum := sha256.Sum256([]byte(host + "\x00" + agent))
		return binary.BigEndian.Uint64(sum[:])
	}
	slices.SortFunc(agents, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	return agents
}

// Dial opens a stream, says hello, and waits until the agent has taken it. The error is a
// *RefusedError where it has not. ctx ends dialing alone: Close ends the stream.
func Dial(ctx context.Context, cfg DialConfig) (*Stream, error) {
	s, err := dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening a fleet's stream to %s: %w", cfg.URL, err)
	}
	return s, nil
}

func dial(ctx context.Context, cfg DialConfig) (*Stream, error) {
	hello, err := Encode(cfg.Hello)
	if err != nil {
		return nil, err
	}
	if cfg.timing == (timing{}) {
		cfg.timing = usualTiming
	}
	var protocols http.Protocols
	protocols.SetHTTP2(cfg.TLS != nil)
	protocols.SetUnencryptedHTTP2(cfg.TLS == nil)
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     cfg.TLS,
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           &protocols,
		DisableCompression:  true,
		HTTP2: &http.HTTP2Config{
			MaxReadFrameSize: maxTransportFrame, MaxEncoderHeaderTableSize: headerTable,
			MaxReceiveBufferPerConnection: minBuffer, MaxReceiveBufferPerStream: minBuffer,
			SendPingTimeout: cfg.timing.lost, PingTimeout: cfg.timing.ping, WriteByteTimeout: cfg.timing.lost,
		},
	}
	ending, end := context.WithCancel(context.WithoutCancel(ctx))
	up, body := io.Pipe()
	s := &Stream{counters: cfg.Counters, timing: cfg.timing}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(ending, &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) {
			if a, ok := c.Conn.RemoteAddr().(*net.TCPAddr); ok {
				s.Remote = a.AddrPort()
			}
		},
	}), http.MethodPost, strings.TrimSuffix(cfg.URL, "/")+Path, up)
	if err != nil {
		end()
		return nil, err
	}
	// While it is dialed, ctx and the time end it.
	late := time.AfterFunc(answerTimeout, end)
	stop := context.AfterFunc(ctx, end)
	give := func() {
		body.CloseWithError(errors.New("the stream has ended"))
		end()
		transport.CloseIdleConnections()
	}
	go body.Write(hello) //nolint:errcheck // the answer says it
	answer, err := transport.RoundTrip(r)
	inTime, goesOn := late.Stop(), stop()
	if err == nil && answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, maxRefusal))
		answer.Body.Close()
		err = &RefusedError{answer.StatusCode, Line(string(text))}
	}
	switch {
	case err == nil && inTime && goesOn:
	case !goesOn && ctx.Err() != nil:
		err = ctx.Err()
	case !inTime:
		err = fmt.Errorf("no answer within %s", answerTimeout)
	}
	if err != nil {
		give()
		return nil, err
	}
	if cfg.TLS != nil && answer.TLS != nil {
		// It was verified in the handshake.
		s.Peer.Certificate = answer.TLS.PeerCertificates[0]
		s.Peer.ID, _ = identity.Of(s.Peer.Certificate)
	}
	s.counters.out(hello)
	finished := make(chan struct{})
	s.body = &ends{answer.Body, finished}
	s.write = func(b []byte) error { _, err := body.Write(b); return err }
	s.hangUp = func() {
		body.Close()
		// The agent's end is waited for: breaking off at once would overtake ours.
		if s.reading.TryLock() { // nobody reads
			go func() {
				defer s.reading.Unlock()
				io.Copy(io.Discard, s.body) //nolint:errcheck // it ends with the stream
			}()
		}
		select {
		case <-finished:
		case <-time.After(closeTimeout):
		case <-ending.Done():
		}
	}
	s.end = func() { give(); answer.Body.Close() }
	s.begin()
	return s, nil
}

// ends says when a body has come to its end.
type ends struct {
	io.ReadCloser
	finished chan struct{}
}

func (e *ends) Read(b []byte) (int, error) {
	n, err := e.ReadCloser.Read(b)
	if err != nil {
		select {
		case <-e.finished:
		default:
			close(e.finished)
		}
	}
	return n, err
}
