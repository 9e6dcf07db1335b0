package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/terminal"
	"github.com/landfall-dist/landfall/seeder/client"
)

// noWaitFlag is of the commands that follow a deployment.
func noWaitFlag() cli.Flag {
	return command.Bool("no-wait", "return as soon as it is recorded")
}

func deployCommand() *cli.Command {
	return &cli.Command{
		Name:      "deploy",
		Usage:     "have the hosts of a service run a build, wave by wave",
		ArgsUsage: "SERVICE KEY | SERVICE s3://BUCKET/KEY",
		Description: "Hosts fetch the build at once, and switch when the gate is open and their wave has come. The command shows that until it has ended:\n" +
			"exit status 1 when it stopped or went back. Ctrl-C ends the waiting, not the deployment. A service begins with its first deployment.\n" +
			"The hosts that have not had their turn run the build that a deployment completed with last.\n\n" +
			"Examples:\n\n  seeder deploy web hello-2.0.0.zip\n  seeder deploy web hello-2.0.0.zip --wave 20%,100% --bake 30s\n" +
			"  seeder deploy web hello-2.0.0.zip --dry-run\n  seeder deploy web hello-2.0.0.zip --gate region --auto-rollback --no-wait",
		Flags: append(connectFlags(),
			command.String("wave", deployment.DefaultWaves, "`SHARE`,… of each region's hosts that run it after each wave: per cent or numbers of hosts; the last wave is all of them"),
			command.Duration("bake", deployment.DefaultBake, "`TIME` for which a wave has to be healthy before the next"),
			command.String("max-failed", string(deployment.DefaultMaxFailed), "`SHARE` of the hosts whose turn it is that may fail before it stops"),
			command.String("max-unavailable", string(deployment.DefaultMaxUnavailable), "`SHARE` of a region's hosts, and of those in a zone, that switch at a time, however many agents the region has; one at least"),
			command.String("gate", deployment.DefaultGate, "`WHICH` regions must have the build before hosts switch: all, region (the host's own) or none (hosts switch to what has not landed: it may be gone when the next one starts)"),
			command.Duration("gate-timeout", 0, "`TIME` after which it stops where the gate is still closed; 0 for never"),
			command.String("wave-check", "", "`CHECK` that is asked before each wave: a URL, with ?service=…&deployment=…&wave=…, or the name of a program in the seeder's --wave-checks; a success lets the wave begin, anything else pauses the deployment"),
			command.Bool("auto-rollback", "go back to the stable build where it would stop for failures"),
			command.Bool("dry-run", "only say how many hosts would switch with which wave"),
			withoutTableFlag(),
			noWaitFlag(),
			command.Output(),
		),
		Action: deploy,
	}
}

// withoutTableFlag is of the commands that must be possible while the table is away.
func withoutTableFlag() cli.Flag {
	return command.Bool("without-table", "tell hosts before it is in the table of services, for when that is away; it is written there when that can be")
}

// warnWithoutTable says what --without-table means, whoever reads the output.
func warnWithoutTable(c *cli.Context) {
	if c.Bool("without-table") {
		fmt.Fprintln(os.Stderr, "WITHOUT THE TABLE: hosts are told what only this seeder's disk remembers, until the table of services can be written again. Have no other seeder do the same. "+
			"Where the table of arrivals is away, too, agents let nobody switch but by `seeder rollback --without-table --now`.")
	}
}

func deploy(c *cli.Context) error {
	asJSON, err := command.JSONWanted(c)
	if err != nil {
		return err
	}
	if c.NArg() != 2 {
		return command.Usagef("deploy takes a SERVICE and a KEY")
	}
	service := c.Args().First()
	request, err := deployRequest(c)
	if err != nil {
		return err
	}
	to, err := connect(c)
	if err != nil {
		return err
	}
	warnWithoutTable(c)
	if request.Policy.Gate == api.GateNone {
		fmt.Fprintln(os.Stderr, "THROUGH NO GATE: hosts switch to what may not have landed in their region's bucket, where the next host would look for it.")
	}
	answer, err := to.DeployService(c.Context, service, request)
	if err != nil {
		return explainService(c, err)
	}
	switch {
	case request.DryRun && asJSON:
		return terminal.JSON(os.Stdout, answer)
	case request.DryRun:
		return terminal.Plan(os.Stdout, answer)
	case c.Bool("no-wait") && asJSON:
		return terminal.JSON(os.Stdout, answer)
	case c.Bool("no-wait"):
		fmt.Printf("deployment %s of %s to %s has begun; look at it with: %s\n", command.Plain(answer.DeploymentID), command.Plain(request.Key), service, called(c, "service", service))
		return nil
	}
	last, err := followDeployment(c, to, service, answer.DeploymentID, formOf(asJSON))
	if err != nil {
		return err
	}
	if asJSON {
		answer.Deployment = *last
		if err := terminal.JSON(os.Stdout, answer); err != nil {
			return err
		}
	}
	if last.State == api.DeploymentDone {
		return nil
	}
	why := ""
	if last.Reason != "" {
		why = ": " + last.Reason
	}
	return errors.New(command.Plain(fmt.Sprintf("the deployment of %s to %s %s%s; look at the hosts with: %s",
		request.Key, service, map[bool]string{true: "went back", false: "has stopped"}[last.State == api.DeploymentWentBack], why,
		called(c, "hosts", service, "--state", api.HostFailed))))
}

