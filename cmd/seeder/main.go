// Command seeder watches the global bucket, publishes builds to the swarm, and
// is what people publish and follow builds with.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/seeder"
)

const defaultURL = "http://127.0.0.1:7070"

func main() { os.Exit(command.Main(app())) }

func app() *cli.App {
	completers := map[string]command.Completer{
		"status":   keys(anyExecution),
		"cancel":   keys(running),
		"retry":    keys(unfinished),
		"ca":       caWords,
		"keyring":  func(context.Context, func(string) string) []string { return keyringWords() },
		"operator": operatorWords,
		"deploy":   serviceNames,
		"rollback": serviceNames,
		"pause":    serviceNames,
		"resume":   serviceNames,
		"abort":    serviceNames,
		"skip":     serviceNames,
		"service":  serviceNames,
		"hosts":    serviceNames,
		"recall":   keys(anyExecution),
	}
	return &cli.App{
		Name:  "seeder",
		Usage: "publish builds from the global bucket to every region, and deploy them to the hosts of services",
		Description: "Examples:\n\n  seeder publish build.zip\n  seeder status build.zip --watch\n  seeder deploy web build.zip\n\n" +
			"Every command says more with --help; `seeder completion bash` makes a shell complete commands, flags and keys.",
		Action: command.Unknown,
		Commands: append([]*cli.Command{
			runCommand(),
			publishCommand(),
			listCommand(),
			statusCommand(),
			cancelCommand(),
			retryCommand(),
			deployCommand(),
			rollbackCommand(),
			pauseCommand(),
			resumeCommand(),
			abortCommand(),
			skipCommand(),
			servicesCommand(),
			serviceShowCommand(),
			hostsCommand(),
			recallCommand(),
			limitsCommand(),
			auditCommand(),
			operatorCommand(),
			initCommand(),
			checkCommand(),
			keygenCommand(),
			caCommand(),
			keyringCommand(),
			publicKeyCommand(),
			command.Health("seeder", "seeder", defaultURL),
			command.Man(),
		}, command.Completion("seeder", completers)...),
	}
}

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run the daemon",
		Description: "Example:\n\n" +
			"  seeder run --bucket global-builds --destinations region-a-builds,region-b-builds --signing-key seeder.key\n\n" +
			"S3 and DynamoDB are found by the AWS SDK's own settings (AWS_REGION, AWS_ENDPOINT_URL, profiles, roles).",
		Flags: slices.Concat([]cli.Flag{
			command.Required("bucket", "global `BUCKET` to watch"),
			command.Strings("serves", "buckets that each region's agents serve, as `REGION=BUCKET`,…, and again for each region; needed with --tls"),
			command.File("ca", "`DIR` of the authority (`seeder ca init`), with whose key this seeder renews the members' certificates and gives new members their first (`seeder ca token`)"),
			command.Strings("enrol-aws", "who gets a first certificate as an agent of a region by AWS credentials (`agent run --enrol aws`), as `ARN=REGION`,…: arn:aws:sts::ACCOUNT:assumed-role/ROLE/*=region-a; needs --ca"),
			command.STSFlag(),
			command.Strings("destinations", "destination `BUCKET`,… of builds for which none are named"),
			command.File("operator-token", "`FILE` with the token of who may do everything; without it or --operators everybody who reaches --listen may (make one with `seeder keygen --operator-token`)"),
			command.Bool("insecure", "let everybody who reaches --listen publish, cancel and retry, where that is beyond loopback and there is neither --operator-token nor --operators"),
			command.Strings("trust", "public `KEY` of another seeder, or a file of them"+command.TrustLimits),
			command.File("revoked", "`FILE` with public keys that are trusted no more, whatever --trust says; read again when it changes"),
			command.Duration("poll", seeder.DefaultPoll, "`TIME` from the end of one listing of the bucket to the next"),
			command.String("prefix", "", "only keys that begin with `TEXT` start by themselves"),
			command.Text("suffix", seeder.DefaultSuffix, "only keys that end with `TEXT` start by themselves"),
			command.Bool("backfill", "send what was in the bucket before the first start, too"),
			command.Duration("arrival-timeout", seeder.DefaultArrivalTimeout, "`TIME` without progress after which a destination has failed"),
			command.String("notify-webhook", "", "`URL` (http or https) that gets a POST with JSON for each destination that fails"),
			command.File("notify-webhook-file", "`FILE` with that URL, which then is in no list of processes"),
			command.String("notify-topic", "", "`ARN` of an SNS topic that gets a message for each destination that fails"),
			command.String("uplink", "", "`RATE` that this host can send, such as 1Gbit or 50MB: at the end of an execution the log compares its rate with this"),
			command.Bool("allow-weak-store", "read from a store that lacks a guarantee, such as refusing a range of another object (If-Match)"),
			command.String("build-source", "", "`URL` under which POST /builds finds builds by commit (http, https or file)"),
			command.File("build-source-file", "`FILE` with that URL, which then is in no list of processes"),
			command.String("max-fetch", "20GiB", "largest `SIZE` of a build taken from --build-source"),
			command.File("wave-checks", "`DIR` of programs that `seeder deploy --wave-check` may name; each is run as this seeder is, with its environment but for LANDFALL_…, and gets LANDFALL_SERVICE, LANDFALL_DEPLOYMENT and LANDFALL_WAVE"),
			command.Strings("source-buckets", "`BUCKET`,… that builds may be published from beside --bucket"),
			command.String("source-region", "", "AWS `REGION` of the bucket (default: what HeadBucket answers, then AWS_REGION)"),
		}, command.ServicesFlags(), signingFlags(), command.HTTPFlags(), command.LimitFlags(false), command.MemberFlags("127.0.0.1:7070", "127.0.0.1:7946", "127.0.0.1:6881", "landfall-seeder")),
		Action: run,
	}
}

