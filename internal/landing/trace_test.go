package landing

import (
	"net/http"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/turns"
)

// Of many parts only the first have a span, and those that fail.
func TestPartSpansAreBounded(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tracer := tracing.New(sdk.NewTracerProvider(sdk.WithSyncer(spans)))
	s := newSite(t, several)
	refused := ""
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if refused != "" && call(r) == refused {
			return refuse(r, http.StatusForbidden, "AccessDenied")
		}
		return nil, nil
	}
	s.slots = turns.NewSlots(1) // one part after the other
	execution := s.begin(t, "etag")
	j := s.job(execution, true)
	j.drawn.Store(maxPartSpans - 1)
	land := func() map[string][]tracetest.SpanStub {
		t.Helper()
		spans.Reset()
		ctx, root := tracer.Root(t.Context(), "build")
		_, err := j.Run(ctx)
		if (err != nil) != (refused != "") {
			t.Fatal(err)
		}
		root.End(nil)
		out := make(map[string][]tracetest.SpanStub)
		for _, span := range spans.GetSpans() {
			out[span.Name] = append(out[span.Name], span)
		}
		return out
	}

	refused = "PUT part 2"
	got := land()
	if len(got["part"]) != 2 || len(got["landing"]) != 1 || len(got["record"]) != 0 {
		t.Fatalf("spans: %+v", got)
	}
	for i, part := range []int{0, 2} { // the last that is drawn, and the one that failed
		span := got["part"][i]
		if span.Attributes[0] != attribute.Int("landfall.part", part) || (span.Status.Code == codes.Error) != (part == 2) {
			t.Errorf("part %d: %v, %v", part, span.Attributes, span.Status)
		}
		if span.Parent.SpanID() != got["landing"][0].SpanContext.SpanID() {
			t.Errorf("part %d is not the landing's", part)
		}
	}
	if got["landing"][0].Status.Code != codes.Error {
		t.Errorf("landing: %v", got["landing"][0].Status)
	}

	refused = ""
	got = land()
	if len(got["part"]) != 0 || len(got["record"]) != 1 || got["record"][0].Parent.SpanID() != got["landing"][0].SpanContext.SpanID() {
		t.Errorf("spans: %+v", got)
	}
}
