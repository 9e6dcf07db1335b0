//go:build linux

package chaos

import (
	"encoding/csv"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

var (
	soakFlag = flag.Duration("chaos.soak", 0, "length of TestSoak; 0 leaves it out")
	csvFlag  = flag.String("chaos.csv", "", "file for the samples of TestSoak; empty for one in a temporary directory")
)

const (
	// sampleInterval, soakBuild and soakFault are how often a soak looks at its
	// processes, publishes a build and makes a fault.
	sampleInterval = 10 * time.Second
	soakBuild      = 2 * time.Second
	soakFault      = 15 * time.Second
	// soakKeys are published in turn, so that the disk does not grow.
	soakKeys = 40

	// From a fifth of the time to its end a process may grow by no more than
	// this. Memory: the garbage collector's noise at 200 MiB a minute, and the
	// index of executions, which is a few KiB each.
	soakGoroutines, soakFiles = 80, 60
	soakResident              = 96 << 20
)

// sample is what the members of a role need at most at one moment.
type sample map[string]Levels

// TestSoak runs one world for long, with builds at a steady rate and all kinds of
// faults at a low one: nothing may grow. Only the last agent is ever killed, or
// nobody would live long enough to grow.
func TestSoak(t *testing.T) {
	if *soakFlag == 0 {
		t.Skip("it takes long: make soak")
	}
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; again with: make soak SEED=%d DURATION=%s", seed, seed, *soakFlag)
	file := *csvFlag
	if file == "" {
		file = filepath.Join(t.TempDir(), "soak.csv")
	}
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	table := csv.NewWriter(out)
	defer table.Flush()
	if err := table.Write([]string{"second", "member", "residentBytes", "goroutines", "openFiles", "builds"}); err != nil {
		t.Fatal(err)
	}

	w := Start(t, Options{Agents: []int{1, 1, 2}, Link: 16 << 20, CacheSize: "192MiB", Seed: seed})
	r := &Round{w: w, rng: rand.New(rand.NewPCG(seed, 3)), mortal: w.Agents[len(w.Agents)-1:]}
	var samples []sample
	began := time.Now()
	for n := 0; time.Since(began) < *soakFlag && !t.Failed(); n++ {
		now := began.Add(time.Duration(n) * soakBuild)
		<-time.After(time.Until(now)) // it is a schedule
		w.PutAgain(&Version{Key: fmt.Sprintf("soak/%d.zip", n%soakKeys), Size: r.size(), seed: r.rng.Uint64()})
		r.play(time.Since(began))
		if n%int(soakFault/soakBuild) == 0 {
			r.events = nil
			r.fault()
			for i := range r.events {
				r.events[i].at += time.Since(began)
			}
		}
		if n%int(sampleInterval/soakBuild) == 0 {
			samples = append(samples, w.sample(time.Since(began), table))
		}
	}
	r.play(1 << 62)
	w.Settle()
	report(t, samples)
}

// play does what was due until then.
func (r *Round) play(until time.Duration) {
	left := r.events[:0]
	for _, e := range r.events {
		if e.at > until {
			left = append(left, e)
			continue
		}
		e.do()
	}
	r.events = left
}

// sample asks every member that answers and writes what it says.
func (w *World) sample(at time.Duration, table *csv.Writer) sample {
	s := make(sample)
	for _, m := range w.Members() {
		l, err := m.Levels()
		if err != nil {
			continue // down or hanging just now
		}
		role, _, _ := strings.Cut(m.Name, "-")
		most := s[role]
		s[role] = Levels{max(most.Goroutines, l.Goroutines), max(most.Files, l.Files), max(most.Resident, l.Resident)}
		if err := table.Write([]string{
			strconv.Itoa(int(at.Seconds())), m.Name, strconv.FormatInt(l.Resident, 10),
			strconv.Itoa(l.Goroutines), strconv.Itoa(l.Files), strconv.Itoa(m.cached()),
		}); err != nil {
			w.t().Error(err)
		}
	}
	return s
}

// report prints five moments of each role and fails the test where the last has
// grown too much over the first.
func report(t *testing.T, samples []sample) {
	const moments = 5
	if len(samples) < 2*moments {
		t.Logf("%d samples are too few to tell of growth", len(samples))
		return
	}
	var b strings.Builder
	out := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "role\tof the time\tMiB resident\tgoroutines\topen files\t")
	for _, role := range []string{"seeder", "agent"} {
		var first, last Levels
		for i := 1; i <= moments; i++ {
			// The most of a tenth of the time: one moment may be a busy one.
			var l Levels
			end := i * len(samples) / moments
			for _, s := range samples[end-len(samples)/(2*moments) : end] {
				l = Levels{max(l.Goroutines, s[role].Goroutines), max(l.Files, s[role].Files), max(l.Resident, s[role].Resident)}
			}
			if i == 1 {
				first = l
			}
			last = l
			fmt.Fprintf(out, "%s\t%d/%d\t%d\t%d\t%d\t\n", role, i, moments, l.Resident>>20, l.Goroutines, l.Files)
		}
		if last.Goroutines > first.Goroutines+soakGoroutines || last.Files > first.Files+soakFiles || last.Resident > first.Resident+soakResident {
			t.Errorf("a %s has grown from %+v to %+v", role, first, last)
		}
	}
	out.Flush()
	t.Logf("at most in the tenth of the time before each moment:\n%s", b.String())
}