func run(c *cli.Context) (err error) {
	defer func() { err = command.UnlessTold(c.Context, err) }()
	notices, err := receivers(c)
	if err != nil {
		return err
	}
	builds, err := buildSource(c)
	if err != nil {
		return err
	}
	checks, err := waveChecks(c)
	if err != nil {
		return err
	}
	var uplink int64
	if s := c.String("uplink"); s != "" {
		if uplink, err = command.ParseRate(s); err != nil {
			return command.Usagef("--uplink: %w", err)
		}
	}
	maxFetch, err := command.ParseSize(c.String("max-fetch"))
	if err != nil {
		return command.Usagef("--max-fetch: %w", err)
	}
	if slices.Contains(c.StringSlice("destinations"), c.String("bucket")) {
		return command.Usagef("--destinations: %s is the --bucket that builds come from", c.String("bucket"))
	}
	signer, err := localSigner(c)
	if err != nil {
		return err
	}
	security, err := command.OpenSecurity(c)
	if err != nil {
		return err
	}
	if listen := c.String("listen"); security.Access == nil && !c.Bool("insecure") && command.BeyondLoopback(listen) {
		return command.Usagef("--listen %s is beyond loopback, and everybody who reaches it could publish, cancel and retry: "+
			"give --operator-token FILE (make one with `seeder keygen --operator-token FILE`) or --operators FILE (`seeder operator add`), or --insecure", listen)
	}
	m, err := command.OpenMember(c, "seeder")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := openServes(c, m); err != nil {
		return err
	}
	if err := m.Secure(c, &security); err != nil {
		return err
	}
	if m.Gossip.Enrolment != nil {
		m.Gossip.Enrolment.Record = security.Audit.Add
	}
	limits, err := command.OpenLimits(c, m.Logger, false)
	if err != nil {
		return err
	}
	if signer == nil {
		if signer, err = kmsSigner(c, m.AWS); err != nil {
			return err
		}
	}
	trust, err := signing.OpenTrust(c.StringSlice("trust"), c.String("revoked"), signer.Public())
	if err != nil {
		return err
	}
	source, err := command.OpenBucket(c.Context, m.AWS, c.String("bucket"), c.String("source-region"))
	if err != nil {
		return err
	}
	rows, err := readArrivals(c.Context, m)
	if err != nil {
		return err
	}
	notifier, err := openNotifier(notices, m)
	if err != nil {
		return err
	}
	copies, err := services.OpenCopies(filepath.Join(m.DataDir, "services"))
	if err != nil {
		return err
	}
	cfg := seeder.Config{
		Bucket:         source,
		Copies:         copies,
		AWS:            m.AWS,
		Ledger:         m.Ledger,
		Arrivals:       rows,
		Services:       command.OpenServices(m.AWS, c),
		Cache:          m.Cache,
		Peers:          m.Peers,
		HTTP:           m.HTTP,
		Gossip:         m.Gossip,
		Signer:         signer,
		Trust:          trust,
		AllowPeers:     m.AllowPeers,
		TLS:            m.TLS,
		Identity:       m.Identity,
		Security:       security,
		Limits:         limits,
		Hosts:          m.Hosts,
		Destinations:   c.StringSlice("destinations"),
		Poll:           c.Duration("poll"),
		Prefix:         c.String("prefix"),
		Suffix:         c.String("suffix"),
		Backfill:       c.Bool("backfill"),
		BaselineFile:   filepath.Join(m.DataDir, "baseline-"+source.Name()),
		ArrivalTimeout: c.Duration("arrival-timeout"),
		AllowWeakStore: c.Bool("allow-weak-store"),
		BuildSource:    builds,
		MaxFetch:       maxFetch,
		WaveChecks:     checks,
		SourceBuckets:  c.StringSlice("source-buckets"),
		Notify:         notifier,
		AWSMetrics:     m.AWSMetrics,
		Uplink:         uplink,
		Tracer:         m.Tracer,
		Version:        command.Version(),
		Logger:         m.Logger,
	}
	if m.TLS == identity.Require { // else there are agents that sign nothing
		cfg.Checker = call.Checker{Source: m.Identity, Serves: m.Gossip.Serves}
	}
	// Names of addresses are looked up there.
	s, err := command.Interruptible(c.Context, func() (*seeder.Seeder, error) { return seeder.New(cfg) })
	if err != nil {
		return err
	}
	return s.Run(c.Context)
}

