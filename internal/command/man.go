package command

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// Man is the hidden command that prints an app's man page, made from what --help
// shows.
func Man() *cli.Command {
	return &cli.Command{
		Name:   "man",
		Usage:  "print the man page",
		Hidden: true,
		Action: func(c *cli.Context) error {
			page, err := manPage(c.App)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(c.App.Writer, page)
			return err
		},
	}
}

// manPage makes the page, of section 1. urfave/cli's template has no place for a
// command's arguments and description, but for its usage text.
func manPage(app *cli.App) (string, error) {
	doc := *app
	// Four spaces make it an example, as the template's Markdown has it.
	doc.Description = strings.ReplaceAll(app.Description, "\n  ", "\n    ") +
		"\n\nEvery flag also reads LANDFALL_ and its name in capitals from the environment, as LANDFALL_DATA_DIR for --data-dir." +
		"\n\nThe exit status is 0 when it is done, 1 when it has failed, 2 for wrong usage."
	doc.Commands = nil
	for _, c := range app.Commands {
		command := *c
		synopsis := strings.TrimSpace(fmt.Sprintf("%s %s [options] %s", app.Name, c.Name, c.ArgsUsage))
		command.UsageText = strings.TrimSpace(synopsis + "\n\n" + c.Description)
		doc.Commands = append(doc.Commands, &command)
	}
	page, err := doc.ToManWithSection(1)
	if err != nil {
		return "", fmt.Errorf("man page of %s: %w", app.Name, err)
	}
	return page, nil
}
