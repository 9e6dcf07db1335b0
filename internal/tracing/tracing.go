// Package tracing draws one trace for each execution, over the seeder and all agents
// that work on it: who waited for what, and what failed meanwhile. setup.go reads the
// OTEL_* settings; which spans there are is for those that do the work.
//
// Where tracing is off a *Tracer is nil, and so is every *Span: their methods do
// nothing, allocate nothing, and a context is passed on as it came.
package tracing

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const (
	// scope names the instrumentation, as OpenTelemetry calls it.
	scope = "github.com/landfall-dist/landfall"
	// maxSpans bounds the spans of one execution at one member: the tries of a
	// build whose store is down for a week would be tens of thousands.
	maxSpans = 400
	// maxText bounds an error's text in a span, in bytes: what S3 says is the end
	// of some hundred.
	maxText = 512
	// traceParent is the header of W3C Trace Context, and the name of the
	// announcement's field.
	traceParent = "traceparent"
)

// Tracer begins traces. Nil is off.
type Tracer struct{ tracer trace.Tracer }

// New draws through a provider.
func New(p trace.TracerProvider) *Tracer { return &Tracer{p.Tracer(scope)} }

// Span is something that takes time. It is safe for concurrent use; nil does nothing.
type Span struct {
	span trace.Span
	// tracer and room are those of the whole trace at this member.
	tracer trace.Tracer
	room   *room
	first  bool
}

// room counts spans.
type room struct{ begun atomic.Int64 }

// take reports whether one span more is drawn.
func (r *room) take() bool { return r.begun.Add(1) <= maxSpans }

type spanKey struct{}

// Root begins the first span of an execution at this member: within the trace that
// Remote or Continue has put into ctx, else in a trace of its own. The context
// returned has the span for Start.
func (t *Tracer) Root(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	s := &Span{tracer: t.tracer, room: new(room), first: true}
	return s.begin(ctx, name, time.Time{}, attrs)
}

func (s *Span) begin(ctx context.Context, name string, at time.Time, attrs []attribute.KeyValue) (context.Context, *Span) {
	// A copy, so that the caller's list stays on its stack where tracing is off.
	o := []trace.SpanStartOption{trace.WithAttributes(slices.Clone(attrs)...)}
	if !at.IsZero() {
		o = append(o, trace.WithTimestamp(at))
	}
	ctx, s.span = s.tracer.Start(ctx, name, o...)
	return context.WithValue(ctx, spanKey{}, s), s
}

// Start begins a span within the one in ctx; without one, or when there are too many
// already, it draws nothing.
func Start(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, *Span) {
	return StartAt(ctx, time.Time{}, name, attrs...)
}

// StartAt is Start for what has begun already; zero is now.
func StartAt(ctx context.Context, at time.Time, name string, attrs ...attribute.KeyValue) (context.Context, *Span) {
	parent := of(ctx)
	if parent == nil || !parent.span.IsRecording() || !parent.room.take() {
		return ctx, nil
	}
	s := &Span{tracer: parent.tracer, room: parent.room}
	return s.begin(ctx, name, at, attrs)
}

// In makes what Start begins in the context returned part of the span. Nil changes
// nothing.
func (s *Span) In(ctx context.Context) context.Context {
	if s == nil {
		return ctx
	}
	return context.WithValue(trace.ContextWithSpan(ctx, s.span), spanKey{}, s)
}

// of returns the span that ctx belongs to, nil for none.
func of(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// Set adds to what the span says.
func (s *Span) Set(attrs ...attribute.KeyValue) {
	if s != nil {
		s.span.SetAttributes(slices.Clone(attrs)...)
	}
}

// Event notes a moment.
func (s *Span) Event(name string, attrs ...attribute.KeyValue) {
	if s != nil {
		s.span.AddEvent(name, trace.WithAttributes(slices.Clone(attrs)...))
	}
}

// Failed notes a failure that is not the end: what comes of it says the name.
func (s *Span) Failed(name string, err error, attrs ...attribute.KeyValue) {
	if s != nil {
		s.Event(name, append(slices.Clone(attrs), attribute.String("exception.message", short(err.Error())))...)
	}
}

// Event notes a moment at the span in ctx.
func Event(ctx context.Context, name string, attrs ...attribute.KeyValue) {
	of(ctx).Event(name, attrs...)
}

// Failed notes a failure at the span in ctx.
func Failed(ctx context.Context, name string, err error, attrs ...attribute.KeyValue) {
	of(ctx).Failed(name, err, attrs...)
}

// End ends the span. An err is its status, but for the end of the process, or of
// what the span was for: that is no failure.
func (s *Span) End(err error) {
	if s == nil {
		return
	}
	switch {
	case errors.Is(err, context.Canceled):
		s.span.SetAttributes(attribute.Bool("landfall.interrupted", true))
	case err != nil:
		s.span.SetStatus(codes.Error, short(err.Error()))
	}
	if n := s.room.begun.Load() - maxSpans; s.first && n > 0 {
		s.span.SetAttributes(attribute.Int64("landfall.spans_left_out", n))
	}
	s.span.End()
}

// TraceParent is the span as others continue it, by W3C Trace Context; empty for nil.
func (s *Span) TraceParent() string {
	if s == nil {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpan(context.Background(), s.span), carrier)
	return carrier[traceParent]
}

// Remote makes what Root begins continue another member's trace. What is no W3C
// traceparent is ignored.
func Remote(ctx context.Context, parent string) context.Context {
	if parent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceParent: parent})
}

// Incoming returns a request whose context has the caller's trace, for Continue.
func (t *Tracer) Incoming(r *http.Request) *http.Request {
	if t == nil || r.Header.Get(traceParent) == "" {
		return r
	}
	return r.WithContext(propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header)))
}

// Continue makes what Root begins in ctx continue the trace of a request. A trace
// that was begun here is not: one execution does not go on in another's.
func Continue(ctx, request context.Context) context.Context {
	if c := trace.SpanContextFromContext(request); c.IsRemote() {
		return trace.ContextWithRemoteSpanContext(ctx, c)
	}
	return ctx
}

// short is an error's text within maxText.
func short(text string) string {
	if len(text) <= maxText {
		return strings.ToValidUTF8(text, "�")
	}
	return strings.ToValidUTF8(text[:maxText], "") + " …"
}
