//go:build linux

package chaos

import (
	"context"
	"crypto/sha1"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/seeder/client"
)

const (
	httpPort, gossipPort, peerPort = "7070", "7946", "6881"
	// askTimeout bounds a question to a member, which may be hanging.
	askTimeout = 5 * time.Second
	// restartPause is waited before a member that could not start is started
	// again, as a supervisor would.
	restartPause = 300 * time.Millisecond
)

// Member is a seeder or an agent: a process, its data and its way to the stores.
type Member struct {
	*client.Client
	// Name is its role and number; Bucket is an agent's.
	Name, Bucket string
	// Dir is its data directory.
	Dir  string
	Gate *Gate

	w      *World
	addr   netip.Addr
	uid    int
	args   []string
	upLine string // is logged once it runs
	stores string // is where it reaches S3 and DynamoDB
	linked bool
	clock  time.Duration // is how far its clock is ahead, with programs of BuildWithClock

	mu      sync.Mutex
	process *processtest.Process // nil when it was told to end
	started time.Time
	stopped bool // by SIGSTOP
	retries int  // failed starts, with a store in trouble
}

// Run starts the member on the data that it has. A start that fails because a
// store is in trouble is tried again, as a supervisor would.
func (m *Member) Run() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.run()
}

func (m *Member) run() {
	if m.process != nil {
		return
	}
	p, err := processtest.Start(processtest.Config{
		Name: m.Name, Log: m.log(), Dir: m.w.dir, UID: m.uid, Args: m.args, Env: m.env(), OnEnd: m.ended,
	})
	if err != nil {
		m.w.owner.Error(err)
		return
	}
	m.process, m.started, m.stopped = p, time.Now(), false
}

// ended is called when the process has ended by itself.
func (m *Member) ended(p *processtest.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != p {
		return
	}
	m.process = nil
	said := p.Said()
	if p.Cmd.ProcessState.ExitCode() == 1 && !strings.Contains(said, m.upLine) && m.Gate.Troubled(m.started) {
		m.retries++
		time.AfterFunc(restartPause, func() {
			if !m.w.ending.Load() {
				m.Run()
			}
		})
		return
	}
	m.w.owner.Errorf("%s ended by itself: %s\n%s", m.Name, p.Cmd.ProcessState, lastLines(said))
}

// take forgets the process, so that its end is no surprise.
func (m *Member) take() *processtest.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.process
	m.process = nil
	return p
}

// Kill ends the member by SIGKILL.
func (m *Member) Kill() {
	if p := m.take(); p != nil {
		p.End(syscall.SIGKILL)
	}
}

// Terminate ends the member by SIGTERM, which must not take long.
func (m *Member) Terminate() {
	if p := m.take(); p != nil && !p.End(syscall.SIGTERM) {
		m.w.owner.Errorf("%s did not end within %s of SIGTERM\n%s", m.Name, processtest.EndTimeout, lastLines(p.Said()))
	}
}

// Upgrade restarts it as the program of this tree.
func (m *Member) Upgrade() {
	m.Terminate()
	m.args[0] = host.bin(filepath.Base(m.args[0]))
	m.Run()
}

// Stop hangs the member until Continue.
func (m *Member) Stop() { m.pause(syscall.SIGSTOP, true) }

// Continue ends a Stop.
func (m *Member) Continue() { m.pause(syscall.SIGCONT, false) }

func (m *Member) pause(sig syscall.Signal, stopped bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil && m.stopped != stopped {
		m.stopped = stopped
		_ = m.process.Cmd.Process.Signal(sig) // it may have ended
	}
}

// Wipe removes all data of a member that does not run.
func (m *Member) Wipe() {
	entries, err := os.ReadDir(m.Dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(m.Dir, e.Name())))
	}
	if err != nil {
		m.w.owner.Error(err)
	}
}

// GossipAddr is where others join through it, as host:port.
func (m *Member) GossipAddr() string { return m.addr.String() + ":" + gossipPort }

// running reports whether it was started and not told to end.
func (m *Member) running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process != nil
}

// Said is what the member has logged since it was started last.
func (m *Member) Said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil {
		return ""
	}
	return m.process.Said()
}

func (m *Member) log() string { return filepath.Join(m.w.dir, m.Name+".log") }

// env is the member's environment.
func (m *Member) env() []string {
	return append(processtest.AWSEnv("http://"+m.stores), processtest.ClockEnv(m.clock), "HOME="+m.Dir, "PATH="+os.Getenv("PATH"), "TMPDIR="+os.TempDir())
}

// Harm harms the member's connections to the stores until its Gate is healed.
func (m *Member) Harm(t Toxic) {
	if err := m.Gate.wire.harm(t); err != nil {
		m.w.owner.Errorf("%s: %s: %v", m.Name, t.Type, err)
	}
}

// Build is an agent's view of an execution; nil when it knows nothing of it, or
// does not answer.
func (m *Member) Build(executionID string) *api.Build {
	s, err := m.AgentStatus(context.Background())
	if err != nil {
		return nil
	}
	for _, b := range s.Builds {
		if b.ExecutionID == executionID {
			return &b
		}
	}
	return nil
}

// Levels are what a process must not lose bit by bit.
type Levels struct {
	Goroutines, Files int
	Resident          int64 // bytes
}

// Levels asks the process.
func (m *Member) Levels() (l Levels, err error) {
	const goroutines, files, resident = "go_goroutines", "process_open_fds", "process_resident_memory_bytes"
	found, err := processtest.Metrics(context.Background(), m.HTTP, m.URL+"/metrics", goroutines, files, resident)
	return Levels{int(found[goroutines]), int(found[files]), int64(found[resident])}, err
}

// cached is how many builds the member's cache holds, whole or not.
func (m *Member) cached() (n int) {
	entries, err := os.ReadDir(filepath.Join(m.Dir, "cache"))
	if err != nil {
		return 0 // it has not made it yet
	}
	for _, e := range entries {
		if len(e.Name()) == 2*sha1.Size {
			n++
		}
	}
	return n
}

// lastLines is the end of a log, for a message.
func lastLines(s string) string {
	const most = 40
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}
