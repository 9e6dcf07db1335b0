//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/api"
	rows "github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/private"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/services"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/seeder/client"
)

// benchService is what all hosts run.
const benchService = "web"

// hostsCommands are `make bench-hosts`.
func hostsCommands() []*cli.Command {
	flags := []cli.Flag{
		command.String("bins", "bin", "`DIR` with the programs"),
		command.String("dir", os.TempDir(), "`DIR` for data, with room for two builds for each host and four more"),
	}
	of := func(name, usage string, run func(context.Context, *fleetStack, *cli.Context) error, more ...cli.Flag) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Flags: slices.Concat(flags, more), Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, localTimeout)
			defer cancel()
			return withStack(c, func(s *stack) error { return run(ctx, &fleetStack{stack: s}, c) })
		}}
	}
	return []*cli.Command{
		of("hosts", "a build to hosts of two regions, three agents in one, a third of the hosts killed on the way and an agent restarted: bytes and messages a host, how soon goals are there",
			hostsArrive, command.Int("hosts", 100, "how many, over both regions"), command.Int("mib", 64, "the build's size")),
		of("rollback", "roll back with --now from one build to the one before, which all hosts hold: each host's time from the command to its switch, bytes fetched",
			rollBack, command.Int("hosts", 100, "how many, over both regions"), command.Int("mib", 8, "a build's size"), command.Int("rounds", 3, "how often")),
		of("host-memory", "peak memory of a host with neighbours, and of its agent, while a build comes",
			hostMemory, command.Int("mib", 10<<10, "the build's size"), command.Int("neighbours", 8, "hosts beside the one that is measured; each takes the build's length twice on disk"),
			command.String("neighbour-rate", "", "`RATE` at which each neighbour downloads, such as 8Mbit, so that it takes less of the disk; nobody waits for it then (default: no limit)"),
			command.Bool("compressible", "a build of which a file system that compresses needs a thirtieth, for a disk with less room")),
		of("agree", "the simulation of `bench fleet` beside real hosts: how long each needs for a build that its region has, by rates of the programs' own flags", agree, agreeFlags()...),
		of("streams", "what idle streams of hosts cost an agent, and what it costs when all of them come back; or those of another agent, which is away",
			idleStreams, command.Int("streams", 5000, "how many an agent bears; of several, when one is away"),
			command.Int("agents", 1, "of the region: of several one is killed, and started again when its hosts are at the others"),
			command.Bool("tls", "with TLS between hosts, agents and seeder")),
	}
}

// fleetStack is a stack whose agents serve hosts.
type fleetStack struct {
	*stack
	agents   []*fleetAgent
	machines []*fleetHost
	// authority has all of them speak TLS; nil for none.
	authority *authority
}

type fleetAgent struct {
	*process
	name, region, http, streams string
	args                        []string
	client                      *client.Client
}

type fleetHost struct {
	*process
	name, dir string
	args      []string
}

