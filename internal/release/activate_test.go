package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/hook"
)

func TestActivate(t *testing.T) {
	said := filepath.Join(t.TempDir(), "said")
	t.Setenv("LANDFALL_EXEC", "a flag of the host")
	s := open(t, Config{Dir: t.TempDir(), Before: tell(said), Exec: tell(said) + "; echo done; env | grep LANDFALL_EXEC || true", Check: tell(said)})
	one, two := place(t, s, 1), place(t, s, 2)
	if err := s.Healthy(t.Context()); !errors.Is(err, ErrNothing) {
		t.Error("before anything runs:", err)
	}
	if err := s.Activate(t.Context(), Order{Version: 5, Deployment: "D1", To: one}); err != nil {
		t.Fatal(err)
	}
	if err := s.Activate(t.Context(), Order{Version: 9, Deployment: "D2", To: two}); err != nil {
		t.Fatal(err)
	}
	id1, id2 := one.ExecutionID, two.ExecutionID
	want := []string{
		"before web app/web-1.bin " + id1 + "  D1 1 ",
		"exec web app/web-1.bin " + id1 + "  D1 1 releases/" + id1,
		"check web app/web-1.bin " + id1 + "  D1 1 releases/" + id1,
		"before web app/web-2.bin " + id2 + " " + id1 + " D2 1 releases/" + id1,
		"exec web app/web-2.bin " + id2 + " " + id1 + " D2 1 releases/" + id2,
		"check web app/web-2.bin " + id2 + " " + id1 + " D2 1 releases/" + id2,
	}
	if got := lines(t, said); fmt.Sprint(got) != fmt.Sprint(want) && strings.Join(got, "\n") != strings.TrimSpace(strings.Join(want, "\n")) {
		t.Errorf("ran:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if st := s.State(); st.Running != two || st.From != one || st.Version != 9 || st.Phase != Done || st.Error != "" || st.Output != "done" {
		t.Errorf("%+v", st)
	}
	if err := s.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	// One attempt at each version.
	if err := s.Activate(t.Context(), Order{Version: 9, To: one}); !errors.Is(err, ErrAttempted) {
		t.Errorf("the same version: %v", err)
	}
	if missing, _ := build(3); !errors.Is(s.Activate(t.Context(), Order{Version: 10, To: missing}), ErrNotPlaced) {
		t.Error("a release that is not there")
	}
	if got := runs(t, s); got != "build 2" {
		t.Errorf("runs %q", got)
	}
	// An earlier one is for who believes the later one no more.
	if err := s.Activate(t.Context(), Order{Version: 6, To: one}); err != nil || s.State().Version != 6 || runs(t, s) != "build 1" {
		t.Errorf("an earlier version: %+v, %v", s.State(), err)
	}
}

// TestFailure: whatever fails, the old build is put back and started; only where that
// fails, too, the host is broken.
func TestFailure(t *testing.T) {
	forNew := func(fail string) string { return `case $LANDFALL_BUILD in *web-2*) ` + fail + `;; esac` }
	for name, c := range map[string]struct {
		cfg   Config
		phase Phase
		runs  string
		error string
		ran   string // what was run, by phases
	}{
		"before":           {Config{Before: forNew("echo no drain; exit 3")}, Failed, "build 1", "before: exit status 3", "before back-exec back-check"},
		"exec":             {Config{Exec: forNew("exit 1")}, Failed, "build 1", "exec: exit status 1", "before exec back-exec back-check"},
		"check":            {Config{Check: forNew("echo ill; exit 1"), CheckTimeout: time.Millisecond}, Failed, "build 1", "check: not healthy in 1ms: check: exit status 1", "before exec check back-exec back-check"},
		"exec both ways":   {Config{Exec: "[ $LANDFALL_ATTEMPT = 1 ] && [ ! -e fine ] || [ $LANDFALL_BUILD = x ]"}, Broken, "build 1", "back-exec: exit status 1", "before exec back-exec"},
		"checks both ways": {Config{Check: "[ ! -e fine ]", CheckTimeout: time.Millisecond}, Broken, "build 1", "back-check", "before exec check back-exec back-check"},
	} {
		t.Run(name, func(t *testing.T) {
			said := filepath.Join(t.TempDir(), "said")
			note := func(command string) string {
				return `echo "$LANDFALL_PHASE" >>` + said + "; " + command
			}
			dir := t.TempDir()
			plain := open(t, Config{Dir: dir})
			one := place(t, plain, 1)
			if err := plain.Activate(t.Context(), Order{Version: 1, To: one}); err != nil {
				t.Fatal(err)
			}
			plain.Close()
			if err := os.WriteFile(filepath.Join(dir, "web", "fine"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			cfg := c.cfg
			cfg.Dir, cfg.Before, cfg.Exec, cfg.Check = dir, note(cfg.Before), note(cfg.Exec), note(cfg.Check)
			s := open(t, cfg)
			two := place(t, s, 2)
			err := s.Activate(t.Context(), Order{Version: 2, To: two})
			if err == nil {
				t.Fatal("a failure is a success")
			}
			st := s.State()
			if st.Phase != c.phase || !strings.Contains(st.Error, c.error) || runs(t, s) != c.runs || st.Running != one {
				t.Errorf("%s, %q, runs %q: %+v", st.Phase, st.Error, runs(t, s), st)
			}
			if name == "before" && st.Output != "no drain" || name == "check" && st.Output != "ill" {
				t.Errorf("printed: %q", st.Output)
			}
			ran := strings.Join(lines(t, said), " ")
			if ran != c.ran {
				t.Errorf("ran %q, want %q", ran, c.ran)
			}
			// After a restart it is still so, and nothing is run again.
			before := len(lines(t, said))
			s.Close()
			again := open(t, cfg)
			if err := again.Resume(t.Context(), nil); err != nil || again.State().Phase != c.phase || len(lines(t, said)) != before {
				t.Errorf("after a restart: %v, %+v", err, again.State())
			}
		})
	}
}

func TestFirstBuildFails(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), Exec: "exit 1"})
	one := place(t, s, 1)
	if err := s.Activate(t.Context(), Order{Version: 1, To: one}); err == nil {
		t.Error("a failure is a success")
	}
	if st := s.State(); st.Phase != Failed || st.Running.ExecutionID != "" || runs(t, s) != "" {
		t.Errorf("%+v, runs %q", st, runs(t, s))
	}
	if err := s.Activate(t.Context(), Order{Version: 2, To: one}); err == nil || s.State().Version != 2 {
		t.Errorf("the next version is another attempt: %v, %+v", err, s.State())
	}
}

