package clustertest

import (
	"bytes"
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/signing"
)

// An agent that trusts another key is not ready and says why; the seeder shows it at
// the destination instead of a wait, fails it for that reason, and sends the build
// when an agent comes that trusts it.
func TestAgentOfAnotherKey(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1, ArrivalTimeout: LandsWithin})
	right := c.cluster.Trust
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	c.cluster.Trust = signing.TrustIn(signing.Ed25519Key(other))
	stranger, stop := c.AddAgent(1, "stranger")
	c.cluster.Trust = right
	key := right.IDs()[0]

	c.Until("it says that it is not ready, and why", func() bool {
		err := stranger.Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "--trust") && strings.Contains(err.Error(), key)
	})
	unserved := func() []api.Unserved {
		page, err := c.Seeder.Executions(t.Context(), 1, "")
		if err != nil {
			t.Fatal(err)
		}
		return page.Unserved
	}
	c.Until("before anything is sent there, the list says that nobody would take it, and why", func() bool {
		u := unserved()
		return len(u) == 1 && u[0].Bucket == c.Bucket(1) && strings.Contains(u[0].Error, "agent stranger "+api.Distrust)
	})
	c.Put("build.bin", content(1, 300_000), nil)
	id := c.Deploy("build.bin").ExecutionID
	of := func() api.Destination {
		e, err := c.Seeder.Execution(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return e.Destinations[1]
	}
	c.Until("the destination says which agent distrusts the seeder", func() bool {
		d := of()
		return (d.State == api.StateUnserved || d.State == api.StateFailed) && strings.Contains(d.Error, "agent stranger "+api.Distrust) && strings.Contains(d.Error, key)
	})
	c.Await(id, "FAILED")
	if reason := c.Record("build.bin").Results[c.Bucket(1)].Error; !strings.Contains(reason, api.Distrust) {
		t.Errorf("recorded is %q", reason)
	}
	c.Until("it has refused what was announced", func() bool {
		return scrapeOf(t, stranger).samples[`landfall_documents_refused_total{reason="untrusted"}`] > 0
	})
	if s := scrapeOf(t, stranger).samples; s["landfall_ready"] != 0 {
		t.Error("its metric says that it is ready")
	}
	for name, want := range map[string]float64{"landfall_distrusting_agents": 1, "landfall_destination_agents": 0} {
		if got := scrapeOf(t, c.Seeder).samples[name+`{bucket="`+c.Bucket(1)+`"}`]; got != want {
			t.Errorf("%s is %v", name, got)
		}
	}
	stop()
	c.Until("the list says that nobody serves it", func() bool {
		u := unserved()
		return len(u) == 1 && u[0] == api.Unserved{Bucket: c.Bucket(1)}
	})
	c.AddAgent(1, "trusting")
	c.Until("the list says so no more", func() bool { return len(unserved()) == 0 })
	c.Await(id, "COMPLETED")
	c.Holds("build.bin", content(1, 300_000))
}
