package main

import (
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/terminal"
)

func limitsCommand() *cli.Command {
	return &cli.Command{
		Name:  "limits",
		Usage: "show how fast a seeder's bytes may pass, or change that while it runs",
		Description: "What is set holds until the seeder ends, or is told to read its --limits-file again (SIGHUP).\n\n" +
			"Examples:\n\n  seeder limits\n  seeder limits --upload-rate 200MB --source-rate 1Gbit\n  seeder limits --upload-rate 0",
		Flags: slices.Concat(command.ChangeFlags(false), connectFlags(), []cli.Flag{command.Output()}),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			to, err := connect(c)
			if err != nil {
				return err
			}
			l, err := command.ChangeLimits(c, to)
			if err != nil {
				return explain(c, err)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, l)
			}
			return terminal.Limits(os.Stdout, l)
		},
	}
}
