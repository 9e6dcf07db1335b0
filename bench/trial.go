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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/processtest"
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
	Slow      int           // the last member has one so-manieth of the rates; 0 for all alike
	Late      bool          // the second half of the members joins at half the bound
	Bad       string        `json:",omitempty"` // what one more member does wrong; only with Landfall
	// Source is the rate of the link, over the uplink, behind which the global
	// bucket's S3 stands; 0 where that is beside the seeder.
	Source  float64 `json:",omitempty"`
	Publish publish `json:",omitempty"`
	Builds  int     `json:",omitempty"` // published at once, each of the same share of the bytes; 0 for one
	Urgent  bool    `json:",omitempty"` // a build of a tenth the size is published at half the bound
}

// publish is how a file that a client uploads through the seeder goes on to S3.
type publish string

const (
	notPublished publish = ""         // the object is in the global bucket when time begins
	ownInterface publish = "own"      // by an interface of the seeder that nothing else uses
	sameUplink   publish = "together" // by the uplink that the swarm uses, so the file takes it twice
)

func (c cell) String() string {
	s := fmt.Sprintf("N=%d down=%.4gx %s F/up=%.3gs", c.Members, c.DownRatio, c.Latency, c.Seconds)
	if c.Slow > 1 {
		s += fmt.Sprintf(" one-slow/%d", c.Slow)
	}
	if c.Late {
		s += " half-late"
	}
	if c.Bad != "" {
		s += " one-more-" + c.Bad
	}
	if c.Source > 0 {
		s += fmt.Sprintf(" source=%.4gx", c.Source)
	}
	if c.Publish != notPublished {
		s += fmt.Sprintf(" publish-file(%s)", c.Publish)
	}
	if c.Builds > 1 {
		s += fmt.Sprintf(" builds=%d", c.Builds)
	}
	if c.Urgent {
		s += " one-urgent"
	}
	return s
}

const mib = 1 << 20

// size of all builds in bytes.
func (c cell) size() int64 { return int64(max(1, c.Builds)) * c.buildSize() }

// buildSize is the size of one of them, whole MiB.
func (c cell) buildSize() int64 {
	return max(1, int64(c.Seconds*float64(c.Rate)/8/float64(max(1, c.Builds))+mib/2)/mib) * mib
}

// bound is the least time in which every member can have the file: it must leave
// the source and the seeder once and enter each member, headers not counted.
func (c cell) bound() time.Duration {
	slowest := min(1, c.DownRatio, c.DownRatio/float64(max(1, c.Slow)))
	if c.Source > 0 {
		slowest = min(slowest, c.Source)
	}
	return time.Duration(float64(c.size()) * 8 / (slowest * float64(c.Rate)) * float64(time.Second))
}

// maxMembers is what a network's addresses are enough for, beside those that are no
// members.
const maxMembers = 240

// check is an error for a cell that cannot be.
func (c cell) check() error {
	switch {
	case c.Members < 1 || c.Members > maxMembers:
		return command.Usagef("--members is %d, expected 1 to %d", c.Members, maxMembers)
	case c.Source < 0 || c.Slow < 0 || c.Builds < 0:
		return command.Usagef("--source, --slow and --builds cannot be negative")
	case c.Builds > maxBuilds:
		return command.Usagef("--builds is %d, expected at most %d", c.Builds, maxBuilds)
	case c.Publish != notPublished && c.Publish != ownInterface && c.Publish != sameUplink:
		return command.Usagef("--publish is %q, expected %q or %q", c.Publish, ownInterface, sameUplink)
	case c.Publish != notPublished && (c.Source == 0 || c.Builds > 1 || c.Urgent):
		return command.Usagef("--publish needs --source, and one build alone")
	case c.Builds > 1 && c.Urgent:
		return command.Usagef("--urgent needs one build beside it, not --builds")
	case c.Late && c.Source > 0:
		return command.Usagef("--late is with the source beside the seeder")
	}
	return nil
}

