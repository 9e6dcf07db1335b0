//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/bench/fleetsim"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/size"
	"github.com/landfall-dist/landfall/seeder/client"
)

// agreeFlags are those of `bench agree`.
func agreeFlags() []cli.Flag {
	return []cli.Flag{
		command.Int("hosts", 100, "how many"), command.Int("agents", 3, "of their region"), command.Int("mib", 64, "the build's size"),
		command.String("rate", "4Mbit", "of a host and of an agent, each way: little enough for the processors"),
		command.Int("rounds", 3, "how often, with another build and another seed each time"),
	}
}

// agree has real hosts fetch a build that their region has, by the rates of the programs'
// own flags, and simulates the same: how long each host needs, over the bound.
func agree(ctx context.Context, s *fleetStack, c *cli.Context) error {
	rate, err := size.ParseRate(c.String("rate"))
	if err != nil {
		return err
	}
	cfg := fleetsim.Config{
		Hosts: c.Int("hosts"), Agents: c.Int("agents"), Zones: 1, Size: int64(c.Int("mib")) << 20, Pieces: 1, Rate: float64(rate),
	}
	if err := s.run(ctx, make([]int, cfg.Agents)...); err != nil {
		return err
	}
	for range cfg.Hosts {
		if _, err := s.addHost("region-1", "--upload-rate", c.String("rate"), "--download-rate", c.String("rate"), "--log-format", "json"); err != nil {
			return err
		}
	}
	if err := processtest.Until(ctx, "all hosts", func() (bool, error) { return s.connected(ctx) == cfg.Hosts, nil }); err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROUND\t\tBOUND, s\tP10\tP50\tP90\tP99\tLAST\tAGENTS SENT, F\tTWICE A HOST, F\tCPU")
	for round := range c.Int("rounds") {
		key := fmt.Sprintf("web-%d.zip", round+1)
		cfg.Seed = uint64(round + 1)
		bound := cfg.Bound().Seconds()
		row := func(which string, times []float64, sent, twice float64, cpu string) {
			p := func(q float64) float64 { return quantile(times, q) }
			fmt.Fprintf(t, "%d\t%s\t%.1f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.2f\t%.3f\t%s\n", round+1, which, bound, p(0.1), p(0.5), p(0.9), p(0.99), p(1), sent, twice/float64(cfg.Hosts), cpu)
		}
		before, err := s.twice(ctx)
		if err != nil {
			return err
		}
		real, sent, busy, err := s.arrivals(ctx, key, byte(round+1), cfg)
		if err != nil {
			return err
		}
		twice, err := s.twice(ctx)
		if err != nil {
			return err
		}
		for i := range real {
			real[i] /= bound
		}
		row("real", real, float64(sent)/float64(cfg.Size), float64(twice-before)/float64(cfg.Size), fmt.Sprintf("%.2f", busy))
		simulated, err := simulate(ctx, cfg, os.Stderr)
		if err != nil {
			return err
		}
		row("simulated", simulated.Fast, float64(simulated.Agents)/float64(cfg.Size), float64(simulated.Twice)/float64(cfg.Size), "")
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// arrivals has all hosts fetch a build that all agents have: the seconds of each from the
// command on, what agents sent, in bytes, and the share of the processors that was busy.
func (s *fleetStack) arrivals(ctx context.Context, key string, seed byte, cfg fleetsim.Config) (times []float64, sent int64, busy float64, err error) {
	if err := s.limitAgents(ctx, 0); err != nil { // nor for what agents send each other
		return nil, 0, 0, err
	}
	if err := s.put(ctx, key, seed, cfg.Size); err != nil {
		return nil, 0, 0, err
	}
	if err := s.publish(ctx, key); err != nil {
		return nil, 0, 0, err
	}
	var before int64
	err = processtest.Until(ctx, "all agents to have "+key, func() (bool, error) {
		verified, uploaded, err := s.atAgents(ctx, key)
		before = uploaded
		return verified == int64(len(s.agents))*cfg.Size, err
	})
	if err != nil {
		return nil, 0, 0, err
	}
	if err := s.limitAgents(ctx, cfg.Rate); err != nil {
		return nil, 0, 0, err
	}
	load, err := readCPU()
	if err != nil {
		return nil, 0, 0, err
	}
	began := time.Now()
	_, err = s.seeder.DeployService(ctx, benchService, client.ServiceDeployRequest{Key: key, Policy: api.Policy{Waves: []string{"100%"}, Bake: "1s", MaxUnavailable: "100%"}})
	if err != nil {
		return nil, 0, 0, err
	}
	id, err := s.deployed(ctx, key)
	if err != nil {
		return nil, 0, 0, err
	}
	after, err := readCPU()
	if err != nil {
		return nil, 0, 0, err
	}
	for _, h := range s.machines {
		at, err := s.logged(h, "release is in its place", id)
		if err != nil {
			return nil, 0, 0, err
		}
		times = append(times, at.Time.Sub(began).Seconds())
	}
	_, uploaded, err := s.atAgents(ctx, key)
	return times, uploaded - before, after.busySince(load), err
}

// limitAgents limits what agents send, in bytes/s; 0 is no limit.
func (s *fleetStack) limitAgents(ctx context.Context, rate float64) error {
	up := api.Rate(rate)
	for _, a := range s.agents {
		if _, err := a.client.SetLimits(ctx, client.LimitsChange{UploadRate: &up}); err != nil {
			return err
		}
	}
	return nil
}

// atAgents is how much of a build all agents have, and how much of builds they have sent,
// in bytes.
func (s *fleetStack) atAgents(ctx context.Context, key string) (verified, uploaded int64, err error) {
	for _, a := range s.agents {
		v, err := a.client.AgentStatus(ctx)
		if err != nil {
			return 0, 0, err
		}
		for _, b := range v.Builds {
			if b.Key == key {
				verified += b.VerifiedBytes
			}
		}
		const sent = "landfall_swarm_uploaded_bytes_total"
		m, err := processtest.Metrics(ctx, http.DefaultClient, "http://"+a.http+"/metrics", sent)
		if err != nil {
			return 0, 0, err
		}
		uploaded += int64(m[sent])
	}
	return verified, uploaded, nil
}

// twice is what came to hosts that had it, in bytes.
func (s *fleetStack) twice(ctx context.Context) (bytes int64, err error) {
	const wasted = `landfall_swarm_received_chunks_total{use="wasted"}`
	for _, h := range s.machines {
		up, err := s.logged(h, "host is up", "")
		if err != nil {
			return 0, err
		}
		m, err := processtest.Metrics(ctx, http.DefaultClient, "http://"+up.HTTP+"/metrics", wasted)
		if err != nil {
			return 0, err
		}
		bytes += int64(m[wasted]) * manifest.MinPieceLength
	}
	return bytes, nil
}

// line is what a host's log has in the last line with a message, of an execution if that is
// not empty.
type line struct {
	Time                   time.Time
	Msg, ExecutionID, HTTP string
}

func (s *fleetStack) logged(h *fleetHost, msg, id string) (found line, err error) {
	log, err := os.Open(filepath.Join(s.dir, h.name+".log"))
	if err != nil {
		return found, err
	}
	defer log.Close()
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var l line
		if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == msg && (id == "" || l.ExecutionID == id) {
			found = l
		}
	}
	if found.Msg == "" {
		return found, fmt.Errorf("%s has not logged: %s %s", h.name, msg, id)
	}
	return found, nil
}
