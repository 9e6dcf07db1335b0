// Command agent runs in every region: it downloads builds with the swarm and
// lands them in the regional bucket.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/agent"
	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/terminal"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	defaultURL = "http://127.0.0.1:7080"
	// demoURL is where the first agent of `landfall-dev` answers.
	demoURL       = "http://127.0.0.1:7081"
	watchInterval = time.Second
)

func main() { os.Exit(command.Main(app())) }

func app() *cli.App {
	return &cli.App{
		Name:  "agent",
		Usage: "bring builds into a regional bucket, together with the other regions, and from there to machines",
		Description: "Examples:\n\n  agent run --help\n  agent status --watch\n  agent host --help\n\n" +
			"Every command says more with --help; `agent completion bash` makes a shell complete commands and flags.",
		Action: command.Unknown,
		Commands: append([]*cli.Command{
			runCommand(),
			hostCommand(),
			statusCommand(),
			limitsCommand(),
			command.Health("agent", "agent", defaultURL),
			command.Man(),
		}, command.Completion("agent", nil)...),
	}
}

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run the daemon",
		Description: "Example, beside a seeder on this machine:\n\n" +
			"  agent run --region region-c --bucket region-c-builds --join 127.0.0.1:7946 --trust seeder.key.pub\n\n" +
			"S3 and DynamoDB are found by the AWS SDK's own settings (AWS_REGION, AWS_ENDPOINT_URL, profiles, roles).",
		Flags: slices.Concat([]cli.Flag{
			command.Required("region", "Landfall's `NAME` for this place"),
			command.Required("bucket", "regional `BUCKET` that builds land in"),
			command.Strings("trust", "public `KEY` of a seeder, or a file of them; announcements signed by others are refused"+command.TrustLimits),
			command.File("revoked", "`FILE` with public keys that are trusted no more, whatever --trust says; read again when it changes"),
			command.String("bucket-region", "", "AWS `REGION` of the bucket (default: what HeadBucket answers, then AWS_REGION)"),
			command.Switch("source-fallback", true, "read from the source bucket what no peer has had for 30s (needs s3:GetObject there)"),
			command.Bool("allow-weak-store", "land in a store that lacks a guarantee, such as refusing a part with a wrong SHA-256"),
			command.String("fleet-listen", "", "`ADDR` where the region's hosts have their streams, TCP, such as 10.0.0.1:7090; none are served without it"),
			command.ServicesTableFlag(),
			command.String("host-authority", "", "`DIR` with the key of the authority of this region's hosts (CA/regions/REGION of `seeder ca init`), by which they renew their certificates here"),
			command.String("fleet-peers", "", "`ADDR` where builds are handed out to hosts, TCP (default: any port of --fleet-listen's address)"),
			command.Int("land-parallel", agent.DefaultLandParallel, "parts uploaded at a time"),
			command.Int("max-active", agent.DefaultMaxActive, "builds worked on at a time"),
			command.File("operator-token", "`FILE` with the token of who may do everything, needed then to change limits (make one with `seeder keygen --operator-token`)"),
		}, command.EnrolFlags(), command.HTTPFlags(), command.LimitFlags(true), command.MemberFlags("127.0.0.1:7080", "127.0.0.1:0", "127.0.0.1:0", "landfall-agent")),
		Action: run,
	}
}

func run(c *cli.Context) (err error) {
	defer func() { err = command.UnlessTold(c.Context, err) }()
	trust, err := signing.OpenTrust(c.StringSlice("trust"), c.String("revoked"))
	if err != nil {
		return err
	}
	security, err := command.OpenSecurity(c)
	if err != nil {
		return err
	}
	m, err := command.OpenMember(c, "agent")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Secure(c, &security); err != nil {
		return err
	}
	limits, err := command.OpenLimits(c, m.Logger, true)
	if err != nil {
		return err
	}
	bucket, err := command.OpenBucket(c.Context, m.AWS, c.String("bucket"), c.String("bucket-region"))
	if err != nil {
		return err
	}
	var sources *source.Buckets
	if c.Bool("source-fallback") {
		sources = source.NewBuckets(m.AWS)
	}
	cfg := agent.Config{
		Region:     c.String("region"),
		Bucket:     bucket,
		Ledger:     m.Ledger,
		Arrivals:   m.Arrivals,
		Cache:      m.Cache,
		Peers:      m.Peers,
		HTTP:       m.HTTP,
		Gossip:     m.Gossip,
		Trust:      trust,
		AllowPeers: m.AllowPeers,
		TLS:        m.TLS,
		Identity:   m.Identity,
		Hosts:      m.Hosts,

		Security: security,
		Limits:   limits,

		Sources:      sources,
		Memory:       filepath.Join(m.DataDir, "announced"),
		Notes:        filepath.Join(m.DataDir, "parts"),
		ArrivalsMark: filepath.Join(m.DataDir, "arrivals"),
		LandParallel: c.Int("land-parallel"),
		MaxActive:    c.Int("max-active"),
		AWSMetrics:   m.AWSMetrics,

		AllowWeakStore: c.Bool("allow-weak-store"),
		Tracer:         m.Tracer,
		Version:        command.Version(),
		Logger:         m.Logger,
	}
	authority, err := openHostAuthority(c, m.Identity)
	if err != nil {
		return err
	}
	if cfg.Fleet, err = listenForHosts(c); err != nil {
		return err
	}
	cfg.Fleet.Goals, cfg.Fleet.Authority = filepath.Join(m.DataDir, "goals"), authority
	if cfg.Fleet.Listener != nil {
		cfg.Fleet.Table = command.OpenServices(m.AWS, c)
	}
	cfg.Fleet.Recipes = filepath.Join(m.DataDir, "recipes")
	if m.Identity != nil {
		cfg.Signer = identity.Signer{Source: m.Identity}
	}
	if m.TLS == identity.Require { // else there are agents that sign nothing
		cfg.Checker = call.Checker{Source: m.Identity, Serves: call.Serves{cfg.Region: {bucket.Name()}}}
	}
	// Names of addresses are looked up there.
	a, err := command.Interruptible(c.Context, func() (*agent.Agent, error) { return agent.New(cfg) })
	if err != nil {
		return err
	}
	return a.Run(c.Context)
}

