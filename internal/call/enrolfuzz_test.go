package call

import (
	"encoding/json"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// FuzzEnrol has whoever has no certificate ask for one: without a token there is none.
func FuzzEnrol(f *testing.F) {
	dir, err := ca.Init(filepath.Join(f.TempDir(), "ca"), "prod", nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	e := NewEnrolment(dir, nil, slog.New(slog.DiscardHandler))
	seed, err := json.Marshal(EnrolRequest{Kind: identity.Agent, Region: "region-a", Name: "a1", Token: identity.NewJoinToken(identity.FingerprintOf(dir.Certificate())).Text(), Request: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"kind":"seeder","name":"s","aws":{"authorization":"a","date":"b"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var q EnrolRequest
		if json.Unmarshal(body, &q) != nil {
			return
		}
		if text, id, _, err := e.certify(t.Context(), q, "192.0.2.1:1"); err == nil {
			t.Errorf("a certificate of %s: %s", id, text)
		}
	})
}
