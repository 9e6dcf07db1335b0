package cmd_test

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/processtest"
)

// TestReadme runs the README's code blocks with the demo running, in order, as they
// stand: where there is nothing but what a clone has and make build makes.
func TestReadme(t *testing.T) {
	t.Parallel()
	if !inside(t) {
		return
	}
	dir, build := workplace(t)
	blocks := blocksOf(t, filepath.Join(root, "README.md"))

	demo := startDemo(t, dir, build)
	// The third region's line is the one that the demo prints.
	printed := ""
	for line := range strings.Lines(demo.Said()) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "bin/seeder init"); ok {
			printed = "bin/seeder init" + rest
		}
	}
	if !strings.Contains(printed, "bin/agent run --region region-c") {
		t.Errorf("the demo prints no line for a third region:\n%s", demo.Said())
	}
	run(t, dir, blocks["With the demo running"])
	interrupt(t, demo)
}

// TestHTTPExamples runs all blocks of docs/http.md with the demo running.
func TestHTTPExamples(t *testing.T) {
	t.Parallel()
	if !inside(t) {
		return
	}
	dir, build := workplace(t)
	blocks := blocksOf(t, filepath.Join(root, "docs", "http.md"))

	demo := startDemo(t, dir, build)
	var lines []string
	for _, heading := range []string{"Publish", "Look", "Limit how fast bytes pass", "Send a build before others", "Cancel, and send again", "Have hosts run a build", "Follow", "Health and metrics", "With an operator token"} {
		if len(blocks[heading]) == 0 {
			t.Errorf("nothing to run under %q", heading)
		}
		lines = append(lines, blocks[heading]...)
	}
	if all := len(slices.Concat(slices.Collect(maps.Values(blocks))...)); all != len(lines) {
		t.Errorf("%d of %d lines are run: a heading is new", len(lines), all)
	}
	run(t, dir, lines)
	interrupt(t, demo)
}

// workplace is a directory with what the examples find in a clone after make build, and
// the build that the demo publishes.
func workplace(t *testing.T) (dir, build string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Symlink(os.Getenv("LANDFALL_TEST_BIN"), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	build = filepath.Join(root, "testdata", "builds", "hello-1.0.0.zip")
	if err := os.Symlink(filepath.Join(root, "testdata"), filepath.Join(dir, "testdata")); err != nil {
		t.Fatal(err)
	}
	return dir, build
}

// blocksOf returns the lines of a Markdown file's sh blocks under each heading of
// the second level.
func blocksOf(t *testing.T, file string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	blocks := make(map[string][]string)
	heading, in := "", false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "## "):
			heading = strings.TrimPrefix(line, "## ")
		case line == "```sh":
			in = true
		case line == "```":
			in = false
		case in && line != "":
			blocks[heading] = append(blocks[heading], line)
		}
	}
	return blocks
}

// run runs lines in one shell. Daemons go to the background and are waited for;
// what is not installed here is left out.
func run(t *testing.T, dir string, lines []string) {
	t.Helper()
	if len(lines) == 0 {
		t.Fatal("nothing to run: has a heading of the README changed?")
	}
	script := []string{
		"export AWS_ENDPOINT_URL=http://127.0.0.1:4566",
		"healthy bin/landfall-dev health",
	}
	for _, line := range lines {
		tool, _, _ := strings.Cut(line, " ")
		if tool == "aws" || tool == "curl" {
			if _, err := exec.LookPath(tool); err != nil {
				t.Logf("left out, for %s is not installed: %s", tool, line)
				continue
			}
		}
		if tool == "curl" {
			line = "curl --fail --silent --show-error" + strings.TrimPrefix(line, "curl")
		}
		script = append(script, "echo '+' "+strings.ReplaceAll(shellQuote(line), "\n", " "))
		switch {
		case strings.Contains(line, "seeder run "):
			script = append(script, line+" &", "healthy bin/seeder health --seeder "+listens(line, "127.0.0.1:7070"))
		case strings.Contains(line, "agent run "):
			script = append(script, line+" &", "healthy bin/agent health --agent "+listens(line, "127.0.0.1:7080"))
		case strings.Contains(line, "agent host "):
			script = append(script, line+" &", "healthy bin/agent health --agent "+listens(line, "127.0.0.1:7099"))
		case strings.Contains(line, "s3 cp "):
			key := filepath.Base(line)
			script = append(script, line, "healthy bin/seeder status "+key, "bin/seeder status --watch "+key)
		default:
			script = append(script, line)
		}
	}
	shell(t, dir, script)
}

// shell runs lines of bash, which may start daemons, and returns what is said. What is to
// happen beside them runs in a goroutine each.
func shell(t *testing.T, dir string, lines []string, beside ...func()) string {
	t.Helper()
	script := append([]string{
		"set -eu",
		"trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT",
		"healthy() { for i in $(seq 1800); do \"$@\" >/dev/null 2>&1 && return; sleep 0.05; done; \"$@\"; }",
		"export AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test",
	}, lines...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout) // for some dozens of commands, on a machine that has other work
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-c", strings.Join(script, "\n"))
	c.Dir = dir
	c.WaitDelay = time.Second // a daemon that outlives the shell holds the pipe
	var wg sync.WaitGroup
	for _, f := range beside {
		wg.Go(f)
	}
	out, err := c.CombinedOutput()
	wg.Wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	return string(out)
}

// listens is the URL of a daemon's HTTP side.
func listens(line, usual string) string {
	if _, rest, ok := strings.Cut(line, "--listen "); ok {
		usual, _, _ = strings.Cut(rest, " ")
	}
	return "http://" + usual
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// startDemo starts the demo with a build, and more flags, and returns when it is up.
func startDemo(t *testing.T, dir, build string, flags ...string) *processtest.Process {
	t.Helper()
	demo, err := processtest.Start(processtest.Config{
		Name: "landfall-dev", Log: filepath.Join(dir, "demo.log"), Dir: dir, Args: append([]string{filepath.Join(dir, "bin/landfall-dev"), "--publish", build}, flags...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { demo.End(syscall.SIGKILL) }) // nothing, once it has ended
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if err := demo.WaitFor(ctx, "Ctrl-C stops all of it"); err != nil {
		t.Fatalf("%v\n%s", err, demo.Said())
	}
	return demo
}

// interrupt ends the demo as Ctrl-C does; it must end with status 0.
func interrupt(t *testing.T, demo *processtest.Process) {
	t.Helper()
	demo.Signal(syscall.SIGINT)
	if <-demo.Ended; demo.Err != nil {
		t.Errorf("%s: %v\n%s", demo.Name, demo.Err, demo.Said())
	}
}
