// Package command is what the three binaries share on their command lines: how
// they start and end, their exit codes, and the flags that both daemons take.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/oklog/ulid/v2"
	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/answers"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/awserr"
	"github.com/landfall-dist/landfall/internal/awsmetrics"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/private"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/tracing"
)

// Exit codes.
const (
	ExitFailed = 1
	ExitUsage  = 2
	// ExitCancelled: what was waited for was cancelled by somebody.
	ExitCancelled = 3
)

// endTimeout bounds the end of a process that was told to end: what hangs then hangs
// on something that is not there, and everything survives a kill.
const endTimeout = 9 * time.Second

// healthTimeout bounds a container's health check.
const healthTimeout = 3 * time.Second

// Version is the module's version, or the commit that the binary was built of.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (version == "" || version == "(devel)") {
			version = s.Value[:min(12, len(s.Value))]
		}
	}
	if version == "" {
		return "(devel)"
	}
	return version
}

// UsageError is an error in how the command was called.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Main runs an app until it ends or the process is told to, and returns the exit
// code. It has endTimeout for a clean end; a second signal ends the process at once.
func Main(app *cli.App) int {
	ctx, stop := untilTold()
	defer stop()
	context.AfterFunc(ctx, func() {
		stop()
		time.AfterFunc(endTimeout, func() {
			fmt.Fprintf(os.Stderr, "%s: not everything has ended in %s, the next start goes on with it\n", app.Name, endTimeout)
			os.Exit(ExitFailed)
		})
	})
	err := Run(ctx, app, os.Args)
	if err == nil {
		return 0
	}
	var coder cli.ExitCoder
	if errors.As(err, &coder) {
		if err.Error() != "" {
			fmt.Fprintf(os.Stderr, "%s: %s\n", app.Name, asCalled(os.Args[0], plainLines(err.Error())))
		}
		return coder.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", app.Name, asCalled(os.Args[0], plainLines(err.Error())))
	var usage UsageError
	// urfave/cli has no type for a flag that is missing.
	if errors.As(err, &usage) || strings.HasPrefix(err.Error(), "Required flag") {
		fmt.Fprintf(os.Stderr, "%s\n", asCalled(os.Args[0], fmt.Sprintf("Try `%s --help`.", called(app, os.Args))))
		return ExitUsage
	}
	return ExitFailed
}

// Run runs an app with the words of a command line, the program's first. An error in
// them is a UsageError, or urfave/cli's own for a flag that is missing.
func Run(ctx context.Context, app *cli.App, args []string) error {
	prepare(app)
	return app.RunContext(ctx, interspersed(app, args))
}

// prepare sets what the binaries' apps have in common.
func prepare(app *cli.App) {
	unsetEmpty(app)
	app.Version = Version()
	app.HideHelpCommand = true
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = usageError
	for _, c := range app.Commands {
		setUsageError(c)
	}
}

// called names the app and the command that args call, for advice.
func called(app *cli.App, args []string) string {
	if len(args) > 1 {
		if c := app.Command(args[1]); c != nil {
			return app.Name + " " + c.Name
		}
	}
	return app.Name
}

func setUsageError(c *cli.Command) {
	c.OnUsageError = usageError
	for _, sub := range c.Subcommands {
		setUsageError(sub)
	}
}

// env names the environment variable of a flag.
func env(flag string) []string {
	return []string{"LANDFALL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
}

// String, Text, File, Strings, Int, Duration and Bool make flags that can be given by
// the environment as well. An empty variable is one that is not set.
//
// A String with a default cannot be given empty: where something is needed, nothing is
// no value. Without one, empty is the same as not given.
func String(name, value, usage string) *cli.StringFlag {
	f := filled(Text(name, value, usage))
	if value == "" {
		refuseEmpty := f.Action
		f.Action = func(c *cli.Context, given string) error {
			if given == "" {
				return nil
			}
			return refuseEmpty(c, given)
		}
	}
	return f
}

// Text makes a flag whose value may be empty or blank, and means something then.
func Text(name, value, usage string) *cli.StringFlag {
	return &cli.StringFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

// File makes a flag that names a file, which cannot be given empty: without the file
// less would be protected.
func File(name, usage string) *cli.StringFlag { return filled(Text(name, "", usage)) }

// TrustLimits is what the help of --trust says of limits.
const TrustLimits = "; for some builds alone, or for some time: KEY:bucket=NAME,prefix=TEXT,until=2027-01-31. A file is read again when it changes"

// maxSecret bounds what a file with a flag's value holds, in bytes: a URL.
const maxSecret = 8 << 10

// Secret reads a flag whose value may carry a token: from the flag, or from the file that
// the flag NAME-file names, which not everybody may read. It returns which of the two was
// given, and "" for neither.
func Secret(c *cli.Context, name string) (flag, value string, err error) {
	file := c.String(name + "-file")
	switch given := c.String(name); {
	case file == "":
		return name, given, nil
	case given != "":
		return "", "", Usagef("--%s and --%s-file are both given", name, name)
	}
	name += "-file"
	text, err := private.Read(file, maxSecret)
	if err != nil {
		return "", "", fmt.Errorf("--%s: %w", name, err)
	}
	if value = strings.TrimSpace(string(text)); value == "" {
		return "", "", fmt.Errorf("--%s: %s is empty", name, file)
	}
	return name, value, nil
}

// Strings makes a flag that takes a comma-separated list, or is given again. Empty
// elements are dropped.
func Strings(name, usage string) *cli.StringSliceFlag {
	return &cli.StringSliceFlag{Name: name, Usage: usage, EnvVars: env(name), Action: dropEmpty(name)}
}

// Int makes a flag of a whole number.
func Int(name string, value int, usage string) *cli.IntFlag {
	return &cli.IntFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

// Duration makes a flag such as 5s or 30m.
func Duration(name string, value time.Duration, usage string) *cli.DurationFlag {
	return &cli.DurationFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

// Bool makes a switch.
func Bool(name, usage string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: name, Usage: usage, EnvVars: env(name)}
}

// Switch is Bool with a default; --NAME=false turns off what is on.
func Switch(name string, value bool, usage string) *cli.BoolFlag {
	f := Bool(name, usage)
	f.Value = value
	return f
}

// URL makes a flag of the address of a daemon's HTTP side. What is no such address is
// said before anything is asked of it.
func URL(name, value, usage string) *cli.StringFlag {
	f := String(name, value, usage)
	f.Action = func(_ *cli.Context, given string) error {
		u, err := url.Parse(given)
		if given != value && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			return Usagef("--%s is %q, expected a URL such as http://127.0.0.1:7070", name, given)
		}
		return nil
	}
	return f
}

// Required makes a string flag that must be given.
func Required(name, usage string) *cli.StringFlag {
	f := filled(Text(name, "", usage))
	f.Required = true
	return f
}

// Output is the -o flag of everything that prints a table.
func Output() *cli.StringFlag {
	return filled(&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", Usage: "`FORMAT` of what is printed: text or json"})
}

// JSONWanted reads the Output flag.
func JSONWanted(c *cli.Context) (bool, error) {
	switch v := c.String("output"); v {
	case "json":
		return true, nil
	case "text":
		return false, nil
	default:
		return false, Usagef("-o is %q, expected text or json", v)
	}
}

// LogFlags choose the log's form.
func LogFlags() []cli.Flag {
	return []cli.Flag{
		String("log-format", "text", "`FORMAT` of the log: text or json"),
		String("log-level", "info", "least `LEVEL` logged: debug, info, warn or error"),
	}
}

// Logger makes the logger that the LogFlags ask for.
func Logger(c *cli.Context, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, Usagef("--log-level is %q, expected debug, info, warn or error", c.String("log-level"))
	}
	o := &slog.HandlerOptions{Level: level}
	switch v := c.String("log-format"); v {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	default:
		return nil, Usagef("--log-format is %q, expected text or json", v)
	}
}

// MemberFlags are those of both daemons.
func MemberFlags(listen, gossipListen, peerListen, dataDir string) []cli.Flag {
	return append([]cli.Flag{
		String("listen", listen, "`ADDR` of the HTTP side"),
		Strings("allow-hosts", "`NAME`,… that the HTTP side answers to beside localhost and this machine's addresses (its host name, a proxy's)"),
		String("gossip-listen", gossipListen, "`ADDR` of the membership, TCP and UDP, a name or :PORT too; beyond loopback it needs --gossip-key"),
		String("peer-listen", peerListen, "`ADDR` where the swarm's peers connect, TCP"),
		String("advertise", "", "`HOST` or HOST:PORT of the membership as the others reach it, where that is not --gossip-listen or several could be"),
		Strings("join", "members to join through, as `HOST:PORT`,…; without a port 7946"),
		File("gossip-key", "`FILE` with the key that encrypts the membership's messages"),
		String("tls", "off", "where members show each other certificates: off, prefer (with those that have one, while it is rolled out) or require, as `MODE`"),
		File("identity", "`DIR` of this member's certificate, as `seeder ca issue` writes it"),
		File("join-token", "`FILE` with a token of `seeder ca token`: where --identity holds no certificate yet, the first one is got with it from a seeder at --join"),
		File("tls-cert", "`FILE` of the certificate, where it is not in --identity"),
		File("tls-key", "`FILE` of its key"),
		File("tls-ca", "`FILE` of the authorities that are trusted"),
		File("tls-denied", "`FILE` of certificates that are refused"),
		Switch("tls-renew", true, "renew the certificate daily; not where something else replaces its files"),
		Strings("allow-peers", "networks, as `CIDR`,…, whose peers may connect beside the members"),
		String("data-dir", dataDir, "`DIR` for what must outlive the process, and the cache of builds"),
		String("cache-size", "20GiB", "`SIZE` of finished builds kept to be seeded"),
		String("name", "", "`NAME` of this member, the same after a restart; made up at the first start and kept in --data-dir"),
		String("table", ledger.DefaultTable, "DynamoDB `TABLE` of executions"),
		ArrivalsFlag(),
		String("table-region", "", "AWS `REGION` of the tables (default AWS_REGION)"),
	}, LogFlags()...)
}

// ArrivalsFlag names the table of arrivals.
func ArrivalsFlag() *cli.StringFlag {
	return String("arrivals-table", arrivals.DefaultTable, "DynamoDB `TABLE` whose rows agents write: who lands what, and what has arrived")
}

// ServicesFlags name the tables of services.
func ServicesFlags() []cli.Flag {
	return []cli.Flag{
		ServicesTableFlag(),
		String("deployments-table", services.DefaultDeployments, "DynamoDB `TABLE` of deployments of services"),
		String("logs-table", services.DefaultLogs, "DynamoDB `TABLE` of what failed on hosts"),
		Duration("logs-ttl", services.DefaultTTL, "`TIME` after which what failed on hosts may go from --logs-table, by its attribute expires; 0 for never"),
	}
}

// ServicesTableFlag is of the commands that read which build each service is to run.
func ServicesTableFlag() cli.Flag {
	return String("services-table", services.DefaultServices, "DynamoDB `TABLE` of services: which build each is to run")
}

// BeyondLoopback reports whether others than this machine's programs reach a listener of
// an address; false for one that cannot be resolved, which cannot be bound either.
func BeyondLoopback(addr string) bool {
	a, err := net.ResolveTCPAddr("tcp", addr)
	return err == nil && !a.IP.IsLoopback()
}

// Member is what MemberFlags open.
type Member struct {
	DataDir     string
	AWS         aws.Config // its clients are counted by AWSMetrics
	AWSMetrics  *awsmetrics.Metrics
	Ledger      *ledger.Ledger
	Arrivals    *arrivals.Table // need not exist, see FindArrivals
	Cache       *cache.Cache
	Peers, HTTP net.Listener
	Gossip      gossip.Config
	AllowPeers  []netip.Prefix
	Hosts       []string // that the HTTP side answers to
	Logger      *slog.Logger
	// Identity is who this member is by its certificate, nil for no TLS.
	Identity *identity.Source
	TLS      identity.Mode
	// Tracer is what the OTEL_* settings ask for; nil for no traces.
	Tracer *tracing.Tracer
	// flush sends the last spans.
	flush func()
	audit *audit.Log // nil before Secure
	// known is what a seeder's process before has found of its tables; nil for nothing.
	known *knownTables
}

// OpenMember opens what the MemberFlags name: data directory, table, listeners.
// On error nothing is left open.
func OpenMember(c *cli.Context, kind string) (_ *Member, err error) {
	m := &Member{AWSMetrics: awsmetrics.New()}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.Logger, err = Logger(c, os.Stderr); err != nil {
		return nil, err
	}
	Daemon(c.Context, m.Logger)
	limit, err := ParseSize(c.String("cache-size"))
	if err != nil {
		return nil, Usagef("--cache-size: %w", err)
	}
	for _, p := range c.StringSlice("allow-peers") {
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			return nil, Usagef("--allow-peers: %w", err)
		}
		m.AllowPeers = append(m.AllowPeers, prefix)
	}
	m.Hosts = c.StringSlice("allow-hosts")
	for _, own := range []string{c.String("listen"), c.String("advertise")} {
		host, _, err := net.SplitHostPort(own)
		if err != nil {
			host = own
		}
		if ip, err := netip.ParseAddr(host); host != "" && (err != nil || !ip.IsUnspecified()) {
			m.Hosts = append(m.Hosts, host)
		}
	}
	if m.DataDir, err = filepath.Abs(c.String("data-dir")); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	private.Umask()
	if err = private.MkdirAll(m.DataDir); err == nil {
		err = private.Tighten(m.DataDir, "name", "baseline-*")
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w; choose another --data-dir", err)
	}
	if m.Cache, err = cache.Open(filepath.Join(m.DataDir, "cache"), limit, m.Logger); err != nil {
		return nil, err
	}
	cfg, err := LoadAWS(c.Context, m.Logger)
	if err != nil {
		return nil, err
	}
	m.AWS = m.AWSMetrics.Instrument(cfg)
	m.Ledger = OpenLedger(m.AWS, c.String("table"), c.String("table-region"))
	m.Arrivals = OpenArrivals(m.AWS, c.String("arrivals-table"), c.String("table-region"))
	if err := m.findTable(c.Context, kind); err != nil {
		return nil, err
	}
	if place := m.Ledger.Place(); place.Eventual() {
		m.Logger.Warn("the table is a global one that is only eventually consistent, all members have to use it in the same region",
			"table", m.Ledger.Table(), "region", place.Region, "replicas", place.Replicas)
	}
	if err := gossip.CheckAddrs(c.String("gossip-listen"), c.String("advertise"), c.StringSlice("join")); err != nil {
		return nil, UsageError{err}
	}
	m.Gossip = gossip.Config{
		Listen:    c.String("gossip-listen"),
		Advertise: c.String("advertise"),
		Join:      c.StringSlice("join"),
		Remember:  filepath.Join(m.DataDir, "members.json"),
	}
	if err := m.openIdentity(c, kind); err != nil {
		return nil, err
	}
	if m.Gossip.ID, err = m.name(c.String("name"), kind); err != nil {
		return nil, err
	}
	m.Tracer, m.flush = tracing.Setup(c.Context, tracing.Service{Name: "landfall-" + kind, Instance: m.Gossip.ID, Version: Version()}, m.Logger)
	if file := c.String("gossip-key"); file != "" {
		m.Gossip.KeyFile = file
		if m.Gossip.Keys, err = gossip.ReadKeys(file); err != nil {
			return nil, err
		}
	}
	if m.HTTP, err = new(net.ListenConfig).Listen(c.Context, "tcp", c.String("listen")); err != nil {
		return nil, fmt.Errorf("listening for HTTP: %w; choose another --listen", err)
	}
	if m.Peers, err = new(net.ListenConfig).Listen(c.Context, "tcp", c.String("peer-listen")); err != nil {
		return nil, fmt.Errorf("listening for peers: %w; choose another --peer-listen", err)
	}
	if addr, ok := m.Peers.Addr().(*net.TCPAddr); ok {
		if err := gossip.PeersReachable(c.Context, m.Gossip.Listen, m.Gossip.Advertise, addr.AddrPort().Addr().Unmap()); err != nil {
			m.Logger.Warn("peers may not reach this member", "error", err)
		}
	}
	return m, nil
}

// Close closes what is open and sends the last spans, in at most 2 s; listeners that a role has taken over close twice
// without harm.
func (m *Member) Close() error {
	if m.HTTP != nil {
		m.HTTP.Close()
	}
	if m.Peers != nil {
		m.Peers.Close()
	}
	if m.flush != nil {
		m.flush()
	}
	m.audit.Close()
	if m.Cache != nil {
		return m.Cache.Close()
	}
	return nil
}

// name is what stays the same over restarts: that of --name, of the certificate, or one
// that is made up.
func (m *Member) name(name, kind string) (string, error) {
	if name == "" && m.Identity != nil {
		name = m.Identity.ID().Name
	}
	if name != "" {
		return name, nil
	}
	file := filepath.Join(m.DataDir, "name")
	b, err := os.ReadFile(file)
	if err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("reading this member's name: %w", err)
	}
	id := ulid.Make().String()
	name = kind + "-" + strings.ToLower(id[len(id)-8:])
	if err := private.Replace(file, []byte(name+"\n")); err != nil {
		return "", fmt.Errorf("keeping this member's name: %w", err)
	}
	return name, nil
}

const (
	// credentialsTimeout bounds the search for credentials, which may ask a host that
	// does not answer; a role's or a single sign-on's take a second or two.
	credentialsTimeout = 10 * time.Second
	// credentialsSilence is how long that may take before it is said.
	credentialsSilence = 500 * time.Millisecond
)

// LoadAWS reads the SDK's own settings: AWS_REGION, AWS_ENDPOINT_URL, profiles,
// roles. Without credentials it is an error. Clients log to logger.
func LoadAWS(ctx context.Context, logger *slog.Logger) (aws.Config, error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return cfg, fmt.Errorf("reading the AWS settings: %w", err)
	}
	cfg = awserr.Log(cfg, logger)
	say := time.AfterFunc(credentialsSilence, func() {
		logger.Info("looking for AWS credentials: environment, profile, then the host's role", "timeout", credentialsTimeout.String())
	})
	defer say.Stop()
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		logger.Debug("AWS credentials not found", "error", err)
		return cfg, errors.New(awserr.Credentials(err))
	}
	return cfg, nil
}