// deployRequest reads the arguments and flags of deploy; what is not given the seeder knows.
func deployRequest(c *cli.Context) (r api.ServiceDeployRequest, err error) {
	r.Key = c.Args().Get(1)
	if err := goal.CheckService(c.Args().First()); err != nil {
		return r, command.Usagef("%w", err)
	}
	if where, ok := strings.CutPrefix(r.Key, "s3://"); ok {
		var found bool
		if r.SourceBucket, r.Key, found = strings.Cut(where, "/"); !found || r.Key == "" {
			return r, command.Usagef("s3://%s is not s3://BUCKET/KEY", where)
		}
	}
	r.DryRun, r.WithoutTable = c.Bool("dry-run"), c.Bool("without-table")
	r.AutoRollback, r.WaveCheck = c.Bool("auto-rollback"), c.String("wave-check")
	if c.IsSet("wave") {
		for share := range strings.SplitSeq(c.String("wave"), ",") {
			r.Waves = append(r.Waves, strings.TrimSpace(share))
		}
	}
	for flag, text := range map[string]*string{"max-failed": &r.MaxFailed, "max-unavailable": &r.MaxUnavailable, "gate": &r.Gate} {
		if c.IsSet(flag) {
			*text = c.String(flag)
		}
	}
	for flag, text := range map[string]*string{"bake": &r.Bake, "gate-timeout": &r.GateTimeout} {
		switch d := c.Duration(flag); {
		case d < 0:
			return r, command.Usagef("--%s is %s, expected 0 or more", flag, d)
		case c.IsSet(flag):
			*text = d.String()
		}
	}
	for flag, shares := range map[string][]string{"wave": r.Waves, "max-failed": {r.MaxFailed}, "max-unavailable": {r.MaxUnavailable}} {
		for _, share := range shares {
			if err := goal.Share(share).Check(); err != nil || share == "" && flag == "wave" {
				return r, command.Usagef("--%s: %.40q is no share of hosts, such as 10%% or 3", flag, share)
			}
		}
	}
	if r.Gate != "" && !slices.Contains(deployment.Gates(), r.Gate) {
		return r, command.Usagef("--gate is %q, expected one of %s", r.Gate, strings.Join(deployment.Gates(), ", "))
	}
	return r, nil
}

// followDeployment shows a deployment until it has ended.
func followDeployment(c *cli.Context, to *client.Client, service, id string, form terminal.Form) (*api.Deployment, error) {
	last, err := terminal.FollowDeployment(c.Context, os.Stdout, form, followInterval, id,
		func(ctx context.Context) (*api.Service, error) { return to.Service(ctx, service) },
		func(ctx context.Context) (*api.Deployment, error) {
			list, err := to.Deployments(ctx, service)
			if err != nil {
				return nil, err
			}
			for i := range list.Deployments {
				if d := &list.Deployments[i]; d.DeploymentID == id {
					return d, nil
				}
			}
			return nil, &api.StatusError{Code: 404, Body: api.Error{Error: "there is no deployment " + id + " of " + service + " any more"}}
		})
	if err != nil && c.Context.Err() != nil {
		fmt.Fprintf(os.Stderr, "\nThe deployment goes on. Look at it again with:\n  %s\nand have it wait or go back with:\n  %s\n  %s\n",
			called(c, "service", service), called(c, "pause", service), called(c, "rollback", service))
		return nil, cli.Exit("", command.ExitFailed)
	}
	return last, explainService(c, err)
}

