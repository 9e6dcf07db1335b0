package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// defaultEndpoint and defaultTimeout are OTLP's own defaults.
	defaultEndpoint = "http://localhost:4318"
	defaultTimeout  = 10 * time.Second
	tracesPath      = "/v1/traces"
	// maxTries and firstWait bound how often spans are sent again when a collector
	// says that it is busy; the wait doubles, with full jitter, within the timeout.
	maxTries  = 3
	firstWait = time.Second
	// maxAnswer bounds what is read of an answer in bytes, to keep the connection.
	maxAnswer = 64 << 10
)

// collector sends spans by OTLP over HTTP, in protobuf, as OTEL_EXPORTER_OTLP_* say.
// It is otlptrace.Client. The exporter of the SDK does the same, but links a gRPC
// server and its gateway, 3 MB that nobody calls.
type collector struct {
	url     string
	shown   string // of url, for people
	header  http.Header
	gzip    bool
	timeout time.Duration
	http    *http.Client
	// over ends what is under way, by abort.
	over  context.Context
	abort context.CancelFunc
}

// setting is a variable of OTLP, the one for traces alone first.
func setting(name string) string {
	if v := strings.TrimSpace(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_" + name)); v != "" {
		return v
	}
	return strings.TrimSpace(os.Getenv("OTEL_EXPORTER_OTLP_" + name))
}

// newCollector reads the settings; errors name them without their values, which may
// be secret.
func newCollector() (*collector, error) {
	c := &collector{header: make(http.Header), timeout: defaultTimeout}
	if p := setting("PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q, expected http/protobuf", p)
	}
	if err := c.readEndpoint(); err != nil {
		return nil, err
	}
	if err := c.readHeaders(); err != nil {
		return nil, err
	}
	if v := setting("TIMEOUT"); v != "" {
		ms, err := strconv.Atoi(v)
		if err != nil || ms <= 0 {
			return nil, errors.New("OTEL_EXPORTER_OTLP_TIMEOUT is not a number of milliseconds")
		}
		c.timeout = time.Duration(ms) * time.Millisecond
	}
	switch v := setting("COMPRESSION"); v {
	case "", "none":
	case "gzip":
		c.gzip = true
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_COMPRESSION is %q, expected gzip or none", v)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	var err error
	if transport.TLSClientConfig, err = readTLS(); err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Transport: transport,
		// The headers may be secret, and are this endpoint's.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.over, c.abort = context.WithCancel(context.Background())
	return c, nil
}

// readEndpoint takes the endpoint for traces as it is, or the one for all signals
// with the path of traces.
func (c *collector) readEndpoint() error {
	c.url = strings.TrimSpace(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
	if c.url == "" {
		base := setting("ENDPOINT")
		if base == "" {
			base = defaultEndpoint
		}
		c.url = strings.TrimSuffix(base, "/") + tracesPath
	}
	u, err := url.Parse(c.url)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("OTEL_EXPORTER_OTLP_ENDPOINT is not a URL such as http://localhost:4318")
	}
	c.shown = u.Scheme + "://" + u.Host
	return nil
}

func (c *collector) readHeaders() error {
	for pair := range strings.SplitSeq(setting("HEADERS"), ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || err != nil {
			return errors.New("OTEL_EXPORTER_OTLP_HEADERS is not a list such as name=value,other=value")
		}
		c.header.Set(strings.TrimSpace(name), value)
	}
	return nil
}

// readTLS is nil for Go's own settings.
func readTLS() (*tls.Config, error) {
	ca, cert, key := setting("CERTIFICATE"), setting("CLIENT_CERTIFICATE"), setting("CLIENT_KEY")
	if ca == "" && cert == "" {
		return nil, nil
	}
	cfg := &tls.Config{}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CERTIFICATE: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CERTIFICATE: %s has no certificate", ca)
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// Start does nothing: a connection is made when there is something to send.
func (c *collector) Start(context.Context) error { return nil }

// Stop closes the connections.
func (c *collector) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces sends spans; those that it returns an error for are lost.
func (c *collector) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	defer context.AfterFunc(c.over, cancel)()
	// TracesData is ExportTraceServiceRequest on the wire: the same field of the
	// same type. That one's package is the one with gRPC in it.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err == nil && c.gzip {
		body, err = compressed(body)
	}
	if err != nil {
		return fmt.Errorf("encoding spans: %w", err)
	}
	for try := 1; ; try++ {
		again, err := c.post(ctx, body)
		if err == nil {
			return nil
		}
		if !again || try == maxTries {
			return fmt.Errorf("sending spans to %s: %w", c.shown, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sending spans to %s: %w", c.shown, err)
		case <-time.After(rand.N(firstWait << (try - 1))):
		}
	}
}

// post sends a body once; again says whether another try may help.
func (c *collector) post(ctx context.Context, body []byte) (again bool, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("no request to that URL")
	}
	r.Header = c.header.Clone()
	r.Header.Set("Content-Type", "application/x-protobuf")
	if c.gzip {
		r.Header.Set("Content-Encoding", "gzip")
	}
	res, err := c.http.Do(r)
	if err != nil {
		var e *url.Error // repeats the URL
		if errors.As(err, &e) {
			err = e.Err
		}
		return true, err
	}
	defer res.Body.Close()
	io.CopyN(io.Discard, res.Body, maxAnswer) //nolint:errcheck // the status has said it all
	switch res.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		again = true
	}
	if res.StatusCode/100 != 2 {
		return again, fmt.Errorf("it answered %s", res.Status)
	}
	return false, nil
}

func compressed(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if closeErr := w.Close(); err == nil {
		err = closeErr
	}
	return out.Bytes(), err
}
