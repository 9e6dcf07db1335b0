package command

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// interspersed moves flags that stand behind arguments to the front of them, for
// urfave/cli stops at the first argument: `seeder publish build.zip --no-wait`
// must mean what it says, and so must `landfall-dev --dir X cloud`, where urfave/cli
// would read the command's own --dir alone. What follows "--" stays as it is.
func interspersed(app *cli.App, args []string) []string {
	args = commandFirst(app, args)
	if len(args) < 2 {
		return args
	}
	command := app.Command(args[1])
	flags, head := app.Flags, args[:1]
	if command != nil && command.SkipFlagParsing {
		return args
	}
	if command != nil {
		flags, head = command.Flags, args[:2]
	}
	rest := args[len(head):]
	var options, arguments []string
	for i := 0; i < len(rest); i++ {
		arg := rest[i]
		if arg == "--" {
			arguments = append(arguments, rest[i:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			if command == nil {
				// The name of a command that does not exist, or its arguments.
				return args
			}
			arguments = append(arguments, arg)
			continue
		}
		options = append(options, arg)
		if !strings.Contains(arg, "=") && takesValue(flags, strings.TrimLeft(arg, "-")) && i+1 < len(rest) {
			i++
			options = append(options, rest[i])
		}
	}
	out := append([]string{}, head...)
	return append(append(out, options...), arguments...)
}

// commandFirst moves flags that stand before a command's name behind it: the command
// takes them, or says that it has no such flag.
func commandFirst(app *cli.App, args []string) []string {
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' {
			if i == 1 || app.Command(arg) == nil {
				return args
			}
			return slices.Concat(args[:1], []string{arg}, args[1:i], args[i+1:])
		}
		name := strings.TrimLeft(arg, "-")
		if arg == "--" || lookup(app.Flags, name) == nil && !strings.Contains(arg, "=") {
			return args // help, version, or what there is not
		}
		if !strings.Contains(arg, "=") && takesValue(app.Flags, name) {
			i++
		}
	}
	return args
}

func takesValue(flags []cli.Flag, name string) bool {
	f := lookup(flags, name)
	_, isSwitch := f.(*cli.BoolFlag)
	return f != nil && !isSwitch
}

// lookup returns the flag of a name or an alias; nil when there is none.
func lookup(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}
