// Package commandtest checks what must hold for every command line of Landfall's.
package commandtest

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// Check fails the test unless every command of an app, hidden ones aside, has an
// example in its help that calls it by its name, and unless the man page and the
// completion name every command and flag, and the shells can read its scripts.
func Check(t *testing.T, make func() *cli.App) {
	t.Helper()
	page := strings.ReplaceAll(run(t, make, "man"), `\-`, "-")
	top := completed(t, make, "")
	for _, c := range make().Commands {
		if c.Hidden {
			continue
		}
		name := make().Name
		if help := run(t, make, c.Name, "--help"); !strings.Contains(help, "  "+name+" "+c.Name) ||
			!strings.Contains(help, "Example") {
			t.Errorf("%s %s --help has no example:\n%s", name, c.Name, help)
		}
		if !strings.Contains(page, ".SH "+c.Name) && !strings.Contains(page, ".SS "+c.Name) || !strings.Contains(page, c.Usage) {
			t.Errorf("the man page of %s does not name %s:\n%s", name, c.Name, page)
		}
		if !slices.Contains(top, c.Name) {
			t.Errorf("completion of %s offers %v, without %s", name, top, c.Name)
		}
		checkFlags(t, name+" "+c.Name, c.Flags, page, completed(t, make, c.Name, "--"))
	}
	checkFlags(t, make().Name, make().Flags, page, completed(t, make, "--"))
	for _, shell := range []string{"bash", "zsh", "fish"} {
		checkScript(t, shell, run(t, make, "completion", shell))
	}
}

// checkScript has a shell read a script without running it, where it is installed.
func checkScript(t *testing.T, shell, script string) {
	t.Helper()
	if _, err := exec.LookPath(shell); err != nil {
		t.Logf("%s is not installed here: its completion script is not read", shell)
		return
	}
	c := exec.CommandContext(t.Context(), shell, "-n")
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s: %v\n%s\n%s", shell, err, out, script)
	}
}

func checkFlags(t *testing.T, name string, flags []cli.Flag, page string, offered []string) {
	t.Helper()
	for _, f := range flags {
		long := "--" + f.Names()[0]
		if !strings.Contains(page, long) {
			t.Errorf("the man page does not name %s of %s", long, name)
		}
		if !slices.Contains(offered, long) {
			t.Errorf("completion of %s offers %v, without %s", name, offered, long)
		}
	}
}

// completed returns the words that the last of the words may become.
func completed(t *testing.T, make func() *cli.App, words ...string) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(run(t, make, append([]string{"complete"}, words...)...)) {
		if word, _, ok := strings.Cut(line, "\t"); ok {
			out = append(out, word)
		}
	}
	return out
}

func run(t *testing.T, make func() *cli.App, args ...string) string {
	t.Helper()
	app := make()
	app.HideHelpCommand = true
	var out bytes.Buffer
	app.Writer = &out
	if err := app.RunContext(t.Context(), append([]string{app.Name}, args...)); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String()
}
