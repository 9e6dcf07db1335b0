package main

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/terminal"
	"github.com/landfall-dist/landfall/internal/wholefile"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	// followInterval is how often publish and --watch ask the seeder.
	followInterval = 500 * time.Millisecond
	// listed is how many executions status shows without a KEY.
	listed = 10
)

func seederFlag() cli.Flag { return command.URL("seeder", defaultURL, "`URL` of the seeder") }

// connectFlags are of all commands that ask the seeder.
func connectFlags() []cli.Flag {
	return append([]cli.Flag{seederFlag(), command.OperatorTokenFlag("seeder")}, command.ClientFlags()...)
}

// connect returns the client of the seeder that the flags name.
func connect(c *cli.Context) (*client.Client, error) {
	return command.Client(c, "seeder", c.String("seeder"))
}

// explain adds what to do next: when nobody answers, and when the execution is
// another one now.
func explain(c *cli.Context, err error) error {
	var refused *url.Error
	if errors.As(err, &refused) && c.Context.Err() == nil {
		return fmt.Errorf("no seeder answers at %s (%w); is `seeder run` or `make demo` running? name another with --seeder", c.String("seeder"), refused.Err)
	}
	var answer *api.StatusError
	if errors.As(err, &answer) && answer.Body.Successor != "" {
		return fmt.Errorf("%w; look at that one with: %s", err, called(c, "status", answer.Body.Successor))
	}
	return err
}

// called is the line that calls another command of the seeder's for a key or an
// execution, through the same seeder.
func called(c *cli.Context, name, argument string, flags ...string) string {
	words := append([]string{"seeder", name, command.Quote(argument)}, flags...)
	if u := c.String("seeder"); u != defaultURL {
		words = append(words, "--seeder", command.Quote(u))
	}
	for _, flag := range []string{"http-ca", "operator-token", "client-cert", "client-key"} {
		if f := c.String(flag); f != "" && (flag == "http-ca" || slices.Contains([]string{"retry", "pause", "rollback"}, name)) {
			words = append(words, "--"+flag, command.Quote(f))
		}
	}
	return strings.Join(words, " ")
}

// nameOf is what an execution is called on a command line: its key, unless that
// cannot be shown or would be taken for a flag.
func nameOf(e *api.Execution) string {
	if e.Key == "" || e.Key != command.Plain(e.Key) || e.Key[0] == '-' {
		return command.Plain(e.ExecutionID)
	}
	return e.Key
}

// formOf is how what changes is shown.
func formOf(asJSON bool) terminal.Form {
	if asJSON {
		return terminal.Silent
	}
	return terminal.Live
}

