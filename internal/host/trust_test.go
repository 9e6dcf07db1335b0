package host

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/signing"
)

// TestTrustChanges: the goal of a key that is revoked is followed no longer, also in the midst of
// a switch, and stands in the way of no other, however great its version; what runs goes on, and
// the service stays ready.
func TestTrustChanges(t *testing.T) {
	t.Parallel() // it waits for its files to be read
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	thief := signing.Ed25519(private)
	files := t.TempDir()
	trusted, revoked := filepath.Join(files, "trusted"), filepath.Join(files, "revoked")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(trusted, key.Public().String()+"\n"+thief.Public().String()+"\n")
	write(revoked, "")
	trust, err := signing.OpenTrust([]string{trusted}, revoked)
	if err != nil {
		t.Fatal(err)
	}
	a := newAgent(t)
	dir := t.TempDir()
	h := startHost(t, dir, func(c *Config) {
		// The second build's switch lasts until its goal is dropped.
		c.Trust, c.Hooks = trust, release.Config{Unpack: true, Check: `grep -q "build [13]" current/version`, CheckTimeout: time.Hour}
	}, a.url)
	one, two, three := newBuild(t, 1), newBuild(t, 2), newBuild(t, 3)
	for _, b := range []*testBuild{one, two, three} {
		a.has(b)
	}
	switchTo := func(g *goal.Goal, b *testBuild, by signing.Signer) {
		t.Helper()
		a.say(sign(t, g, by), b.recipe)
		a.await("it wants leave", func(s hostwire.ServiceState) bool { return s.Wants == b.goal.ExecutionID })
		a.say(&hostwire.Leave{Service: "web", Version: g.Version, Seconds: 600})
	}
	ready := func() {
		t.Helper()
		if code, body := h.get(t, "/readyz"); code != 200 {
			t.Errorf("/readyz: %d %s", code, body)
		}
	}
	switchTo(goalOf(10, one, nil), one, key)
	a.await("the first runs", func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })
	ready()
	switchTo(goalOf(1000, two, one), two, thief)
	a.await("it switches", func(s hostwire.ServiceState) bool { return s.State == goal.Switching && s.Phase == "check" })

	a.mu.Lock()
	hellos := len(a.hellos)
	a.mu.Unlock()
	write(revoked, thief.Public().String()+"\n")
	until(t, "the goal is dropped", func() bool { return h.shelf.Goal("web") == nil })
	until(t, "it asks for what there is", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.hellos) > hellos && a.stream != nil
	})
	until(t, "the first runs again", func() bool {
		return h.Status().Services[0].Running == one.goal.ExecutionID && runs(t, dir) == "build 1"
	})
	until(t, "it is ready", func() bool { code, _ := h.get(t, "/readyz"); return code == 200 })
	a.say(sign(t, goalOf(1001, two, one), thief))
	switchTo(goalOf(11, three, one), three, key)
	a.await("the third runs", func(s hostwire.ServiceState) bool {
		return s.State == goal.Healthy && s.Running == three.goal.ExecutionID
	})
	ready()

	// A key that is added counts, too: what it had signed before is asked for again.
	write(revoked, "")
	until(t, "it is trusted", func() bool { return strings.Contains(strings.Join(trust.IDs(), " "), thief.Public().ID()) })
	a.say(sign(t, goalOf(1001, one, three), thief))
	until(t, "its goal counts", func() bool { g := h.shelf.Goal("web"); return g != nil && g.Version == 1001 })
}