// explainService is explain, with what to do about a service.
func explainService(c *cli.Context, err error) error {
	var answer *api.StatusError
	if errors.As(err, &answer) && answer.Code == 409 && c.NArg() > 0 {
		return fmt.Errorf("%w; look at it with: %s", err, called(c, "service", c.Args().First()))
	}
	return explain(c, err)
}

func rollbackCommand() *cli.Command {
	return &cli.Command{
		Name:      "rollback",
		Usage:     "have all hosts of a service run its stable build again",
		ArgsUsage: "SERVICE",
		Description: "The stable build is the one that a deployment completed with last. It waits for no gate and no wave, and the --max-unavailable of its deployment holds.\n" +
			"It says first how many hosts hold that build and how many must fetch it. Ctrl-C ends the waiting, not the roll-back.\n\n" +
			"Examples:\n\n  seeder rollback web --dry-run\n  seeder rollback web\n  seeder rollback web --now",
		Flags: append(connectFlags(),
			command.Bool("now", "all hosts at once: lift the limit of those that switch at a time"),
			command.Bool("dry-run", "only say how many hosts hold the stable build, and how many must fetch it"),
			withoutTableFlag(),
			noWaitFlag(),
			command.Output(),
		),
		Action: rollback,
	}
}

func rollback(c *cli.Context) error {
	return commandService(c, func(to *client.Client, service string, asJSON bool) error {
		if c.Bool("dry-run") {
			plan, err := to.RollbackPlan(c.Context, service)
			if err != nil {
				return explainService(c, err)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, plan)
			}
			return terminal.Back(os.Stdout, plan)
		}
		warnWithoutTable(c)
		// A seeder that cannot say it, as without its table, may roll back all the same.
		plan, unplanned := to.RollbackPlan(c.Context, service)
		if unplanned == nil && !asJSON {
			if err := terminal.BackLine(os.Stdout, plan); err != nil {
				return err
			}
		}
		do := to.Rollback
		if c.Bool("without-table") {
			do = to.RollbackWithoutTable
		}
		answer, err := do(c.Context, service, c.Bool("now"))
		if err != nil {
			return explainService(c, err)
		}
		if unplanned != nil && !asJSON {
			if err := terminal.BackLine(os.Stdout, answer); err != nil {
				return err
			}
		}
		d := answer.Deployment
		if d == nil || c.Bool("no-wait") {
			return showService(answer, &answer.Service, asJSON)
		}
		last, err := followDeployment(c, to, service, d.DeploymentID, formOf(asJSON))
		if err != nil {
			return err
		}
		if asJSON {
			answer.Deployment = last
			if err := terminal.JSON(os.Stdout, answer); err != nil {
				return err
			}
		}
		if last.State == api.DeploymentWentBack || last.State == api.DeploymentDone {
			return nil
		}
		return errors.New(command.Plain(fmt.Sprintf("%s has not gone back everywhere: %s %s; look at the hosts with: %s",
			service, last.State, last.Reason, called(c, "hosts", service, "--state", api.HostFailed))))
	})
}

// serviceCommand is a command that changes how a deployment goes on.
func serviceCommand(name, usage, description string, do func(*client.Client, context.Context, string) (*api.ServiceCommandAnswer, error)) *cli.Command {
	return &cli.Command{
		Name:        name,
		Usage:       usage,
		ArgsUsage:   "SERVICE",
		Description: description,
		Flags:       append(connectFlags(), command.Output()),
		Action: func(c *cli.Context) error {
			return commandService(c, func(to *client.Client, service string, asJSON bool) error {
				answer, err := do(to, c.Context, service)
				if err != nil {
					return explainService(c, err)
				}
				return showService(answer, &answer.Service, asJSON)
			})
		},
	}
}

func pauseCommand() *cli.Command {
	return serviceCommand("pause", "let no further host of a service switch",
		"Those that are switching finish. `seeder resume` goes on.\n\nExample:\n\n  seeder pause web", (*client.Client).Pause)
}

func resumeCommand() *cli.Command {
	return serviceCommand("resume", "go on with a deployment that is paused", "Example:\n\n  seeder resume web", (*client.Client).Resume)
}

func abortCommand() *cli.Command {
	return serviceCommand("abort", "stop a deployment; hosts stay with what they run",
		"`seeder rollback` has them go back, before or after.\n\nExample:\n\n  seeder abort web", (*client.Client).Abort)
}

