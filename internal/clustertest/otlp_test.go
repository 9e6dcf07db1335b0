package clustertest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// collector is what spans are sent to by OTLP.
type collector struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*tracepb.Span
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var data tracepb.TracesData
		if err == nil {
			err = proto.Unmarshal(b, &data)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, resource := range data.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// tracer draws to the collector; flush sends what is left.
func (c *collector) tracer(t *testing.T) (tracer *tracing.Tracer, flush func()) {
	t.Helper()
	t.Setenv("OTEL_SDK_DISABLED", "")
	t.Setenv("OTEL_TRACES_EXPORTER", "")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	tracer, flush = tracing.Setup(t.Context(), tracing.Service{Name: "test"}, slog.New(slog.DiscardHandler))
	if tracer == nil {
		t.Fatal("no traces, though there is an endpoint")
	}
	return tracer, flush
}

func (c *collector) all() []*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans
}

// paths count the spans by their names, each after those of its parents; a build has
// its region.
func paths(spans []*tracepb.Span) map[string]int {
	byID := make(map[string]*tracepb.Span)
	for _, s := range spans {
		byID[string(s.SpanId)] = s
	}
	out := make(map[string]int)
	for _, s := range spans {
		path := ""
		for ; s != nil; s = byID[string(s.ParentSpanId)] {
			name := s.Name
			for _, a := range s.Attributes {
				if a.Key == "landfall.region" {
					name += " " + a.Value.GetStringValue()
				}
			}
			path = "/" + name + path
		}
		out[path]++
	}
	return out
}

func TestOneTraceForAnExecution(t *testing.T) {
	to := newCollector(t)
	tracer, flush := to.tracer(t)
	var log lines
	c := Start(t, cloud, Options{Regions: 2, Tracer: tracer, Log: &log})
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	c.Put("build.bin", content(1, 2*manifest.MinPartLength+1000), nil)
	r, err := http.NewRequest(http.MethodPost, c.Seeder.URL+"/deploy", strings.NewReader(fmt.Sprintf(`{"sourceBucket":%q,"sourceKey":"build.bin"}`, c.Global)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", parent)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	var answer api.DeployAnswer
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	c.Await(answer.ExecutionID, "COMPLETED")
	log.await(c, "execution ended")
	c.Stop()
	flush()

	spans := to.all()
	for _, s := range spans {
		if id := hex.EncodeToString(s.TraceId); id != parent[3:35] {
			t.Errorf("%s is in trace %s", s.Name, id)
		}
		if s.Name == "execution" && hex.EncodeToString(s.ParentSpanId) != parent[36:52] {
			t.Error("the execution does not continue the request's trace")
		}
		if s.Name == "execution" && len(s.Events) != len(c.Regions) {
			t.Errorf("events of the execution, other than the arrivals: %v", s.Events)
		}
		if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			t.Errorf("%s: %s", s.Name, s.Status.Message)
		}
	}
	want := map[string]int{"/execution": 1, "/execution/pull": 1}
	for _, region := range c.Regions {
		build := "/execution/build " + region
		for path, n := range map[string]int{"": 1, "/swarm": 1, "/landing": 1, "/landing/part": 3, "/landing/record": 1} {
			want[build+path] = n
		}
	}
	got := paths(spans)
	if got["/execution/announce"] == 0 {
		t.Error("no span of an announcement")
	}
	delete(got, "/execution/announce") // as many as there were segments, or fewer
	if !maps.Equal(got, want) {
		t.Errorf("spans %v\nwant %v", got, want)
	}
}

// Without settings no announcement has a trace, and what a caller sends is not
// passed on.
func TestNoTraceWhereItIsOff(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1})
	c.Put("build.bin", content(1, 1000), nil)
	id := c.Deploy("build.bin").ExecutionID
	var wire []byte
	c.Until("the agent keeps the announcement", func() bool {
		var err error
		wire, err = os.ReadFile(filepath.Join(c.Dir("agent-"+c.Regions[0]), "announced", id))
		return err == nil
	})
	if !bytes.Contains(wire, []byte(`"executionId"`)) || bytes.Contains(wire, []byte("traceparent")) {
		t.Errorf("%q", wire)
	}
}
