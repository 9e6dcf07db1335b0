package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/clustertest"
	"github.com/landfall-dist/landfall/internal/command/commandtest"
	"github.com/landfall-dist/landfall/internal/limits"
)

// A host's heap is kept small, unless its environment says how large it may be.
func TestCollectOften(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	for gogc, want := range map[string]int{"": hostGCPercent, "100": 100} {
		t.Setenv("GOGC", gogc)
		debug.SetGCPercent(100)
		collectOften()
		if got := debug.SetGCPercent(100); got != want {
			t.Errorf("GOGC=%q: %d percent, want %d", gogc, got, want)
		}
	}
}

// hostProcess is `agent host` as a process.
type hostProcess struct {
	*commandtest.Daemon
	t           *testing.T
	http, peers string
}

var upLine = regexp.MustCompile(`peers=(\S+) http=(\S+)`)

func startHost(t *testing.T, c *clustertest.Cluster, name string, more ...string) *hostProcess {
	t.Helper()
	h := &hostProcess{t: t, Daemon: commandtest.Run(t, binary(nil, append([]string{"host", "--name", name, "--dir", t.TempDir(),
		"--agents", c.FleetURL(0), "--trust", c.Key(), "--listen", "127.0.0.1:0"}, more...)...))}
	said := upLine.FindStringSubmatch(h.Until("host is up"))
	h.peers, h.http = said[1], "http://"+said[2]
	return h
}

// get asks the host's HTTP side, under a name; empty for its address.
func (h *hostProcess) get(path, name string) (code int, body []byte) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, h.http+path, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	r.Host = name
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, body
}

// metric is a sample of the host's.
func (h *hostProcess) metric(name string) float64 {
	h.t.Helper()
	_, body := h.get("/metrics", "")
	for line := range strings.Lines(string(body)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				h.t.Fatal(err)
			}
			return n
		}
	}
	h.t.Fatalf("no %s in\n%s", name, body)
	return 0
}

// rates fails the test unless the host's limits are these, in bytes/s.
func (h *hostProcess) rates(upload, download float64) {
	h.t.Helper()
	const of = `landfall_rate_limit_bytes_per_second{direction="%s"}`
	if up, down := h.metric(fmt.Sprintf(of, "upload")), h.metric(fmt.Sprintf(of, "download")); up != upload || down != download {
		h.t.Errorf("limits are %.0f up and %.0f down, want %.0f and %.0f", up, down, upload, download)
	}
}

// waited is how many seconds transfers have waited for the limit of a direction.
func (h *hostProcess) waited(direction string) float64 {
	h.t.Helper()
	return h.metric(`landfall_rate_limit_wait_seconds_total{direction="` + direction + `"}`)
}

// limit has the host read its limits again.
func (h *hostProcess) limit(file, text string) {
	h.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.Signal(syscall.SIGHUP)
	h.Until("by=SIGHUP")
}

// build is the one that the host has; nil for none.
func (h *hostProcess) build() *api.HostBuild {
	h.t.Helper()
	_, body := h.get("/status", "")
	var s api.HostStatus
	if err := json.Unmarshal(body, &s); err != nil {
		h.t.Fatal(err)
	}
	if len(s.Builds) == 0 {
		return nil
	}
	return &s.Builds[0]
}

func (h *hostProcess) whole() bool {
	h.t.Helper()
	b := h.build()
	return b != nil && b.Whole
}

// door is an address that leads to another one, as a NAT's.
type door struct {
	net.Listener
	to     atomic.Pointer[string] // nil for nowhere
	passed atomic.Int64           // bytes out of it
}

