package tracing

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// setenv sets variables, and unsets what the machine may have.
func setenv(t *testing.T, vars ...string) {
	t.Helper()
	for _, name := range []string{
		"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER",
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_HEADERS",
	} {
		t.Setenv(name, "") // brings it back after the test
		os.Unsetenv(name)
	}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
}

func setup(t *testing.T, log io.Writer) (*Tracer, func()) {
	t.Helper()
	return Setup(t.Context(), Service{"landfall-agent", "agent-1", "v1"}, slog.New(slog.NewTextHandler(log, nil)))
}

func TestOffUnlessAskedFor(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"
	for _, c := range []struct {
		vars []string
		on   bool
		log  string
	}{
		{nil, false, ""},
		{[]string{endpoint}, true, `traces are sent`},
		{[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:1/x"}, true, `traces are sent`},
		{[]string{"OTEL_TRACES_EXPORTER=otlp"}, true, `to=http://localhost:4318`},
		{[]string{"OTEL_TRACES_EXPORTER=console"}, true, ""},
		{[]string{endpoint, "OTEL_TRACES_EXPORTER=none"}, false, ""},
		{[]string{endpoint, "OTEL_SDK_DISABLED=TRUE"}, false, ""},
		{[]string{"OTEL_TRACES_EXPORTER=zipkin"}, false, `exporter=zipkin`},
		{[]string{endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, false, `expected http/protobuf`},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318?secret"}, false, `not a URL`},
		{[]string{endpoint, "OTEL_EXPORTER_OTLP_HEADERS=secret"}, true, `traces are sent`},
	} {
		setenv(t, c.vars...)
		var log bytes.Buffer
		tracer, shutdown := setup(t, &log)
		shutdown()
		if on := tracer != nil; on != c.on || !strings.Contains(log.String(), c.log) || strings.Contains(log.String(), "secret") {
			t.Errorf("%v: on is %v, log %s", c.vars, on, &log)
		}
	}
}

func TestSpansAreSent(t *testing.T) {
	bodies := make(chan []byte, 10)
	var refused atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/base/v1/traces" || r.Header.Get("Api-Key") != "a b" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s with %v", r.URL, r.Header)
		}
		if refused.CompareAndSwap(false, true) { // it is sent again
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Error(err)
		}
		bodies <- b
	}))
	defer server.Close()
	setenv(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+server.URL+"/base/", "OTEL_EXPORTER_OTLP_HEADERS=api-key=a%20b",
		"OTEL_EXPORTER_OTLP_COMPRESSION=gzip", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test,service.version=v2")
	var log bytes.Buffer
	tracer, shutdown := setup(t, &log)
	_, root := tracer.Root(t.Context(), "build")
	root.End(nil)
	shutdown()
	var got tracepb.TracesData
	if err := proto.Unmarshal(<-bodies, &got); err != nil {
		t.Fatal(err)
	}
	resource := make(map[string]string)
	for _, a := range got.ResourceSpans[0].Resource.Attributes {
		resource[a.Key] = a.Value.GetStringValue()
	}
	for key, want := range map[string]string{
		"service.name": "landfall-agent", "service.instance.id": "agent-1", "service.version": "v2", "deployment.environment.name": "test",
	} {
		if resource[key] != want {
			t.Errorf("%s is %q, want %q", key, resource[key], want)
		}
	}
	if s := got.ResourceSpans[0].ScopeSpans[0]; len(s.Spans) != 1 || s.Spans[0].Name != "build" || s.Scope.Name != scope {
		t.Errorf("sent: %+v", s)
	}
	if strings.Contains(log.String(), "lost") {
		t.Error(log.String())
	}
}

// A collector that is away, or hangs, costs neither a flood of lines nor the end of
// the process, and what is secret in its settings stays so.
func TestLostSpans(t *testing.T) {
	hang := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // so that the end of the connection is seen
		select {
		case <-r.Context().Done():
		case <-hang:
		}
	}))
	defer hanging.Close()
	defer close(hang)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://elsewhere.example/?token=secret")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	defer refusing.Close()
	for _, url := range []string{hanging.URL, refusing.URL} {
		setenv(t, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="+strings.Replace(url, "//", "//user:secret@", 1)+"/v1/traces?token=secret",
			"OTEL_BSP_MAX_EXPORT_BATCH_SIZE=1", "OTEL_EXPORTER_OTLP_HEADERS=api-key=secret")
		var log bytes.Buffer
		tracer, shutdown := setup(t, &log)
		for range 3 {
			_, root := tracer.Root(t.Context(), "build")
			root.End(nil)
		}
		shutdown()
		if n := strings.Count(log.String(), "traces are lost"); n != 1 || strings.Contains(log.String(), "secret") {
			t.Errorf("%d lines: %s", n, &log)
		}
	}
}

func TestWithoutSecrets(t *testing.T) {
	got := withoutSecrets(`Post "https://me:pw@collector.example:4318/v1?key=1": dial http://[::1/x`)
	if want := `Post "https://collector.example:4318": dial (a URL)`; got != want {
		t.Error(got)
	}
}