// receivers reads where notices go.
func receivers(c *cli.Context) (cfg notify.Config, err error) {
	flag, s, err := command.Secret(c, "notify-webhook")
	if err != nil {
		return cfg, err
	}
	if s != "" {
		if cfg.Webhook, err = notify.ParseWebhook(s); err != nil {
			return cfg, command.Usagef("--%s: %w", flag, err)
		}
	}
	if s := c.String("notify-topic"); s != "" {
		if cfg.Topic, err = notify.ParseTopic(s); err != nil {
			return cfg, command.Usagef("--notify-topic: %w", err)
		}
	}
	return cfg, nil
}

// buildSource reads where POST /builds fetches from; empty for nowhere. No error repeats
// the URL, which may carry a token.
func buildSource(c *cli.Context) (string, error) {
	flag, s, err := command.Secret(c, "build-source")
	if err != nil || s == "" {
		return "", err
	}
	if err := seeder.CheckBuildSource(s); err != nil {
		return "", command.Usagef("--%s: %w", flag, err)
	}
	return s, nil
}

// waveChecks is the directory of checks that may be named; empty for none.
func waveChecks(c *cli.Context) (string, error) {
	dir := c.String("wave-checks")
	if dir == "" {
		return "", nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", command.Usagef("--wave-checks: %s is no directory that can be read", dir)
	}
	return dir, nil
}

// openNotifier is nil where nobody is to be told.
func openNotifier(cfg notify.Config, m *command.Member) (*notify.Notifier, error) {
	if cfg.Webhook == nil && cfg.Topic == nil {
		return nil, nil
	}
	cfg.AWS, cfg.Logger = m.AWS, m.Logger
	return notify.New(cfg)
}