func newDoor(t *testing.T) *door {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { d.pass(in) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return d
}

func (d *door) pass(in net.Conn) {
	defer in.Close()
	to := d.to.Load()
	if to == nil {
		return
	}
	out, err := net.Dial("tcp", *to)
	if err != nil {
		return
	}
	defer out.Close()
	var both sync.WaitGroup
	both.Go(func() {
		defer out.Close() // who reads from it ends, too
		_, _ = io.Copy(out, in)
	})
	defer both.Wait()
	defer in.Close()
	buf := make([]byte, 32<<10)
	for r := bufio.NewReader(out); ; {
		n, err := r.Read(buf)
		d.passed.Add(int64(n))
		if _, failed := in.Write(buf[:n]); err != nil || failed != nil {
			return
		}
	}
}

func (d *door) port() string {
	return strconv.Itoa(d.Addr().(*net.TCPAddr).Port)
}

// TestHostFlags runs two hosts as processes. The first downloads as slowly as its --limits-file
// says, then as its flags do; it uploads to the second, which reaches it by --advertise alone, as
// slowly as its flag says. Its one service is of --services, and has a directory and a hook of its
// own; its HTTP side answers to --allow-hosts.
func TestHostFlags(t *testing.T) {
	const size = 12 << 20 // a minute and a half by the least rate
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1, Fleet: true})
	content := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{7}).Read(content); err != nil {
		t.Fatal(err)
	}
	c.Publish("build.bin", content)

	front, wall := newDoor(t), newDoor(t)
	dir := t.TempDir()
	services := filepath.Join(dir, "services.json")
	if err := os.WriteFile(services, []byte(`{"services": [{"service": "web", "dir": "`+dir+`", "exec": "echo $LANDFALL_SERVICE >ran"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	limited := limitsFile(t, `{"downloadRate": "1Mbit"}`)
	first := startHost(t, c, "first", "--services", services, "--upload-rate", "1Mbit", "--download-rate", "1Gbit", "--limits-file", limited,
		"--advertise", front.port(), "--allow-hosts", "first.example")
	front.to.Store(&first.peers)
	first.rates(limits.MinRate, limits.MinRate)
	for name, want := range map[string]int{"first.example": http.StatusOK, "other.example": http.StatusMisdirectedRequest} {
		if code, body := first.get("/healthz", name); code != want {
			t.Errorf("as %s it answers %d %s, want %d", name, code, body, want)
		}
	}
	c.Until("the agent has the host", func() bool {
		s, err := c.Agents[0].AgentStatus(t.Context())
		return err == nil && s.Fleet != nil && s.Fleet.Connected == 1
	})
	if _, err := c.Seeder.DeployService(t.Context(), "web", api.ServiceDeployRequest{Key: "build.bin", Policy: api.Policy{Waves: []string{"100%"}, Bake: "0s"}}); err != nil {
		t.Fatal(err)
	}
	c.Until("downloads wait", func() bool { return first.waited("download") > 2 })
	if b := first.build(); b == nil || b.Whole || b.Bytes >= size {
		t.Errorf("it has %+v", b)
	}
	first.limit(limited, `{}`) // which leaves what the flags say
	first.rates(limits.MinRate, 125_000_000)
	c.Until("the first host has the build", first.whole)
	ran := filepath.Join(dir, "web", "ran")
	c.Until("the first host has switched", func() bool { text, err := os.ReadFile(ran); return err == nil && string(text) == "web\n" })

	// The agent gives next to nothing from here on, and the first host does not reach the second.
	rate := api.Rate(limits.MinRate)
	if _, err := c.Agents[0].SetLimits(t.Context(), api.LimitsChange{UploadRate: &rate}); err != nil {
		t.Fatal(err)
	}
	second := startHost(t, c, "second", "--service", "web", "--upload-rate", "200MB", "--download-rate", "100MB", "--advertise", wall.port())
	second.rates(200_000_000, 100_000_000)
	c.Until("uploads wait", func() bool { return first.waited("upload") > 2 && front.passed.Load() > limits.MinRate })
	if second.whole() {
		t.Error("the second host has the build already")
	}
	first.limit(limited, `{"uploadRate": 0}`)
	first.rates(0, 125_000_000)
	c.Until("the second host has the build", second.whole)
	if b := first.build(); b == nil || b.UploadedBytes < 1<<20 || front.passed.Load() < 1<<20 {
		t.Errorf("the first host has %+v; through its door went %d bytes of %d", b, front.passed.Load(), size)
	}
	first.Told()
	second.Told()
}
