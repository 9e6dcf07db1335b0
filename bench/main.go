//go:build linux

// Command bench measures Landfall against the bound of the wire and against
// other ways of copying one file to many places, with real programs in network
// namespaces of their own (see docs/performance.md).
package main

import (
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
)

func main() {
	os.Exit(command.Main(&cli.App{
		Name:   "bench",
		Usage:  "measure Landfall with real processes",
		Action: command.Unknown,
		Commands: slices.Concat(
			[]*cli.Command{wanCommand(), restartCommand(), fleetCommand()}, localCommands(), hostsCommands(),
			[]*cli.Command{switchCommand(), copyCommand(), badPeerCommand()}, engineCommands(), // parts of those
		),
	}))
}
