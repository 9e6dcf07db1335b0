package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/terminal"
)

func auditCommand() *cli.Command {
	return &cli.Command{
		Name:  "audit",
		Usage: "show which changes were asked for, by whom, from where, and what came of them",
		Description: "The seeder keeps them in " + audit.File + " in its data directory, refused ones too; the newest are shown, the last below. " +
			"It takes the token of an admin, where the seeder asks for tokens.\n\n" +
			"Examples:\n\n  seeder audit\n  seeder audit --limit 1000 -o json",
		Flags: append(connectFlags(), command.Int("limit", 50, "how many are shown, up to 1000"), command.Output()),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			to, err := connect(c)
			if err != nil {
				return err
			}
			answer, err := to.Audit(c.Context, c.Int("limit"))
			if err != nil {
				return explain(c, err)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, answer)
			}
			return terminal.Changes(os.Stdout, answer)
		},
	}
}
