package web

import (
	"net/http"

	"github.com/landfall-dist/landfall/internal/operator"
)

// sharedRoles are what the paths ask for that every member serves.
var sharedRoles = map[string]operator.Role{
	"GET /healthz": operator.Anyone,
	"GET /readyz":  operator.Anyone,
	"GET /metrics": operator.View,
	"GET /events":  operator.View,
	"GET /changes": operator.View,
	"GET /limits":  operator.View,
	"POST /limits": operator.Admin,
}

// HandleFunc registers a handler. Its pattern needs a role in Options.Roles, or nobody is
// let in whom a token is asked of.
func (m *Mux) HandleFunc(pattern string, h http.HandlerFunc) {
	m.patterns = append(m.patterns, pattern)
	m.ServeMux.HandleFunc(pattern, h)
}

// public registers a handler of what everybody may see.
func (m *Mux) public(pattern string, h http.HandlerFunc) {
	m.roles[pattern] = operator.Anyone
	m.HandleFunc(pattern, h)
}

// Patterns are those that were registered, in that order.
func (m *Mux) Patterns() []string { return m.patterns }

// Role is what a request asks for. For what is not served that is View, or Publish where it
// would change something, so that nobody finds out what there is.
func (m *Mux) Role(r *http.Request) operator.Role {
	_, pattern := m.Handler(r)
	switch role, ok := m.roles[pattern]; {
	case ok:
		return role
	case pattern != "":
		return operator.Nobody
	case changes(r.Method):
		return operator.Publish
	}
	return operator.View
}

// Action is what a request is to do, in the words of the API: the pattern that serves it.
func (m *Mux) Action(r *http.Request) string {
	_, pattern := m.Handler(r)
	return pattern
}
