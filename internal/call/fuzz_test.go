package call

import (
	"encoding/json"
	"testing"
)

// FuzzHello: what a member says of itself is within its bounds, and means the same when it
// is told again.
func FuzzHello(f *testing.F) {
	b, err := json.Marshal(Hello{Table: "table", Key: "key", Trusts: []string{"a"}, Serves: Serves{"region-a": {"a-builds", "b-builds"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"serves":{"A":null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		buckets := 0
		for region, of := range h.Serves {
			buckets += len(of)
			for _, name := range of {
				if !h.Serves.Has(region, name) || len(name) > maxText {
					t.Errorf("%q in %q", name, region)
				}
			}
		}
		if len(h.Serves) > maxRegions || buckets > maxRegions*maxBuckets || len(h.Table) > maxText || len(h.Key) > maxText || len(h.Trusts) > maxTrusts {
			t.Errorf("out of its bounds: %+v", h)
		}
		again, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseHello(again); err != nil {
			t.Errorf("told again: %v", err)
		}
	})
}
