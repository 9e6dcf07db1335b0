package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// raced: the race detector is at work.
var raced bool

// mostMemory bounds what an idle stream may cost an agent, in bytes.
const mostMemory = 64 << 10

// asHosts has the test's own binary be many hosts, so that a measurement sees the agent's
// side alone.
const asHosts = "LANDFALL_TEST_AS_HOSTS"

type manyHosts struct {
	URL   string
	N     int
	Files []identity.Files // of each; none without TLS
}

func TestMain(m *testing.M) {
	if os.Getenv(asHosts) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := beHosts(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// beHosts opens streams, says so, and reads until its input ends.
func beHosts() error {
	var h manyHosts
	text, err := os.ReadFile(os.Getenv(asHosts))
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var failed error
	var group sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range h.N {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			cfg := hostwire.DialConfig{URL: h.URL, Hello: &hostwire.Hello{
				Version: 1, Host: fmt.Sprintf("host-%d", i), Start: start, PeerPort: 7000,
				Services: []hostwire.ServiceState{{Service: "web", State: goal.Healthy, Running: stable}},
			}}
			var s *hostwire.Stream
			var err error
			if h.Files != nil {
				var own *identity.Source
				if own, err = identity.Open(h.Files[i], nil); err == nil {
					cfg.TLS = hostwire.ClientTLS(own)
				}
			}
			if err == nil {
				s, err = hostwire.Dial(context.Background(), cfg)
			}
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
				return
			}
			go func() {
				for {
					if _, err := s.Receive(); err != nil {
						return
					}
				}
			}()
		})
	}
	group.Wait()
	if failed != nil {
		return failed
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// memoryOf returns what each of n idle streams costs this process, in bytes that are in use
// of heap and stacks, and in bytes that the process has of the system (0 where it can't say).
func memoryOf(t testing.TB, n int, tls bool) (used, resident int64) {
	t.Helper()
	var most syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &most); err != nil {
		t.Fatal(err)
	}
	if most.Cur < uint64(n+100) {
		t.Skipf("%d files may be open, %d streams need more", most.Cur, n)
	}
	hosts := manyHosts{N: n}
	var own *identity.Source
	if tls {
		cluster := identitytest.New(t, "prod", nil)
		own = cluster.Source(t, cluster.Agent("region-a", "agent-1"))
		for i := range n {
			hosts.Files = append(hosts.Files, cluster.Files(t, cluster.Host("region-a", fmt.Sprintf("host-%d", i))))
		}
	}
	s := newServed(t, func(c *Config) { c.Identity, c.MaxHosts = own, n })
	s.goal(1, 0)
	hosts.URL = s.url
	text, err := json.Marshal(hosts)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "hosts.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	before, residentBefore := inUse()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), asHosts+"="+file)
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); child.Wait() }() //nolint:errcheck // it has done its work
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	s.wait("all have come", func(c goal.Counts) bool { return c.Hosts == n })
	used, resident = inUse()
	return (used - before) / int64(n), (resident - residentBefore) / int64(n)
}

func inUse() (used, resident int64) {
	// Stacks shrink by half when they are looked at, what is pooled is freed at the second look.
	for range 5 {
		debug.FreeOSMemory()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, pages int64
		if _, err := fmt.Sscan(string(text), &size, &pages); err == nil {
			resident = pages * int64(os.Getpagesize())
		}
	}
	return int64(m.HeapAlloc + m.StackInuse), resident
}

func TestMemoryOfIdleStreams(t *testing.T) {
	for name, tls := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			used, resident := memoryOf(t, 400, tls)
			t.Logf("%d bytes a stream, %d of the system's", used, resident)
			if used > mostMemory && !raced {
				t.Errorf("%d bytes a stream, at most %d", used, mostMemory)
			}
		})
	}
}

// BenchmarkIdleStreams shows what each of 5,000 idle streams costs.
func BenchmarkIdleStreams(b *testing.B) {
	for name, tls := range map[string]bool{"plain": false, "TLS": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				used, resident := memoryOf(b, 5000, tls)
				b.ReportMetric(float64(used), "B/stream")
				b.ReportMetric(float64(resident), "resident-B/stream")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