// TestGiveUp: a later goal that wants another build ends the wait for a healthy service.
func TestGiveUp(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Check: `touch asked; case $LANDFALL_BUILD in *web-2*) exit 1;; esac`, CheckTimeout: time.Hour})
	one, two := place(t, s, 1), place(t, s, 2)
	if err := s.Activate(t.Context(), Order{Version: 1, To: one}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.path("asked")); err != nil {
		t.Fatal(err)
	}
	giveUp, done := make(chan struct{}), make(chan error)
	go func() { done <- s.Activate(t.Context(), Order{Version: 2, To: two, GiveUp: giveUp}) }()
	await(t, func() bool { _, err := os.Stat(s.path("asked")); return err == nil })
	close(giveUp)
	if err := <-done; err == nil || !strings.Contains(err.Error(), ErrGivenUp.Error()) {
		t.Error(err)
	}
	if st := s.State(); st.Phase != Failed || runs(t, s) != "build 1" {
		t.Errorf("%+v", st)
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

// TestInterrupted: what is told to end leaves the switch to the next start, which goes on.
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, Exec: `echo $LANDFALL_ATTEMPT >>runs; [ -e go ] || exec sleep 1000`}
	s := open(t, cfg)
	one := place(t, s, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Activate(ctx, Order{Version: 1, To: one}) }()
	await(t, func() bool { _, err := os.Stat(s.path("runs")); return err == nil })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !s.Interrupted() {
		t.Error(err)
	}
	s.Close()
	again := open(t, cfg)
	if !again.Interrupted() || again.State().Phase != Exec {
		t.Fatalf("%+v", again.State())
	}
	if err := again.Activate(t.Context(), Order{Version: 2, To: one}); err == nil {
		t.Error("another switch began before the first had ended")
	}
	if err := os.WriteFile(again.path("go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := again.Resume(t.Context(), nil); err != nil || again.State().Phase != Done || again.State().Attempt != 2 {
		t.Errorf("%v, %+v", err, again.State())
	}
	if got := strings.Join(lines(t, again.path("runs")), " "); got != "1 2" {
		t.Errorf("attempts %q", got)
	}
}

