package call

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/landfall-dist/landfall/internal/identity"
)

// Client calls members at the address of their gossip, as host:port. It is safe for
// concurrent use.
type Client struct {
	source *identity.Source
	// once connects for one call, kept keeps a connection to each seeder, fleet one to
	// each member.
	once, kept, fleet *http.Client
}

// NewClient calls with a source's certificate.
func NewClient(source *identity.Source) *Client {
	c := &Client{source: source}
	c.once = c.client(nil, true)
	c.kept = c.client(func(id identity.ID) error {
		if id.Kind != identity.Seeder {
			return fmt.Errorf("expected a seeder, the other side is %s", id)
		}
		return nil
	}, false)
	c.fleet = c.client(func(id identity.ID) error {
		if id.Kind == identity.Host {
			return fmt.Errorf("expected a member, the other side is %s", id)
		}
		return nil
	}, false)
	return c
}

func (c *Client) client(expect func(identity.ID) error, once bool) *http.Client {
	return &http.Client{
		Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return (&tls.Dialer{Config: c.source.Client(identity.CallProto, expect)}).DialContext(ctx, network, addr)
			},
			DisableKeepAlives: once, DisableCompression: true,
			MaxConnsPerHost: 1, MaxIdleConns: 64, IdleConnTimeout: idle / 2,
			ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: 8 << 10,
		},
	}
}

// Close ends idle connections; so is it done when the own certificate has changed.
func (c *Client) Close() {
	c.once.CloseIdleConnections()
	c.kept.CloseIdleConnections()
	c.fleet.CloseIdleConnections()
}

// Hello asks a member who it is and what it says of itself.
func (c *Client) Hello(ctx context.Context, addr string) (identity.Peer, Hello, error) {
	p, b, err := c.do(ctx, c.once, http.MethodGet, addr, "/hello", nil, MaxHello)
	if err != nil {
		return p, Hello{}, err
	}
	h, err := parseHello(b)
	if err == nil && p.ID.Kind != identity.Seeder {
		h.Serves, h.Denied = nil, "" // which is not its to say
	}
	return p, h, wrap("hello of", p.ID, err)
}

// Send brings a seeder a message.
func (c *Client) Send(ctx context.Context, addr string, message []byte) error {
	_, _, err := c.do(ctx, c.kept, http.MethodPost, addr, "/message", message, 0)
	return err
}

// Fleet brings a member a message about the fleet, of at most MaxFleet bytes.
func (c *Client) Fleet(ctx context.Context, addr string, message []byte) error {
	_, _, err := c.do(ctx, c.fleet, http.MethodPost, addr, "/fleet", message, 0)
	return err
}

// Denied asks a seeder which certificates it denies. Nobody else is believed.
func (c *Client) Denied(ctx context.Context, addr string) (string, error) {
	p, b, err := c.do(ctx, c.once, http.MethodGet, addr, "/denied", nil, identity.MaxDenied)
	if err == nil && p.ID.Kind != identity.Seeder {
		err = fmt.Errorf("%s at %s is no seeder, and says what is denied", p.ID, addr)
	}
	if err != nil {
		return "", err
	}
	return string(b), nil
}

// Renew has a seeder make a certificate for a request (PKCS #10, DER), and returns it in
// PEM.
func (c *Client) Renew(ctx context.Context, addr string, request []byte) ([]byte, error) {
	_, b, err := c.do(ctx, c.once, http.MethodPost, addr, "/renew", request, maxCerts)
	return b, err
}

func (c *Client) do(ctx context.Context, by *http.Client, method, addr, path string, body []byte, most int) (identity.Peer, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return identity.Peer{}, nil, fmt.Errorf("calling %s: %w", addr, err)
	}
	answer, err := by.Do(r)
	if err != nil {
		return identity.Peer{}, nil, fmt.Errorf("calling %s: %w", addr, err)
	}
	defer answer.Body.Close()
	if answer.TLS == nil {
		return identity.Peer{}, nil, fmt.Errorf("calling %s: %w", addr, errRefused)
	}
	p, err := c.source.PeerOf(*answer.TLS)
	if err != nil {
		return p, nil, fmt.Errorf("calling %s: %w", addr, err)
	}
	if answer.StatusCode/100 != 2 {
		reason, _ := io.ReadAll(io.LimitReader(answer.Body, maxReason))
		return p, nil, fmt.Errorf("%s at %s: %w: %s (%s)", p.ID, addr, errRefused, strings.TrimSpace(string(reason)), answer.Status)
	}
	b, err := readAll(answer.Body, most)
	return p, b, wrap("answer of", p.ID, err)
}

func wrap(what string, id identity.ID, err error) error {
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, id, err)
	}
	return nil
}
