//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// system is one way of bringing a file to every member.
type system interface {
	name() string
	// run starts everything, calls begin, waits until every member has the
	// file, calls end, and notes when each had it.
	run(ctx context.Context, r *trial) error
}

// cell is one topology and one file.
type cell struct {
	Members   int           // without the source
	Rate      int64         // uplink of every member, bits/s
	DownRatio float64       // downlink over uplink
	Latency   time.Duration // each way
	Seconds   float64       // file over uplink
	Slow      bool          // the last member has a quarter of the rates
	Late      bool          // the second half of the members joins at half the bound
	Bad       string        `json:",omitempty"` // what one more member does wrong; only with Landfall
}

func (c cell) String() string {
	s := fmt.Sprintf("N=%d down=%.4gx %s F/up=%.3gs", c.Members, c.DownRatio, c.Latency, c.Seconds)
	if c.Slow {
		s += " one-slow"
	}
	if c.Late {
		s += " half-late"
	}
	if c.Bad != "" {
		s += " one-more-" + c.Bad
	}
	return s
}

const mib = 1 << 20

// size of the file in bytes, whole MiB.
func (c cell) size() int64 {
	return max(1, int64(c.Seconds*float64(c.Rate)/8+mib/2)/mib) * mib
}

// bound is the least time in which every member can have the file: it must leave
// the source once and enter each member, headers not counted.
func (c cell) bound() time.Duration {
	slowest := float64(c.Rate) * min(1, c.DownRatio)
	if c.Slow {
		slowest = min(slowest, float64(c.Rate)*c.DownRatio/4)
	}
	return time.Duration(float64(c.size()) * 8 / slowest * float64(time.Second))
}

func (c cell) links() []rates {
	links := make([]rates, c.Members+1)
	for i := range links {
		links[i] = rates{c.Rate, int64(float64(c.Rate) * c.DownRatio)}
	}
	if c.Bad != "" {
		links = append(links, links[0])
	}
	if c.Slow {
		last := &links[c.Members]
		last.Up, last.Down = last.Up/4, last.Down/4
	}
	return links
}

// split tells the members that are there from the start from those that come
// later.
func (c cell) split(members []*member) (early, late []*member) {
	if !c.Late {
		return members, nil
	}
	half := len(members) / 2
	return slices.Clone(members[:half]), slices.Clone(members[half:])
}

// trial is one system in one cell, once.
type trial struct {
	cell cell
	net  *network
	bins string // where our programs are
	dir  string // for logs and data, removed afterwards
	file string

	processes []*process
	started   time.Time
	sentFirst int64
	cpuFirst  cpuTimes
	result    result
	err       error // of begin and end
}

// result is one line of the results file. Times are in s since the beginning,
// by member; sizes in bytes.
type result struct {
	System  string `json:"system"`
	Version string `json:"version"`
	Cell    cell   `json:"cell"`
	Round   int    `json:"round"`
	Size    int64  `json:"size"`
	// Bound is in s.
	Bound      float64   `json:"bound"`
	Downloaded []float64 `json:"downloaded"`
	Landed     []float64 `json:"landed,omitempty"`
	Makespan   float64   `json:"makespan"` // until the last is known to have all
	Announced  float64   `json:"announced,omitempty"`
	// SeederWire is what left the source's link, headers included;
	// SeederPayload what the seeder counted, where it does.
	SeederWire    int64 `json:"seederWire"`
	SeederPayload int64 `json:"seederPayload,omitempty"`
	// Named is how many members had called the bad one bad by the end.
	Named int `json:"named,omitempty"`
	// CPU is the share of all cores that was busy.
	CPU float64 `json:"cpu"`
	// Memory is each program's peak, the largest of its kind.
	Memory map[string]int64 `json:"memory"`
}

