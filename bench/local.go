//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	smallSize = 64 << 10
	// deployParallel is how many builds are asked for at the same time.
	deployParallel = 16
	// localTimeout bounds one measurement.
	localTimeout = 30 * time.Minute
)

// localCommands are `make bench-local`: what needs no network of its own.
func localCommands() []*cli.Command {
	flags := []cli.Flag{
		command.String("bins", "bin", "`DIR` with the programs"),
		command.String("dir", os.TempDir(), "`DIR` for data, with room for six times the largest build (in memory, such as /dev/shm, disks do not count)"),
	}
	measurement := func(name, usage string, run func(context.Context, *stack, *cli.Context) error, more ...cli.Flag) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, Flags: append(slices.Clone(flags), more...),
			Action: func(c *cli.Context) error {
				ctx, cancel := context.WithTimeout(c.Context, localTimeout)
				defer cancel()
				return withStack(c, func(s *stack) error { return run(ctx, s, c) })
			},
		}
	}
	return []*cli.Command{
		measurement("one-to-one", "download speed of one agent's engine from one seeder's, beside curl from a Go HTTP server",
			oneToOne, command.Int("rounds", 5, "how often each runs, in turn"), command.Bool("tls", "over TLS, too")),
		measurement("memory", "peak memory of seeder and agent, landing on",
			peakMemory, command.Strings("sizes", "`GIB` of the builds (default: 1,4)")),
		measurement("small", "many small builds to four regions, in two halves",
			smallBuilds, command.Int("builds", 1000, "how many")),
	}
}

// stack is a cloud, a seeder and agents on loopback, each a process.
type stack struct {
	dir, bins string
	processes []*process
	cloudURL  string
	source    *bucket.Bucket // the global one
	table     *ledger.Ledger
	seeder    *client.Client
	metrics   map[string]string // URL by process

	destinations []string
	key          string // file of the seeder's
	repeats      bool   // what is put compresses
}

func withStack(c *cli.Context, f func(*stack) error) (err error) {
	s := &stack{metrics: make(map[string]string)}
	if s.bins, err = filepath.Abs(c.String("bins")); err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp(c.String("dir"), "landfall-bench-"); err != nil {
		return err
	}
	defer func() {
		processtest.EndAll(s.processes)
		if err != nil {
			err = fmt.Errorf("%w (logs in %s)", err, s.dir)
			return
		}
		err = os.RemoveAll(s.dir)
	}()
	return f(s)
}

// start runs a program; one of ours is named without a path.
func (s *stack) start(name string, args ...string) (*process, error) {
	if own := filepath.Join(s.bins, args[0]); exists(own) {
		args[0] = own
	}
	p, err := start("", name, s.dir, processtest.AWSEnv(s.cloudURL), args...)
	if err == nil {
		s.processes = append(s.processes, p)
	}
	return p, err
}

// freeAddr is an address that nobody listened on a moment ago.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// cloud starts S3 and DynamoDB with the buckets of so many regions, and makes the
// seeder's key.
func (s *stack) cloud(ctx context.Context, addr string, regions int) error {
	s.cloudURL = "http://" + addr
	cfg := processtest.AWS(s.cloudURL)
	cloud, err := s.start("cloud", "landfall-dev", "cloud", "--listen", addr, "--dir", filepath.Join(s.dir, "cloud-data"))
	if err != nil {
		return err
	}
	if err := cloud.WaitFor(ctx, cloudReady); err != nil {
		return err
	}
	s.destinations = nil
	for i := range regions {
		s.destinations = append(s.destinations, fmt.Sprintf("region-%d-builds", i+1))
	}
	for _, name := range append([]string{globalBucket}, s.destinations...) {
		if _, err := bucket.Create(ctx, cfg, name, ""); err != nil {
			return err
		}
	}
	if s.source, err = bucket.Open(ctx, cfg, globalBucket, bucket.Options{}); err != nil {
		return err
	}
	s.table = command.OpenLedger(cfg, ledger.DefaultTable, "")
	if _, err := s.table.Create(ctx); err != nil {
		return err
	}
	s.key = filepath.Join(s.dir, "seeder.key")
	_, err = signing.WriteKey(s.key)
	return err
}

// addrs are where a member listens.
type addrs struct{ http, gossip, peers string }

// member starts a seeder or an agent. Data of the same name are taken up.
func (s *stack) member(role, name, data string, at addrs, more ...string) (*process, error) {
	return s.start(name, append([]string{role, "run", "--listen", at.http, "--gossip-listen", at.gossip, "--peer-listen", at.peers,
		"--data-dir", filepath.Join(s.dir, data), "--log-format", "json"}, more...)...)
}

// seederFlags and agentFlags are what those need beside where they listen; agents are
// numbered from 0.
func (s *stack) seederFlags() []string {
	return []string{"--bucket", globalBucket, "--destinations", strings.Join(s.destinations, ","), "--signing-key", s.key, "--poll", "1h"}
}

func (s *stack) agentFlags(i int, join string) []string {
	return []string{"--region", fmt.Sprintf("region-%d", i+1), "--bucket", s.destinations[i], "--trust", s.key + ".pub", "--join", join}
}

