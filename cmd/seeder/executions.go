package main

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/terminal"
)

func seederFlag() cli.Flag { return command.String("seeder", defaultURL, "`URL` of the seeder") }

func client(c *cli.Context) *api.Client {
	return &api.Client{URL: strings.TrimSuffix(c.String("seeder"), "/")}
}

// explain adds what to do when nobody answers.
func explain(c *cli.Context, err error) error {
	var refused *url.Error
	if errors.As(err, &refused) && c.Context.Err() == nil {
		return fmt.Errorf("no seeder answers at %s (%w); is `seeder run` or `make demo` running? name another with --seeder", c.String("seeder"), refused.Err)
	}
	return err
}

func publishCommand() *cli.Command {
	return &cli.Command{
		Name:      "publish",
		Usage:     "send a build to every region and wait until it has landed",
		ArgsUsage: "FILE | s3://BUCKET/KEY",
		Description: "A FILE is uploaded to the global bucket through the seeder first; no AWS credentials are needed.\n" +
			"Ctrl-C ends the waiting, not the distribution.\n\n" +
			"Examples:\n\n  seeder publish build.zip\n  seeder publish --key releases/1.2.0.zip build.zip\n" +
			"  seeder publish --to region-a-builds s3://global-builds/build.zip",
		Flags: []cli.Flag{
			seederFlag(),
			command.String("key", "", "`KEY` in the global bucket (default: the file's name)"),
			command.Strings("to", "destination `BUCKET`,… (default: the seeder's)"),
			command.Bool("no-wait", "return as soon as the execution is recorded"),
			command.Output(),
		},
		Action: publish,
	}
}

func publish(c *cli.Context) error {
	asJSON, err := command.JSONWanted(c)
	if err != nil {
		return err
	}
	if c.NArg() != 1 {
		return command.Usagef("publish takes one FILE or s3://BUCKET/KEY")
	}
	request := api.DeployRequest{DestinationBuckets: c.StringSlice("to")}
	if where, ok := strings.CutPrefix(c.Args().First(), "s3://"); ok {
		var found bool
		if request.SourceBucket, request.SourceKey, found = strings.Cut(where, "/"); !found || request.SourceKey == "" {
			return command.Usagef("%s is not s3://BUCKET/KEY", c.Args().First())
		}
		if c.IsSet("key") {
			return command.Usagef("--key goes with a FILE")
		}
	} else if err := upload(c, &request, asJSON); err != nil {
		return explain(c, err)
	}
	answer, err := client(c).Deploy(c.Context, request)
	if err != nil {
		return explain(c, err)
	}
	if c.Bool("no-wait") || asJSON && answer.Ended() {
		if asJSON {
			return terminal.JSON(os.Stdout, answer)
		}
		fmt.Printf("%s is on its way as execution %s\n", answer.Key, answer.ExecutionID)
		return nil
	}
	if !asJSON {
		told(answer)
	}
	return follow(c, &answer.Execution, asJSON)
}

// told says what is worth knowing about how the execution came about.
func told(a *api.DeployAnswer) {
	switch {
	case a.Joined:
		fmt.Printf("%s is under way already, as execution %s\n", a.Key, a.ExecutionID)
	case a.Superseded != "" && len(a.Inherited) > 0:
		fmt.Printf("execution %s, in place of %s; it takes over %s\n", a.ExecutionID, a.Superseded, strings.Join(a.Inherited, ", "))
	case a.Superseded != "":
		fmt.Printf("execution %s, in place of %s\n", a.ExecutionID, a.Superseded)
	default:
		fmt.Printf("execution %s\n", a.ExecutionID)
	}
}

func upload(c *cli.Context, request *api.DeployRequest, quiet bool) error {
	name := c.Args().First()
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", name)
	}
	key := c.String("key")
	if key == "" {
		key = filepath.Base(name)
	}
	contentType := mime.TypeByExtension(filepath.Ext(name))
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	body, done := terminal.Upload(os.Stdout, quiet, key, file, info.Size())
	answer, err := client(c).Upload(c.Context, key, body, info.Size(), contentType)
	done()
	if err != nil {
		return fmt.Errorf("uploading %s: %w", name, err)
	}
	request.SourceBucket, request.SourceKey = answer.Bucket, answer.Key
	return nil
}

