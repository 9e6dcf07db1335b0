package host

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/retry"
)

// faulty is a log in which there is a fault at a message, as often as it says.
type faulty struct {
	message string
	times   *atomic.Int32
}

func (f faulty) Enabled(context.Context, slog.Level) bool { return true }
func (f faulty) WithAttrs([]slog.Attr) slog.Handler       { return f }
func (f faulty) WithGroup(string) slog.Handler            { return f }
func (f faulty) Handle(_ context.Context, r slog.Record) error {
	if r.Message == f.message && f.times.Add(-1) >= 0 {
		panic("made by the test")
	}
	return nil
}

// TestFailures: whatever keeps a host from running its goal, it says so as failed, with the
// phase and why, so that its wave goes on or stops; and when that is mended it runs it.
func TestFailures(t *testing.T) {
	inPlaceOf := func(file string) func(string) (func() error, error) {
		return func(dir string) (func() error, error) {
			at := filepath.Join(dir, file)
			away := at + ".away"
			if err := os.Rename(at, away); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
			return func() error {
				if err := os.RemoveAll(at); err != nil {
					return err
				}
				if err := os.Rename(away, at); !errors.Is(err, os.ErrNotExist) {
					return err
				}
				return nil
			}, os.WriteFile(at, nil, 0o600)
		}
	}
	for name, of := range map[string]struct {
		phase, says string
		spoil       func(dir string) (mend func() error, err error)
		recipe      func(*hostwire.Recipe)
	}{
		"the disk takes no build":   {phase: "fetch", says: "not a directory", spoil: inPlaceOf(".landfall/builds/cache")},
		"a recipe of another build": {phase: "fetch", says: "the goal's has", recipe: func(r *hostwire.Recipe) { r.Size++ }},
		"the disk takes no release": {phase: "place", says: "not a directory", spoil: inPlaceOf("web/manifests")},
		"current is not a link":     {phase: "begin", says: "move it away", spoil: inPlaceOf("web/current")},
		"the journal is not replaced": {phase: "begin", says: "journal", spoil: func(dir string) (func() error, error) {
			at := filepath.Join(dir, "web", "journal")
			return func() error { return os.RemoveAll(at) }, os.MkdirAll(filepath.Join(at, "taken"), 0o700)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			a := newAgent(t)
			startHost(t, dir, func(c *Config) { c.again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond} }, a.url)
			mend := func() error { return nil }
			if of.spoil != nil {
				var err error
				if mend, err = of.spoil(dir); err != nil {
					t.Fatal(err)
				}
			}
			one := newBuild(t, 1)
			a.has(one)
			recipe := *one.recipe
			if of.recipe != nil {
				of.recipe(&recipe)
			}
			a.say(sign(t, goalOf(10, one, nil), key))
			a.insists(t, &recipe, func(s hostwire.ServiceState) bool { return s.State == goal.Failed })
			if s := a.last(); s.Phase != of.phase || !strings.Contains(s.Error, of.says) || s.Running != "" {
				t.Errorf("%+v", s)
			}
			if err := mend(); err != nil {
				t.Fatal(err)
			}
			a.insists(t, one.recipe, func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })
			if runs(t, dir) != "build 1" {
				t.Errorf("runs %q", runs(t, dir))
			}
		})
	}
}

// TestLostOnDisk: a build whose bytes the disk has lost or changed before it is a release is
// fetched again, without a restart, and runs; the log says so.
func TestLostOnDisk(t *testing.T) {
	for name, damage := range map[string]func(data string) error{
		"changed": func(data string) error { return overwrite(data, "these are not the bytes") },
		"cut":     func(data string) error { return os.Truncate(data, 10) },
		"emptied": func(data string) error { return os.Truncate(data, 0) },
		"removed": os.Remove,
		"gone":    func(data string) error { return os.RemoveAll(filepath.Dir(data)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			a := newAgent(t)
			log := new(lines)
			startHost(t, dir, func(c *Config) {
				c.again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond}
				c.Logger = slog.New(slog.NewTextHandler(log, nil))
			}, a.url)
			manifests := filepath.Join(dir, "web", "manifests") // without which nothing is put into place
			if err := errors.Join(os.Rename(manifests, manifests+".away"), os.WriteFile(manifests, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			one := newBuild(t, 1)
			a.has(one)
			a.say(sign(t, goalOf(10, one, nil), key))
			a.insists(t, one.recipe, func(s hostwire.ServiceState) bool { return s.State == goal.Failed && s.Phase == "place" })
			if err := damage(filepath.Join(dir, ".landfall", "builds", "cache", one.known.Segment(0).InfoHash().String(), "data")); err != nil {
				t.Fatal(err)
			}
			if name != "removed" && name != "gone" { // which is read as long as it is open
				until(t, "it is said", func() bool {
					return log.has("the disk has changed or lost some of a build") && log.has("build is not in its place")
				})
			}
			if err := errors.Join(os.Remove(manifests), os.Rename(manifests+".away", manifests)); err != nil {
				t.Fatal(err)
			}
			a.insists(t, one.recipe, func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })
			if runs(t, dir) != "build 1" {
				t.Errorf("runs %q", runs(t, dir))
			}
		})
	}
}

func overwrite(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// lines are a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// insists says a recipe, and gives leave, over each stream of a host until it says of
// its service what holds.
func (a *testAgent) insists(t *testing.T, r *hostwire.Recipe, holds func(hostwire.ServiceState) bool) {
	t.Helper()
	until(t, "what is said of the service", func() bool {
		a.mu.Lock()
		s := a.stream
		a.mu.Unlock()
		if s != nil {
			_ = errors.Join(s.Send(r), s.Send(&hostwire.Leave{Service: "web", Version: 10, Seconds: 30})) // over the next one otherwise
		}
		return holds(a.last())
	})
}

// TestFaultInASwitch: one that ends by a fault of the program is taken up as after a
// restart, as often.
func TestFaultInASwitch(t *testing.T) {
	for name, of := range map[string]struct {
		times int32
		state string
		phase string
		build string
	}{
		"once":     {1, goal.Healthy, "", "build 1"},
		"for ever": {1000, goal.Failed, "failed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			a := newAgent(t)
			times := new(atomic.Int32)
			times.Store(of.times)
			startHost(t, dir, func(c *Config) {
				c.again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond}
				c.Logger = slog.New(faulty{"running a hook", times})
				c.Hooks.Exec = "true"
			}, a.url)
			one := newBuild(t, 1)
			a.has(one)
			a.say(sign(t, goalOf(10, one, nil), key))
			a.insists(t, one.recipe, func(s hostwire.ServiceState) bool { return s.State == of.state && s.Phase == of.phase })
			if runs(t, dir) != of.build {
				t.Errorf("runs %q", runs(t, dir))
			}
		})
	}
}
