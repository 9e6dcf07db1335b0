package devcluster

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// TestCertify: whoever starts, with an authority or without, after a while or a year, has
// certificates that hold, for the regions that somebody else runs too.
func TestCertify(t *testing.T) {
	old := time.Now().Add(-400 * 24 * time.Hour)
	dir := t.TempDir()
	authority, err := ca.Init(filepath.Join(dir, "ca"), "kept", nil, func() time.Time { return old })
	if err != nil {
		t.Fatal(err)
	}
	kept := Config{Dir: dir, TLS: identity.Require, Regions: []string{"region-a", "region-c"}, Expected: []string{"region-c", "region-d"}}
	if _, err := authority.Write(identity.ID{Cluster: "kept", Kind: identity.Seeder, Name: "seeder"}, kept.IdentityOf("seeder")); err != nil {
		t.Fatal(err)
	}
	fresh := kept
	fresh.Dir = t.TempDir()
	for _, cfg := range []Config{kept, kept, fresh, fresh} {
		_, serves, err := Certify(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := &Cluster{cfg: cfg}
		seeder, err := c.identity("seeder")
		if err != nil {
			t.Fatal(err)
		}
		for _, region := range []string{"region-a", "region-c", "region-d"} {
			agent, err := c.identity(AgentOf(region))
			if err != nil {
				t.Fatal(err)
			}
			if p, err := seeder.Verify(agent.Chain()); err != nil || p.ID.Region != region {
				t.Errorf("%s: %v, %v", region, p.ID, err)
			}
			if _, err := agent.Verify(seeder.Chain()); err != nil {
				t.Error(err)
			}
			if !serves.Has(region, BucketOf(region)) {
				t.Errorf("%s serves %v", region, serves[region])
			}
		}
	}
	none := filepath.Join(dir, "none")
	if a, serves, err := Certify(Config{Dir: none, TLS: identity.Off}); a != nil || serves != nil || err != nil {
		t.Errorf("without TLS: %v, %v, %v", a, serves, err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("without TLS something is written")
	}
}
