package web

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/operator"
)

// Security is who may do what over HTTP. The zero value asks nobody, and keeps no record.
type Security struct {
	// Access knows operators by their tokens and certificates; nil where none is asked for.
	Access *operator.Access
	// CloseReading asks for a token also where nothing is changed.
	CloseReading bool
	// Audit keeps the record of changes; nil for none.
	Audit *audit.Log
	// Certificate is that of the listener; nil without TLS.
	Certificate *Certificate
}

// Listener has what comes to l speak TLS, where there is a certificate for it.
func (s Security) Listener(l net.Listener) net.Listener {
	if s.Certificate == nil {
		return l
	}
	return s.Certificate.Listener(l, s.Access.Authorities)
}

// Run reads the files again that have changed, until ctx ends.
func (s Security) Run(ctx context.Context, logger *slog.Logger) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Access.Run(ctx, logger) })
	group.Go(func() error { return s.Certificate.Run(ctx, logger) })
	return group.Wait()
}

// asked is the answer to a request that is to change something, for the record of changes.
type asked struct {
	http.ResponseWriter
	status int
	err    string
	about  map[string]string
	by     string
}

func (a *asked) WriteHeader(code int) {
	if a.status == 0 {
		a.status = code
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *asked) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *asked) Unwrap() http.ResponseWriter { return a.ResponseWriter }

type askedKey struct{}

// noteError notes why a request is refused, or has failed.
func noteError(w http.ResponseWriter, why string) {
	if a, ok := w.(*asked); ok {
		a.err = why
	}
}

// About notes for the record of changes what a request is about, where its path does not
// say that. An empty value says nothing.
func About(r *http.Request, name, value string) {
	if a, ok := r.Context().Value(askedKey{}).(*asked); ok && value != "" {
		if a.about == nil {
			a.about = make(map[string]string)
		}
		a.about[name] = value
	}
}

// By is the name of the operator who asks for a change; empty where nobody is known by a
// token or a certificate.
func By(r *http.Request) string {
	if a, ok := r.Context().Value(askedKey{}).(*asked); ok {
		return a.by
	}
	return ""
}

// record writes down what has come of a request that was to change something. known says
// that whoever asked might ask.
func (p Protection) record(r *http.Request, action string, who operator.Operator, known bool, a *asked) {
	record := api.Change{
		Time: time.Now().UTC(), Operator: who.Name, Action: action, Path: r.URL.Path, About: a.about, From: r.RemoteAddr,
		Status: a.status, Error: a.err,
	}
	if who.Name != "" {
		record.Role = who.Role.String()
	}
	if a.status == 0 {
		record.Error = "broken off without an answer"
	}
	if p.Audit == nil && !known || !p.Audit.Add(record, known) || p.Logger == nil {
		return
	}
	attrs := []any{"operator", record.Operator, "role", record.Role, "action", action, "path", cutTo(record.Path, maxLogged), "from", record.From, "status", record.Status}
	for _, name := range []string{"key", "commit", "executionId"} {
		if v := a.about[name]; v != "" {
			attrs = append(attrs, name, cutTo(v, maxLogged))
		}
	}
	if record.Error != "" {
		attrs = append(attrs, "error", cutTo(record.Error, maxLogged))
	}
	p.Logger.Info("change requested", attrs...)
}

// maxLogged bounds what the log has of a text that a client chose, in bytes: a key has up
// to 1,024.
const maxLogged = 1100

func cutTo(s string, most int) string { return s[:min(len(s), most)] }
