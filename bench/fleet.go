//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/bench/fleetsim"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/size"
)

// fleetProgress is how often a simulation says how far it is.
const fleetProgress = 10 * time.Second

// fleetCommand is `make bench-fleet`.
func fleetCommand() *cli.Command {
	d := fleetsim.Default()
	return &cli.Command{
		Name:  "fleet",
		Usage: "simulate how a region's hosts get a build: with the product's graph and hand-out, and a model of the engine's requests, in a time of its own",
		Flags: []cli.Flag{
			command.Int("hosts", d.Hosts, "how many"),
			command.Int("agents", d.Agents, "of the region"),
			command.Int("zones", d.Zones, "of the region"),
			command.String("size", "10GB", "of the build"),
			command.Int("pieces", 0, "how many pieces move as one; 1 is what the engine does, more is faster; 0 for as few as take minutes"),
			command.String("rate", "2.5Gbit", "of a host and of an agent, each way"),
			command.String("inflow", "2.5Gbit", "at which the region gets the build meanwhile; 0 for one that has it"),
			&cli.Float64Flag{Name: "slow", Value: d.Slow, Usage: "share of hosts at a tenth of the rate"},
			&cli.Float64Flag{Name: "dying", Value: d.Dying, Usage: "share of hosts that vanish on the way"},
			&cli.Float64Flag{Name: "late", Value: d.Late, Usage: "share of hosts that start on the way"},
			&cli.BoolFlag{Name: "agents-live", Usage: "no agent ends on the way"},
			&cli.Uint64Flag{Name: "seed", Value: d.Seed, Usage: "of everything random: equal ones give equal results"},
		},
		Action: func(c *cli.Context) (err error) {
			cfg := fleetsim.Config{
				Hosts: c.Int("hosts"), Agents: c.Int("agents"), Zones: c.Int("zones"), Pieces: c.Int("pieces"), Slow: c.Float64("slow"),
				Dying: c.Float64("dying"), Late: c.Float64("late"), AgentDies: !c.Bool("agents-live"), Seed: c.Uint64("seed"),
			}
			if cfg.Size, err = size.Parse(c.String("size")); err != nil {
				return err
			}
			for flag, to := range map[string]*float64{"rate": &cfg.Rate, "inflow": &cfg.Inflow} {
				n, err := size.ParseRate(c.String(flag))
				if err != nil {
					return err
				}
				*to = float64(n)
			}
			if cfg.Pieces == 0 {
				cfg.Pieces = fleetsim.Grain(cfg.Hosts, cfg.Size)
			}
			began := time.Now()
			result, err := simulate(c.Context, cfg, c.App.ErrWriter)
			if err != nil {
				return err
			}
			if err := result.Print(c.App.Writer); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "simulated in %.1f s, %d events\n", time.Since(began).Seconds(), result.Events)
			return err
		},
	}
}

// simulate says meanwhile how far it is.
func simulate(ctx context.Context, cfg fleetsim.Config, out io.Writer) (*fleetsim.Result, error) {
	began := time.Now()
	last := began
	return fleetsim.Run(ctx, cfg, func(now time.Duration, lack int) {
		if time.Since(last) < fleetProgress {
			return
		}
		last = time.Now()
		fmt.Fprintf(out, "after %.0f s: %.1f s are simulated, the bound is %.1f s; %d hosts lack the build\n",
			last.Sub(began).Seconds(), now.Seconds(), cfg.Bound().Seconds(), lack)
	})
}
