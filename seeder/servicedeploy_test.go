package seeder

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/deployment"
)

// TestCheckWave asks a URL.
func TestCheckWave(t *testing.T) {
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		switch r.URL.Path {
		case "/no":
			http.Error(out, "freeze", http.StatusForbidden)
		case "/elsewhere":
			http.Redirect(out, r, "/yes", http.StatusFound)
		}
	}))
	defer server.Close()
	v := &service{name: "web"}
	for path, want := range map[string]string{"/yes?team=a": "", "/no": "403", "/elsewhere": "302"} {
		err := v.checkWave(t.Context(), deployment.Check{Deployment: "01K", Wave: 2, Ask: server.URL + path})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if got := <-asked; !strings.Contains(got, "deployment=01K") || !strings.Contains(got, "service=web") || !strings.Contains(got, "wave=2") || path == "/yes?team=a" && !strings.Contains(got, "team=a") {
			t.Errorf("asked %s", got)
		}
	}
	if err := v.checkWave(t.Context(), deployment.Check{Ask: "http://127.0.0.1:1/"}); err == nil {
		t.Error("nobody has answered, and it was let pass")
	}
}
