package release

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestCheckURL(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := asked.Add(1); {
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/", http.StatusFound)
		case n < 3:
			http.Error(w, "starting", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	s := open(t, Config{Dir: t.TempDir(), Check: server.URL})
	one := place(t, s, 1)
	if err := s.Activate(t.Context(), Order{Version: 1, To: one}); err != nil || asked.Load() != 3 {
		t.Errorf("%v after %d questions", err, asked.Load())
	}
	s.cfg.Check = server.URL + "/moved"
	if err := s.Healthy(t.Context()); err == nil || !strings.Contains(err.Error(), "302") {
		t.Errorf("elsewhere: %v", err)
	}
	asked.Store(0)
	s.cfg.Check, s.cfg.CheckTimeout = server.URL, time.Millisecond
	two := place(t, s, 2)
	if err := s.Activate(t.Context(), Order{Version: 2, To: two}); err == nil || !strings.Contains(err.Error(), "not healthy in 1ms") {
		t.Error(err)
	}
	if !IsURL("https://x/") || IsURL("curl http://x/") {
		t.Error("what is a URL")
	}
}