// follow shows an execution until it has ended. Exit status 1 names the
// destinations that failed.
func follow(c *cli.Context, e *api.Execution, asJSON bool) error {
	get := func(ctx context.Context) (*api.Execution, error) { return client(c).Execution(ctx, e.ExecutionID) }
	last, err := terminal.Follow(c.Context, os.Stdout, asJSON, followInterval, get)
	if err != nil {
		if c.Context.Err() != nil {
			fmt.Fprintf(os.Stderr, "\nthe distribution goes on; look at it with: seeder status --watch '%s'\n", e.Key)
			return cli.Exit("", command.ExitFailed)
		}
		return explain(c, err)
	}
	if asJSON {
		if err := terminal.JSON(os.Stdout, last); err != nil {
			return err
		}
	}
	return failures(last)
}

func failures(e *api.Execution) error {
	var failed []string
	for _, d := range e.Destinations {
		if d.State == api.StateFailed {
			failed = append(failed, fmt.Sprintf("%s (%s)", d.Bucket, d.Error))
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%s did not arrive in %s; send it again with: seeder retry '%s'", e.Key, strings.Join(failed, ", "), e.Key)
	}
	return nil
}

func listCommand() *cli.Command {
	return &cli.Command{
		Name:        "list",
		Usage:       "list executions, newest first",
		Description: "Example:\n\n  seeder list --limit 10",
		Flags: []cli.Flag{
			seederFlag(),
			command.Int("limit", 50, "executions on a page"),
			command.String("after", "", "`ID` that the page before ended with"),
			command.Output(),
		},
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			page, err := client(c).Executions(c.Context, c.Int("limit"), c.String("after"))
			if err != nil {
				return explain(c, err)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, page)
			}
			return terminal.Executions(os.Stdout, page)
		},
	}
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "show one execution in detail, or the newest ones",
		ArgsUsage:   "[KEY | EXECUTION]",
		Description: "Examples:\n\n  seeder status build.zip\n  seeder status --watch build.zip",
		Flags: []cli.Flag{
			seederFlag(),
			command.Bool("watch", "follow it until it has ended"),
			command.Output(),
		},
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			if c.NArg() == 0 {
				page, err := client(c).Executions(c.Context, 10, "")
				if err != nil {
					return explain(c, err)
				}
				if asJSON {
					return terminal.JSON(os.Stdout, page)
				}
				return terminal.Executions(os.Stdout, page)
			}
			e, err := named(c)
			if err != nil {
				return err
			}
			if c.Bool("watch") && !e.Ended() {
				return follow(c, e, asJSON)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, e)
			}
			return terminal.Execution(os.Stdout, e)
		},
	}
}

// named returns the execution that the argument names, by key or by id.
func named(c *cli.Context) (*api.Execution, error) {
	if c.NArg() != 1 {
		return nil, command.Usagef("%s takes one KEY", c.Command.Name)
	}
	arg := c.Args().First()
	e, err := client(c).Execution(c.Context, arg)
	if api.NotFound(err) || strings.Contains(arg, "/") {
		e, err = client(c).ByKey(c.Context, arg)
	}
	return e, explain(c, err)
}

func cancelCommand() *cli.Command {
	return &cli.Command{
		Name:      "cancel",
		Usage:     "stop an execution; what has landed stays",
		ArgsUsage: "KEY | EXECUTION",
		Flags:     []cli.Flag{seederFlag(), command.Output()},
		Action: func(c *cli.Context) error {
			e, err := named(c)
			if err != nil {
				return err
			}
			if e, err = client(c).Cancel(c.Context, e.ExecutionID); err != nil {
				return explain(c, err)
			}
			return show(c, e)
		},
	}
}

func retryCommand() *cli.Command {
	return &cli.Command{
		Name:      "retry",
		Usage:     "send an execution's unfinished destinations again",
		ArgsUsage: "KEY | EXECUTION",
		Flags:     []cli.Flag{seederFlag(), command.Bool("no-wait", "return at once"), command.Output()},
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			e, err := named(c)
			if err != nil {
				return err
			}
			if e, err = client(c).Retry(c.Context, e.ExecutionID); err != nil {
				return explain(c, err)
			}
			if c.Bool("no-wait") {
				return show(c, e)
			}
			return follow(c, e, asJSON)
		},
	}
}

func show(c *cli.Context, e *api.Execution) error {
	asJSON, err := command.JSONWanted(c)
	if err != nil {
		return err
	}
	if asJSON {
		return terminal.JSON(os.Stdout, e)
	}
	return terminal.Execution(os.Stdout, e)
}
