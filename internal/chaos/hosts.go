//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/services"
)

const (
	// fleetPort and fleetPeersPort are where agents have hosts' streams, and hand builds out.
	fleetPort, fleetPeersPort = "7090", "7092"
	// service is what all hosts run.
	service = "web"
)

// Host is a machine of a region that runs service: a process and its directory. Its name is
// its number in the world, its zone one of two.
type Host struct {
	Name, Region, Zone, Dir string

	w       *World
	args    []string
	mu      sync.Mutex
	process *processtest.Process // nil when it was told to end
	started time.Time
	stopped bool          // by SIGSTOP
	clock   time.Duration // as Member's
}

// addFleet has agents serve hosts, and the seeder use tables of this world's own.
func (w *World) addFleet() {
	w.t().Helper()
	n := fmt.Sprint(w.n)
	names := services.Names{Services: "Services-" + n, Deployments: "Deployments-" + n, Logs: "Logs-" + n}
	w.Services = services.New(w.dynamo, names, 0)
	if err := w.Services.Create(context.Background(), func(string, bool) {}); err != nil {
		w.t().Fatal(err)
	}
	w.Seeder.args = append(w.Seeder.args, "--services-table", names.Services, "--deployments-table", names.Deployments, "--logs-table", names.Logs)
	for _, a := range w.Agents {
		a.args = append(a.args, "--services-table", names.Services, "--fleet-listen", a.addr.String()+":"+fleetPort, "--fleet-peers", a.addr.String()+":"+fleetPeersPort)
		if w.authority == nil {
			continue
		}
		region := regionOf(a.Bucket)
		copied := filepath.Join(w.dir, a.Name+"-authority")
		if err := errors.Join(os.CopyFS(copied, os.DirFS(w.authority.RegionDir(region))), os.Chmod(filepath.Join(copied, "ca.key"), 0o600), giveTo(a.uid, copied)); err != nil {
			w.t().Fatal(err)
		}
		a.args = append(a.args, "--host-authority", copied)
	}
}

// AddHosts makes hosts in the region of a bucket, by its index, and starts them.
func (w *World) AddHosts(bucket, n int) (hosts []*Host) {
	w.t().Helper()
	for range n {
		w.mu.Lock()
		number := len(w.hosts)
		h := &Host{w: w, Name: fmt.Sprint("host-", number), Region: regionOf(w.Buckets[bucket]), Zone: string(rune('a' + number%2))}
		h.Dir = filepath.Join(w.dir, h.Name)
		w.hosts = append(w.hosts, h)
		w.mu.Unlock()
		scheme := "http://"
		if w.authority != nil {
			scheme = "https://"
		}
		var agents []string
		for _, a := range w.Agents {
			if a.Bucket == w.Buckets[bucket] {
				agents = append(agents, scheme+a.addr.String()+":"+fleetPort)
			}
		}
		h.args = []string{
			w.program("agent"), "host", "--service", service, "--dir", h.Dir, "--agents", strings.Join(agents, ","), "--label", "zone=" + h.Zone,
			"--trust", filepath.Join(w.dir, "seeder.key.pub"), "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--exec", switchHook,
		}
		if w.authority == nil {
			h.args = append(h.args, "--name", h.Name)
		} else {
			h.args = append(h.args, "--tls", "require", "--identity", w.hostIdentity(h))
		}
		if err := os.Mkdir(h.Dir, 0o755); err != nil {
			w.t().Fatal(err)
		}
		if w.options.HostClock != nil {
			h.clock = w.options.HostClock(bucket, number)
		}
		h.Run()
		hosts = append(hosts, h)
	}
	return hosts
}

// hostIdentity makes a certificate that has ended two days ago: the host's first call renews
// it.
func (w *World) hostIdentity(h *Host) string {
	w.t().Helper()
	authority, err := ca.Open(filepath.Join(w.dir, "ca"), past(authorityAge))
	dir := filepath.Join(w.dir, "identity-"+h.Name)
	if err == nil {
		_, err = authority.Write(identity.ID{Cluster: cluster, Kind: identity.Host, Region: h.Region, Name: h.Name}, dir)
	}
	if err != nil {
		w.t().Fatal(err)
	}
	return dir
}

// Run starts the host on what it has.
func (h *Host) Run() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.process != nil {
		return
	}
	p, err := processtest.Start(processtest.Config{Name: h.Name, Log: h.log(), Dir: h.w.dir, Args: h.args, Env: []string{"PATH=" + os.Getenv("PATH"), processtest.ClockEnv(h.clock)}, OnEnd: h.ended})
	if err != nil {
		h.w.owner.Error(err)
		return
	}
	h.process, h.started, h.stopped = p, time.Now(), false
}

func (h *Host) log() string { return filepath.Join(h.w.dir, h.Name+".log") }

func (h *Host) ended(p *processtest.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.process == p {
		h.process = nil
		h.w.owner.Errorf("%s ended by itself: %s\n%s", h.Name, p.Cmd.ProcessState, lastLines(p.Said()))
	}
}

// end ends the host's process, if there is one.
func (h *Host) end(sig syscall.Signal) {
	h.mu.Lock()
	p := h.process
	h.process = nil
	h.mu.Unlock()
	if p != nil {
		p.End(sig)
	}
}

// Kill ends the host by SIGKILL.
func (h *Host) Kill() { h.end(syscall.SIGKILL) }

// Stop hangs the host until Continue; hooks that it has begun go on.
func (h *Host) Stop() { h.pause(syscall.SIGSTOP, true) }

// Continue ends a Stop.
func (h *Host) Continue() { h.pause(syscall.SIGCONT, false) }

func (h *Host) pause(sig syscall.Signal, stopped bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.process != nil && h.stopped != stopped {
		h.stopped = stopped
		_ = h.process.Cmd.Process.Signal(sig) // it may have ended
	}
}

// Upgrade restarts it as the program of this tree.
func (h *Host) Upgrade() {
	h.end(syscall.SIGTERM)
	h.args[0] = host.bin("agent")
	h.Run()
}

func (h *Host) running() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.process != nil
}

// ranSince reports whether it has run all the time since then.
func (h *Host) ranSince(t time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.process != nil && h.started.Before(t)
}

// aSwitch is one as the host's hook has seen it, in nanoseconds since 1970.
type aSwitch struct{ begun, ended int64 }

// switchHook writes switches down, in the directory of the service.
const switchHook = `echo begin $(date +%s%N) >>switches; sleep 0.3; echo end $(date +%s%N) >>switches`

// switches are those that have ended; a hook that was killed has not.
func (h *Host) switches() (all []aSwitch, err error) {
	text, err := os.ReadFile(filepath.Join(h.Dir, service, "switches"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var begun int64
	for line := range strings.Lines(string(text)) {
		word, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		at, errNumber := strconv.ParseInt(number, 10, 64)
		switch {
		case errNumber != nil:
			err = errors.Join(err, errNumber)
		case word == "begin":
			begun = at
		case begun > 0:
			all, begun = append(all, aSwitch{begun, at}), 0
		}
	}
	return all, err
}

// begun is how many switches it has begun.
func (h *Host) begun() int {
	text, err := os.ReadFile(filepath.Join(h.Dir, service, "switches"))
	if err != nil {
		return 0 // it has begun none
	}
	return strings.Count(string(text), "begin ")
}

// Runs is the execution whose release current points to; empty for none.
func (h *Host) Runs() string {
	to, err := os.Readlink(filepath.Join(h.Dir, service, "current"))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// Hosts are all that there ever were.
func (w *World) Hosts() []*Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.hosts)
}
