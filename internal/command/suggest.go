package command

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// alike is how near two words must be, from 0 to 1, for one to be a mistyped form
// of the other: high enough that nonsense gets no answer.
const alike = 0.8

// nearest returns what word probably meant, "" when nothing is near.
func nearest(word string, names []string) string {
	best, found := alike, ""
	for _, name := range names {
		// urfave/cli's own suggestions are by the same measure.
		if d := smetrics.JaroWinkler(word, name, 0.7, 4); d >= best {
			best, found = d, name
		}
	}
	return found
}

// didYouMean is the end of an error about a word, "" when nothing is near.
func didYouMean(word, prefix string, names []string) string {
	if name := nearest(word, names); name != "" {
		return fmt.Sprintf("; did you mean `%s%s`?", prefix, name)
	}
	return ""
}

// usageError turns the flag package's words into ours.
func usageError(c *cli.Context, err error, _ bool) error {
	name, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !unknown {
		return UsageError{err}
	}
	names := []string{"help"}
	for _, f := range c.Command.Flags {
		names = append(names, f.Names()[0])
	}
	return Usagef("there is no flag --%s%s", name, didYouMean(name, "--", names))
}

// Unknown is the action of an app without a command: it shows the help, or says
// that there is no such command.
func Unknown(c *cli.Context) error {
	if !c.Args().Present() {
		return cli.ShowAppHelp(c)
	}
	var names []string
	for _, command := range c.App.VisibleCommands() {
		names = append(names, command.Name)
	}
	word := c.Args().First()
	return Usagef("there is no command %q%s", word, didYouMean(word, c.App.Name+" ", names))
}