// TestKilled: killed at any step, the old build or the new one is there, whole, and the
// next start ends what was begun.
func TestKilled(t *testing.T) {
	for _, fails := range []bool{false, true} {
		steps := []string{"before", "switch", "linked", "exec", "check", "done"}
		end := Done
		if fails {
			steps, end = []string{"back", "back-exec", "back-check", "failed"}, Failed
		}
		for _, step := range steps {
			t.Run(fmt.Sprintf("%s fails=%v", step, fails), func(t *testing.T) {
				t.Parallel()
				exit := "0"
				if fails {
					exit = "1"
				}
				cfg := Config{
					Dir: t.TempDir(), Service: "web", Logger: quiet(), Before: "echo before >>said",
					Exec: `echo exec >>said; case $LANDFALL_BUILD in *web-2*) exit ` + exit + `;; esac`, Check: "echo check >>said",
				}
				s := open(t, cfg)
				one, two := place(t, s, 1), place(t, s, 2)
				if err := s.Activate(t.Context(), Order{Version: 1, To: one}); err != nil {
					t.Fatal(err)
				}
				s.Close()
				err := otherProcess(t, job{Config: cfg, Order: Order{Version: 2, To: two}, KillAt: step})
				var ended *exec.ExitError
				if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("not killed at %s: %v", step, err)
				}
				if got := runs(t, s); got != "build 1" && got != "build 2" {
					t.Errorf("after the kill it runs %q", got)
				}
				again := open(t, cfg)
				if final := step == "done" || step == "failed"; again.Interrupted() == final {
					t.Errorf("interrupted: %v", again.Interrupted())
				}
				err = again.Resume(t.Context(), nil)
				want := "build 2"
				if fails {
					want = "build 1"
				}
				if st := again.State(); st.Phase != end || runs(t, again) != want || (err != nil) != (fails && step != "failed") {
					t.Errorf("%v, runs %q, %+v", err, runs(t, again), st)
				}
				said := lines(t, again.path("said"))
				if said[len(said)-1] != "check" || said[len(said)-2] != "exec" && said[len(said)-2] != "check" {
					t.Errorf("at the end the service was not started and found healthy: %v", said)
				}
			})
		}
	}
}

// TestHookKillsItsHost: a hook that ends its host each time does not do so for ever, and
// ten restarts change nothing more.
func TestHookKillsItsHost(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Service: "web", Logger: quiet(), Exec: `echo "$LANDFALL_PHASE" >>said; case $LANDFALL_BUILD in *web-2*) kill -9 $PPID; sleep 1000;; esac`}
	s := open(t, cfg)
	one, two := place(t, s, 1), place(t, s, 2)
	if err := s.Activate(t.Context(), Order{Version: 1, To: one}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := otherProcess(t, job{Config: cfg, Order: Order{Version: 2, To: two}}); err == nil {
		t.Fatal("the host lives")
	}
	for range 10 {
		_ = otherProcess(t, job{Config: cfg})
	}
	again := open(t, cfg)
	if st := again.State(); st.Phase != Failed || runs(t, again) != "build 1" || !strings.Contains(st.Error, "5 attempts") {
		t.Errorf("runs %q, %+v", runs(t, again), st)
	}
	if got, want := strings.Join(lines(t, again.path("said")), " "), strings.Repeat("exec ", 1+MaxAttempts)+"back-exec"; got != want {
		t.Errorf("ran %q, want %q", got, want)
	}
}

// TestOutlivingHook: a hook that goes on when its host was killed is ended before it is
// run again, with what it has started.
func TestOutlivingHook(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Service: "web", Logger: quiet(), Exec: `if mkdir first 2>/dev/null; then kill -9 $PPID; sleep 1000 & echo $! >child; wait; fi; touch second`}
	s := open(t, cfg)
	one := place(t, s, 1)
	s.Close()
	if err := otherProcess(t, job{Config: cfg, Order: Order{Version: 1, To: one}}); err == nil {
		t.Fatal("the host lives")
	}
	var child int
	await(t, func() bool {
		text, _ := os.ReadFile(s.path("child"))
		_, err := fmt.Sscan(string(text), &child)
		return err == nil
	})
	again := open(t, cfg)
	if err := again.Resume(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(again.path("second")); err != nil {
		t.Error("not run again:", err)
	}
	await(t, func() bool { _, err := hook.Identify(child); return errors.Is(err, os.ErrProcessDone) })
}

// TestJournalCannotBeWritten: without room for the journal nothing is begun; once begun,
// the old build is put back all the same.
func TestJournalCannotBeWritten(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), Exec: `case $LANDFALL_BUILD in *web-2*) rm journal; mkdir -p journal/taken;; esac`})
	one, two := place(t, s, 1), place(t, s, 2)
	if err := s.Activate(t.Context(), Order{Version: 1, To: one}); err != nil {
		t.Fatal(err)
	}
	if err := s.Activate(t.Context(), Order{Version: 2, To: two}); err == nil {
		t.Error("no error")
	}
	if st := s.State(); st.Phase != Failed || runs(t, s) != "build 1" || !strings.Contains(st.Error, "journal") {
		t.Errorf("runs %q, %+v", runs(t, s), st)
	}
	if err := s.Activate(t.Context(), Order{Version: 3, To: two}); err == nil || s.State().Version != 2 || runs(t, s) != "build 1" {
		t.Errorf("%v, %+v", err, s.State())
	}
}

func TestNext(t *testing.T) {
	for _, p := range append(append([]Phase{Broken}, forward...), backward...) {
		steps := 0
		for q := p; !q.final(); q = q.next(false) {
			if steps++; steps > 10 {
				t.Fatalf("from %s there is no end", p)
			}
		}
		if q := p.next(true); p.final() && q != p || !p.final() && !q.back() && q != Broken {
			t.Errorf("%s fails to %s", p, q)
		}
	}
}

func TestCut(t *testing.T) {
	if got := cut("añb", 2); got != "a" {
		t.Errorf("%q", got)
	}
}
