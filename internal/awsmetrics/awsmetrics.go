// Package awsmetrics counts what the AWS SDK does: every attempt of every call, by
// service and operation, where a call may be several attempts. It hears of them as a
// middleware of the SDK's clients and changes nothing.
package awsmetrics

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/prometheus/client_golang/prometheus"
)

// What can be wrong with an attempt. That a service refuses is often an answer like
// any other: no such object, a condition that does not hold.
const (
	throttled = "throttled" // too many requests, by the SDK's own list of codes
	refused   = "refused"   // any other 4xx
	server    = "server"    // 5xx
	transport = "transport" // no answer: connection, time-out, credentials
	cancelled = "cancelled" // nobody waits for it any more
)

var kinds = []string{throttled, refused, server, transport, cancelled}

// throttles knows the codes; the SDK slows down by the same.
var throttles = retry.ThrottleErrorCode{Codes: retry.DefaultThrottleErrorCodes}

// durations are the histogram's bounds in seconds: from an answer of the same region
// to a part over a slow link.
var durations = []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}

// Metrics is a prometheus.Collector of what the clients made from an aws.Config do.
type Metrics struct {
	calls    *prometheus.CounterVec
	attempts *prometheus.HistogramVec
	errors   *prometheus.CounterVec
}

// New begins at zero.
func New() *Metrics {
	// Both are the SDK's own words, a few dozen of which this program can say.
	labels := []string{"service", "operation"}
	return &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "landfall_aws_calls_total",
			Help: "Calls of AWS services, each counted once however often it is tried.",
		}, labels),
		attempts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "landfall_aws_attempt_seconds",
			Help:    "Attempts of calls of AWS services, until the answer's head is here; its count is that of all attempts.",
			Buckets: durations,
		}, labels),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "landfall_aws_attempt_errors_total",
			Help: "Attempts that got an error: throttled, refused (4xx, often an answer like any other), server (5xx), transport or cancelled.",
		}, append(labels, "kind")),
	}
}

// Instrument returns a copy of cfg whose clients are counted.
func (m *Metrics) Instrument(cfg aws.Config) aws.Config {
	cfg = cfg.Copy()
	cfg.APIOptions = append(slices.Clone(cfg.APIOptions), m.add)
	return cfg
}

// Describe is prometheus.Collector's.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.calls.Describe(ch)
	m.attempts.Describe(ch)
	m.errors.Describe(ch)
}

// Collect is prometheus.Collector's.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.calls.Collect(ch)
	m.attempts.Collect(ch)
	m.errors.Collect(ch)
}

func (m *Metrics) add(stack *middleware.Stack) error {
	if err := stack.Initialize.Add(middleware.InitializeMiddlewareFunc("LandfallCalls", m.call), middleware.After); err != nil {
		return fmt.Errorf("counting calls: %w", err)
	}
	// What is inside of the SDK's retries happens once for each attempt.
	if err := stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("LandfallAttempts", m.attempt), (*retry.Attempt)(nil).ID(), middleware.After); err != nil {
		return fmt.Errorf("counting attempts: %w", err)
	}
	return nil
}

func (m *Metrics) call(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
	service, operation := names(ctx)
	m.calls.WithLabelValues(service, operation).Inc()
	for _, kind := range kinds { // at zero, so that the first one is an increase
		m.errors.WithLabelValues(service, operation, kind)
	}
	return next.HandleInitialize(ctx, in)
}

func (m *Metrics) attempt(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
	begun := time.Now()
	out, metadata, err := next.HandleFinalize(ctx, in)
	service, operation := names(ctx)
	m.attempts.WithLabelValues(service, operation).Observe(time.Since(begun).Seconds())
	if err != nil {
		m.errors.WithLabelValues(service, operation, kind(ctx, err)).Inc()
	}
	return out, metadata, err
}

func names(ctx context.Context) (service, operation string) {
	return awsmiddleware.GetServiceID(ctx), awsmiddleware.GetOperationName(ctx)
}

func kind(ctx context.Context, err error) string {
	status := 0
	if response := (*smithyhttp.ResponseError)(nil); errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	switch {
	case throttles.IsErrorThrottle(err) == aws.TrueTernary, status == http.StatusTooManyRequests:
		return throttled
	case status >= http.StatusInternalServerError:
		return server
	case status >= http.StatusBadRequest:
		return refused
	case ctx.Err() != nil:
		return cancelled
	default:
		return transport
	}
}
