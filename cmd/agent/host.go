package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/host"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/release"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/web"
)

// zoneLabel is the label that says where in its region a host is.
const zoneLabel = "zone"

// hostGCPercent is the garbage collector's setting, usually 100: the machine is its services'.
// Most of the heap is buffers of connections, which are used again and again
// (docs/performance.md has what it costs).
const hostGCPercent = 10

func hostCommand() *cli.Command {
	return &cli.Command{
		Name:  "host",
		Usage: "run the daemon of a machine that runs services",
		Description: "It fetches the builds that the services' goals name from the region's agents and from other hosts, unpacks each into\n" +
			"DIR/SERVICE/releases, and switches DIR/SERVICE/current when it has leave. What is to run is said by `seeder deploy`.\n\n" +
			"Examples:\n\n" +
			"  agent host --service web --dir /srv --agents http://10.0.0.1:7090 --trust seeder.key.pub --unpack \\\n" +
			"    --exec 'systemctl restart web' --check http://127.0.0.1:8080/\n" +
			"  agent host --service web,worker --dir /srv --agents http://10.0.0.1:7090 --trust seeder.key.pub --label zone=a \\\n" +
			"    --before '/etc/landfall/drain' --exec '/etc/landfall/restart' --check '/etc/landfall/healthy'\n" +
			"  agent host --services services.json --dir /srv --agents http://10.0.0.1:7090 --trust seeder.key.pub\n\n" +
			"A file of services is JSON, {\"services\": [{\"service\": \"web\", …}, …]}, at most 16 of them; each may have dir (in place of\n" +
			"--dir, for its releases), before, exec, check, unpack, keep, hookTimeout and checkTimeout, which are as the flags.\n\n" +
			"Commands are run by /bin/sh in DIR/SERVICE, and told of the switch by LANDFALL_SERVICE, LANDFALL_BUILD (the key),\n" +
			"LANDFALL_PATH (the release), LANDFALL_PREVIOUS (that of before; empty for none), LANDFALL_DEPLOYMENT, LANDFALL_PHASE\n" +
			"(before, exec, check; back-exec and back-check when the build before is put back) and LANDFALL_ATTEMPT.",
		Flags: slices.Concat([]cli.Flag{
			command.Strings("service", "`NAME`,… of the services that this machine runs, each with the hooks below"),
			command.File("services", "`FILE` with services that have hooks of their own, in place of --service and of the flags from --before to --check-timeout"),
			command.Required("dir", "`DIR` for releases, and for what the host keeps (in DIR/.landfall)"),
			requiredStrings("agents", "`URL`,… of agents of this region, where they take hosts (--fleet-listen); others are learned from them"),
			requiredStrings("trust", "public `KEY` of a seeder, or a file of them; goals signed by others are refused"+command.TrustLimits),
			command.File("revoked", "`FILE` with public keys that are trusted no more, whatever --trust says; read again when it changes"),
			command.String("name", "", "`NAME` of this host, the same after a restart and nobody else's in the region (default: the certificate's, else the machine's)"),
			command.Strings("label", "`KEY=VALUE`,… shown with the host; zone=… says where in the region it is: bytes stay in a zone, and no zone loses more than its share at a time"),
			command.String("before", "", "`COMMAND` run before a switch, such as one that drains the service"),
			command.String("exec", "", "`COMMAND` run after a switch, such as one that restarts the service; what it leaves running writes elsewhere (>FILE 2>&1 &)"),
			command.String("check", "", "`COMMAND` that succeeds, or URL that answers 2xx, when the service is healthy"),
			command.Bool("unpack", "make a release of what a zip or tar.gz holds, in place of the file"),
			command.Int("keep", release.DefaultKeep, "releases kept of each service"),
			command.Duration("hook-timeout", release.DefaultHookTimeout, "how long --before and --exec may take before they are killed, and the old build is put back"),
			command.Duration("check-timeout", release.DefaultCheckTimeout, "how long a service may take until it is healthy"),
			command.String("listen", "127.0.0.1:7099", "`ADDR` of the HTTP side: /readyz (runs what its goals say, or waits for its turn to, and is healthy), /healthz, /status, /metrics"),
			command.Strings("allow-hosts", "`NAME`,… that the HTTP side answers to beside localhost and this machine's addresses (its host name, a proxy's)"),
			command.String("peer-listen", "127.0.0.1:0", "`ADDR` where other hosts fetch builds from this one, TCP"),
			command.Int("advertise", 0, "`PORT` at which other hosts reach --peer-listen, where it is another one"),
			command.String("tls", "off", "whether hosts and agents show each other certificates: off or require, as `MODE`"),
			command.File("identity", "`DIR` of this host's certificate, as `seeder ca issue host REGION NAME` writes it; it is renewed at an agent with --host-authority, and read again when its files change"),
		}, command.RateFlags(false)[:2], []cli.Flag{
			command.File("limits-file", "`FILE` with limits in place of these, as JSON such as {\"uploadRate\": \"200MB\"}; it is read again on SIGHUP"),
		}, command.LogFlags()),
		Action: runHost,
	}
}

// requiredStrings is command.Strings that must be given.
func requiredStrings(name, usage string) *cli.StringSliceFlag {
	f := command.Strings(name, usage)
	f.Required = true
	return f
}