func publishCommand() *cli.Command {
	return &cli.Command{
		Name:      "publish",
		Usage:     "send a build to every region and wait until it has landed",
		ArgsUsage: "FILE | s3://BUCKET/KEY",
		Description: "A FILE is uploaded to the global bucket through the seeder first; no AWS credentials are needed.\n" +
			"Ctrl-C ends the waiting, not the distribution. With -o json the execution is printed once, when it has ended.\n\n" +
			"Examples:\n\n  seeder publish build.zip\n  seeder publish --key releases/1.2.0.zip build.zip\n" +
			"  seeder publish --to region-a-builds s3://global-builds/build.zip\n  seeder publish --priority high hotfix.zip",
		Flags: append(connectFlags(),
			command.String("key", "", "`KEY` in the global bucket (default: the file's name)"),
			command.Strings("to", "destination `BUCKET`,… (default: the seeder's)"),
			command.Bool("force", "accept destinations that the seeder does not know and no living agent serves: the build waits for an agent"),
			command.String("priority", api.PriorityNormal, "`PRIORITY` is normal or high; a high one goes before all that are not, and joined to what is under way makes that high"),
			command.Bool("no-wait", "return as soon as the execution is recorded"),
			command.Output(),
		),
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
	to, err := connect(c)
	if err != nil {
		return err
	}
	high, err := api.IsHigh(c.String("priority"))
	if err != nil {
		return command.Usagef("--%w", err)
	}
	var up *terminal.Upload
	request := api.DeployRequest{DestinationBuckets: c.StringSlice("to"), Force: c.Bool("force"), Priority: api.Priority(high)}
	if where, ok := strings.CutPrefix(c.Args().First(), "s3://"); ok {
		var found bool
		if request.SourceBucket, request.SourceKey, found = strings.Cut(where, "/"); !found || request.SourceKey == "" {
			return command.Usagef("%s is not s3://BUCKET/KEY", c.Args().First())
		}
		if c.IsSet("key") {
			return command.Usagef("--key goes with a FILE")
		}
	} else if up, err = upload(c, to, &request, formOf(asJSON)); err != nil {
		return explain(c, err)
	}
	answer, err := to.Deploy(c.Context, request)
	if c.Context.Err() != nil {
		return fmt.Errorf("nothing says yet whether %s is distributed; look at it with: %s",
			request.SourceKey, called(c, "status", nameOf(&api.Execution{Key: request.SourceKey})))
	}
	if err != nil {
		return explain(c, err)
	}
	if !c.Bool("no-wait") {
		if !asJSON {
			printBeginning(answer)
		}
		last, err := follow(c, to, &answer.Execution, formOf(asJSON), up)
		if err != nil {
			return err
		}
		answer.Execution = *last
	}
	switch {
	case asJSON:
		if err := terminal.JSON(os.Stdout, answer); err != nil {
			return err
		}
	case c.Bool("no-wait"):
		fmt.Printf("%s is on its way as execution %s%s; follow it with: %s\n",
			command.Plain(answer.Key), answer.ExecutionID, inherited(answer), called(c, "status", nameOf(&answer.Execution), "--watch"))
	}
	return failures(c, &answer.Execution)
}

// printBeginning says what is worth knowing about how the execution came about.
func printBeginning(a *api.DeployAnswer) {
	text := "execution " + a.ExecutionID
	switch {
	case a.Joined:
		text = fmt.Sprintf("%s is under way already, as execution %s", a.Key, a.ExecutionID)
	case a.Superseded != "":
		text += ", in place of " + a.Superseded + inherited(a)
	}
	fmt.Println(command.Plain(text))
}

// inherited names the destinations that nobody asked for this time.
func inherited(a *api.DeployAnswer) string {
	if len(a.Inherited) == 0 {
		return ""
	}
	return command.Plain(fmt.Sprintf(", which also goes to %s, where %s was still on its way", strings.Join(a.Inherited, ", "), a.Superseded))
}

// upload sends a FILE, and shows that, and how its build is distributed meanwhile.
func upload(c *cli.Context, to *client.Client, request *api.DeployRequest, form terminal.Form) (*terminal.Upload, error) {
	name := c.Args().First()
	key := c.String("key")
	if key == "" {
		key = filepath.Base(name)
	}
	if err := announce.CheckKey(key); err != nil {
		return nil, command.Usagef("%q cannot be a key in the bucket: %w; give another with --key", key, err)
	}
	file, err := wholefile.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	contentType := mime.TypeByExtension(filepath.Ext(name))
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	up := terminal.NewUpload(os.Stdout, form, key, file, file.Size(), followInterval, goingUp(to, key, file.Size()))
	request.SourceKey = key
	answer, err := to.UploadFor(c.Context, *request, up, file.Size(), contentType)
	up.Done()
	if c.Context.Err() != nil {
		return nil, fmt.Errorf("the upload of %s was broken off and nothing is distributed; begin again with the same command", name)
	}
	if broken := file.Err(); broken != nil && errors.Is(broken, wholefile.ErrChanged) {
		return nil, fmt.Errorf("%s changed while it was uploaded (%w): nothing is distributed; publish it again when nothing writes to it any more", name, broken)
	} else if broken != nil {
		return nil, fmt.Errorf("reading %s: %w", name, broken)
	}
	if err != nil {
		return nil, fmt.Errorf("uploading %s: %w", name, err)
	}
	request.SourceBucket, request.SourceKey = answer.Bucket, answer.Key
	return up, nil
}

// goingUp asks for the execution that distributes an upload of size bytes while it goes up.
func goingUp(to *client.Client, key string, size int64) func(context.Context) (*api.Execution, error) {
	var id string // once it is known; then it is that one, wherever it stands
	return func(ctx context.Context) (*api.Execution, error) {
		if id != "" {
			return to.Execution(ctx, id)
		}
		e, err := to.ByKey(ctx, key)
		switch {
		case err != nil:
			return nil, err
		case e.Phase != api.PhaseUploading || e.Size != size: // of the key, but before this upload
			return nil, client.ErrNoExecution
		}
		id = e.ExecutionID
		return e, nil
	}
}

// follow shows an execution until it has ended, and returns it as it is then. Where it was
// shown while it went up, it goes on with that; else up is nil.
func follow(c *cli.Context, to *client.Client, e *api.Execution, form terminal.Form, up *terminal.Upload) (last *api.Execution, err error) {
	get := func(ctx context.Context) (*api.Execution, error) { return to.Execution(ctx, e.ExecutionID) }
	if up != nil {
		last, err = up.Follow(c.Context, followInterval, get)
	} else {
		last, err = terminal.Follow(c.Context, os.Stdout, form, followInterval, get)
	}
	if err != nil && c.Context.Err() != nil {
		fmt.Fprintf(os.Stderr, "\nThe distribution goes on. Look at it again with:\n  %s\n", called(c, "status", nameOf(e), "--watch"))
		return nil, cli.Exit("", command.ExitFailed)
	}
	return last, explain(c, err)
}

// failures is the error that names the destinations that failed, or were cancelled; nil
// for none. Where no other has failed, its exit code is that of a cancel.
func failures(c *cli.Context, e *api.Execution) error {
	var failed, cancelled []string
	for _, d := range e.Destinations {
		switch d.State {
		case api.StateFailed:
			failed = append(failed, d.Bucket)
		case api.StateCancelled:
			cancelled = append(cancelled, d.Bucket)
		}
	}
	if len(failed) == 0 && len(cancelled) == 0 {
		return nil
	}
	if len(failed) == 0 {
		return cli.Exit(fmt.Sprintf("%s was cancelled before it arrived in %s; send it again with: %s",
			e.Key, strings.Join(cancelled, ", "), called(c, "retry", nameOf(e))), command.ExitCancelled)
	}
	failed = append(failed, cancelled...)
	return fmt.Errorf("%s did not arrive in %s; send it again with: %s", e.Key, strings.Join(failed, ", "), called(c, "retry", nameOf(e)))
}

func listCommand() *cli.Command {
	return &cli.Command{
		Name:        "list",
		Usage:       "list executions, newest first",
		Description: "Example:\n\n  seeder list --limit 10",
		Flags: append(connectFlags(),
			command.Int("limit", 50, "executions on a page"),
			command.String("after", "", "`ID` that the page before ended with"),
			command.Output(),
		),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			to, err := connect(c)
			if err != nil {
				return err
			}
			page, err := to.Executions(c.Context, c.Int("limit"), c.String("after"))
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
		Name:      "status",
		Usage:     "show one execution in detail, or the newest ones",
		ArgsUsage: "[KEY | EXECUTION]",
		Description: "With --watch an execution is followed until it has ended; without a KEY the newest are, until Ctrl-C. With -o json as well,\n" +
			"a line of JSON is printed whenever something has changed.\n\n" +
			"Examples:\n\n  seeder status build.zip\n  seeder status build.zip --watch\n  seeder status build.zip --watch -o json",
		Flags: append(connectFlags(),
			command.Bool("watch", "follow it until it has ended; exit status 1 when a region has failed"),
			command.Output(),
		),
		Action: status,
	}
}

func status(c *cli.Context) error {
	asJSON, err := command.JSONWanted(c)
	if err != nil {
		return err
	}
	to, err := connect(c)
	if err != nil {
		return err
	}
	form := terminal.Live
	if asJSON {
		form = terminal.JSONLines
	}
	if c.NArg() == 0 {
		get := func(ctx context.Context) (*api.Executions, error) { return to.Executions(ctx, listed, "") }
		if c.Bool("watch") {
			return explain(c, terminal.WatchExecutions(c.Context, os.Stdout, form, followInterval, get))
		}
		page, err := get(c.Context)
		if err != nil {
			return explain(c, err)
		}
		if asJSON {
			return terminal.JSON(os.Stdout, page)
		}
		return terminal.Executions(os.Stdout, page)
	}
	e, err := named(c, to)
	if err != nil {
		return err
	}
	if !c.Bool("watch") {
		return show(e, asJSON)
	}
	last, err := follow(c, to, e, form, nil)
	if err != nil {
		return err
	}
	return failures(c, last)
}

// named returns the execution that the argument names, by key or by id.
func named(c *cli.Context, to *client.Client) (*api.Execution, error) {
	if c.NArg() != 1 {
		return nil, command.Usagef("%s takes one KEY", c.Command.Name)
	}
	arg := c.Args().First()
	e, err := to.Execution(c.Context, arg)
	if client.NotFound(err) || strings.Contains(arg, "/") {
		e, err = to.ByKey(c.Context, arg)
	}
	return e, explain(c, err)
}

func cancelCommand() *cli.Command {
	return &cli.Command{
		Name:        "cancel",
		Usage:       "stop an execution; what has landed stays",
		ArgsUsage:   "KEY | EXECUTION",
		Description: "Examples:\n\n  seeder cancel build.zip\n  seeder cancel 01K0Z4V5QW8TQ0H6Q9M3N7R2XD -o json",
		Flags:       append(connectFlags(), command.Output()),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			to, err := connect(c)
			if err != nil {
				return err
			}
			e, err := named(c, to)
			if err != nil {
				return err
			}
			if e, err = to.Cancel(c.Context, e.ExecutionID); err != nil {
				return explain(c, err)
			}
			return show(e, asJSON)
		},
	}
}

func retryCommand() *cli.Command {
	return &cli.Command{
		Name:      "retry",
		Usage:     "send an execution's unfinished destinations again",
		ArgsUsage: "KEY | EXECUTION",
		Description: "It is followed as by publish; Ctrl-C ends the waiting, not the distribution.\n\n" +
			"Examples:\n\n  seeder retry build.zip\n  seeder retry build.zip --no-wait",
		Flags: append(connectFlags(), command.Bool("no-wait", "return at once"), command.Output()),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			to, err := connect(c)
			if err != nil {
				return err
			}
			e, err := named(c, to)
			if err != nil {
				return err
			}
			if e, err = to.Retry(c.Context, e.ExecutionID); err != nil {
				return explain(c, err)
			}
			if c.Bool("no-wait") {
				return show(e, asJSON)
			}
			if e, err = follow(c, to, e, formOf(asJSON), nil); err != nil {
				return err
			}
			if asJSON {
				if err := terminal.JSON(os.Stdout, e); err != nil {
					return err
				}
			}
			return failures(c, e)
		},
	}
}

func show(e *api.Execution, asJSON bool) error {
	if asJSON {
		return terminal.JSON(os.Stdout, e)
	}
	return terminal.Execution(os.Stdout, e)
}
