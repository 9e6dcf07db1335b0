// Command landfall-dev runs all of Landfall on this machine, with no account and
// no container: S3 and DynamoDB, a seeder, and an agent for each region. It is a
// binary of its own so that no S3 server is linked into the two for production.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/devcloud"
	"github.com/landfall-dist/landfall/internal/devcluster"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/private"
	"github.com/landfall-dist/landfall/internal/tracing"
)

const cloudAddr = "127.0.0.1:4566"

func main() { os.Exit(command.Main(app())) }

func app() *cli.App {
	return &cli.App{
		Name:  "landfall-dev",
		Usage: "run all of Landfall on this machine",
		Description: "Starts S3 and DynamoDB on " + cloudAddr + ", a seeder, and an agent for each region; with --publish, distributes a\n" +
			"build and shows it arrive. Ctrl-C stops all of it; the data stay in --dir.\n\n" +
			"Examples:\n\n  landfall-dev --publish build.zip\n  landfall-dev --regions eu,us,ap --publish build.zip --exit\n  landfall-dev --hosts 5 --publish build.zip",
		Flags: slices.Concat([]cli.Flag{
			command.String("dir", ".landfall", "`DIR` for all data"),
			command.Strings("regions", "`NAME`,… of the regions (default region-a,region-b)"),
			command.String("publish", "", "`FILE` to distribute at the start"),
			command.Bool("exit", "end when the published build has arrived everywhere"),
			command.Int("hosts", 0, "`NUMBER` of hosts in each region, with DIR/hosts/NAME/SERVICE/current each, for `seeder deploy`"),
			command.Strings("services", "`NAME`,… of the services that hosts run (default web)"),
			command.String("tls", "require", "where members show each other certificates, of an authority that it makes in --dir: off, prefer or require, as `MODE`"),
		}, command.RateFlags(true), command.LogFlags()),
		Action: demo,
		Commands: append([]*cli.Command{
			cloudCommand(),
			certificatesCommand(),
			command.Health("landfall-dev", "cloud", "http://"+cloudAddr),
			command.Man(),
		}, command.Completion("landfall-dev", nil)...),
	}
}

func cloudCommand() *cli.Command {
	return &cli.Command{
		Name:        "cloud",
		Usage:       "run only the S3 and DynamoDB endpoint",
		Description: "Example:\n\n  landfall-dev cloud --dir /var/lib/landfall-cloud --listen 0.0.0.0:4566",
		Flags: append([]cli.Flag{
			command.String("listen", cloudAddr, "`ADDR` of the endpoint"),
			command.String("dir", ".landfall", "`DIR` for all data"),
		}, command.LogFlags()...),
		Action: func(c *cli.Context) error {
			logger, err := command.Logger(c, os.Stderr)
			if err != nil {
				return err
			}
			command.Daemon(c.Context, logger)
			cloud, err := openCloud(c.String("listen"), c.String("dir"), logger)
			if err != nil {
				return err
			}
			logger.Info("S3 and DynamoDB are up", "url", cloud.URL())
			return cloud.Run(c.Context)
		},
	}
}

// certificatesCommand is for docker-compose.yml, where each member sees its own directory.
func certificatesCommand() *cli.Command {
	return &cli.Command{
		Name:  "certificates",
		Usage: "make the certificates of a seeder and an agent for each region, anew each time",
		Description: "Makes an authority in DIR/ca where there is none, DIR/seeder/identity, and DIR/agent-REGION/identity for each region.\n\n" +
			"Example:\n\n  landfall-dev certificates --dir members --regions region-a,region-b",
		Flags: []cli.Flag{
			command.String("dir", ".landfall", "`DIR` for all of them"),
			command.Strings("regions", "`NAME`,… of the regions (default region-a,region-b)"),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return command.Unknown(c)
			}
			private.Umask()
			cfg := devcluster.Config{Dir: c.String("dir"), TLS: identity.Require, Regions: regionsOf(c)}
			_, serves, err := devcluster.Certify(cfg)
			if err != nil {
				return err
			}
			fmt.Println(cfg.IdentityOf("seeder"))
			for _, r := range slices.Sorted(maps.Keys(serves)) {
				fmt.Println(cfg.IdentityOf(devcluster.AgentOf(r)))
			}
			return nil
		},
	}
}

