package tracing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
)

const (
	// flushTimeout bounds the sending of the last spans: a process that is told to
	// end has 9 s for everything.
	flushTimeout = 2 * time.Second
	// complainInterval is how often it is said at most that spans are lost: a
	// collector that is down loses some every few seconds.
	complainInterval = time.Minute
	// defaultEndpoint is OTLP's.
	defaultEndpoint = "http://localhost:4318"
	// firstWait, maxWait and maxTime bound how spans are sent again when a collector
	// says that it is busy; the exporter's own begin with 5 s, and the last spans
	// have flushTimeout.
	firstWait, maxWait, maxTime = 500 * time.Millisecond, 10 * time.Second, time.Minute
)

// Service is whose spans these are. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
// override it.
type Service struct {
	// Name is the kind of process, Instance the member's name.
	Name, Instance, Version string
}

// Setup reads the OTEL_* settings. The Tracer is nil where they ask for no traces:
// OTEL_TRACES_EXPORTER is otlp or console, or is not set while there is an endpoint
// for OTLP, and OTEL_SDK_DISABLED is not true. A setting that cannot be followed is
// logged and no reason to do without builds. shutdown, to be called at the end of the
// process, sends what is left in at most 2 s.
func Setup(ctx context.Context, s Service, logger *slog.Logger) (_ *Tracer, shutdown func()) {
	off := func() {}
	names := exporters()
	if len(names) == 0 {
		return nil, off
	}
	lost := &complaints{logger: logger}
	otel.SetErrorHandler(lost) // the SDK has one for the process
	var options []sdk.TracerProviderOption
	stop := func(context.Context) error { return nil } // sending what is under way
	for _, name := range names {
		switch name {
		case "otlp":
			exporter, to, err := collector(ctx)
			if err != nil {
				logger.Error("traces are not sent", "error", err)
				continue
			}
			options, stop = append(options, sdk.WithBatcher(exporter)), exporter.Shutdown
			logger.Info("traces are sent", "to", to)
		case "console":
			console, err := stdouttrace.New()
			if err != nil {
				logger.Error("traces are not shown", "error", err)
				continue
			}
			options = append(options, sdk.WithBatcher(console))
		default:
			logger.Error("traces are not sent: OTEL_TRACES_EXPORTER is unknown here, expected otlp, console or none", "exporter", name)
		}
	}
	if len(options) == 0 {
		return nil, off
	}
	provider := sdk.NewTracerProvider(append(options, sdk.WithResource(s.resource(ctx)))...)
	return New(provider), func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		err := provider.Shutdown(ctx)
		if err := cmp.Or(err, stop(ctx)); err != nil { // the provider leaves it at that when the time is up
			lost.Handle(err)
		}
	}
}

// collector sends spans by OTLP over HTTP, as OTEL_EXPORTER_OTLP_* say; to is where, for
// people. Errors name settings without their values, which may be secret.
func collector(ctx context.Context) (exporter *otlptrace.Exporter, to string, err error) {
	if p := setting("PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, "", fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q, expected http/protobuf", p)
	}
	u, err := url.Parse(cmp.Or(setting("ENDPOINT"), defaultEndpoint))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, "", errors.New("OTEL_EXPORTER_OTLP_ENDPOINT is not a URL of http or https")
	}
	// What the exporter says of settings that it cannot read has their values.
	otel.SetLogger(logr.Discard())
	exporter, err = otlptracehttp.New(ctx, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
		Enabled: true, InitialInterval: firstWait, MaxInterval: maxWait, MaxElapsedTime: maxTime,
	}))
	if err != nil {
		return nil, "", errors.New(short(withoutSecrets(err.Error())))
	}
	return exporter, u.Scheme + "://" + u.Host, nil
}

// setting is a variable of OTLP, the one for traces alone first.
func setting(name string) string {
	return cmp.Or(strings.TrimSpace(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_"+name)), strings.TrimSpace(os.Getenv("OTEL_EXPORTER_OTLP_"+name)))
}

// exporters are what OTEL_TRACES_EXPORTER names, or an endpoint stands for.
func exporters() []string {
	if strings.EqualFold(strings.TrimSpace(os.Getenv("OTEL_SDK_DISABLED")), "true") {
		return nil
	}
	var out []string
	for name := range strings.SplitSeq(os.Getenv("OTEL_TRACES_EXPORTER"), ",") {
		switch name = strings.ToLower(strings.TrimSpace(name)); name {
		case "":
		case "none":
			return nil
		default:
			out = append(out, name)
		}
	}
	if len(out) == 0 && setting("ENDPOINT") != "" {
		return []string{"otlp"}
	}
	return out
}

func (s Service) resource(ctx context.Context) *resource.Resource {
	r, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.name", s.Name),
			attribute.String("service.instance.id", s.Instance),
			attribute.String("service.version", s.Version)),
		resource.WithFromEnv(),
	)
	if err != nil {
		otel.Handle(err) // r has what could be read
	}
	return r
}

// complaints is the SDK's way to say that something is wrong.
type complaints struct {
	logger *slog.Logger
	mu     sync.Mutex
	said   time.Time
	unsaid int
}

// Handle logs an error, now and then.
func (c *complaints) Handle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.said.IsZero() && time.Since(c.said) < complainInterval {
		c.unsaid++
		return
	}
	attrs := []any{"error", short(withoutSecrets(err.Error()))}
	if c.unsaid > 0 {
		attrs = append(attrs, "othersSince", c.unsaid)
	}
	c.logger.Warn("traces are lost, builds are not", attrs...)
	c.said, c.unsaid = time.Now(), 0
}

var anyURL = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>]+`)

// withoutSecrets cuts every URL in a text to its scheme and host: the rest may carry
// a password or a token.
func withoutSecrets(text string) string {
	return anyURL.ReplaceAllStringFunc(text, func(s string) string {
		u, err := url.Parse(s)
		if err != nil {
			return "(a URL)"
		}
		return u.Scheme + "://" + u.Host
	})
}