// openHostAuthority opens the authority of the region's hosts, for an agent with this
// identity; nil for none.
func openHostAuthority(c *cli.Context, own *identity.Source) (*ca.RegionDir, error) {
	dir := c.String("host-authority")
	switch {
	case dir == "":
		return nil, nil
	case own == nil:
		return nil, errors.New("--host-authority renews certificates, and this agent speaks no TLS: give --tls, too")
	case c.String("fleet-listen") == "":
		return nil, errors.New("--host-authority is given and hosts have nowhere to connect: give --fleet-listen, too")
	}
	return ca.OpenRegionDir(dir, own.ID().Cluster, own.ID().Region, nil)
}

// listenForHosts opens the listeners that hosts use; none without --fleet-listen.
func listenForHosts(c *cli.Context) (f agent.Fleet, err error) {
	streams, peers := c.String("fleet-listen"), c.String("fleet-peers")
	if streams == "" {
		if peers != "" {
			return f, errors.New("--fleet-peers is given and hosts have nowhere to connect: give --fleet-listen, too")
		}
		return f, nil
	}
	if f.Listener, err = new(net.ListenConfig).Listen(c.Context, "tcp", streams); err != nil {
		return f, fmt.Errorf("listening for hosts: %w; choose another --fleet-listen", err)
	}
	if peers == "" {
		host, _, err := net.SplitHostPort(streams)
		if err != nil {
			return f, errors.Join(fmt.Errorf("--fleet-listen: %w", err), f.Listener.Close())
		}
		peers = net.JoinHostPort(host, "0")
	}
	if f.Peers, err = new(net.ListenConfig).Listen(c.Context, "tcp", peers); err != nil {
		return f, errors.Join(fmt.Errorf("listening for hosts' downloads: %w; choose another --fleet-peers", err), f.Listener.Close())
	}
	return f, nil
}

// connectFlags are of all commands that ask an agent.
func connectFlags() []cli.Flag {
	return append([]cli.Flag{
		command.URL("agent", "", "`URL` of the agent (default: "+defaultURL+", or "+demoURL+" when nothing answers there)"),
		command.OperatorTokenFlag("agent"),
	}, command.ClientFlags()...)
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show the builds and the members that an agent knows",
		Description: "With --watch and -o json a line of JSON is printed whenever something has changed.\n\n" +
			"Examples:\n\n  agent status\n  agent status --agent http://127.0.0.1:7082 --watch",
		Flags: append(connectFlags(),
			command.Bool("watch", "show a bar for each build until Ctrl-C"),
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
	client, err := find(c)
	if err != nil {
		return err
	}
	if c.Bool("watch") {
		form := terminal.Live
		if asJSON {
			form = terminal.JSONLines
		}
		return explain(c, client, terminal.WatchAgent(c.Context, os.Stdout, form, watchInterval, client.AgentStatus))
	}
	s, err := client.AgentStatus(c.Context)
	if err != nil {
		return explain(c, client, err)
	}
	if asJSON {
		return terminal.JSON(os.Stdout, s)
	}
	return terminal.AgentStatus(os.Stdout, s)
}

func limitsCommand() *cli.Command {
	return &cli.Command{
		Name:  "limits",
		Usage: "show how fast an agent's bytes may pass, or change that while it runs",
		Description: "What is set holds until the agent ends, or is told to read its --limits-file again (SIGHUP).\n\n" +
			"Examples:\n\n  agent limits\n  agent limits --upload-rate 50MB --landing-rate 1Gbit\n  agent limits --upload-rate 0",
		Flags: slices.Concat(command.ChangeFlags(true), connectFlags(), []cli.Flag{command.Output()}),
		Action: func(c *cli.Context) error {
			asJSON, err := command.JSONWanted(c)
			if err != nil {
				return err
			}
			client, err := find(c)
			if err != nil {
				return err
			}
			l, err := command.ChangeLimits(c, client)
			if err != nil {
				return explain(c, client, err)
			}
			if asJSON {
				return terminal.JSON(os.Stdout, l)
			}
			return terminal.Limits(os.Stdout, l)
		},
	}
}

// explain adds what to do when nobody answers.
func explain(c *cli.Context, client *client.Client, err error) error {
	var refused *url.Error
	if errors.As(err, &refused) && c.Context.Err() == nil {
		return fmt.Errorf("no agent answers at %s (%w); is `agent run` or `make demo` running? name another with --agent", client.URL, refused.Err)
	}
	return err
}

// find returns the agent asked for, or the first of the usual ones that answers.
func find(c *cli.Context) (*client.Client, error) {
	to, err := command.Client(c, "agent", c.String("agent"))
	if err != nil || to.URL != "" {
		return to, err
	}
	to.URL = defaultURL
	if err = to.Healthy(c.Context); err == nil {
		return to, nil
	}
	to.URL = demoURL
	if to.Healthy(c.Context) == nil {
		return to, nil
	}
	return nil, fmt.Errorf("no agent answers at %s or %s (%w); name one with --agent", defaultURL, demoURL, err)
}
