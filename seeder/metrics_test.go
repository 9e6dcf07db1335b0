package seeder

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// counted returns the values of counters and the counts of histograms, by name and
// the value of the only label.
func counted(t *testing.T, m *metrics) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m.ended, m.arrivals, m.failures)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, s := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "landfall_") + " " + s.GetLabel()[0].GetValue()
			out[name] = s.GetCounter().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestChangesAreCountedOnce(t *testing.T) {
	s := &Seeder{index: newIndex(), metrics: newMetrics([]string{"a", "b"})}
	r := &ledger.Record{
		Key: ledger.Key{FileKey: "build.zip", SourceBucket: "global"}, ExecutionID: "1", Status: ledger.InProgress,
		StartTime: time.Now(), Destinations: []string{"a", "b", "c"}, Results: map[string]ledger.Result{},
	}
	// next is the record's next version, with what f changes.
	next := func(f func(r *ledger.Record)) {
		r = r.Clone()
		r.Version++
		f(r)
		s.put(r)
		s.put(r) // is read again
	}
	next(func(*ledger.Record) {})
	if got, ok := counted(t, s.metrics)["destination_failures_total c"]; !ok || got != 0 {
		t.Error("a destination's failures do not begin at 0")
	}
	next(func(r *ledger.Record) { r.Successful = []string{"a"} })
	next(func(r *ledger.Record) {
		r.Failed = []string{"b", "c"}
		r.Results["c"] = ledger.Result{Error: ledger.CancelledError}
		r.Status = ledger.Failed
	})
	next(func(r *ledger.Record) { r.Failed, r.Status = nil, ledger.InProgress }) // sent again
	next(func(r *ledger.Record) { r.Failed, r.Status = []string{"b"}, ledger.InProgress })
	next(func(r *ledger.Record) {
		r.Successful, r.Failed, r.Status = []string{"a", "b", "c"}, nil, ledger.Completed
	})
	next(func(r *ledger.Record) {
		r.ExecutionID, r.Successful, r.Status = "2", nil, ledger.InProgress
	})
	next(func(r *ledger.Record) { r.ExecutionID = "3" })
	got := counted(t, s.metrics)
	for name, want := range map[string]float64{
		"arrival_seconds a": 1, "arrival_seconds b": 1, "arrival_seconds c": 1,
		"destination_failures_total a": 0, "destination_failures_total b": 2, "destination_failures_total c": 0,
		"executions_ended_total COMPLETED": 1, "executions_ended_total FAILED": 1, "executions_ended_total SUPERSEDED": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %g, want %g", name, got[name], want)
		}
	}
}

func TestWhatWasBeforeIsNotCounted(t *testing.T) {
	s := &Seeder{index: newIndex(), metrics: newMetrics(nil)}
	s.put(&ledger.Record{
		Key: ledger.Key{FileKey: "build.zip", SourceBucket: "global"}, ExecutionID: "1", Version: 7, Status: ledger.Failed,
		Destinations: []string{"a", "b"}, Successful: []string{"a"}, Failed: []string{"b"},
	})
	for name, v := range counted(t, s.metrics) {
		if v != 0 {
			t.Errorf("%s is %g", name, v)
		}
	}
}

func TestBucketLabelsAreBounded(t *testing.T) {
	m := newMetrics([]string{"a"})
	for i := range 3 * maxBuckets {
		m.failures.WithLabelValues(m.bucket(fmt.Sprintf("bucket-%d", i))).Inc()
	}
	got := counted(t, m)
	failures := 0
	for name := range got {
		if strings.HasPrefix(name, "destination_failures_total ") {
			failures++
		}
	}
	if failures != maxBuckets+1 || got["destination_failures_total "+otherBuckets] != 2*maxBuckets+1 {
		t.Errorf("%d labels, %g failures of others", failures, got["destination_failures_total "+otherBuckets])
	}
}

func TestProgress(t *testing.T) {
	landed := func(bytes ...int64) (d []api.Destination) {
		for _, b := range bytes {
			d = append(d, api.Destination{LandedBytes: b})
		}
		return d
	}
	for name, c := range map[string]struct {
		e    api.Execution
		want float64
	}{
		"no destinations": {api.Execution{}, 0},
		"half and all":    {api.Execution{Size: 100, Destinations: landed(50, 100)}, 0.75},
		"empty build": {api.Execution{Destinations: []api.Destination{
			{State: api.StateLanded}, {State: api.StateQueued},
		}}, 0.5},
	} {
		if got := progressOf(c.e); got != c.want {
			t.Errorf("%s: %g, want %g", name, got, c.want)
		}
	}
}
