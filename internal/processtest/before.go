package processtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BuildBefore puts the seeder and the agent as they were before a commit, named by how git log
// finds it, into a directory. Without the history of this tree the test is skipped; where CI is
// set and all of it is there, it fails.
func BuildBefore(t testing.TB, dir string, since ...string) {
	t.Helper()
	git := func(arg ...string) []byte {
		c := exec.CommandContext(t.Context(), "git", arg...)
		c.Dir = Root
		out, err := c.Output()
		if err != nil {
			without(t, "git %s: %v", strings.Join(arg, " "), err)
		}
		return out
	}
	commit := strings.TrimSpace(string(git(append([]string{"log", "-1", "--format=%H"}, since...)...)))
	if commit == "" {
		without(t, "it does not reach back so far")
	}
	tree := t.TempDir()
	tar := exec.CommandContext(t.Context(), "tar", "-x", "-C", tree)
	tar.Stdin = bytes.NewReader(git("archive", commit+"^"))
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"seeder", "agent"} {
		c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, name), "./cmd/"+name)
		c.Dir, c.Env = tree, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("building %s of before: %v\n%s", name, err, out)
		}
	}
}

// without ends a test that has not the history of this tree.
func without(t testing.TB, format string, args ...any) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "git", "rev-parse", "--is-shallow-repository")
	c.Dir = Root
	shallow, err := c.Output()
	why := "the history of this tree is not at hand: " + fmt.Sprintf(format, args...)
	if err == nil && strings.TrimSpace(string(shallow)) == "false" && os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