// links are those of the seeder, the members, one that misbehaves, the S3 with the
// global bucket and a client, where the cell has them.
func (c cell) links() [][]link {
	usual := link{rates: rates{c.Rate, int64(float64(c.Rate) * c.DownRatio)}}
	var links [][]link
	for range c.Members + 1 {
		links = append(links, []link{usual})
	}
	if c.Slow > 1 {
		links[c.Members] = []link{{rates: rates{usual.Up / int64(c.Slow), usual.Down / int64(c.Slow)}}}
	}
	if c.Bad != "" {
		links = append(links, []link{usual})
	}
	if c.Source > 0 {
		store := link{rates: rates{int64(float64(c.Rate) * c.Source), int64(float64(c.Rate) * c.Source)}}
		seeder := &links[0][0]
		if c.Publish == ownInterface {
			store.subnet = 1
			links[0] = append(links[0], store)
		} else {
			// The link of the source is to be the limit, not where it ends.
			seeder.Down = max(seeder.Down, int64(float64(store.Up)*c.DownRatio))
		}
		if c.Publish == sameUplink {
			seeder.Down += usual.Up // of the client, while the object is read
		}
		links = append(links, []link{store})
	}
	if c.Publish != notPublished {
		links = append(links, []link{usual})
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

	seeder  *member
	regions []*member
	bad     []*member // at most one
	store   *member   // with the global bucket's S3: the seeder, where that is beside it
	client  *member   // nil unless it publishes a file

	builds []build
	// small are published before the others, alone, and in mid-way.
	small []build

	processes  []*process
	publishing []*process // of processes
	started    time.Time
	sentFirst  int64
	cpuFirst   cpuTimes
	ownFirst   time.Duration
	result     result
	err        error // of begin and end
}

// build is a file, and where it is distributed the object of its key.
type build struct {
	key, file string
	size      int64
}

// maxBuilds is how many files of different bytes there are.
const maxBuilds = 256

// assign says who of the network's members is what: see links.
func (r *trial) assign(members []*member) {
	r.seeder, r.regions, members = members[0], members[1:r.cell.Members+1], members[r.cell.Members+1:]
	r.store = r.seeder
	if r.cell.Bad != "" {
		r.bad, members = members[:1], members[1:]
	}
	if r.cell.Source > 0 {
		r.store, members = members[0], members[1:]
	}
	if r.cell.Publish != notPublished {
		r.client = members[0]
	}
}

// makeBuilds writes the files into a directory where trials of the same sizes find
// them.
func (r *trial) makeBuilds(dir string) error {
	add := func(to *[]build, key string, seed byte, size int64) error {
		b := build{key, filepath.Join(dir, fmt.Sprintf("build-%d-%d.bin", size, seed)), size}
		*to = append(*to, b)
		return makeFile(b.file, seed, size)
	}
	if err := add(&r.builds, buildKey, 0, r.cell.buildSize()); err != nil {
		return err
	}
	for i := 1; i < r.cell.Builds; i++ {
		if err := add(&r.builds, fmt.Sprintf("build-%d.zip", i), byte(i), r.cell.buildSize()); err != nil {
			return err
		}
	}
	if !r.cell.Urgent {
		return nil
	}
	size := max(1, r.cell.buildSize()/10/mib) * mib
	return errors.Join(add(&r.small, "alone.zip", 1, size), add(&r.small, "urgent.zip", 2, size))
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
	// Everywhere is when each of several builds had landed everywhere.
	Everywhere []float64 `json:"everywhere,omitempty"`
	// Alone and Urgent are how long the small build took before the large one, and
	// in the midst of it; Priority whether it was published with a high priority.
	Alone    float64 `json:"alone,omitempty"`
	Urgent   float64 `json:"urgent,omitempty"`
	Priority bool    `json:"priority,omitempty"`
	// SeederWire is what left the source's link, headers included;
	// SeederPayload what the seeder counted, where it does.
	SeederWire    int64 `json:"seederWire"`
	SeederPayload int64 `json:"seederPayload,omitempty"`
	// Named is how many members had called the bad one bad by the end.
	Named int `json:"named,omitempty"`
	// CPU is the share of all cores that was busy, OwnCPU with what the system's own
	// programs and the switch did.
	CPU    float64 `json:"cpu"`
	OwnCPU float64 `json:"ownCPU"`
	// Memory is each program's peak, the largest of its kind.
	Memory map[string]int64 `json:"memory"`
}

// measure runs a system once.
func measure(ctx context.Context, s system, c cell, o wanOptions) (result, error) {
	if err := fits(c, o.dir); err != nil {
		return result{}, err
	}
	dir, err := os.MkdirTemp(o.dir, "trial-")
	if err != nil {
		return result{}, err
	}
	r := &trial{cell: c, bins: o.bins, dir: dir}
	r.result = result{
		System: s.name(), Cell: c, Size: c.size(), Bound: c.bound().Seconds(),
		Downloaded: make([]float64, c.Members), Memory: make(map[string]int64),
	}
	if err := r.makeBuilds(o.dir); err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(float64(c.Members+4)*1.5*float64(c.bound()))+time.Minute)
	defer cancel()
	r.net, err = newNetwork(ctx, c.links(), c.Latency, o.congestion, dir)
	if err != nil {
		return result{}, err
	}
	r.assign(r.net.members)
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
	processtest.EndAll(r.processes)
	err = errors.Join(err, r.net.Close())
	if err != nil {
		err = fmt.Errorf("%s, %s: %w (logs in %s)", s.name(), c, err, dir)
		if !o.keep {
			err = errors.Join(err, removeData(dir))
		}
		return result{}, err
	}
	if r.result.SeederPayload == 0 {
		r.result.SeederPayload = payloadSaid(r.processes)
	}
	if o.keep {
		return r.result, nil
	}
	return r.result, os.RemoveAll(dir)
}

