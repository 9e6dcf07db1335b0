// Package commandtest checks what must hold for every command line of Landfall's.
package commandtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	base "github.com/landfall-dist/landfall/internal/command"
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
	checkEmpty(t, make, "")
	for _, c := range make().Commands {
		if !c.SkipFlagParsing {
			checkEmpty(t, make, c.Name)
		}
	}
}

// checkEmpty holds every flag of a command to this: an empty variable is one that is
// not set, empty elements of lists are dropped, and what has a default or must be given
// cannot be given empty, but for --suffix.
func checkEmpty(t *testing.T, make func() *cli.App, command string) {
	t.Helper()
	flags := make().Flags
	if command != "" {
		flags = make().Command(command).Flags
	}
	without, err := values(t, make, command, "")
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	for _, empty := range []string{"", " ", "\t \n"} {
		for _, f := range flags {
			for _, name := range f.(cli.DocGenerationFlag).GetEnvVars() {
				t.Setenv(name, empty)
			}
		}
		if got, err := values(t, make, command, ""); err != nil || !maps.Equal(got, without) {
			t.Errorf("%s with every variable %q: %v, %v; without any %v", command, empty, got, err, without)
		}
	}
	for _, f := range flags {
		name := f.Names()[0]
		switch f := f.(type) {
		case *cli.StringSliceFlag:
			if got, err := values(t, make, command, name, "a,, ,b,"); err != nil || got[name] != "[a b]" {
				t.Errorf("%s --%s a,, ,b,: %s, %v", command, name, got[name], err)
			}
			if got, err := values(t, make, command, name, ","); err != nil || got[name] != "[]" {
				t.Errorf("%s --%s ,: %s, %v", command, name, got[name], err)
			}
		case *cli.StringFlag:
			if f.Value == "" && !f.Required || name == "suffix" {
				continue
			}
			for _, empty := range []string{"", " "} {
				var usage base.UsageError
				if _, err := values(t, make, command, name, empty); !errors.As(err, &usage) {
					t.Errorf("%s --%s %q: %v, expected wrong usage", command, name, empty, err)
				}
			}
		}
	}
}

// values returns the flags of a command as its action would see them, with one flag
// given; required ones have a value.
func values(t *testing.T, make func() *cli.App, command, name string, given ...string) (map[string]string, error) {
	t.Helper()
	app := make()
	got := map[string]string{}
	flags, args := app.Flags, []string{app.Name}
	read := func(c *cli.Context) error {
		for _, f := range flags {
			got[f.Names()[0]] = fmt.Sprintf("%v", c.Value(f.Names()[0]))
			if list, ok := c.Generic(f.Names()[0]).(*cli.StringSlice); ok {
				got[f.Names()[0]] = fmt.Sprintf("%v", list.Value())
			}
		}
		return nil
	}
	app.Action = read
	if command != "" {
		c := app.Command(command)
		c.Action, flags, args = read, c.Flags, append(args, command)
	}
	for _, f := range flags {
		if r, ok := f.(cli.RequiredFlag); ok && r.IsRequired() && f.Names()[0] != name {
			args = append(args, "--"+f.Names()[0], "required")
		}
	}
	for _, value := range given {
		args = append(args, "--"+name, value)
	}
	app.Writer, app.ErrWriter = io.Discard, io.Discard
	return got, base.Run(t.Context(), app, args)
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
