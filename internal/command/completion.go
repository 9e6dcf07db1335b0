package command

import (
	"context"
	"embed"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// shells are those that there is a completion script for, as files of scripts.
//
//go:embed completion/*.sh
var scripts embed.FS

// shellNames are the shells that completion knows.
func shellNames() []string { return []string{"bash", "zsh", "fish"} }

// A Completer returns what may stand as a command's argument, such as the keys
// that the seeder knows. flag returns a string flag's value on the line so far, or
// else its environment's or its default. It must be quick: somebody waits for it
// with a finger on the key.
type Completer func(ctx context.Context, flag func(name string) string) []string

// Completion are the commands that make a shell complete an app's commands, flags
// and arguments: `completion`, which prints a script, and the hidden `complete`,
// which that script asks. The completers are by the name of the command.
//
// urfave/cli's own scripts evaluate the line as it is typed, so that completing
// `status $(…)` runs what stands there; they need a package of bash's beside it;
// and flags behind an argument are unknown to them.
func Completion(app string, completers map[string]Completer) []*cli.Command {
	return []*cli.Command{{
		Name:      "completion",
		Usage:     "print the completion script of a shell",
		ArgsUsage: strings.Join(shellNames(), " | "),
		Description: "The script's first lines say where it goes to stay.\n\n" +
			"Examples, each for the shell it is typed in alone:\n\n" +
			"  source <(" + app + " completion bash)\n  source <(" + app + " completion zsh)\n  " + app + " completion fish | source",
		Action: func(c *cli.Context) error {
			shell := c.Args().First()
			if c.NArg() != 1 || !slices.Contains(shellNames(), shell) {
				return Usagef("completion takes one of %s", strings.Join(shellNames(), ", "))
			}
			script, err := scripts.ReadFile("completion/" + shell + ".sh")
			if err != nil {
				return err
			}
			_, err = strings.NewReplacer("_APP_", "_"+identifier(c.App.Name)+"_", "_APP", "_"+identifier(c.App.Name), "APP", c.App.Name).
				WriteString(c.App.Writer, string(script))
			return err
		},
	}, {
		Name:            "complete",
		Usage:           "print what the last of the words may become, for the scripts",
		Hidden:          true,
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			return complete(c.Context, c.App, c.Args().Slice(), completers).print(c.App.Writer)
		},
	}}
}

// identifier makes an app's name one of a shell's functions.
func identifier(name string) string { return strings.ReplaceAll(name, "-", "_") }

// choice is what the scripts get.
type choice struct {
	files bool // names of files, too
	words []candidate
}

type candidate struct{ word, about string }

// print writes "files" or "words", and then a line for each word, with what it
// is about behind a tab.
func (c choice) print(w io.Writer) error {
	kind := "words"
	if c.files {
		kind = "files"
	}
	if _, err := fmt.Fprintln(w, kind); err != nil {
		return err
	}
	for _, w2 := range c.words {
		if _, err := fmt.Fprintf(w, "%s\t%s\n", w2.word, w2.about); err != nil {
			return err
		}
	}
	return nil
}

// line is a command line as far as it is typed.
type line struct {
	command   *cli.Command // nil before there is one
	flags     []cli.Flag   // of the command, or of the app
	values    map[string]string
	arguments int
	waiting   cli.Flag // whose value comes next; nil for none
	ended     bool     // by "--": no more flags
}

func parse(app *cli.App, words []string) *line {
	l := &line{flags: app.Flags, values: make(map[string]string)}
	for _, w := range words {
		switch {
		case l.waiting != nil:
			l.values[l.waiting.Names()[0]] = w
			l.waiting = nil
		case w == "--" && !l.ended:
			l.ended = true
		case len(w) > 1 && w[0] == '-' && !l.ended:
			l.flag(strings.TrimLeft(w, "-"))
		case l.command == nil && l.arguments == 0 && app.Command(w) != nil:
			l.command = app.Command(w)
			l.flags = l.command.Flags
		default:
			l.arguments++
		}
	}
	return l
}

