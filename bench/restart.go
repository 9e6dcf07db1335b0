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
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
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
				heard, landed, err := restarts(c, moves)
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
func restarts(c *cli.Context, moves bool) (heard, landed []float64, err error) {
	ctx := c.Context
	dir, err := os.MkdirTemp("", "landfall-restart-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	bins, err := filepath.Abs(c.String("bins"))
	if err != nil {
		return nil, nil, err
	}
	var processes []*process
	defer func() { stopAll(processes) }()
	env := []string{"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_ENDPOINT_URL=" + cloudURL}
	begin := func(name string, args ...string) (*process, error) {
		args[0] = filepath.Join(bins, args[0])
		p, err := start("", name, dir, env, args...)
		if err == nil {
			processes = append(processes, p)
		}
		return p, err
	}
	cloud, err := begin("cloud", "landfall-dev", "cloud", "--dir", filepath.Join(dir, "cloud"))
	if err != nil {
		return nil, nil, err
	}
	if err := cloud.waitFor(ctx, "S3 and DynamoDB are up"); err != nil {
		return nil, nil, err
	}
	cfg := aws.Config{Region: "us-east-1", BaseEndpoint: aws.String(cloudURL), Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	var destinations []string
	for i := range c.Int("agents") {
		destinations = append(destinations, fmt.Sprintf("region-%d-builds", i))
	}
	for _, name := range append([]string{globalBucket}, destinations...) {
		if _, err := bucket.Create(ctx, cfg, name, ""); err != nil {
			return nil, nil, err
		}
	}
	table := command.OpenLedger(cfg, ledger.DefaultTable, "")
	if _, err := table.Create(ctx); err != nil {
		return nil, nil, err
	}
	source, err := bucket.Open(ctx, cfg, globalBucket, bucket.Options{})
	if err != nil {
		return nil, nil, err
	}
	keys := keyFiles{filepath.Join(dir, "seeder.key"), filepath.Join(dir, "gossip.key")}
	if _, err := announce.WriteSigningKey(keys.signing); err != nil {
		return nil, nil, err
	}
	if err := gossip.WriteKey(keys.gossip); err != nil {
		return nil, nil, err
	}
	flags := func(addr, name string) []string {
		return []string{"--gossip-listen", addr + ":7946", "--peer-listen", addr + ":6881", "--gossip-key", keys.gossip,
			"--data-dir", filepath.Join(dir, name), "--log-format", "json"}
	}
	startSeeder := func(try int) (*process, string, error) {
		addr := restartAddr(1)
		if moves {
			addr = restartAddr(100 + try)
		}
		p, err := begin(fmt.Sprintf("seeder-%d", try), append([]string{"seeder", "run", "--bucket", globalBucket, "--signing-key", keys.signing,
			"--destinations", strings.Join(destinations, ",")}, flags(addr, "seeder")...)...)
		return p, addr, err
	}
	seeder, at, err := startSeeder(0)
	if err != nil {
		return nil, nil, err
	}
	api0 := &client.Client{URL: "http://" + seederHTTP}
	if err := until(ctx, "the seeder", func() (bool, error) { return api0.Ready(ctx) == nil, seeder.alive() }); err != nil {
		return nil, nil, err
	}
	var logs, status []string
	for i, b := range destinations {
		name, through := fmt.Sprintf("agent-%d", i), at // the first by the seeder
		if i > 0 {
			through = restartAddr(2) // the others by the first, who will not tell them
		}
		listen := fmt.Sprintf("127.0.0.1:%d", 7080+i+1)
		p, err := begin(name, append([]string{"agent", "run", "--region", fmt.Sprintf("region-%d", i), "--bucket", b, "--trust", keys.signing + ".pub",
			"--listen", listen, "--join", through + ":7946"}, flags(restartAddr(2+i), name)...)...)
		if err != nil {
			return nil, nil, err
		}
		logs, status = append(logs, p.log), append(status, "http://"+listen)
	}
	for try := 1; try <= c.Int("tries"); try++ {
		for _, url := range status {
			err := until(ctx, url+" to know all", func() (bool, error) {
				s, err := (&client.Client{URL: url}).AgentStatus(ctx)
				return err == nil && len(s.Members) == len(destinations)+1, nil
			})
			if err != nil {
				return nil, nil, err
			}
		}
		seeder.kill()
		key := fmt.Sprintf("build-%t-%d.zip", moves, try)
		content := make([]byte, restartSize)
		rand.Read(content)
		if _, err := source.Upload(ctx, key, bytes.NewReader(content), restartSize, bucket.Headers{ContentType: "application/zip"}); err != nil {
			return nil, nil, err
		}
		began := time.Now()
		if seeder, _, err = startSeeder(try); err != nil {
			return nil, nil, err
		}
		err := until(ctx, "the seeder to take the build", func() (bool, error) {
			_, err := api0.Deploy(ctx, api.DeployRequest{SourceBucket: globalBucket, SourceKey: key, DestinationBuckets: destinations})
			return err == nil, seeder.alive()
		})
		if err != nil {
			return nil, nil, err
		}
		var record *ledger.Record
		err = until(ctx, "all arrivals", func() (bool, error) {
			record, err = table.Get(ctx, ledger.Key{FileKey: key, SourceBucket: globalBucket})
			return err == nil && len(record.Successful) == len(destinations), nil
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
			if t := record.Results[destinations[i]].Timestamp; t.After(whole) {
				whole = t
			}
		}
		heard, landed = append(heard, atAll.Sub(began).Seconds()), append(landed, whole.Sub(began).Seconds())
		fmt.Fprintf(c.App.ErrWriter, "try %d: announced everywhere after %.2f s, landed after %.2f s\n", try, heard[try-1], landed[try-1])
	}
	return heard, landed, nil
}

// kill ends a process as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
	p.stdin.Close()
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
		if line.Msg == "heard" && line.Key == key {
			return line.Time, nil
		}
	}
}