func regionsOf(c *cli.Context) []string {
	if regions := c.StringSlice("regions"); len(regions) > 0 {
		return regions
	}
	return []string{"region-a", "region-b"}
}

func servicesOf(c *cli.Context) []string {
	if services := c.StringSlice("services"); len(services) > 0 {
		return services
	}
	return []string{"web"}
}

func openCloud(listen, dir string, logger *slog.Logger) (*devcloud.Cloud, error) {
	private.Umask() // the embedded S3 has modes of its own
	return devcloud.New(devcloud.Config{Listen: listen, Dir: filepath.Join(dir, "cloud"), Logger: logger})
}

// demo runs the cloud, the cluster on it, and the show in front of them.
func demo(c *cli.Context) (err error) {
	if c.NArg() > 0 {
		return command.Unknown(c)
	}
	// The embedded S3 changes the process's directory: no relative path may
	// be left when it starts.
	dir, err := filepath.Abs(c.String("dir"))
	if err != nil {
		return err
	}
	publish := c.String("publish")
	if publish != "" {
		if publish, err = filepath.Abs(publish); err != nil {
			return err
		}
		if _, err := os.Stat(publish); err != nil {
			return fmt.Errorf("--publish: %w", err)
		}
	} else if c.Bool("exit") {
		return command.Usagef("--exit goes with --publish")
	}
	if n := c.Int("hosts"); n < 0 || n > maxHosts {
		return command.Usagef("--hosts is %d, expected 0 to %d", n, maxHosts)
	}
	limits, err := command.Rates(c)
	if err != nil {
		return err
	}
	mode, err := identity.ParseMode(c.String("tls"))
	if err != nil {
		return command.Usagef("--tls is %w", err)
	}
	if err := private.MkdirAll(dir); err != nil {
		return err
	}
	if err := private.Tighten(dir, "seeder*", "agent-*", "builds", "landfall-dev.log*"); err != nil {
		return err
	}
	logFile := filepath.Join(dir, "landfall-dev.log")
	file, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	logger, err := command.Logger(c, io.Writer(file))
	if err != nil {
		return err
	}
	command.OutliveReaders() // a hang-up still ends it: it is made for a terminal
	tracer, flush := tracing.Setup(c.Context, tracing.Service{Name: "landfall-dev", Instance: "landfall-dev", Version: command.Version()}, logger)
	defer flush()
	cloud, err := openCloud(cloudAddr, dir, logger)
	if err != nil {
		return err
	}
	s := &show{
		out:      os.Stdout,
		dir:      dir,
		log:      logFile,
		cloud:    cloud.URL(),
		regions:  regionsOf(c),
		publish:  publish,
		exit:     c.Bool("exit"),
		hosts:    c.Int("hosts"),
		services: servicesOf(c),
		limits:   limits,
		tls:      mode,
		logger:   logger,
		tracer:   tracer,
	}
	return s.run(c.Context, cloud.Run)
}

// errArrived ends the demo when --exit was given and the build is everywhere.
var errArrived = errors.New("arrived")

func (s *show) run(ctx context.Context, cloud func(context.Context) error) error {
	// The cloud goes last: the others still speak to it while they end.
	cloudCtx, stopCloud := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCloud()
	cloudDone := make(chan error, 1)
	go func() { cloudDone <- cloud(cloudCtx) }()
	err := s.serve(ctx)
	stopCloud()
	if errors.Is(err, errArrived) || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // as it was asked for
	}
	return errors.Join(err, <-cloudDone)
}

// serve runs the members and the show until one of them ends.
func (s *show) serve(ctx context.Context) error {
	cluster, err := s.open(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cluster.Run(ctx) })
	group.Go(func() error { return s.perform(ctx, cluster) })
	return group.Wait()
}
