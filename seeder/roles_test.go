package seeder

import (
	"testing"

	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/operator/operatortest"
)

// Each path that the seeder serves lets in those who may, and nobody else.
func TestRoles(t *testing.T) {
	access, tokens := operatortest.Roles(t)
	s := newWatched(t).start(func(cfg *Config) { cfg.Security.Access, cfg.Security.CloseReading = access, true }).Seeder
	protection, mux, all := s.mux()
	want := map[string]operator.Role{
		"GET /{$}":     operator.Anyone,
		"GET /healthz": operator.Anyone,
		"GET /readyz":  operator.Anyone,

		"GET /metrics":                 operator.View,
		"GET /events":                  operator.View,
		"GET /changes":                 operator.View,
		"GET /limits":                  operator.View,
		"GET /executions":              operator.View,
		"GET /executions/{id}":         operator.View,
		"GET /executions/{id}/swarm":   operator.View,
		"GET /executions/{id}/torrent": operator.View,

		"PUT /uploads/":               operator.Publish,
		"POST /deploy":                operator.Publish,
		"POST /builds":                operator.Publish,
		"POST /executions/{id}/retry": operator.Publish,

		"POST /executions/{id}/cancel": operator.Deploy,

		"GET /services":                     operator.View,
		"GET /services/{name}":              operator.View,
		"GET /services/{name}/deployments":  operator.View,
		"GET /services/{name}/hosts":        operator.View,
		"POST /services/{name}/hosts/log":   operator.Deploy,
		"POST /services/{name}/deployments": operator.Deploy,
		"POST /services/{name}/pause":       operator.Deploy,
		"POST /services/{name}/resume":      operator.Deploy,
		"POST /services/{name}/abort":       operator.Deploy,
		"POST /services/{name}/rollback":    operator.Deploy,
		"POST /services/{name}/skip":        operator.Deploy,
		"POST /services/{name}/hold":        operator.Deploy,
		"POST /services/{name}/release":     operator.Deploy,
		"GET /recalls":                      operator.View,
		"POST /recalls":                     operator.Deploy,

		"POST /limits": operator.Admin,
		"GET /audit":   operator.Admin,
	}
	operatortest.Check(t, protection.Wrap(all), mux.Patterns(), want, tokens)
	operatortest.Documented(t, "seeder", want)
}