func skipCommand() *cli.Command {
	return &cli.Command{
		Name:      "skip",
		Usage:     "have a deployment go on without a region",
		ArgsUsage: "SERVICE REGION",
		Description: "Its gate and its waves do not wait for that region any more; hosts there stay with what they run, until the next deployment begins.\n\n" +
			"Example:\n\n  seeder skip web region-b",
		Flags: append(connectFlags(), command.Output()),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			if c.NArg() != 2 {
				return command.Usagef("skip takes a SERVICE and a REGION")
			}
			to, err := connect(c)
			if err != nil {
				return err
			}
			answer, err := to.Skip(c.Context, c.Args().First(), c.Args().Get(1))
			if err != nil {
				return explainService(c, err)
			}
			return showService(answer, &answer.Service, asJSON)
		},
	}
}

func servicesCommand() *cli.Command {
	return &cli.Command{
		Name:        "services",
		Usage:       "list services: what they are to run, and how many hosts do",
		Description: "Examples:\n\n  seeder services\n  seeder services -o json",
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
			list, err := to.Services(c.Context)
			if err != nil {
				return explain(c, err)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, list)
			}
			return terminal.Services(os.Stdout, list)
		},
	}
}

func serviceShowCommand() *cli.Command {
	return &cli.Command{
		Name:        "service",
		Usage:       "show one service: its deployment, its regions, and why hosts fail",
		ArgsUsage:   "SERVICE",
		Description: "With --watch its deployment is followed until it has ended: exit status 1 when that stopped or went back.\n\nExamples:\n\n  seeder service web\n  seeder service web --watch\n  seeder service web -o json",
		Flags: append(connectFlags(),
			command.Bool("watch", "follow its deployment until it has ended"),
			command.Output(),
		),
		Action: func(c *cli.Context) error {
			return commandService(c, func(to *client.Client, service string, asJSON bool) error {
				s, err := to.Service(c.Context, service)
				if err != nil {
					return explain(c, err)
				}
				if !c.Bool("watch") || s.Deployment == nil {
					return showService(s, s, asJSON)
				}
				form := terminal.Live
				if asJSON {
					form = terminal.JSONLines
				}
				last, err := followDeployment(c, to, service, s.Deployment.DeploymentID, form)
				if err != nil {
					return err
				}
				if last.State == api.DeploymentDone || last.Kind == api.KindRollback && last.State == api.DeploymentWentBack {
					return nil
				}
				return cli.Exit("", command.ExitFailed)
			})
		},
	}
}

func hostsCommand() *cli.Command {
	return &cli.Command{
		Name:      "hosts",
		Usage:     "list hosts of a service, as the agents know them; hold some, or release them; write all down",
		ArgsUsage: "SERVICE | SERVICE hold HOST… | SERVICE release HOST… | SERVICE log",
		Description: "Each is shown with its state, the build that it runs, the version of the goal as it said last, when it was seen last, its labels and its program's version.\n" +
			"A failed one is shown with the reason and the last line that its hook said; -o json has more of them.\n" +
			"Held hosts stay with what they run, whatever is deployed or rolled back, and are in no wave, until they are released.\n" +
			"log has the seeder write how each host stands into host-deployment-logs, under the newest deployment, beside what failed there.\n\n" +
			"Examples:\n\n  seeder hosts web\n  seeder hosts web --state failed\n  seeder hosts web --state failed -o json\n  seeder hosts web --limit 0 -o json\n" +
			"  seeder hosts web hold web-17\n  seeder hosts web release web-17\n  seeder hosts web log",
		Flags: append(connectFlags(),
			command.String("state", "", "only hosts in a `STATE`: "+strings.Join(api.HostStates(), ", ")),
			command.Int("limit", 100, "hosts to show, at most "+strconv.Itoa(client.MaxAllHosts)+"; 0 for all"),
			command.Output(),
		),
		Action: func(c *cli.Context) error {
			if c.NArg() == 2 && c.Args().Get(1) == "log" {
				return logHosts(c)
			}
			if c.NArg() > 1 {
				return holdHosts(c)
			}
			return commandService(c, func(to *client.Client, service string, asJSON bool) error {
				if state := c.String("state"); state != "" && !slices.Contains(api.HostStates(), state) {
					return command.Usagef("--state is %q, expected one of %s", state, strings.Join(api.HostStates(), ", "))
				}
				limit := c.Int("limit")
				if limit < 0 || limit > client.MaxAllHosts {
					return command.Usagef("--limit is %d, expected 0 to %d", limit, client.MaxAllHosts)
				}
				list, err := to.AllHosts(c.Context, service, c.String("state"), limit)
				if err != nil {
					return explain(c, err)
				}
				if asJSON {
					return terminal.JSON(os.Stdout, list)
				}
				return terminal.Hosts(os.Stdout, list)
			})
		},
	}
}

