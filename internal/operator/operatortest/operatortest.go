// Package operatortest asks what a daemon serves with the token of each role.
package operatortest

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api/apitest"
	"github.com/landfall-dist/landfall/internal/operator"
)

// Roles makes an Access with an operator of each role, and returns the tokens.
func Roles(t testing.TB) (*operator.Access, map[operator.Role]string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "operators")
	tokens := make(map[operator.Role]string)
	for _, role := range []operator.Role{operator.View, operator.Publish, operator.Deploy, operator.Admin} {
		token, err := operator.Add(file, role.String()+"er", role, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		tokens[role] = string(token)
	}
	access, err := operator.NewAccess("", file)
	if err != nil {
		t.Fatal(err)
	}
	return access, tokens
}

// Check fails the test unless the patterns are exactly those of want, scripts and style
// sheets aside, and each lets in the roles from the one on that want says, and no others.
// Reading is closed at h.
func Check(t *testing.T, h http.Handler, patterns []string, want map[string]operator.Role, tokens map[operator.Role]string) {
	t.Helper()
	left := maps.Clone(want)
	for _, pattern := range patterns {
		role, ok := want[pattern]
		if strings.HasSuffix(pattern, ".js") || strings.HasSuffix(pattern, ".css") {
			role, ok = operator.Anyone, true
		}
		if !ok {
			t.Errorf("%s: which role does it ask for?", pattern)
			continue
		}
		delete(left, pattern)
		for _, as := range slices.Sorted(maps.Keys(tokens)) {
			code := ask(h, pattern, tokens[as])
			if refused := code == http.StatusForbidden || code == http.StatusUnauthorized; refused != (as < role) {
				t.Errorf("%s as %s: %d, it asks for %s", pattern, as, code, role)
			}
		}
		for _, token := range []string{"", "wrong"} {
			if code := ask(h, pattern, token); (code == http.StatusUnauthorized) != (role > operator.Anyone) {
				t.Errorf("%s with the token %q: %d, it asks for %s", pattern, token, code, role)
			}
		}
	}
	for pattern := range left {
		t.Errorf("%s is not served", pattern)
	}
}

// Documented fails the test unless docs/openapi.yaml says of each call of a daemon which
// role it asks for.
func Documented(t *testing.T, tag string, want map[string]operator.Role) {
	t.Helper()
	for path, item := range apitest.Load(t).Document.Paths.Map() {
		for method, o := range item.Operations() {
			if !slices.Contains(o.Tags, tag) {
				continue
			}
			pattern := method + " " + map[string]string{"/": "/{$}", "/uploads/{key}": "/uploads/"}[path]
			if strings.HasSuffix(pattern, " ") {
				pattern += path
			}
			if role, ok := want[pattern]; !ok || o.Extensions["x-role"] != role.String() {
				t.Errorf("docs/openapi.yaml has x-role %v for %s, it is %s", o.Extensions["x-role"], pattern, role)
			}
		}
	}
}

// ask requests what a pattern serves, of a client that has gone: it is about who is let in.
func ask(h http.Handler, pattern, token string) int {
	method, path, _ := strings.Cut(pattern, " ")
	path = strings.NewReplacer("{$}", "", "{id}", "01ARZ3NDEKTSV4RRFFQ69G5FAV").Replace(path)
	r := httptest.NewRequest(method, path, strings.NewReader("{"))
	r.Host = "localhost"
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	gone, cancel := context.WithCancel(r.Context())
	cancel()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(gone))
	return w.Code
}
