package awsmetrics

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answers gives one answer after the other, the last one again and again.
func answers(t *testing.T, m *Metrics, handlers ...http.HandlerFunc) aws.Config {
	t.Helper()
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers[min(int(n.Add(1)), len(handlers))-1](w, r)
	}))
	t.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return m.Instrument(aws.Config{
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		BaseEndpoint: &server.URL,
		HTTPClient:   client,
		Retryer: func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = time.Millisecond })
		},
	})
}

func answer(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestAttemptsAreCounted(t *testing.T) {
	m := New()
	client := s3.NewFromConfig(answers(t, m,
		answer(http.StatusServiceUnavailable, "<Error><Code>SlowDown</Code></Error>"),
		hangUp,
		answer(http.StatusOK, "<ListBucketResult/>"),
	))
	if _, err := client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("bucket")}); err != nil {
		t.Fatal(err)
	}
	got := gather(t, m)
	for name, want := range map[string]float64{
		"landfall_aws_calls_total S3 ListObjectsV2":                    1,
		"landfall_aws_attempt_seconds S3 ListObjectsV2":                3,
		"landfall_aws_attempt_errors_total throttled S3 ListObjectsV2": 1,
		"landfall_aws_attempt_errors_total transport S3 ListObjectsV2": 1,
		"landfall_aws_attempt_errors_total server S3 ListObjectsV2":    0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: %g, want %g", name, v, want)
		}
	}
}

// gather returns the values of counters and the counts of histograms by name and
// label values.
func gather(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, s := range f.GetMetric() {
			name := f.GetName()
			byName := make(map[string]string)
			for _, l := range s.GetLabel() {
				byName[l.GetName()] = l.GetValue()
			}
			for _, label := range []string{"kind", "service", "operation"} {
				if v, ok := byName[label]; ok {
					name += " " + v
				}
			}
			out[name] = s.GetCounter().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestKinds(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	ends := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not see that the client is gone
		cancel()
		<-r.Context().Done()
	}
	for name, c := range map[string]struct {
		ctx    context.Context
		answer http.HandlerFunc
		kind   string
	}{
		"too many":     {t.Context(), answer(http.StatusTooManyRequests, "{}"), throttled},
		"by its code":  {t.Context(), answer(http.StatusBadRequest, `{"__type":"x#ProvisionedThroughputExceededException"}`), throttled},
		"a condition":  {t.Context(), answer(http.StatusBadRequest, `{"__type":"x#ConditionalCheckFailedException"}`), refused},
		"broken":       {t.Context(), answer(http.StatusInternalServerError, "{}"), server},
		"no answer":    {t.Context(), hangUp, transport},
		"nobody waits": {over, ends, cancelled},
	} {
		m := New()
		client := dynamodb.NewFromConfig(answers(t, m, c.answer), func(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} })
		if _, err := client.ListTables(c.ctx, &dynamodb.ListTablesInput{}); err == nil {
			t.Errorf("%s: no error", name)
		}
		counted := gather(t, m)
		for _, kind := range kinds {
			want := 0.0
			if kind == c.kind {
				want = 1
			}
			if got := counted["landfall_aws_attempt_errors_total "+kind+" DynamoDB ListTables"]; got != want {
				t.Errorf("%s: %g of kind %s, want %g", name, got, kind, want)
			}
		}
	}
}