// holdHosts holds hosts of a service, or releases them.
func holdHosts(c *cli.Context) error {
	asJSON, err := command.JSONWanted(c)
	if err != nil {
		return err
	}
	service, what, hosts := c.Args().First(), c.Args().Get(1), c.Args().Slice()[2:]
	if what != api.CommandHold && what != api.CommandRelease || len(hosts) == 0 || c.IsSet("state") || c.IsSet("limit") {
		return command.Usagef("hosts takes a SERVICE, or a SERVICE, hold or release, and HOSTs, or a SERVICE and log")
	}
	for _, h := range hosts {
		if err := goal.CheckName("host", h); err != nil {
			return command.Usagef("%w", err)
		}
	}
	to, err := connect(c)
	if err != nil {
		return err
	}
	do := to.Hold
	if what == api.CommandRelease {
		do = to.Release
	}
	answer, err := do(c.Context, service, hosts...)
	if err != nil {
		return explainService(c, err)
	}
	return showService(answer, &answer.Service, asJSON)
}

// logHosts has all hosts of a service written into the table.
func logHosts(c *cli.Context) error {
	asJSON, err := command.JSONWanted(c)
	if err != nil {
		return err
	}
	if c.IsSet("state") || c.IsSet("limit") {
		return command.Usagef("hosts SERVICE log writes all hosts: it takes neither --state nor --limit")
	}
	to, err := connect(c)
	if err != nil {
		return err
	}
	answer, err := to.LogHosts(c.Context, c.Args().First())
	if err != nil {
		return explainService(c, err)
	}
	if asJSON {
		return terminal.JSON(os.Stdout, answer)
	}
	return terminal.HostsLogged(os.Stdout, answer)
}

func recallCommand() *cli.Command {
	return &cli.Command{
		Name:      "recall",
		Usage:     "have builds run nowhere any more; list those that are recalled",
		ArgsUsage: "[BUILD…]",
		Description: "A BUILD is a key, an executionId, or the composite SHA-256 that S3 has of it; its bytes count, by whatever name they come. Agents hand it to no host,\n" +
			"hosts start it no more, and no deployment takes it. Refused for what a service runs or goes back to: deploy another build first.\n" +
			"Hosts that run it already are not stopped. Without a BUILD the list is shown.\n\n" +
			"Examples:\n\n  seeder recall web-2.0.0.zip\n  seeder recall web-2.0.0.zip --undo\n  seeder recall",
		Flags: append(connectFlags(),
			command.Bool("undo", "take recalls back"),
			command.Output(),
		),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			r := api.RecallRequest{Undo: c.Bool("undo")}
			for _, build := range c.Args().Slice() {
				if where, ok := strings.CutPrefix(build, "s3://"); ok {
					bucket, key, found := strings.Cut(where, "/")
					if !found || key == "" || r.SourceBucket != "" && r.SourceBucket != bucket {
						return command.Usagef("%s is not s3://BUCKET/KEY, or of another bucket than the one before", build)
					}
					r.SourceBucket, build = bucket, key
				}
				r.Builds = append(r.Builds, build)
			}
			if r.Undo && len(r.Builds) == 0 {
				return command.Usagef("recall --undo takes BUILDs")
			}
			to, err := connect(c)
			if err != nil {
				return err
			}
			var list *api.Recalls
			if len(r.Builds) == 0 {
				list, err = to.Recalls(c.Context)
			} else {
				list, err = to.Recall(c.Context, r)
			}
			if err != nil {
				return explain(c, err)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, list)
			}
			return terminal.Recalls(os.Stdout, list)
		},
	}
}

// commandService does something about the service that the only argument names.
func commandService(c *cli.Context, do func(to *client.Client, service string, asJSON bool) error) error {
	asJSON, err := command.JSONWanted(c)
	if err != nil {
		return err
	}
	if c.NArg() != 1 {
		return command.Usagef("%s takes one SERVICE", c.Command.Name)
	}
	to, err := connect(c)
	if err != nil {
		return err
	}
	return do(to, c.Args().First(), asJSON)
}

// showService prints a service; as JSON, all of the answer that it came with.
func showService(answer any, s *api.Service, asJSON bool) error {
	if asJSON {
		return terminal.JSON(os.Stdout, answer)
	}
	return terminal.Service(os.Stdout, s)
}
