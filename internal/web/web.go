// Package web is what seeder and agent share of HTTP: a server that ends with
// its context, JSON in and out with bounds, health and readiness, metrics,
// server-sent events and the page for people.
package web

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"mime"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/operator"
)

const (
	// maxBody bounds a JSON request in bytes.
	maxBody = 1 << 20
	// shutdownTimeout is how long requests under way may still take at the end.
	shutdownTimeout = 3 * time.Second
)

//go:embed page
var embedded embed.FS

// Error is an error with the HTTP status to answer.
type Error struct {
	Code int
	Err  error
	// Successor goes into the answer's body where set.
	Successor string
	// RetryAfter is when to ask again, for a 503; 0 says nothing of it.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error.
func Errorf(code int, format string, args ...any) *Error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// Listen binds addr for HTTP; the error names the port.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for HTTP on %s: %w", addr, err)
	}
	return l, nil
}

// Serve serves until ctx ends, then lets requests under way finish for a moment. What a
// client may take is bounded (usualLimits).
func Serve(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	return serveWithin(ctx, l, h, logger, usualLimits)
}

func serveWithin(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger, most limits) error {
	server := &http.Server{
		Handler:           most.hold(h),
		ReadHeaderTimeout: most.header,
		IdleTimeout:       most.idle,
		MaxHeaderBytes:    most.headerBytes,
		ConnState:         newConnections(most).changed,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		// Long answers (events, watches) end when the process does.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving HTTP on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(end); err != nil {
		server.Close()
	}
	<-done
	return nil
}

// Mux is an http.ServeMux with what every member serves.
type Mux struct {
	*http.ServeMux
	logger   *slog.Logger
	turns    turns
	roles    map[string]operator.Role // by pattern
	patterns []string
}

// Options say what the shared paths answer.
type Options struct {
	// Page is the name of the page for people: "seeder" or "agent".
	Page string
	// Ready says why the process is not ready yet, nil when it is.
	Ready func() error
	// State is what the page shows.
	State   State
	Metrics *prometheus.Registry
	// Roles are what the patterns ask for that are registered beside the shared ones.
	Roles  map[string]operator.Role
	Logger *slog.Logger
}

// NewMux serves /healthz, /readyz, /metrics, /events, /changes and the page at /.
func NewMux(o Options) *Mux {
	m := &Mux{ServeMux: http.NewServeMux(), logger: o.Logger, turns: make(turns, maxAtOnce), roles: maps.Clone(sharedRoles)}
	maps.Copy(m.roles, o.Roles)
	m.JSON("GET /healthz", func(*http.Request) (int, any, error) {
		return http.StatusOK, map[string]string{"status": "ok"}, nil
	})
	m.JSON("GET /readyz", func(*http.Request) (int, any, error) {
		if err := o.Ready(); err != nil {
			return 0, nil, &Error{Code: http.StatusServiceUnavailable, Err: err}
		}
		return http.StatusOK, map[string]string{"status": "ready"}, nil
	})
	m.Costly("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{}).ServeHTTP)
	feed := NewFeed(o.State)
	m.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		if err := feed.events(w, r); err != nil {
			m.fail(w, r, err)
		}
	})
	m.Costly("GET /changes", m.Answer(feed.changes))
	m.page(o.Page)
	return m
}

// JSON registers a handler whose answer is encoded as JSON; see Answer.
func (m *Mux) JSON(pattern string, f func(*http.Request) (code int, body any, err error)) {
	m.HandleFunc(pattern, m.Answer(f))
}

// Costly registers a handler of which, with all others like it, maxAtOnce are under way
// at a time.
func (m *Mux) Costly(pattern string, f http.HandlerFunc) {
	m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		done, err := m.turns.take(r, maxWait)
		if err != nil {
			m.fail(w, r, err)
			return
		}
		defer done()
		f(w, r)
	})
}

// Answer makes a handler of f. An *Error keeps its status; any other error is a
// 500 and is logged.
func (m *Mux) Answer(f func(*http.Request) (code int, body any, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		code, body, err := f(r)
		if err != nil {
			m.fail(w, r, err)
			return
		}
		Write(w, code, body)
	}
}

// File makes a handler of f, which returns a file of a content type, and its name. Errors
// are answered as Answer does.
func (m *Mux) File(contentType string, f func(*http.Request) (name string, file []byte, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name, file, err := f(r)
		if err != nil {
			m.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Write(file) //nolint:errcheck // the client hung up; nobody is left to tell
	}
}

func (m *Mux) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Code: http.StatusInternalServerError, Err: err}
		if r.Context().Err() == nil {
			m.logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	Write(w, e.Code, api.Error{Error: err.Error(), Successor: e.Successor})
}

// Write answers with body as indented JSON.
func Write(w http.ResponseWriter, code int, body any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(body); err != nil {
		http.Error(w, `{"error":"encoding the answer failed"}`, http.StatusInternalServerError)
		return
	}
	if failed, ok := body.(api.Error); ok {
		noteError(w, failed.Error)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	w.Write(b.Bytes()) //nolint:errcheck // the client hung up; nobody is left to tell
}

// Read decodes a JSON request. Every error is an *Error: 400 for a wrong content
// type, wrong JSON, an unknown field or something after it, 413 past maxBody.
func Read(r *http.Request, into any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return Errorf(http.StatusBadRequest, "Content-Type is %q, expected application/json", r.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	var stalled *Error
	switch {
	case errors.As(err, &stalled):
		return stalled
	case errors.As(err, &tooLarge):
		return Errorf(http.StatusRequestEntityTooLarge, "body is over %d bytes", maxBody)
	case err != nil:
		return Errorf(http.StatusBadRequest, "reading the body: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return Errorf(http.StatusBadRequest, "body is not the JSON expected: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Errorf(http.StatusBadRequest, "body goes on after the JSON value")
	}
	return nil
}
