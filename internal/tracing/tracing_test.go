package tracing

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func recorded(t *testing.T, o ...sdk.TracerProviderOption) (*Tracer, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	return New(sdk.NewTracerProvider(append(o, sdk.WithSyncer(spans))...)), spans
}

// part is what the hot path does for each part.
func part(ctx context.Context, err error) {
	ctx, span := Start(ctx, "part", attribute.Int("landfall.part", 7), attribute.Int64("landfall.bytes", 8<<20))
	Failed(ctx, "retry", errNo, attribute.String("landfall.step", "part"))
	span.Event("moment", attribute.Bool("b", true))
	span.Set(attribute.Int("n", 1))
	span.End(err)
}

var errNo = errors.New("no")

func TestOffCostsNothing(t *testing.T) {
	var off *Tracer
	ctx, root := off.Root(Remote(t.Context(), ""), "execution", attribute.Int64("landfall.size", 1))
	if ctx != t.Context() || root != nil || root.TraceParent() != "" {
		t.Errorf("off, and there is a span: %v", root)
	}
	if n := testing.AllocsPerRun(100, func() { part(ctx, errNo) }); n != 0 {
		t.Errorf("%v allocations for a part with tracing off", n)
	}
	r := httptest.NewRequest(http.MethodPost, "/deploy", nil)
	r.Header.Set("Traceparent", parent)
	if off.Incoming(r) != r {
		t.Error("off, and a request was changed")
	}
}

func BenchmarkPart(b *testing.B) {
	for name, tracer := range map[string]*Tracer{"off": nil, "on": New(sdk.NewTracerProvider())} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx, root := tracer.Root(b.Context(), "execution")
			for b.Loop() {
				if root != nil {
					root.room.begun.Store(0)
				}
				part(ctx, nil)
			}
		})
	}
}

func TestOneTrace(t *testing.T) {
	tracer, spans := recorded(t)
	r := httptest.NewRequest(http.MethodPost, "/deploy", nil)
	r.Header.Set("Traceparent", parent)
	ctx, execution := tracer.Root(Continue(t.Context(), tracer.Incoming(r).Context()), "execution")
	_, pull := Start(ctx, "pull")
	pull.End(errNo)
	ctx, build := tracer.Root(Remote(t.Context(), execution.TraceParent()), "build")
	_, swarm := StartAt(ctx, time.Unix(1, 0), "swarm")
	swarm.Failed("retry", errors.New(strings.Repeat("é", maxText)))
	swarm.End(context.Canceled)
	build.End(nil)
	execution.End(nil)
	got := make(map[string]tracetest.SpanStub)
	for _, s := range spans.GetSpans() {
		got[s.Name] = s
		if id := s.SpanContext.TraceID().String(); id != parent[3:35] {
			t.Errorf("%s is in trace %s", s.Name, id)
		}
	}
	for child, of := range map[string]string{"pull": "execution", "build": "execution", "swarm": "build"} {
		if got[child].Parent.SpanID() != got[of].SpanContext.SpanID() {
			t.Errorf("%s is no child of %s", child, of)
		}
	}
	if got["execution"].Parent.SpanID().String() != parent[36:52] {
		t.Error("execution does not continue the request's trace")
	}
	if s := got["pull"].Status; s.Code != codes.Error || s.Description != "no" {
		t.Errorf("pull: %+v", s)
	}
	if s := got["swarm"]; s.Status.Code == codes.Error || !s.StartTime.Equal(time.Unix(1, 0)) || len(s.Events[0].Attributes[0].Value.AsString()) > maxText+len(" …") {
		t.Errorf("swarm: %+v", s)
	}
}

// One execution does not go on in the trace of another that was begun here.
func TestContinueTakesOnlyWhatIsRemote(t *testing.T) {
	tracer, _ := recorded(t)
	ctx, first := tracer.Root(t.Context(), "execution")
	_, second := tracer.Root(Continue(t.Context(), ctx), "execution")
	if first.TraceParent()[:35] == second.TraceParent()[:35] {
		t.Error("two executions in one trace")
	}
}

func TestSpansAreBounded(t *testing.T) {
	tracer, spans := recorded(t)
	ctx, root := tracer.Root(t.Context(), "build")
	for range maxSpans + 5 {
		part(ctx, nil)
	}
	root.End(nil)
	got := spans.GetSpans()
	last := got[len(got)-1]
	if len(got) != maxSpans+1 || len(last.Attributes) != 1 || last.Attributes[0] != attribute.Int64("landfall.spans_left_out", 5) {
		t.Errorf("%d spans, the last says %v", len(got), last.Attributes)
	}
}

// What is not sampled is not drawn, and the others are told so.
func TestNotSampled(t *testing.T) {
	tracer, spans := recorded(t, sdk.WithSampler(sdk.NeverSample()))
	ctx, root := tracer.Root(t.Context(), "execution")
	part(ctx, nil)
	root.End(nil)
	if p := root.TraceParent(); len(spans.GetSpans()) != 0 || !strings.HasSuffix(p, "-00") {
		t.Errorf("%d spans, traceparent %s", len(spans.GetSpans()), p)
	}
}