// run starts everything but hosts: agents of the regions by their number.
func (s *fleetStack) run(ctx context.Context, agents ...int) error {
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	if err := s.cloud(ctx, addr, slices.Max(agents)+1); err != nil {
		return err
	}
	cfg := processtest.AWS(s.cloudURL)
	db := dynamodb.NewFromConfig(cfg)
	if _, err := rows.New(db, rows.DefaultTable).Create(ctx); err != nil {
		return err
	}
	if err := services.New(db, services.DefaultNames(), 0).Create(ctx, func(string, bool) {}); err != nil {
		return err
	}
	var free [3]string
	next := func() error {
		for i := range free {
			if free[i], err = freeAddr(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := next(); err != nil {
		return err
	}
	join := free[1]
	secure, err := s.secure("", "seeder")
	if err != nil {
		return err
	}
	p, err := s.member("seeder", "seeder", "seeder-data", addrs{free[0], free[1], free[2]}, append(s.seederFlags(), secure...)...)
	if err != nil {
		return err
	}
	s.seeder = &client.Client{URL: "http://" + free[0]}
	if err := processtest.Until(ctx, "the seeder", func() (bool, error) { return s.seeder.Ready(ctx) == nil, p.Alive() }); err != nil {
		return err
	}
	for i, region := range agents {
		a := &fleetAgent{name: fmt.Sprint("agent-", i), region: fmt.Sprintf("region-%d", region+1)}
		if err := next(); err != nil {
			return err
		}
		at := addrs{free[0], free[1], free[2]}
		a.http, a.client = free[0], &client.Client{URL: "http://" + free[0]}
		if a.streams, err = freeAddr(); err != nil {
			return err
		}
		if secure, err = s.secure(a.region, a.name); err != nil {
			return err
		}
		a.args = slices.Concat(s.agentFlags(region, join), []string{"--fleet-listen", a.streams}, secure)
		if err := s.runAgent(ctx, a, at); err != nil {
			return err
		}
		s.agents = append(s.agents, a)
	}
	return nil
}

// secure is what a member's TLS needs of flags; an empty region is the seeder's.
func (s *fleetStack) secure(region, name string) (flags []string, err error) {
	if s.authority == nil {
		return nil, nil
	}
	dir, err := s.authority.issue(region, name)
	if err != nil {
		return nil, err
	}
	flags = []string{"--tls", "require", "--identity", dir}
	if region == "" {
		for i, bucket := range s.destinations {
			flags = append(flags, "--serves", fmt.Sprintf("region-%d=%s", i+1, bucket))
		}
	}
	return flags, nil
}

// runAgent starts an agent, and again where it was killed.
func (s *fleetStack) runAgent(ctx context.Context, a *fleetAgent, at addrs) (err error) {
	if a.args[0] != "agent" {
		a.args = slices.Concat([]string{"agent", "run", "--listen", at.http, "--gossip-listen", at.gossip, "--peer-listen", at.peers,
			"--data-dir", filepath.Join(s.dir, a.name+"-data"), "--log-format", "json"}, a.args)
	}
	if a.process, err = s.start(a.name, slices.Clone(a.args)...); err != nil {
		return err
	}
	return processtest.Until(ctx, a.name, func() (bool, error) { return a.client.Ready(ctx) == nil, a.Alive() })
}

// addHost starts a host of a region.
func (s *fleetStack) addHost(region string, more ...string) (*fleetHost, error) {
	h := &fleetHost{name: fmt.Sprint("host-", len(s.machines))}
	h.dir = filepath.Join(s.dir, h.name)
	var urls []string
	for _, a := range s.agents {
		if a.region == region {
			urls = append(urls, "http://"+a.streams)
		}
	}
	h.args = append([]string{"agent", "host", "--name", h.name, "--service", benchService, "--dir", h.dir, "--agents", strings.Join(urls, ","),
		"--trust", s.key + ".pub", "--listen", "127.0.0.1:0", "--keep", "1"}, more...)
	s.machines = append(s.machines, h)
	return h, s.runHost(h)
}

func (s *fleetStack) runHost(h *fleetHost) (err error) {
	h.process, err = s.start(h.name, slices.Clone(h.args)...)
	return err
}

// runs is the execution that a host runs; empty for none.
func (h *fleetHost) runs() string {
	to, err := os.Readlink(filepath.Join(h.dir, benchService, "current"))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// begin publishes a build and deploys it.
func (s *fleetStack) begin(ctx context.Context, key string, seed byte, size int64, waves ...string) error {
	if err := s.put(ctx, key, seed, size); err != nil {
		return err
	}
	if _, err := s.seeder.Deploy(ctx, api.DeployRequest{SourceBucket: globalBucket, SourceKey: key}); err != nil {
		return err
	}
	_, err := s.seeder.DeployService(ctx, benchService, client.ServiceDeployRequest{Key: key, Policy: api.Policy{
		Waves: waves, Bake: "1s", MaxUnavailable: "34%", MaxFailed: "100%",
	}})
	return err
}

// deployed waits until a deployment is done, and returns its build's execution.
func (s *fleetStack) deployed(ctx context.Context, key string) (id string, err error) {
	err = processtest.Until(ctx, key+" to be deployed", func() (bool, error) {
		v, err := s.seeder.Service(ctx, benchService)
		if err != nil || v.Deployment == nil || !v.Deployment.Ended() {
			return false, nil
		}
		if id = v.Deployment.Target.ExecutionID; v.Deployment.State != api.DeploymentDone {
			return false, fmt.Errorf("%s: %s", v.Deployment.State, v.Deployment.Reason)
		}
		return true, nil
	})
	return id, err
}

// connected is how many hosts have a stream.
func (s *fleetStack) connected(ctx context.Context) (n int) {
	for _, a := range s.agents {
		if v, err := a.client.AgentStatus(ctx); err == nil && v.Fleet != nil {
			n += v.Fleet.Connected
		}
	}
	return n
}

// socket is a host's connection to an agent, as the kernel counts it.
type socket struct{ sent, received int64 }

// sockets are those of all hosts by local address: ss has their ends of the connections.
func (s *fleetStack) sockets() (map[string]socket, error) {
	all := make(map[string]socket)
	for _, a := range s.agents {
		_, port, _ := strings.Cut(a.streams, ":")
		out, err := exec.Command("ss", "-tinHO", "state", "established", "dport", "=", ":"+port).Output()
		if err != nil {
			return nil, fmt.Errorf("asking for connections: %w", err)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if len(fields) < 4 {
				continue
			}
			var c socket
			for _, f := range fields {
				if n, ok := strings.CutPrefix(f, "bytes_acked:"); ok {
					c.sent, _ = strconv.ParseInt(n, 10, 64)
				}
				if n, ok := strings.CutPrefix(f, "bytes_received:"); ok {
					c.received, _ = strconv.ParseInt(n, 10, 64)
				}
			}
			all[fields[2]+">"+fields[3]] = c
		}
	}
	return all, nil
}

// fetched is how many bytes of builds hosts have on disk.
func (s *fleetStack) fetched() (sum int64, err error) {
	for _, h := range s.machines {
		files, err := private.Glob(filepath.Join(h.dir, ".landfall", "builds", "cache"), filepath.Join("*", "data"))
		if err != nil {
			return 0, err
		}
		for _, f := range files {
			if info, err := os.Stat(f); err == nil {
				sum += 512 * info.Sys().(*syscall.Stat_t).Blocks
			}
		}
	}
	return sum, nil
}

func hostsArrive(ctx context.Context, s *fleetStack, c *cli.Context) error {
	hosts, size := c.Int("hosts"), int64(c.Int("mib"))<<20
	if err := s.run(ctx, 0, 0, 0, 1); err != nil {
		return err
	}
	for i := range hosts {
		if _, err := s.addHost(fmt.Sprintf("region-%d", i%2+1), "--log-format", "json"); err != nil {
			return err
		}
	}
	all := func() (bool, error) { return s.connected(ctx) == hosts, nil }
	if err := processtest.Until(ctx, "all hosts", all); err != nil {
		return err
	}
	if err := s.begin(ctx, "web-1.zip", 1, 1<<20, "100%"); err != nil {
		return err
	}
	if _, err := s.deployed(ctx, "web-1.zip"); err != nil {
		return err
	}

	// One build, and nothing else: what it costs a host.
	quiet, err := s.cost(ctx, hosts, func() error {
		if err := s.begin(ctx, "web-2.zip", 2, size, "10%", "100%"); err != nil {
			return err
		}
		_, err := s.deployed(ctx, "web-2.zip")
		return err
	})
	if err != nil {
		return err
	}
	goals, err := s.goalLatency()
	if err != nil {
		return err
	}

	// A third of the hosts is killed on the way, and an agent; all of them come back.
	before, err := s.fetched()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.begin(ctx, "web-3.zip", 3, size, "10%", "100%"); err != nil {
		return err
	}
	err = processtest.Until(ctx, "a quarter of the bytes", func() (bool, error) {
		held, err := s.fetched()
		return held-before > int64(hosts)*size/4, err
	})
	if err != nil {
		return err
	}
	for i, h := range s.machines {
		if i%3 == 0 {
			h.End(syscall.SIGKILL)
		}
	}
	s.agents[0].End(syscall.SIGKILL)
	if err := s.runAgent(ctx, s.agents[0], addrs{}); err != nil {
		return err
	}
	for i, h := range s.machines {
		if i%3 == 0 {
			if err := s.runHost(h); err != nil {
				return err
			}
		}
	}
	id, err := s.deployed(ctx, "web-3.zip")
	if err != nil {
		return err
	}
	done := time.Since(began)
	err = processtest.Until(ctx, "all hosts to run it", func() (bool, error) {
		return !slices.ContainsFunc(s.machines, func(h *fleetHost) bool { return h.runs() != id }), nil
	})
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "HOSTS\tMiB\tDOWN, KiB A HOST: MEDIAN, MOST\tUP\tMESSAGES WITHOUT PINGS, DOWN A HOST: MEDIAN, MOST\tUP\tGOAL AT THE HOSTS, s: p50, p99\tTHIRD KILLED, AGENT RESTARTED: DONE, ALL RUN IT, s\n")
	fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%.0f, %.0f\t%.0f, %.0f\t%.2f, %.2f\t%.1f, %.1f\n", hosts, size>>20, kib(quiet.down), kib(quiet.up),
		quantile(quiet.messages["down"], 0.5), quantile(quiet.messages["down"], 1), quantile(quiet.messages["up"], 0.5), quantile(quiet.messages["up"], 1),
		quantile(goals, 0.5), quantile(goals, 0.99), done.Seconds(), time.Since(began).Seconds())
	if quiet.moved > 0 {
		fmt.Fprintf(t, "(%d hosts went to other agents meanwhile, and are not in the bytes)\n", quiet.moved)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, direction := range directions {
		fmt.Printf("%s, mean of each kind:", direction)
		for _, kind := range hostwire.Kinds() {
			if n := quiet.kinds[direction+" "+kind]; n > 0 {
				fmt.Printf(" %s %.1f", kind, n/float64(hosts))
			}
		}
		fmt.Println()
	}
	return nil
}

// directions are those of messages over hosts' streams.
var directions = []string{"down", "up"}

// cost is what a build costs hosts over their streams.
type cost struct {
	down, up []float64            // bytes of TCP a host, pings among them
	messages map[string][]float64 // a host by direction, without pings
	kinds    map[string]float64   // of all hosts, by direction and kind
	moved    int
}

func (s *fleetStack) cost(ctx context.Context, hosts int, do func() error) (c cost, err error) {
	said, err := s.messages(ctx)
	if err != nil {
		return c, err
	}
	before, err := s.sockets()
	if err != nil {
		return c, err
	}
	if err := do(); err != nil {
		return c, err
	}
	after, err := s.sockets()
	if err != nil {
		return c, err
	}
	for name, now := range after {
		if then, ok := before[name]; ok {
			c.down, c.up = append(c.down, float64(now.received-then.received)), append(c.up, float64(now.sent-then.sent))
		}
	}
	c.moved = hosts - len(c.down)
	now, err := s.messages(ctx)
	if err != nil {
		return c, err
	}
	c.messages, c.kinds = make(map[string][]float64), make(map[string]float64)
	for i := range now {
		for _, direction := range directions {
			sum := 0.0
			for _, kind := range hostwire.Kinds() {
				name := messagesOf(direction, kind)
				n := now[i][name] - said[i][name]
				c.kinds[direction+" "+kind] += n
				if kind != "ping" {
					sum += n
				}
			}
			c.messages[direction] = append(c.messages[direction], sum)
		}
	}
	return c, nil
}

// messagesOf is the metric of a host that counts messages.
func messagesOf(direction, kind string) string {
	return fmt.Sprintf("landfall_host_messages_total{direction=%q,kind=%q}", direction, kind)
}

// messages are the metrics of all hosts, those of messagesOf among them.
func (s *fleetStack) messages(ctx context.Context) (all []map[string]float64, err error) {
	for _, h := range s.machines {
		up, err := s.logged(h, "host is up", "")
		if err != nil {
			return nil, err
		}
		found, err := processtest.Metrics(ctx, http.DefaultClient, "http://"+up.HTTP+"/metrics", messagesOf("up", "hello"))
		if err != nil {
			return nil, err
		}
		all = append(all, found)
	}
	return all, nil
}

// goalLatency is for each host the time from the signature of its goal to its disk, in
// seconds.
func (s *fleetStack) goalLatency() (all []float64, err error) {
	trust, err := signing.OpenTrust([]string{s.key + ".pub"}, "")
	if err != nil {
		return nil, err
	}
	for _, h := range s.machines {
		file := filepath.Join(h.dir, ".landfall", "goals", benchService+".goal")
		wire, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		doc, err := goal.Open(wire, trust, time.Now())
		if err != nil {
			return nil, err
		}
		if g, ok := doc.(*goal.Goal); ok {
			all = append(all, info.ModTime().Sub(g.Issued).Seconds())
		}
	}
	return all, nil
}

func quantile(of []float64, q float64) float64 {
	if len(of) == 0 {
		return 0
	}
	of = slices.Sorted(slices.Values(of))
	return of[min(len(of)-1, int(q*float64(len(of))))]
}

func kib(bytes []float64) string {
	return fmt.Sprintf("%.1f, %.1f", quantile(bytes, 0.5)/1024, quantile(bytes, 1)/1024)
}

func hostMemory(ctx context.Context, s *fleetStack, c *cli.Context) error {
	size, rate := int64(c.Int("mib"))<<20, c.String("neighbour-rate")
	layout, err := manifest.NewLayout(manifest.Ramp, size)
	if err != nil {
		return err
	}
	s.repeats = c.Bool("compressible")
	if err := s.run(ctx, 0); err != nil {
		return err
	}
	measured, err := s.addHost("region-1")
	if err != nil {
		return err
	}
	var limit []string
	if rate != "" {
		limit = []string{"--download-rate", rate}
	}
	for range c.Int("neighbours") {
		if _, err := s.addHost("region-1", limit...); err != nil {
			return err
		}
	}
	if err := processtest.Until(ctx, "all hosts", func() (bool, error) { return s.connected(ctx) == len(s.machines), nil }); err != nil {
		return err
	}
	began := time.Now()
	if err := s.begin(ctx, "web.zip", 1, size, "100%"); err != nil {
		return err
	}
	if rate == "" {
		_, err = s.deployed(ctx, "web.zip")
	} else {
		err = processtest.Until(ctx, "the host to run it", func() (bool, error) { return measured.runs() != "", nil })
	}
	if err != nil {
		return err
	}
	took := time.Since(began)
	var neighbours []float64
	for _, h := range s.machines[1:] {
		neighbours = append(neighbours, float64(h.Memory("VmHWM"))/mib)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BUILD, MiB\tSEGMENTS\tHOST, MiB\tNEIGHBOURS\tEACH, MiB: MEDIAN, MOST\tAGENT, MiB\tPUBLISH TO RUNS, s")
	fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%.0f, %.0f\t%d\t%.1f\n", c.Int("mib"), layout.NumSegments(), measured.Memory("VmHWM")/mib,
		len(neighbours), quantile(neighbours, 0.5), quantile(neighbours, 1), s.agents[0].Memory("VmHWM")/mib, took.Seconds())
	return t.Flush()
}
