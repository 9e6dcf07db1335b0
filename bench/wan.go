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
			"Examples:\n\n  bench wan\n  bench wan --full\n  bench wan --cells source,publish --rounds 1\n  bench wan --members 8 --seconds 40 --latency 40ms --systems landfall,libtorrent",
		Flags: []cli.Flag{
			command.Bool("full", "all cells, for hours; goes on where it was left"),
			command.Int("rounds", 3, "how often each system runs in each cell, in turn"),
			command.Strings("systems", "only these: landfall, landfall-tls, libtorrent, libtorrent-super, aria2, fan-out, upload"),
			command.Strings("cells", "only these: "+cellNames(defaultCells())+"; and what is not run unasked: "+cellNames(moreCells())),
			command.Int("members", 0, "one cell of one's own: `N` regions (what follows describes it)"),
			command.Int("rate", defaultRate, "uplink in Mbit/s"),
			&cli.Float64Flag{Name: "down", Value: 1.25, Usage: "downlink over uplink"},
			command.Duration("latency", 0, "`TIME` each way"),
			&cli.Float64Flag{Name: "seconds", Value: 10, Usage: "size of the file over the uplink, in s"},
			command.Int("slow", 0, "the last region has one `N`-th of the rates"),
			command.Bool("late", "half of the regions join half way"),
			command.String("bad", "", "one more member misbehaves: `HOW` is one of "+badNames()+"; only with landfall"),
			&cli.Float64Flag{Name: "source", Usage: "rate of the link, over the uplink, behind which the global bucket's S3 stands (0: beside the seeder)"},
			command.String("publish", "", "a client with such an uplink publishes a file; the seeder reaches S3 `HOW`: by an interface of its \"own\", or \"together\" with the rest by its uplink; only with landfall"),
			command.Int("builds", 0, "so many at once, of equal size; only with landfall"),
			command.Bool("urgent", "a build of a tenth the size is published in mid-way; only with landfall"),
			command.Bool("tls", "landfall with TLS between its members, too (landfall-tls), in turn with what is measured; not with --bad"),
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

// defaultCells are the promises of docs/performance.md: how long a user waits for
// what is in the global bucket behind a link, or for a file of his; and the swarm
// alone, with the source beside the seeder.
func defaultCells() []plan {
	swarm := cell{Members: 8, Rate: defaultRate * 1e6, DownRatio: 1.25, Seconds: 40}
	with := func(change func(*cell)) cell {
		c := swarm
		change(&c)
		return c
	}
	only, uploaded := []system{landfall{}}, []system{landfall{}, upload{}}
	return []plan{
		{name: "source", cell: with(func(c *cell) { c.Source = 1 }), systems: []system{landfall{}, libtorrent{}, aria2{}}},
		{name: "source-far", cell: with(func(c *cell) { c.Source, c.Latency = 1, 40*time.Millisecond }), systems: only},
		{name: "source-long", cell: with(func(c *cell) { c.Source, c.Seconds, c.Rate = 1, 160, defaultRate*1e6/4 }), systems: only, once: true},
		{name: "source-fast", cell: with(func(c *cell) { c.Source = 4 }), systems: only},
		{name: "publish", cell: with(func(c *cell) { c.Source, c.Publish = 1, ownInterface }), systems: uploaded},
		{name: "publish-together", cell: with(func(c *cell) { c.Source, c.Publish = 1, sameUplink }), systems: uploaded},
		{name: "ten", cell: with(func(c *cell) { c.Source, c.Builds = 1, 10 }), systems: only},
		{name: "ten-swarm", cell: with(func(c *cell) { c.Builds = 10 }), systems: only},
		{name: "urgent", cell: with(func(c *cell) { c.Source, c.Urgent = 1, true }), systems: only},
		{name: "swarm", cell: swarm, systems: only},
		{name: "swarm-far", cell: with(func(c *cell) { c.Latency = 40 * time.Millisecond }), systems: only},
		{name: "swarm-even", cell: with(func(c *cell) { c.DownRatio = 1 }), systems: only},
		{name: "swarm-short", cell: with(func(c *cell) { c.Seconds = 10 }), systems: torrents()},
	}
}

// moreCells are run when they are named.
func moreCells() []plan {
	swarm := cell{Members: 8, Rate: defaultRate * 1e6, DownRatio: 1.25, Seconds: 40}
	short, urgent := swarm, swarm
	short.Source, short.Seconds = 1, 10
	urgent.Source, urgent.Urgent = 4, true
	many := cell{Members: 64, Rate: 4e6, DownRatio: 1.25, Seconds: 40, Source: 1, Slow: 10}
	return []plan{
		{name: "source-short", cell: short, systems: torrents()},
		{name: "urgent-fast", cell: urgent, systems: []system{landfall{}}},
		// For the memory that so many connections take; the slow one needs 320 s.
		{name: "many", cell: many, systems: []system{landfall{}}, once: true},
	}
}

// fullCells is the whole grid.
func fullCells() []plan {
	var plans []plan
	base := cell{Rate: defaultRate * 1e6, DownRatio: 1.25, Seconds: 40}
	for _, base.Members = range []int{2, 4, 8, 16} {
		for _, base.DownRatio = range []float64{1.25, 1} {
			for _, base.Latency = range []time.Duration{0, 40 * time.Millisecond} {
				for _, base.Seconds = range []float64{10, 40, 172} { // 64 MiB to 1 GiB
					for _, base.Source = range []float64{0, 1} {
						plans = append(plans, plan{cell: base, systems: torrents()})
					}
				}
			}
		}
	}
	special := cell{Members: 8, Rate: defaultRate * 1e6, DownRatio: 1.25, Seconds: 40}
	slow, late := special, special
	slow.Slow, late.Late = 4, true
	return append(plans, plan{cell: slow, systems: torrents()}, plan{cell: late, systems: torrents()})
}

type plan struct {
	name    string // by which --cells selects it
	cell    cell
	systems []system
	once    bool // one round is enough, since it takes long
}

// torrents are the systems that bring an object from one place to all.
func torrents() []system {
	return []system{landfall{}, libtorrent{}, libtorrent{superSeeding: true}, aria2{}, fanOut{}}
}

// named picks cells by their names.
func named(names []string) ([]plan, error) {
	all := slices.Concat(defaultCells(), moreCells())
	var plans []plan
	for _, name := range names {
		i := slices.IndexFunc(all, func(p plan) bool { return p.name == name })
		if i < 0 {
			return nil, command.Usagef("--cells has %q, expected some of %s", name, cellNames(all))
		}
		plans = append(plans, all[i])
	}
	return plans, nil
}

func cellNames(of []plan) string {
	var names []string
	for _, p := range of {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
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
	lock, err := alone(filepath.Join(os.TempDir(), nsPrefix+"lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	plans := defaultCells()
	switch {
	case c.Int("members") > 0:
		p := plan{cell: cell{
			Members: c.Int("members"), Rate: int64(c.Int("rate")) * 1e6, DownRatio: c.Float64("down"),
			Latency: c.Duration("latency"), Seconds: c.Float64("seconds"), Slow: c.Int("slow"), Late: c.Bool("late"), Bad: c.String("bad"),
			Source: c.Float64("source"), Publish: publish(c.String("publish")), Builds: c.Int("builds"), Urgent: c.Bool("urgent"),
		}, systems: torrents()}
		if err := p.cell.check(); err != nil {
			return err
		}
		if p.cell.Bad != "" || p.cell.Builds > 1 || p.cell.Urgent {
			p.systems = p.systems[:1]
		}
		if p.cell.Publish != notPublished {
			p.systems = []system{landfall{}, upload{}}
		}
		plans = []plan{p}
	case len(c.StringSlice("cells")) > 0:
		if plans, err = named(c.StringSlice("cells")); err != nil {
			return err
		}
	case c.Bool("full"):
		plans = fullCells()
	}
	for i, p := range plans {
		if c.Bool("tls") && p.cell.Bad == "" {
			plans[i].systems = slices.Insert(slices.Clone(p.systems), 1, system(landfall{tls: true}))
		}
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
	rounds := c.Int("rounds")
	if p.once {
		rounds = min(rounds, 1)
	}
	for round := range rounds {
		for _, s := range p.systems {
			if slices.ContainsFunc(*done, func(r result) bool {
				return r.System == s.name() && r.Cell == p.cell && r.Round == round
			}) {
				continue
			}
			fmt.Fprintf(os.Stderr, "%s: round %d of %d, %s … ", p.cell, round+1, rounds, s.name())
			r, err := measure(c.Context, s, p.cell, o)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%.3f of the bound, CPU %.2f, %.2f of it its own\n", r.Makespan/r.Bound, r.CPU, r.OwnCPU)
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
