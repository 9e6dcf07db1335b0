package landing

import (
	"net/http"
	"testing"

	"github.com/landfall-dist/landfall/internal/turns"
	"github.com/prometheus/client_golang/prometheus"
)

// counted returns the values of counters and the counts of histograms.
func counted(t *testing.T, m *Metrics) map[string]float64 {
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
			out[f.GetName()] = s.GetCounter().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestLandingIsCounted(t *testing.T) {
	s := newSite(t, several)
	j := s.job(s.begin(t, "etag"), true)
	j.Metrics = NewMetrics()
	j.Slots = turns.NewSlots(1) // nothing else is under way when it ends
	s.wire.before = func(r *http.Request) (*http.Response, error) {
		if call(r) == "PUT part 2" {
			return refuse(r, http.StatusForbidden, "AccessDenied")
		}
		return nil, nil
	}
	if _, err := j.Run(t.Context()); err == nil {
		t.Fatal("landed without a part")
	}
	s.wire.before = nil
	if _, err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := counted(t, j.Metrics)
	for name, want := range map[string]float64{
		"landfall_landing_seconds":            1,
		"landfall_recording_seconds":          1,
		"landfall_part_upload_seconds":        float64(s.m.NumParts()),
		"landfall_landed_bytes_total":         float64(several),
		"landfall_part_upload_failures_total": maxTries,
		"landfall_part_upload_retries_total":  maxTries - 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %g, want %g", name, got[name], want)
		}
	}
}