// run starts all of it.
func (s *stack) run(ctx context.Context, regions int) error {
	free := make([]string, 0, 3*(regions+1)+1)
	for range cap(free) {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		free = append(free, addr)
	}
	if err := s.cloud(ctx, free[0], regions); err != nil {
		return err
	}
	member := func(i int, role string, more ...string) error {
		at, name := addrs{free[1+3*i], free[2+3*i], free[3+3*i]}, fmt.Sprintf("%s-%d", role, i)
		p, err := s.member(role, name, name+"-data", at, more...)
		if err != nil {
			return err
		}
		s.metrics[name] = "http://" + at.http + "/metrics"
		client := &client.Client{URL: "http://" + at.http}
		if role == "seeder" {
			s.seeder = client
		}
		return processtest.Until(ctx, name, func() (bool, error) { return client.Ready(ctx) == nil, p.Alive() })
	}
	if err := member(0, "seeder", s.seederFlags()...); err != nil {
		return err
	}
	for i := range s.destinations {
		if err := member(i+1, "agent", s.agentFlags(i, free[2])...); err != nil {
			return err
		}
	}
	return nil
}

// publish distributes an object and waits until it has arrived everywhere.
func (s *stack) publish(ctx context.Context, keys ...string) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(deployParallel)
	for _, key := range keys {
		group.Go(func() error {
			_, err := s.seeder.Deploy(groupCtx, api.DeployRequest{SourceBucket: globalBucket, SourceKey: key})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, key := range keys {
		err := processtest.Until(ctx, key+" to arrive", func() (bool, error) {
			record, err := s.table.Get(ctx, ledger.Key{FileKey: key, SourceBucket: globalBucket})
			return err == nil && record.Status == ledger.Completed, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// put stores an object of size bytes, different for each seed, in the global
// bucket.
func (s *stack) put(ctx context.Context, key string, seed byte, size int64) error {
	content := noise(seed)
	if s.repeats {
		content = &repeats{from: content}
	}
	_, err := s.source.Upload(ctx, key, io.LimitReader(content, size), size, bucket.Headers{ContentType: "application/zip"})
	return err
}

func peakMemory(ctx context.Context, s *stack, c *cli.Context) error {
	sizes := c.StringSlice("sizes")
	if len(sizes) == 0 {
		sizes = []string{"1", "4"}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BUILD, GiB\tSEEDER, MiB\tAGENT, MiB\tS3 AND DYNAMODB, MiB\tPUBLISH TO LANDED, s")
	dir := s.dir
	for i, text := range sizes {
		gib, err := strconv.ParseInt(text, 10, 32)
		if err != nil || gib < 1 {
			return fmt.Errorf("--sizes has %q, expected a number of GiB", text)
		}
		s.dir = filepath.Join(dir, text)
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			return err
		}
		if err := s.run(ctx, 1); err != nil {
			return err
		}
		if err := s.put(ctx, buildKey, byte(i), gib<<30); err != nil {
			return err
		}
		started := time.Now()
		if err := s.publish(ctx, buildKey); err != nil {
			return err
		}
		took := time.Since(started).Seconds()
		peak := func(i int) int64 { return s.processes[i].Memory("VmHWM") / mib }
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%.1f\n", gib, peak(1), peak(2), peak(0), took)
		processtest.EndAll(s.processes)
		s.processes = nil
		if err := os.RemoveAll(s.dir); err != nil {
			return err
		}
	}
	s.dir = dir
	return t.Flush()
}

func smallBuilds(ctx context.Context, s *stack, c *cli.Context) error {
	const regions = 4
	if err := s.run(ctx, regions); err != nil {
		return err
	}
	keys := make([]string, c.Int("builds"))
	for i := range keys {
		keys[i] = fmt.Sprintf("builds/%05d.zip", i)
		if err := s.put(ctx, keys[i], byte(i), smallSize+int64(i)); err != nil { // no two have the same bytes
			return err
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BUILDS\tLANDED EVERYWHERE, builds/s\tSEEDER\t\tAGENTS, the largest")
	fmt.Fprintln(t, "\t\tMiB\tgoroutines\tMiB\tgoroutines")
	half := len(keys) / 2
	for _, batch := range [][]string{keys[:half], keys[half:]} {
		started := time.Now()
		if err := s.publish(ctx, batch...); err != nil {
			return err
		}
		took := time.Since(started).Seconds()
		var memory, goroutines [2]int64 // seeder, agents
		for _, p := range s.processes {
			url, ok := s.metrics[p.Name]
			if !ok {
				continue
			}
			who := 0
			if strings.HasPrefix(p.Name, "agent") {
				who = 1
			}
			n, err := goroutinesOf(ctx, url)
			if err != nil {
				return err
			}
			goroutines[who] = max(goroutines[who], n)
			memory[who] = max(memory[who], p.Memory("VmRSS")/mib)
		}
		fmt.Fprintf(t, "%d\t%.1f\t%d\t%d\t%d\t%d\n", len(batch), float64(len(batch))/took, memory[0], goroutines[0], memory[1], goroutines[1])
	}
	return t.Flush()
}

// settle is how long goroutines may take to end after the last arrival: agents
// take leave of each other.
const settle = 20 * time.Second

// goroutinesOf is the least number seen until it no longer falls.
func goroutinesOf(ctx context.Context, url string) (least int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	const goroutines = "go_goroutines"
	same := 0
	err = processtest.Until(ctx, "goroutines to end", func() (bool, error) {
		found, err := processtest.Metrics(ctx, http.DefaultClient, url, goroutines)
		if err != nil {
			return false, err
		}
		n := int64(found[goroutines])
		if least == 0 || n < least {
			least, same = n, 0
		}
		same++
		return same > 100, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	return least, err
}
