package agent

import (
	"bytes"
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/signing"
)

// TestRecalledIsNotHandedOut: a build that is recalled is none of those that hosts get, though
// a goal names it.
func TestRecalledIsNotHandedOut(t *testing.T) {
	key := signing.Ed25519(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, ed25519.SeedSize)))
	shelf, err := goal.OpenShelf("", signing.TrustIn(key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKept(keptConfig{})
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{hosts: &hosts{shelf: shelf}, kept: k}
	const sum = "LCa0a2j/xo/5m0U8HTBBNBNCLXBkg7+g+YpeiGJm564=-3"
	target := goal.Build{SourceBucket: "global-builds", Key: "web.zip", ExecutionID: "01J00000000000000000000001", Size: 7, SHA256: sum}
	add := func(doc any) {
		t.Helper()
		wire, err := goal.Sign(t.Context(), key, doc)
		if err == nil {
			_, err = shelf.Add(wire)
		}
		if err != nil {
			t.Fatal(err)
		}
		a.keepBuilds()
	}
	add(&goal.Goal{Service: "web", Version: 1, Deployment: "01K00000000000000000000001", Target: target, Issued: time.Now()})
	for version, sums := range [][]string{{}, {sum}, {}} {
		add(&goal.Recall{Version: int64(version + 1), SourceBucket: "global-builds", SHA256: sums, Issued: time.Now()})
		if n := len(k.wanted); n != 1-len(sums) {
			t.Errorf("%v is recalled, and %d builds are for hosts", sums, n)
		}
	}
}
