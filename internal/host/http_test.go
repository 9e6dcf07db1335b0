package host

import (
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/hostwire"
)

// TestContract asks for every operation of docs/openapi-host.yaml with every status that it
// names. That the answers are right is for the transport to say.
func TestContract(t *testing.T) {
	a := newAgent(t)
	h := startHost(t, t.TempDir(), func(c *Config) { c.Hooks.Exec = "echo restarted" }, a.url)
	if code, body := h.get(t, "/readyz"); code != 503 || !strings.Contains(body, "service web: no goal has come yet") {
		t.Errorf("/readyz before there is a goal: %d %s", code, body)
	}
	b := newBuild(t, 1)
	a.has(b)
	a.say(sign(t, goalOf(1, b, nil), key), b.recipe)
	a.await("it is held", func(s hostwire.ServiceState) bool { return s.Wants != "" })
	h.get(t, "/status")
	a.say(&hostwire.Leave{Service: "web", Version: 1, Seconds: 30})
	until(t, "it is ready", func() bool { code, _ := h.get(t, "/readyz"); return code == 200 })
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/status"} {
		if code, body := h.get(t, path); code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
		if code, body := h.getAs(t, "rebound.example:7099", path); code != 421 {
			t.Errorf("%s by another name: %d %s", path, code, body)
		}
	}
	for _, o := range h.contract.Unseen() {
		t.Errorf("no answer of %s was seen", o)
	}
}
