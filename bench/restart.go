//go:build linux

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/seeder/client"
)

// restartSize is the build's, in bytes: small, since not the bytes are measured.
const restartSize = 1 << 20

// restartCommand is `make bench-restart`.
func restartCommand() *cli.Command {
	return &cli.Command{
		Name: "restart",
		Usage: "time from the start of a seeder that was killed until a build published at once has reached and landed at every agent, " +
			"at the old address and at a new one (in a network namespace of its own, as root: it adds addresses to lo)",
		Flags: []cli.Flag{
			command.String("bins", "bin", "`DIR` with the programs"),
			command.String("dir", os.TempDir(), "`DIR` for data"),
			command.Int("tries", 20, "how often for each address"),
			command.Int("agents", 8, "how many, of a region each"),
		},
		Action: func(c *cli.Context) error {
			for i := range 254 {
				if err := run("ip", "addr", "replace", restartAddr(i+1)+"/32", "dev", "lo"); err != nil {
					return err
				}
			}
			t := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "SEEDER AT\tTRIES\tANNOUNCEMENT AT EVERY AGENT, s: MEDIAN, WORST\tLANDED EVERYWHERE, s: MEDIAN, WORST")
			for _, moves := range []bool{false, true} {
				var heard, landed []float64
				err := withStack(c, func(s *stack) (err error) {
					heard, landed, err = restarts(c, s, moves)
					return err
				})
				if err != nil {
					return err
				}
				at := "its old address"
				if moves {
					at = "a new address"
				}
				fmt.Fprintf(t, "%s\t%d\t%.2f, %.2f\t%.2f, %.2f\n", at, len(heard), median(heard), slices.Max(heard), median(landed), slices.Max(landed))
			}
			return t.Flush()
		},
	}
}

func median(of []float64) float64 {
	of = slices.Sorted(slices.Values(of))
	return of[len(of)/2]
}

// restartAddr is one of the addresses on lo that are no loopback addresses, so that
// the gossip has the timing of a wide network.
func restartAddr(i int) string { return fmt.Sprintf("10.98.0.%d", i) }

// restarts measures every try, in seconds.
func restarts(c *cli.Context, s *stack, moves bool) (heard, landed []float64, err error) {
	ctx := c.Context
	if err := s.cloud(ctx, fmt.Sprintf("127.0.0.1:%d", cloudPort), c.Int("agents")); err != nil {
		return nil, nil, err
	}
	gossipKey := filepath.Join(s.dir, "gossip.key")
	if err := gossip.WriteKey(gossipKey); err != nil {
		return nil, nil, err
	}
	member := func(role, name, data, http, addr string, more []string) (*process, error) {
		at := addrs{http, fmt.Sprintf("%s:%d", addr, gossipPort), fmt.Sprintf("%s:%d", addr, peerPort)}
		return s.member(role, name, data, at, append(more, "--gossip-key", gossipKey)...)
	}
	startSeeder := func(try int) (*process, string, error) {
		addr := restartAddr(1)
		if moves {
			addr = restartAddr(100 + try)
		}
		p, err := member("seeder", fmt.Sprintf("seeder-%d", try), "seeder", seederHTTP, addr, s.seederFlags())
		return p, addr, err
	}
	seeder, at, err := startSeeder(0)
	if err != nil {
		return nil, nil, err
	}
	api0 := &client.Client{URL: "http://" + seederHTTP}
	if err := processtest.Until(ctx, "the seeder", func() (bool, error) { return api0.Ready(ctx) == nil, seeder.Alive() }); err != nil {
		return nil, nil, err
	}
	var logs, status []string
	for i := range s.destinations {
		name, through := fmt.Sprintf("agent-%d", i), at // the first by the seeder
		if i > 0 {
			through = restartAddr(2) // the others by the first, who will not tell them
		}
		listen := fmt.Sprintf("127.0.0.1:%d", 7080+i+1)
		p, err := member("agent", name, name, listen, restartAddr(2+i), s.agentFlags(i, fmt.Sprintf("%s:%d", through, gossipPort)))
		if err != nil {
			return nil, nil, err
		}
		logs, status = append(logs, p.Log), append(status, "http://"+listen)
	}
	for try := 1; try <= c.Int("tries"); try++ {
		for _, url := range status {
			err := processtest.Until(ctx, url+" to know all", func() (bool, error) {
				status, err := (&client.Client{URL: url}).AgentStatus(ctx)
				return err == nil && len(status.Members) == len(s.destinations)+1, nil
			})
			if err != nil {
				return nil, nil, err
			}
		}
		seeder.End(syscall.SIGKILL)
		key := fmt.Sprintf("build-%t-%d.zip", moves, try)
		content := make([]byte, restartSize)
		rand.Read(content)
		if _, err := s.source.Upload(ctx, key, bytes.NewReader(content), restartSize, bucket.Headers{ContentType: "application/zip"}); err != nil {
			return nil, nil, err
		}
		began := time.Now()
		if seeder, _, err = startSeeder(try); err != nil {
			return nil, nil, err
		}
		err := processtest.Until(ctx, "the seeder to take the build", func() (bool, error) {
			_, err := api0.Deploy(ctx, api.DeployRequest{SourceBucket: globalBucket, SourceKey: key, DestinationBuckets: s.destinations})
			return err == nil, seeder.Alive()
		})
		if err != nil {
			return nil, nil, err
		}
		var record *ledger.Record
		err = processtest.Until(ctx, "all arrivals", func() (bool, error) {
			record, err = s.table.Get(ctx, ledger.Key{FileKey: key, SourceBucket: globalBucket})
			return err == nil && len(record.Successful) == len(s.destinations), nil
		})
		if err != nil {
			return nil, nil, err
		}
		var atAll, whole time.Time
		for i, log := range logs {
			t, err := heardOf(log, key)
			if err != nil {
				return nil, nil, err
			}
			if t.After(atAll) {
				atAll = t
			}
			if t := record.Results[s.destinations[i]].Timestamp; t.After(whole) {
				whole = t
			}
		}
		heard, landed = append(heard, atAll.Sub(began).Seconds()), append(landed, whole.Sub(began).Seconds())
		fmt.Fprintf(c.App.ErrWriter, "try %d: announced everywhere after %.2f s, landed after %.2f s\n", try, heard[try-1], landed[try-1])
	}
	return heard, landed, nil
}

// heardOf is when an agent heard of a build, by its JSON log.
func heardOf(file, key string) (time.Time, error) {
	f, err := os.Open(file)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	for d := json.NewDecoder(f); ; {
		var line struct {
			Time     time.Time
			Msg, Key string
		}
		if err := d.Decode(&line); err == io.EOF {
			return time.Time{}, fmt.Errorf("%s: %s was not heard of", file, key)
		} else if err != nil {
			return time.Time{}, err
		}
		if line.Msg == "announcement received" && line.Key == key {
			return line.Time, nil
		}
	}
}
