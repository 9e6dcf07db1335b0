package seeder

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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
	for path, want := range map[string]string{"/yes?team=a": "", "/no": "403", "/elsewhere": "302"} {
		err := waveChecks("").ask(t.Context(), "web", deployment.Check{Deployment: "01K", Wave: 2, Ask: server.URL + path})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if got := <-asked; !strings.Contains(got, "deployment=01K") || !strings.Contains(got, "service=web") || !strings.Contains(got, "wave=2") || path == "/yes?team=a" && !strings.Contains(got, "team=a") {
			t.Errorf("asked %s", got)
		}
	}
	if err := waveChecks("").ask(t.Context(), "web", deployment.Check{Ask: "http://127.0.0.1:1/"}); err == nil {
		t.Error("nobody has answered, and it was let pass")
	}
}

// TestCheckWaveProgram runs a program of a directory, and nothing else.
func TestCheckWaveProgram(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("LANDFALL_OPERATOR_TOKEN", "a flag of the seeder")
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("yes", `test "$LANDFALL_SERVICE $LANDFALL_DEPLOYMENT $LANDFALL_WAVE $LANDFALL_OPERATOR_TOKEN" = "web 01K 2 "`, 0o700)
	write("no", "echo frozen until Monday; yes more | head -c 100000; printf '\\033[2Jmetrics are red'; exit 3", 0o700)
	write("says", "yes more | head -c 100000; echo metrics are red; exit 3", 0o700)
	write("mute", "exit 4", 0o700)
	write("text", "exit 0", 0o600)
	if err := os.Mkdir(filepath.Join(dir, "more"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"yes": "", "no": "exit status 3", "says": "metrics are red", "mute": "exit status 4", "text": "chmod +x", "more": "directory", "gone": "no such program",
		"": "name", "..": "name", "../yes": "name", dir + "/yes": "name", "yes; true": "name", "file://" + dir + "/yes": "http://", "http://": "http://",
	} {
		err := waveChecks(dir).ask(t.Context(), "web", deployment.Check{Deployment: "01K", Wave: 2, Ask: name})
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || len(err.Error()) > 400 || strings.Contains(err.Error(), "\033") || strings.HasSuffix(err.Error(), ": ")) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := waveChecks("").ask(t.Context(), "web", deployment.Check{Ask: "yes"}); err == nil || !strings.Contains(err.Error(), "--wave-checks") {
		t.Errorf("without a directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	write("hangs", "sleep 1000", 0o700)
	if err := waveChecks(dir).ask(ctx, "web", deployment.Check{Ask: "hangs"}); !errors.Is(err, context.Canceled) {
		t.Errorf("while the seeder ends: %v", err)
	}
}
