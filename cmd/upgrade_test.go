package cmd_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/processtest"
)

// oldEnv is the directory of the programs of before, in the process that runs in the
// namespace.
const oldEnv = "LANDFALL_TEST_OLD"

// Members that announce whole builds (document version 1) and those that announce segments
// (version 2) do not understand each other: in both orders nothing hangs, everybody says
// so, and what waits goes on once the other is upgraded.
func TestUpgrade(t *testing.T) {
	upgrade(t, "upgrade.txtar", "-Slandfall-announcement-v1", "--", "internal/announce/announce.go")
}

// Agents that write arrivals into the executions' items, and those that write rows of their
// own: in both orders a landing that is under way goes on, and nothing stops.
func TestUpgradeToRows(t *testing.T) {
	upgrade(t, "arrivals.txtar", "--diff-filter=A", "--", "internal/arrivals/arrivals.go")
}

// upgrade runs a script with the programs of before a commit, by how git finds it.
func upgrade(t *testing.T, script string, since ...string) {
	if os.Getenv(insideEnv) == "" {
		dir := t.TempDir()
		before(t, dir, since)
		t.Setenv(oldEnv, dir)
		if !inside(t) {
			return
		}
	}
	runScript(t, script, os.Getenv(oldEnv))
}

// without skips a test that has not the history of this tree; where CI is set and the whole
// of it is there the test fails.
func without(t *testing.T, format string, args ...any) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "git", "rev-parse", "--is-shallow-repository")
	c.Dir = processtest.Root
	shallow, err := c.Output()
	why := "the history of this tree is not at hand: " + fmt.Sprintf(format, args...)
	if err == nil && strings.TrimSpace(string(shallow)) == "false" && os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// before builds the programs as they were before a commit, as old-seeder and so on.
func before(t *testing.T, dir string, commit []string) {
	t.Helper()
	git := func(arg ...string) []byte {
		c := exec.CommandContext(t.Context(), "git", arg...)
		c.Dir = processtest.Root
		out, err := c.Output()
		if err != nil {
			without(t, "git %s: %v", strings.Join(arg, " "), err)
		}
		return out
	}
	since := strings.TrimSpace(string(git(append([]string{"log", "-1", "--format=%H"}, commit...)...)))
	if since == "" {
		without(t, "it does not reach back so far")
	}
	tree := t.TempDir()
	tar := exec.CommandContext(t.Context(), "tar", "-x", "-C", tree)
	tar.Stdin = bytes.NewReader(git("archive", since+"^"))
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"seeder", "agent"} {
		c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "old-"+name), "./cmd/"+name)
		c.Dir, c.Env = tree, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("building %s of before: %v\n%s", name, err, out)
		}
	}
}
