package agent

import (
	"testing"

	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/operator/operatortest"
)

// Each path that an agent serves lets in those who may, and nobody else.
func TestRoles(t *testing.T) {
	access, tokens := operatortest.Roles(t)
	a := startAgent(t, &stores{}, 0)
	a.cfg.Security.Access, a.cfg.Security.CloseReading = access, true
	protection, mux := a.mux()
	want := map[string]operator.Role{
		"GET /{$}":     operator.Anyone,
		"GET /healthz": operator.Anyone,
		"GET /readyz":  operator.Anyone,
		"GET /metrics": operator.View,
		"GET /events":  operator.View,
		"GET /changes": operator.View,
		"GET /limits":  operator.View,
		"GET /status":  operator.View,
		"POST /limits": operator.Admin,
	}
	operatortest.Check(t, protection.Wrap(mux), mux.Patterns(), want, tokens)
	operatortest.Documented(t, "agent", want)
}
