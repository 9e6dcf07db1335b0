package hook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func command(t *testing.T, text string, limit time.Duration) (string, error) {
	t.Helper()
	return Hook{Args: Shell(text), Dir: t.TempDir(), Env: os.Environ(), Limit: limit}.Run(t.Context())
}

func TestHook(t *testing.T) {
	if out, err := command(t, "echo out; echo err >&2", time.Minute); err != nil || out != "out\nerr" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := command(t, "printf 'a\\033[2Jb\\r\\000c\\377'; exit 7", time.Minute); err == nil || err.Error() != "exit status 7" || out != "a[2Jbc" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := (Hook{Args: []string{"/bin/echo", "a  b", "$HOME"}, Limit: time.Minute}).Run(t.Context()); err != nil || out != "a  b $HOME" {
		t.Errorf("without a shell: %q, %v", out, err)
	}
	// The last of what it prints is kept.
	if out, err := command(t, "yes line | head -n 100000; echo the end", time.Minute); err != nil || len(out) > MaxOutput+40 || !strings.HasPrefix(out, "(") || !strings.HasSuffix(out, "the end") {
		t.Errorf("%d bytes, %.40q, %v", len(out), out, err)
	}
	// What hangs is killed with all that it has started, stopped ones too.
	dir := t.TempDir()
	out, err := (Hook{Args: Shell("trap '' TERM; sleep 1000 & echo $! >child; echo hanging; kill -STOP $$"), Dir: dir, Env: os.Environ(), Limit: 300 * time.Millisecond}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "not ended in 300ms") || out != "hanging" {
		t.Errorf("%q, %v", out, err)
	}
	gone(t, filepath.Join(dir, "child"))
	// What a command leaves behind may go on, but not print to where nobody reads.
	dir = t.TempDir()
	if _, err := (Hook{Args: Shell("sleep 1000 >/dev/null 2>&1 & echo $! >child"), Dir: dir, Env: os.Environ(), Limit: time.Minute}).Run(t.Context()); err != nil {
		t.Error(err)
	}
	child := childOf(t, filepath.Join(dir, "child"))
	if _, err := startOf(child); err != nil {
		t.Errorf("what a command has left behind is gone: %v", err)
	}
	kill(t, child)
	dir = t.TempDir()
	if _, err := (Hook{Args: Shell("sleep 1000 & echo $! >child"), Dir: dir, Env: os.Environ(), Limit: time.Minute}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "2>&1") {
		t.Errorf("left with its output open: %v", err)
	}
	gone(t, filepath.Join(dir, "child"))
	// A command that may not begin does not.
	dir = t.TempDir()
	no := errors.New("no")
	if _, err := (Hook{Args: Shell("touch ran"), Dir: dir, Limit: time.Minute, Started: func(Process) error { return no }}).Run(t.Context()); !errors.Is(err, no) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("it has begun before it was in the journal")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Hook{Args: Shell("sleep 1000"), Dir: dir, Limit: time.Minute}).Run(ctx); !errors.Is(err, context.Canceled) {
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

func await(t *testing.T, holds func() bool) {
	t.Helper()
	for !holds() {
		if t.Context().Err() != nil {
			t.Fatal("the test's time is up")
		}
		time.Sleep(5 * time.Millisecond) // between looks
	}
}

// gone waits until the process whose number is in a file has ended.
func gone(t *testing.T, file string) {
	t.Helper()
	pid := childOf(t, file)
	await(t, func() bool { _, err := startOf(pid); return errors.Is(err, os.ErrProcessDone) })
}

func TestProcess(t *testing.T) {
	own, err := Identify(os.Getpid())
	if err != nil || own.Start == "" {
		t.Fatal(own, err)
	}
	// Another process with the same number is not taken for it.
	other := own
	other.Start = "1@another boot"
	if err := other.End(t.Context(), quiet()); err != nil {
		t.Error(err)
	}
	if err := (Process{}).End(t.Context(), quiet()); err != nil {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	var out Tail
	for _, s := range []string{"first", strings.Repeat("a", MaxOutput+3), "bcd", "h\x1b\xff"} {
		if n, err := out.Write([]byte(s)); n != len(s) || err != nil {
			t.Error(n, err)
		}
	}
	if got, want := out.String(), "(14 bytes before) "+strings.Repeat("a", MaxOutput-6)+"bcdh"; got != want {
		t.Errorf("%.40q…%q", got, got[max(0, len(got)-10):])
	}
}