func (l *line) flag(word string) {
	name, value, given := strings.Cut(word, "=")
	f := lookup(l.flags, name)
	switch {
	case f == nil:
	case given:
		l.values[f.Names()[0]] = value
	case takesValue(l.flags, name):
		l.waiting = f
	}
}

// value is what a Completer reads of the line.
func (l *line) value(name string) string {
	if v, ok := l.values[name]; ok {
		return v
	}
	f, ok := lookup(l.flags, name).(*cli.StringFlag)
	if !ok {
		return ""
	}
	for _, env := range f.EnvVars {
		if v := os.Getenv(env); v != "" {
			return v
		}
	}
	return f.Value
}

// complete returns what the last of the words may become.
func complete(ctx context.Context, app *cli.App, words []string, completers map[string]Completer) choice {
	if len(words) == 0 {
		words = []string{""}
	}
	current := words[len(words)-1]
	l := parse(app, words[:len(words)-1])
	name, _, given := strings.Cut(current, "=")
	isFlag := strings.HasPrefix(current, "-") && !l.ended
	var c choice
	switch {
	case l.waiting != nil:
		c = valuesOf(l.waiting, "")
	case isFlag && given:
		if f := lookup(l.flags, strings.TrimLeft(name, "-")); f != nil {
			c = valuesOf(f, name+"=")
		}
	case isFlag:
		c = flagsOf(l.flags)
	case l.command == nil && l.arguments == 0:
		for _, command := range app.VisibleCommands() {
			c.words = append(c.words, candidate{command.Name, command.Usage})
		}
	case l.command != nil:
		c = l.argument(ctx, completers[l.command.Name])
	}
	c.words = slices.DeleteFunc(c.words, func(w candidate) bool {
		// A word that is no plain text would be more than a word in the shell.
		return !strings.HasPrefix(w.word, current) || w.word != Plain(w.word)
	})
	return c
}

func (l *line) argument(ctx context.Context, completer Completer) choice {
	c := choice{files: strings.Contains(l.command.ArgsUsage, "FILE")}
	switch {
	case l.arguments > 0:
		return choice{}
	case completer != nil:
		for _, word := range completer(ctx, l.value) {
			c.words = append(c.words, candidate{word: word})
		}
	case l.command.Name == "completion":
		for _, shell := range shellNames() {
			c.words = append(c.words, candidate{word: shell})
		}
	}
	return c
}

func flagsOf(flags []cli.Flag) choice {
	var c choice
	for _, f := range append(slices.Clone(flags), cli.HelpFlag) {
		if c.has("--" + f.Names()[0]) {
			continue // help, which urfave/cli adds itself when a command runs
		}
		about := ""
		if d, ok := f.(cli.DocGenerationFlag); ok {
			about = strings.ReplaceAll(d.GetUsage(), "`", "")
		}
		c.words = append(c.words, candidate{"--" + f.Names()[0], about})
	}
	return c
}

func (c choice) has(word string) bool {
	return slices.ContainsFunc(c.words, func(w candidate) bool { return w.word == word })
}

// valuesOf offers the values of a flag, each behind a prefix.
func valuesOf(f cli.Flag, prefix string) choice {
	var c choice
	switch f.Names()[0] {
	case "output", "log-format":
		c.words = []candidate{{word: "text"}, {word: "json"}}
	case "log-level":
		c.words = []candidate{{word: "debug"}, {word: "info"}, {word: "warn"}, {word: "error"}}
	default:
		if d, ok := f.(cli.DocGenerationFlag); ok {
			usage := d.GetUsage()
			c.files = strings.Contains(usage, "`FILE`") || strings.Contains(usage, "`DIR`")
		}
	}
	for i := range c.words {
		c.words[i].word = prefix + c.words[i].word
	}
	return c
}