// measure runs a system once.
func measure(ctx context.Context, s system, c cell, o wanOptions) (result, error) {
	dir, err := os.MkdirTemp(o.dir, "trial-")
	if err != nil {
		return result{}, err
	}
	r := &trial{cell: c, bins: o.bins, dir: dir, file: filepath.Join(o.dir, fmt.Sprintf("build-%d.bin", c.size()))}
	r.result = result{
		System: s.name(), Cell: c, Size: c.size(), Bound: c.bound().Seconds(),
		Downloaded: make([]float64, c.Members), Memory: make(map[string]int64),
	}
	if err := makeFile(r.file, c.size()); err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(float64(c.Members+4)*1.5*float64(c.bound()))+time.Minute)
	defer cancel()
	r.net, err = newNetwork(ctx, c.links(), c.Latency, o.congestion, dir)
	if err != nil {
		return result{}, err
	}
	held, err := newReserve(c)
	if err != nil {
		return result{}, errors.Join(err, r.net.Close())
	}
	releasing, stopReleasing := context.WithCancel(ctx)
	released := make(chan error, 1)
	go func() { released <- held.release(releasing) }()
	err = errors.Join(s.run(ctx, r), r.err)
	stopReleasing()
	err = errors.Join(err, <-released)
	stopAll(r.processes)
	err = errors.Join(err, r.net.Close())
	if err != nil {
		return result{}, fmt.Errorf("%s, %s: %w (logs in %s)", s.name(), c, err, dir)
	}
	if r.result.SeederPayload == 0 {
		r.result.SeederPayload = payloadSaid(r.processes)
	}
	if o.keep {
		return r.result, nil
	}
	return r.result, os.RemoveAll(dir)
}

// makeFile writes bytes that do not compress, the same for the same size.
func makeFile(file string, size int64) error {
	if stat, err := os.Stat(file); err == nil && stat.Size() == size {
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, noise(0), size)
	return errors.Join(err, f.Close())
}

// noise is bytes without end that do not compress, the same for the same seed.
func noise(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// start runs a program on a member. One of ours is named without a path.
func (r *trial) start(m *member, name string, env []string, args ...string) (*process, error) {
	if own := filepath.Join(r.bins, args[0]); exists(own) {
		args[0] = own
	}
	p, err := start(m.ns, fmt.Sprintf("%s-%d", name, m.index), r.dir, env, args...)
	if err == nil {
		r.processes = append(r.processes, p)
	}
	return p, err
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// dataDir is a new directory of a member.
func (r *trial) dataDir(m *member, name string) string {
	dir := filepath.Join(r.dir, fmt.Sprintf("%s-%d", name, m.index))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.err = errors.Join(r.err, err)
	}
	return dir
}

// begin starts the clock.
func (r *trial) begin() {
	var err, cpuErr error
	r.sentFirst, err = r.net.members[0].sent()
	r.cpuFirst, cpuErr = readCPU()
	r.err = errors.Join(r.err, err, cpuErr)
	r.started = time.Now()
}

// end stops it, and reads the counters.
func (r *trial) end() {
	r.result.Makespan = time.Since(r.started).Seconds()
	sent, err := r.net.members[0].sent()
	cpu, cpuErr := readCPU()
	r.err = errors.Join(r.err, err, cpuErr)
	r.result.SeederWire = sent - r.sentFirst
	r.result.CPU = cpu.busySince(r.cpuFirst)
	for _, p := range r.processes {
		kind, _, _ := strings.Cut(p.name, "-")
		r.result.Memory[kind] = max(r.result.Memory[kind], p.peakMemory())
	}
}

func (r *trial) downloaded(m *member, at time.Time) {
	r.result.Downloaded[m.index-1] = at.Sub(r.started).Seconds()
}

func (r *trial) landed(m *member, at time.Time) {
	if r.result.Landed == nil {
		r.result.Landed = make([]float64, r.cell.Members)
	}
	r.result.Landed[m.index-1] = at.Sub(r.started).Seconds()
}

// payloadSaid finds what the source says it has sent, after its end.
func payloadSaid(processes []*process) int64 {
	for _, p := range processes {
		log, err := os.ReadFile(p.log)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(log)) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "sent "); ok {
				n, _ := strconv.ParseInt(text, 10, 64)
				return n
			}
		}
	}
	return 0
}

// cpuTimes are jiffies of the whole machine.
type cpuTimes struct{ all, idle int64 }

func readCPU() (t cpuTimes, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return t, err
		}
		t.all += n
		if i == 3 || i == 4 { // idle, iowait
			t.idle += n
		}
	}
	return t, nil
}

func (t cpuTimes) busySince(before cpuTimes) float64 {
	return 1 - float64(t.idle-before.idle)/float64(max(1, t.all-before.all))
}