func runHost(c *cli.Context) (err error) {
	defer func() { err = command.UnlessTold(c.Context, err) }()
	if c.NArg() > 0 {
		return command.Unknown(c)
	}
	logger, err := command.Logger(c, os.Stderr)
	if err != nil {
		return err
	}
	command.Daemon(c.Context, logger)
	collectOften()
	cfg := host.Config{
		AllowHosts: c.StringSlice("allow-hosts"), Version: command.Version(), Logger: logger,
	}
	if err := hostServices(c, &cfg); err != nil {
		return err
	}
	if port := c.Int("advertise"); port < 0 || port > 65535 {
		return command.Usagef("--advertise is %d, expected a port", port)
	} else {
		cfg.PeerPort = uint16(port)
	}
	if cfg.Agents, err = agentURLs(c.StringSlice("agents")); err != nil {
		return err
	}
	if cfg.Labels, cfg.Zone, err = labels(c.StringSlice("label")); err != nil {
		return err
	}
	if cfg.Dir, err = filepath.Abs(c.String("dir")); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	if err := hostIdentity(c, &cfg); err != nil {
		return err
	}
	if cfg.Name, err = hostName(c.String("name"), cfg.Identity); err != nil {
		return err
	}
	if cfg.Trust, err = signing.OpenTrust(c.StringSlice("trust"), c.String("revoked")); err != nil {
		return err
	}
	if cfg.Limits, err = command.OpenLimits(c, logger, false); err != nil {
		return err
	}
	if cfg.Peers, err = net.Listen("tcp", c.String("peer-listen")); err != nil {
		return fmt.Errorf("listening for other hosts on %s: %w", c.String("peer-listen"), err)
	}
	if cfg.HTTP, err = web.Listen(c.String("listen")); err != nil {
		return errors.Join(err, cfg.Peers.Close())
	}
	h, err := host.New(cfg)
	if err != nil {
		return errors.Join(err, cfg.HTTP.Close(), cfg.Peers.Close())
	}
	return errors.Join(h.Run(c.Context), h.Close())
}

// collectOften keeps the heap small, unless GOGC says what it may be.
func collectOften() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(hostGCPercent)
	}
}

// hookFlags say what a service does when it switches.
var hookFlags = []string{"before", "exec", "check", "unpack", "keep", "hook-timeout", "check-timeout"}

// hostServices reads which services there are, and what each does when it switches.
func hostServices(c *cli.Context, cfg *host.Config) (err error) {
	file := c.String("services")
	switch named := c.IsSet("service"); {
	case file == "" && !named:
		return command.Usagef("which services? Name them with --service NAME,… or --services FILE")
	case file != "":
		for _, flag := range append([]string{"service"}, hookFlags...) {
			if c.IsSet(flag) {
				return command.Usagef("--%s and --services exclude each other: the file says it for each service", flag)
			}
		}
		cfg.Services, cfg.HooksOf, err = host.ReadServices(file)
		return err
	}
	for flag, ok := range map[string]bool{
		"keep": c.Int("keep") > 0, "hook-timeout": c.Duration("hook-timeout") > 0, "check-timeout": c.Duration("check-timeout") > 0,
	} {
		if !ok {
			return command.Usagef("--%s is %v, expected more than 0", flag, c.Value(flag))
		}
	}
	cfg.Services = c.StringSlice("service")
	cfg.Hooks = release.Config{
		Before: c.String("before"), Exec: c.String("exec"), Check: c.String("check"), Unpack: c.Bool("unpack"), Keep: c.Int("keep"),
		HookTimeout: c.Duration("hook-timeout"), CheckTimeout: c.Duration("check-timeout"),
	}
	return nil
}

// agentURLs are addresses without a slash at the end, as agents say their own.
func agentURLs(given []string) (urls []string, err error) {
	for _, u := range given {
		u = strings.TrimSuffix(u, "/")
		if !strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://") {
			return nil, command.Usagef("--agents has %q, expected a URL such as http://10.0.0.1:7090", u)
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// labels reads KEY=VALUE, of which the zone is one.
func labels(given []string) (all map[string]string, zone string, err error) {
	all = make(map[string]string)
	for _, l := range given {
		key, value, ok := strings.Cut(l, "=")
		if _, twice := all[key]; !ok || key == "" || twice {
			return nil, "", command.Usagef("--label has %q, expected KEY=VALUE, each key once", l)
		}
		all[key] = value
	}
	zone = all[zoneLabel]
	delete(all, zoneLabel)
	return all, zone, nil
}

// hostIdentity opens the certificate that --tls asks for.
func hostIdentity(c *cli.Context, cfg *host.Config) error {
	mode, err := identity.ParseMode(c.String("tls"))
	dir := c.String("identity")
	switch {
	case err != nil:
		return command.Usagef("--tls is %w", err)
	case mode == identity.Off:
		return nil
	case mode != identity.Require:
		return command.Usagef("--tls is %s, a host takes off or require", mode)
	case dir == "":
		return command.Usagef("--tls %s needs --identity DIR (make one with `seeder ca issue host REGION NAME`)", mode)
	}
	if cfg.Identity, err = identity.Open(identity.FilesIn(dir), nil); err != nil {
		return err
	}
	id := cfg.Identity.ID()
	if id.Kind != identity.Host {
		return fmt.Errorf("--identity %s is %s, expected a host's (`seeder ca issue host REGION NAME`)", dir, id)
	}
	cfg.TLS, cfg.Region = mode, id.Region
	return nil
}

// hostName is what the host is called.
func hostName(given string, own *identity.Source) (string, error) {
	switch {
	case own != nil && given != "" && given != own.ID().Name:
		return "", command.Usagef("--name is %s, its certificate has %s", given, own.ID().Name)
	case own != nil:
		return own.ID().Name, nil
	case given != "":
		return given, goal.CheckName("host", given)
	}
	name, err := os.Hostname()
	name = strings.ToLower(name)
	if err == nil {
		err = goal.CheckName("host", name)
	}
	if err != nil {
		return "", fmt.Errorf("the machine's name is no host's: %w; give one with --name", err)
	}
	return name, nil
}