// OpenLedger makes the table's client; region "" means the configuration's.
func OpenLedger(cfg aws.Config, table, region string) *ledger.Ledger {
	return ledger.New(openTables(cfg, region), table)
}

// OpenArrivals is OpenLedger for the table of arrivals.
func OpenArrivals(cfg aws.Config, table, region string) *arrivals.Table {
	return arrivals.New(openTables(cfg, region), table)
}

// OpenServices is OpenLedger for the tables of services.
func OpenServices(cfg aws.Config, c *cli.Context) *services.Tables {
	names := services.Names{Services: c.String("services-table"), Deployments: c.String("deployments-table"), Logs: c.String("logs-table")}
	return services.New(openTables(cfg, c.String("table-region")), names, c.Duration("logs-ttl"))
}

func openTables(cfg aws.Config, region string) *dynamodb.Client {
	return dynamodb.NewFromConfig(cfg, func(o *dynamodb.Options) {
		if region != "" {
			o.Region = region
		}
		o.HTTPClient = answers.DynamoDB(o.HTTPClient)
	})
}

// OpenBucket opens a bucket of the flag's region, or the one it is found in.
func OpenBucket(ctx context.Context, cfg aws.Config, name, region string) (*bucket.Bucket, error) {
	return bucket.Open(ctx, cfg, name, bucket.Options{Region: region})
}

// Health is the `health` command of an app: exit status 0 when the URL's /healthz answers.
func Health(app, flag, value string) *cli.Command {
	return &cli.Command{
		Name:        "health",
		Usage:       "exit with status 0 when the daemon answers, for container health checks",
		Description: "Example:\n\n  " + app + " health --" + flag + " " + value,
		Flags:       []cli.Flag{URL(flag, value, "`URL` of the daemon"), CAFlag()},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, healthTimeout)
			defer cancel()
			client, err := Client(c, app, c.String(flag))
			if err != nil {
				return err
			}
			if err := client.Healthy(ctx); err != nil {
				return fmt.Errorf("not healthy: %w", err)
			}
			return nil
		},
	}
}
