//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/command"
)

type wanOptions struct {
	dir, bins, congestion string
	keep                  bool
}

// wanCommand is `make bench-wan`.
func wanCommand() *cli.Command {
	return &cli.Command{
		Name:  "wan",
		Usage: "time from publish to landed everywhere, over shaped links, beside other systems",
		Description: "Needs root and Linux. The other systems run where they are installed (Debian: python3-libtorrent, aria2).\n\n" +
			"Examples:\n\n  bench wan\n  bench wan --full\n  bench wan --members 8 --seconds 40 --latency 40ms --systems landfall,libtorrent",
		Flags: []cli.Flag{
			command.Bool("full", "all cells, for hours; goes on where it was left"),
			command.Int("rounds", 3, "how often each system runs in each cell, in turn"),
			command.Strings("systems", "only these: landfall, libtorrent, libtorrent-super, aria2, fan-out"),
			command.Int("members", 0, "one cell of one's own: `N` regions (what follows describes it)"),
			command.Int("rate", defaultRate, "uplink in Mbit/s"),
			&cli.Float64Flag{Name: "down", Value: 1.25, Usage: "downlink over uplink"},
			command.Duration("latency", 0, "`TIME` each way"),
			&cli.Float64Flag{Name: "seconds", Value: 10, Usage: "size of the file over the uplink, in s"},
			command.Bool("slow", "the last region has a quarter of the rates"),
			command.Bool("late", "half of the regions join half way"),
			command.String("bad", "", "one more member misbehaves: `HOW` is one of "+badNames()+"; only with landfall"),
			command.String("congestion", "cubic", "TCP's congestion control: `NAME`"),
			command.String("bins", "bin", "`DIR` with the programs"),
			command.String("dir", filepath.Join(dataRoot(), "landfall-bench"), "`DIR` for data"),
			command.String("results", "", "`FILE` with a line of JSON a run (default: bench/results/wan-VERSION.jsonl)"),
			command.Bool("keep", "keep logs and data"),
		},
		Action: wan,
	}
}

const defaultRate = 40

// dataRoot is in memory where that can be: all members share this machine's disk,
// which in the world each has for itself.
func dataRoot() string {
	const shm = "/dev/shm"
	if exists(shm) {
		return shm
	}
	return os.TempDir()
}

// defaultCells end within 20 minutes: everyone where start-up and end weigh
// most, Landfall alone where it takes longer.
func defaultCells() []plan {
	base := cell{Members: 8, Rate: defaultRate * 1e6, DownRatio: 1.25, Seconds: 10}
	far := base
	far.Latency, far.Seconds = 40*time.Millisecond, 40
	even := base
	even.DownRatio, even.Seconds = 1, 40
	return []plan{{base, allSystems()}, {far, allSystems()[:1]}, {even, allSystems()[:1]}}
}

// fullCells is the whole grid.
func fullCells() []plan {
	var plans []plan
	base := cell{Rate: defaultRate * 1e6, DownRatio: 1.25, Seconds: 40}
	for _, base.Members = range []int{2, 4, 8, 16} {
		for _, base.DownRatio = range []float64{1.25, 1} {
			for _, base.Latency = range []time.Duration{0, 40 * time.Millisecond} {
				for _, base.Seconds = range []float64{10, 40, 172} { // 64 MiB to 1 GiB
					plans = append(plans, plan{base, allSystems()})
				}
			}
		}
	}
	special := cell{Members: 8, Rate: defaultRate * 1e6, DownRatio: 1.25, Seconds: 40}
	slow, late := special, special
	slow.Slow, late.Late = true, true
	return append(plans, plan{slow, allSystems()}, plan{late, allSystems()})
}

type plan struct {
	cell    cell
	systems []system
}

func allSystems() []system {
	return []system{landfall{}, libtorrent{}, libtorrent{superSeeding: true}, aria2{}, fanOut{}}
}

// installed reports whether a system can run here.
func installed(s system) bool {
	switch s.(type) {
	case libtorrent:
		return exec.Command("/usr/bin/python3", "-c", "import libtorrent").Run() == nil
	case aria2:
		_, err := exec.LookPath("aria2c")
		return err == nil
	}
	return true
}

func wan(c *cli.Context) error {
	o := wanOptions{congestion: c.String("congestion"), keep: c.Bool("keep")}
	var err error
	if o.bins, err = filepath.Abs(c.String("bins")); err != nil {
		return err
	}
	if o.dir, err = filepath.Abs(c.String("dir")); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	plans := defaultCells()
	switch {
	case c.Int("members") > 0:
		plans = []plan{{cell{
			Members: c.Int("members"), Rate: int64(c.Int("rate")) * 1e6, DownRatio: c.Float64("down"),
			Latency: c.Duration("latency"), Seconds: c.Float64("seconds"), Slow: c.Bool("slow"), Late: c.Bool("late"), Bad: c.String("bad"),
		}, allSystems()}}
		if c.String("bad") != "" {
			plans[0].systems = plans[0].systems[:1]
		}
	case c.Bool("full"):
		plans = fullCells()
	}
	if only := c.StringSlice("systems"); len(only) > 0 {
		for i := range plans {
			plans[i].systems = slices.DeleteFunc(plans[i].systems, func(s system) bool { return !slices.Contains(only, s.name()) })
		}
	}
	missing := make(map[string]bool)
	for i := range plans {
		plans[i].systems = slices.DeleteFunc(plans[i].systems, func(s system) bool {
			missing[s.name()] = missing[s.name()] || !installed(s)
			return missing[s.name()]
		})
	}
	for name, is := range missing {
		if is {
			fmt.Fprintf(os.Stderr, "%s is not installed: left out\n", name)
		}
	}
	file := c.String("results")
	if file == "" {
		file = filepath.Join("bench", "results", "wan-"+version()+".jsonl")
	}
	done, err := readResults(file)
	if err != nil {
		return err
	}
	for _, p := range plans {
		if err := measureCell(c, p, o, file, &done); err != nil {
			return err
		}
		report(os.Stdout, p.cell, done)
	}
	fmt.Printf("every run: %s\n", file)
	return nil
}

// measureCell runs what has not been measured yet, the systems in turn.
func measureCell(c *cli.Context, p plan, o wanOptions, file string, done *[]result) error {
	for round := range c.Int("rounds") {
		for _, s := range p.systems {
			if slices.ContainsFunc(*done, func(r result) bool {
				return r.System == s.name() && r.Cell == p.cell && r.Round == round
			}) {
				continue
			}
			fmt.Fprintf(os.Stderr, "%s: round %d of %d, %s … ", p.cell, round+1, c.Int("rounds"), s.name())
			r, err := measure(c.Context, s, p.cell, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%.3f of the bound\n", r.Makespan/r.Bound)
			r.Round, r.Version = round, version()
			*done = append(*done, r)
			if err := appendResult(file, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// version is the commit that is measured: results of another are not mixed in.
func version() string {
	out, err := output("git", "describe", "--always", "--dirty")
	if err != nil {
		return command.Version()
	}
	return strings.TrimSpace(out)
}

func readResults(file string) ([]result, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var results []result
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, mib)
	for lines.Scan() {
		var r result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		results = append(results, r)
	}
	return results, lines.Err()
}

func appendResult(file string, r result) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}
