package release

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func command(t *testing.T, text string, limit time.Duration) (string, error) {
	t.Helper()
	return run(t.Context(), hook{command: text, dir: t.TempDir(), env: os.Environ(), limit: limit})
}

func TestHook(t *testing.T) {
	if out, err := command(t, "echo out; echo err >&2", time.Minute); err != nil || out != "out\nerr" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := command(t, "printf 'a\\033[2Jb\\r\\000c\\377'; exit 7", time.Minute); err == nil || err.Error() != "exit status 7" || out != "a[2Jbc" {
		t.Errorf("%q, %v", out, err)
	}
	// The last of what it prints is kept.
	if out, err := command(t, "yes line | head -n 100000; echo the end", time.Minute); err != nil || len(out) > MaxOutput+40 || !strings.HasPrefix(out, "(") || !strings.HasSuffix(out, "the end") {
		t.Errorf("%d bytes, %.40q, %v", len(out), out, err)
	}
	// What hangs is killed with all that it has started, stopped ones too.
	dir := t.TempDir()
	out, err := run(t.Context(), hook{command: "trap '' TERM; sleep 1000 & echo $! >child; echo hanging; kill -STOP $$", dir: dir, env: os.Environ(), limit: 300 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "not ended in 300ms") || out != "hanging" {
		t.Errorf("%q, %v", out, err)
	}
	gone(t, filepath.Join(dir, "child"))
	// What a command leaves behind may go on, but not print to where nobody reads.
	dir = t.TempDir()
	if _, err := run(t.Context(), hook{command: "sleep 1000 >/dev/null 2>&1 & echo $! >child", dir: dir, env: os.Environ(), limit: time.Minute}); err != nil {
		t.Error(err)
	}
	child := childOf(t, filepath.Join(dir, "child"))
	if _, err := startOf(child); err != nil {
		t.Errorf("what a command has left behind is gone: %v", err)
	}
	kill(t, child)
	dir = t.TempDir()
	if _, err := run(t.Context(), hook{command: "sleep 1000 & echo $! >child", dir: dir, env: os.Environ(), limit: time.Minute}); err == nil || !strings.Contains(err.Error(), "2>&1") {
		t.Errorf("left with its output open: %v", err)
	}
	gone(t, filepath.Join(dir, "child"))
	// A command that may not begin does not.
	dir = t.TempDir()
	no := errors.New("no")
	if _, err := run(t.Context(), hook{command: "touch ran", dir: dir, limit: time.Minute, started: func(process) error { return no }}); !errors.Is(err, no) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("it has begun before it was in the journal")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := run(ctx, hook{command: "sleep 1000", dir: dir, limit: time.Minute}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func childOf(t *testing.T, file string) (pid int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		_, err = fmt.Sscan(string(text), &pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kill(t *testing.T, pid int) {
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Error(err)
	}
}

// gone waits until the process whose number is in a file has ended.
func gone(t *testing.T, file string) {
	t.Helper()
	pid := childOf(t, file)
	await(t, func() bool { _, err := startOf(pid); return errors.Is(err, os.ErrProcessDone) })
}

func TestProcess(t *testing.T) {
	own, err := identify(os.Getpid())
	if err != nil || own.Start == "" {
		t.Fatal(own, err)
	}
	// Another process with the same number is not taken for it.
	other := own
	other.Start = "1@another boot"
	if err := other.end(t.Context(), quiet()); err != nil {
		t.Error(err)
	}
	if err := (process{}).end(t.Context(), quiet()); err != nil {
		t.Error(err)
	}
}

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
