package release

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// helperEnv makes this test's binary another process that switches a service, and kills
// itself at a step.
const helperEnv = "LANDFALL_TEST_RELEASE"

func TestMain(m *testing.M) {
	if job := os.Getenv(helperEnv); job != "" {
		os.Unsetenv(helperEnv)
		if err := help([]byte(job)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// job is what the other process does.
type job struct {
	Config Config
	Order  Order // with version 0 it resumes
	KillAt string
}

func help(text []byte) error {
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	j.Config.Logger = slog.New(slog.DiscardHandler)
	s, err := Open(j.Config)
	if err != nil {
		return err
	}
	s.reached = func(step string) {
		if step == j.KillAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if j.Order.Version == 0 {
		return s.Resume(context.Background(), nil)
	}
	return s.Activate(context.Background(), j.Order)
}

// otherProcess runs a job and returns how it ended.
func otherProcess(t *testing.T, j job) error {
	t.Helper()
	j.Config.Logger = nil
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), helperEnv+"="+string(text))
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t *testing.T, cfg Config) *Service {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	if cfg.Service == "" {
		cfg.Service = "web"
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// build is the n-th build, and its bytes.
func build(n int) (Build, []byte) {
	text := fmt.Appendf(nil, "the bytes of build %d", n)
	return Build{ExecutionID: fmt.Sprintf("01J000000000000000000000%02d", n), Key: fmt.Sprintf("app/web-%d.bin", n), Size: int64(len(text))}, text
}

func place(t *testing.T, s *Service, n int) Build {
	t.Helper()
	b, text := build(n)
	if err := s.Place(t.Context(), b, bytes.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	return b
}

// runs reads the build that current points to, as the service would.
func runs(t *testing.T, s *Service) string {
	t.Helper()
	files, err := filepath.Glob(s.path("current", "*"))
	if err != nil || len(files) > 1 {
		t.Fatal(files, err)
	}
	if len(files) == 0 {
		return ""
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(string(text), "the bytes of ")
}

func TestPlace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	b := place(t, s, 1)
	file := filepath.Join(s.Path(b.ExecutionID), "web-1.bin")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	if err := s.Activate(t.Context(), Order{Version: 1, To: b}); err != nil || runs(t, s) != "build 1" {
		t.Errorf("%v, runs %q", err, runs(t, s))
	}
	// The list of files is one that a stock tool understands.
	if sum, err := exec.LookPath("sha256sum"); err == nil {
		c := exec.Command(sum, "--check", "--strict", s.path("manifests", b.ExecutionID))
		c.Dir = s.Path(b.ExecutionID)
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "web-1.bin: OK") {
			t.Errorf("%v: %s", err, out)
		}
	}
	// What is there stays, and what is cut off leaves nothing.
	if err := s.Place(t.Context(), b, bytes.NewReader(nil)); err != nil {
		t.Error(err)
	}
	short, text := build(2)
	if err := s.Place(t.Context(), short, bytes.NewReader(text[:3])); err == nil || s.Placed(short.ExecutionID) {
		t.Errorf("a build that is cut off: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Place(ctx, short, bytes.NewReader(text)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(s.path("releases")); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	// A file that does not fit is not begun.
	huge := short
	huge.Size = 1 << 60
	if err := s.Place(t.Context(), huge, bytes.NewReader(text)); !errors.Is(err, ErrNoRoom) {
		t.Error(err)
	}
	for key, want := range map[string]string{"a/b.zip": "b.zip", "..": otherName, "a/": "a", "/": otherName, "a\\b": otherName, "x\n": otherName, strings.Repeat("n", 300): otherName} {
		if got := fileName(key); got != want {
			t.Errorf("%q is called %q, want %q", key, got, want)
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", "..", ".a", "a/b", "A", strings.Repeat("a", 64)} {
		if _, err := Open(Config{Dir: dir, Service: name, Logger: quiet()}); err == nil {
			t.Errorf("service %q has a directory", name)
		}
	}
	if _, err := Open(Config{Dir: "relative", Service: "web", Logger: quiet()}); err == nil {
		t.Error("a relative directory")
	}
	s := open(t, Config{Dir: dir})
	if _, err := Open(Config{Dir: dir, Service: "web", Logger: quiet()}); !errors.Is(err, ErrInUse) {
		t.Error("a second process:", err)
	}
	b := place(t, s, 1)
	if err := s.Activate(t.Context(), Order{Version: 3, To: b}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What a killed process leaves goes at the next start, what runs is known.
	for _, left := range []string{".new-" + b.ExecutionID, ".old-x"} {
		if err := os.MkdirAll(filepath.Join(s.path("releases", left), "closed"), 0o500); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, Config{Dir: dir})
	if entries, err := os.ReadDir(again.path("releases")); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if st := again.State(); st.Running != b || st.Version != 3 || st.Phase != Done || again.Interrupted() {
		t.Errorf("%+v", st)
	}
	again.Close()
	// Without a journal the link and the manifest say it.
	if err := os.Remove(again.path("journal")); err != nil {
		t.Fatal(err)
	}
	third := open(t, Config{Dir: dir})
	if st := third.State(); st.Running != b || st.Version != 0 {
		t.Errorf("without a journal: %+v", st)
	}
	third.Close()
	for _, c := range []struct {
		what  string
		spoil func() error
	}{
		{"a journal of another's", func() error { return os.WriteFile(s.path("journal"), []byte(`{"version":1,"phase":"x"}`), 0o600) }},
		{"a journal that is long", func() error { return os.WriteFile(s.path("journal"), make([]byte, maxJournal+1), 0o600) }},
		{"current that leads away", func() error {
			return errors.Join(os.Remove(s.path("journal")), os.Remove(s.path("current")), os.Symlink("/etc", s.path("current")))
		}},
		{"current that is no link", func() error { return errors.Join(os.Remove(s.path("current")), os.Mkdir(s.path("current"), 0o755)) }},
	} {
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(Config{Dir: dir, Service: "web", Logger: quiet()}); err == nil {
			s.Close()
			t.Errorf("%s is taken", c.what)
		}
	}
}

func TestPrune(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	var all []Build
	for n := range 7 {
		all = append(all, place(t, s, n))
	}
	if err := s.Activate(t.Context(), Order{Version: 1, To: all[0]}); err != nil {
		t.Fatal(err)
	}
	if err := s.Activate(t.Context(), Order{Version: 2, To: all[6]}); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(all[1].ExecutionID); err != nil {
		t.Fatal(err)
	}
	// What runs, what ran, what is needed: these are three already.
	got, err := s.Releases()
	if want := fmt.Sprint([]string{all[6].ExecutionID, all[1].ExecutionID, all[0].ExecutionID}); err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v, want %s", got, err, want)
	}
	if manifests, err := os.ReadDir(s.path("manifests")); err != nil || len(manifests) != 3 {
		t.Errorf("%v, %v", manifests, err)
	}
	for n := 2; n < 5; n++ {
		place(t, s, n)
	}
	if err := s.Prune(); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Releases(); fmt.Sprint(got) != fmt.Sprint([]string{all[6].ExecutionID, all[4].ExecutionID, all[0].ExecutionID}) {
		t.Errorf("%v", got)
	}
}

// tell is a command that writes down that it was run, and how.
func tell(file string) string {
	return fmt.Sprintf(`echo "$LANDFALL_PHASE $LANDFALL_SERVICE $LANDFALL_BUILD $(basename "$LANDFALL_PATH") $(basename "$LANDFALL_PREVIOUS") $LANDFALL_DEPLOYMENT $LANDFALL_ATTEMPT $(readlink current)" >>%s`, file)
}

// lines are what was written down.
func lines(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}