// removeData leaves only the logs of a trial that has failed: its data may be most of
// the machine's memory.
func removeData(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// makeFile writes bytes that do not compress, the same for the same seed and size.
func makeFile(file string, seed byte, size int64) error {
	if stat, err := os.Stat(file); err == nil && stat.Size() == size {
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, noise(seed), size)
	return errors.Join(err, f.Close())
}

// noise is bytes without end that do not compress, the same for the same seed.
func noise(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// repeats is noise of which each block comes lean times: a file system that compresses has
// room for a lot of it.
type repeats struct {
	from  io.Reader
	block [repeated]byte
	left  []byte
	times int
}

const repeated, lean = 4 << 10, 32

func (r *repeats) Read(b []byte) (int, error) {
	if len(r.left) == 0 {
		if r.times == 0 {
			if _, err := io.ReadFull(r.from, r.block[:]); err != nil {
				return 0, err
			}
			r.times = lean
		}
		r.left = r.block[:]
		r.times--
	}
	n := copy(b, r.left)
	r.left = r.left[n:]
	return n, nil
}

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

// failed is how a command that publishes ended, if it failed.
func (r *trial) failed() error {
	for _, p := range r.publishing {
		if err := p.Alive(); err != nil && p.Err != nil {
			return err
		}
	}
	return nil
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
	r.sentFirst, err = r.seeder.sent()
	r.cpuFirst, cpuErr = readCPU()
	r.err = errors.Join(r.err, err, cpuErr)
	r.ownFirst = r.ownCPU()
	r.started = time.Now()
}

// end stops it, and reads the counters.
func (r *trial) end() {
	r.result.Makespan = time.Since(r.started).Seconds()
	sent, err := r.seeder.sent()
	cpu, cpuErr := readCPU()
	r.err = errors.Join(r.err, err, cpuErr)
	r.result.SeederWire = sent - r.sentFirst
	r.result.CPU = cpu.busySince(r.cpuFirst)
	r.result.OwnCPU = (r.ownCPU() - r.ownFirst).Seconds() / r.result.Makespan / float64(runtime.NumCPU())
	for _, p := range r.processes {
		kind, _, _ := strings.Cut(p.Name, "-")
		r.result.Memory[kind] = max(r.result.Memory[kind], p.Memory("VmHWM"))
	}
}

// ownCPU is how long the trial's programs and the switch have kept cores busy.
func (r *trial) ownCPU() (all time.Duration) {
	for _, p := range append(slices.Clone(r.processes), r.net.joiner) {
		all += p.CPU()
	}
	return all
}

func (r *trial) downloaded(m *member, at time.Time) {
	of := &r.result.Downloaded[m.index-1]
	*of = max(*of, at.Sub(r.started).Seconds())
}

func (r *trial) landed(m *member, at time.Time) {
	if r.result.Landed == nil {
		r.result.Landed = make([]float64, r.cell.Members)
	}
	of := &r.result.Landed[m.index-1]
	*of = max(*of, at.Sub(r.started).Seconds())
}

// payloadSaid finds what the source says it has sent, after its end.
func payloadSaid(processes []*process) int64 {
	for _, p := range processes {
		log, err := os.ReadFile(p.Log)
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
