package command

import (
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// unsetEmpty takes the variables that are empty, or blank, out of the environment, for
// every flag of the app: that is how compose and unit files write "not set", and
// urfave/cli would take it for a value, such as false, or an address that is every
// interface's.
func unsetEmpty(app *cli.App) {
	flags := slices.Clone(app.Flags)
	for _, c := range app.Commands {
		flags = append(flags, flagsBelow(c)...)
	}
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		for _, name := range d.GetEnvVars() {
			if value, set := os.LookupEnv(name); set && blank(value) {
				os.Unsetenv(name) //nolint:errcheck // it fails for names that cannot be, and this one is
			}
		}
	}
}

func flagsBelow(c *cli.Command) []cli.Flag {
	flags := slices.Clone(c.Flags)
	for _, sub := range c.Subcommands {
		flags = append(flags, flagsBelow(sub)...)
	}
	return flags
}

func blank(s string) bool { return strings.TrimSpace(s) == "" }

// filled makes it wrong usage to give a flag without a value: `--listen ""` would be
// every interface, `--operator-token "$NOT_SET"` no token at all.
func filled(f *cli.StringFlag) *cli.StringFlag {
	f.Action = func(_ *cli.Context, given string) error {
		if blank(given) {
			return Usagef("--%s is empty; give it a value or leave it out", f.Name)
		}
		return nil
	}
	return f
}

// dropEmpty takes empty elements out of a list that was given, such as that of a,,b.
func dropEmpty(name string) func(*cli.Context, []string) error {
	return func(c *cli.Context, given []string) error {
		if list, ok := c.Generic(name).(*cli.StringSlice); ok {
			*list = *cli.NewStringSlice(slices.DeleteFunc(slices.Clone(given), blank)...)
		}
		return nil
	}
}