// readArrivals returns the table of arrivals; nil where it cannot be read, as after an
// upgrade: agents then go on to write into the executions' items.
func readArrivals(ctx context.Context, m *command.Member) (*arrivals.Table, error) {
	err := m.FindArrivals(ctx)
	switch {
	case err == nil:
		return m.Arrivals, nil
	case errors.Is(err, ledger.ErrNoTable), awserr.Code(err) == "AccessDeniedException":
		m.Logger.Warn("agents write arrivals into the executions' items, as before there was a table of them: make it with `seeder init`, allow it (docs/security.md), and restart",
			"table", m.Arrivals.Name(), "error", err)
		return nil, nil
	}
	return nil, err
}

func initCommand() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "make the buckets and the tables that are missing",
		Description: "Example:\n\n" +
			"  seeder init --bucket global-builds --destinations region-a-builds,region-b-builds",
		Flags: append([]cli.Flag{
			command.Required("bucket", "global `BUCKET`"),
			command.Strings("destinations", "regional `BUCKET`,…"),
			command.String("source-region", "", "AWS `REGION` to make the buckets in (default AWS_REGION)"),
			command.String("table", ledger.DefaultTable, "DynamoDB `TABLE` of executions"),
			command.ArrivalsFlag(),
			command.String("table-region", "", "AWS `REGION` of the tables (default AWS_REGION)"),
		}, command.ServicesFlags()...),
		Action: func(c *cli.Context) error {
			cfg, err := command.LoadAWS(c.Context, slog.New(slog.NewTextHandler(os.Stderr, nil)))
			if err != nil {
				return err
			}
			if c.String("table-region") == "" && cfg.Region == "" {
				return command.Usagef("no AWS region is set: set AWS_REGION, or give --table-region and --source-region")
			}
			for _, name := range append([]string{c.String("bucket")}, c.StringSlice("destinations")...) {
				created, err := bucket.Create(c.Context, cfg, name, c.String("source-region"))
				if err != nil {
					return err
				}
				fmt.Println(made("bucket "+name, created))
			}
			if err := abortUnfinished(c.Context, cfg, buckets(c)); err != nil {
				return err
			}
			if err := checkMade(c.Context, cfg, buckets(c)); err != nil {
				return err
			}
			l := command.OpenLedger(cfg, c.String("table"), c.String("table-region"))
			created, err := l.Create(c.Context)
			if err != nil {
				return err
			}
			fmt.Println(made("table "+l.Table()+" in "+l.Region(), created))
			rows := command.OpenArrivals(cfg, c.String("arrivals-table"), c.String("table-region"))
			if created, err = rows.Create(c.Context); err != nil {
				return err
			}
			fmt.Println(made("table "+rows.Name()+" in "+l.Region(), created))
			return command.OpenServices(cfg, c).Create(c.Context, func(table string, created bool) {
				fmt.Println(made("table "+table+" in "+l.Region(), created))
			})
		},
	}
}

func made(what string, created bool) string {
	if created {
		return what + ": made"
	}
	return what + ": was there"
}

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:      "keygen",
		Usage:     "make a signing key pair, a gossip key or an operator token",
		ArgsUsage: "FILE",
		Description: "Writes the private key to FILE and the public key to FILE.pub, and prints the public key, which agents take with --trust.\n" +
			"With --gossip-key, writes a key for the membership's messages instead, which every member gets.\n" +
			"With --operator-token, writes the token that `seeder run --operator-token` asks for, and publish, cancel and retry take.\n\n" +
			"Example:\n\n  seeder keygen seeder.key\n  seeder keygen --gossip-key gossip.key\n  seeder keygen --operator-token operator.token",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "gossip-key", Usage: "make a gossip key"},
			&cli.BoolFlag{Name: "operator-token", Usage: "make an operator token"},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return command.Usagef("keygen takes one FILE")
			}
			file := c.Args().First()
			switch {
			case c.Bool("gossip-key") && c.Bool("operator-token"):
				return command.Usagef("keygen takes --gossip-key or --operator-token, not both")
			case c.Bool("gossip-key"):
				return gossip.WriteKey(file)
			case c.Bool("operator-token"):
				return operator.WriteToken(file)
			}
			public, err := signing.WriteKey(file)
			if err != nil {
				return err
			}
			fmt.Println(public)
			return nil
		},
	}
}
