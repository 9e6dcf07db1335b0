package processtest

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// EndTimeout is how long a process may take to end politely.
	EndTimeout = 10 * time.Second
	// pollInterval is how often Until looks.
	pollInterval = 25 * time.Millisecond
)

// Config says what to run and as whom.
type Config struct {
	Name string
	// Log is the file at whose end the output goes, Dir the working directory; empty
	// for the caller's.
	Log, Dir string
	UID      int // 0 for the caller's own
	// Env is the whole environment; nil for the caller's.
	Env, Args []string
	// OnEnd is called when the process has ended without having been asked to.
	OnEnd func(*Process)
}

// Process is one run of a program.
type Process struct {
	Config
	Cmd *exec.Cmd
	// Stdin stays open until the process has ended.
	Stdin *os.File
	// Ended is closed at its end. After that Err is how it ended.
	Ended chan struct{}
	Err   error
	// began is where in the log this run's lines begin.
	began int64

	mu    sync.Mutex
	asked bool // its end was asked for
}

// Start runs a program. It dies with this process.
func Start(cfg Config) (*Process, error) {
	p := &Process{Config: cfg, Ended: make(chan struct{})}
	log, err := os.OpenFile(cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil {
		p.began = info.Size()
	}
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	p.Stdin = stdin
	p.Cmd = exec.Command(cfg.Args[0], cfg.Args[1:]...)
	p.Cmd.Dir, p.Cmd.Env, p.Cmd.Stdin, p.Cmd.Stdout, p.Cmd.Stderr = cfg.Dir, cfg.Env, in, log, log
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if cfg.UID != 0 {
		p.Cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(cfg.UID), Gid: uint32(cfg.UID), NoSetGroups: true}
	}
	if err := p.Cmd.Start(); err != nil {
		stdin.Close()
		return nil, fmt.Errorf("starting %s: %w", cfg.Name, err)
	}
	go func() {
		p.Err = p.Cmd.Wait()
		stdin.Close()
		p.mu.Lock()
		asked := p.asked
		p.mu.Unlock()
		close(p.Ended)
		if !asked && cfg.OnEnd != nil {
			cfg.OnEnd(p)
		}
	}()
	return p, nil
}

// Alive is an error once the process has ended.
func (p *Process) Alive() error {
	select {
	case <-p.Ended:
		return fmt.Errorf("%s has ended (%w), see %s", p.Name, p.Err, p.Log)
	default:
		return nil
	}
}

// Signal sends one of the signals that end a process.
func (p *Process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = true
	_ = p.Cmd.Process.Signal(sig) // it may have ended
}

// End asks a process to end, in the way of a signal, and waits for it; false when it
// took too long and was killed. A hanging one is woken up.
func (p *Process) End(sig syscall.Signal) bool {
	p.Signal(sig)
	_ = p.Cmd.Process.Signal(syscall.SIGCONT)
	select {
	case <-p.Ended:
		return true
	case <-time.After(EndTimeout):
		_ = p.Cmd.Process.Kill()
		<-p.Ended
		return false
	}
}

// EndAll ends processes side by side by SIGTERM.
func EndAll(processes []*Process) {
	var all sync.WaitGroup
	for _, p := range processes {
		all.Go(func() { p.End(syscall.SIGTERM) })
	}
	all.Wait()
}

// Said is what this run has logged so far.
func (p *Process) Said() string {
	b, err := os.ReadFile(p.Log)
	if err != nil || int64(len(b)) < p.began {
		return ""
	}
	return string(b[p.began:])
}

// WaitFor waits until the process has said text, or has ended without.
func (p *Process) WaitFor(ctx context.Context, text string) error {
	return Until(ctx, fmt.Sprintf("%s to say %q", p.Name, text), func() (bool, error) {
		err := p.Alive() // before the log is read for the last time
		if strings.Contains(p.Said(), text) {
			return true, nil
		}
		return false, err
	})
}

// Answer waits for a whole line that begins with prefix and returns the rest of it.
func (p *Process) Answer(ctx context.Context, prefix string) (rest string, err error) {
	err = Until(ctx, fmt.Sprintf("%s to say %q", p.Name, prefix), func() (bool, error) {
		err := p.Alive()
		for line := range strings.Lines(p.Said()) {
			if text, ok := strings.CutPrefix(line, prefix); ok && strings.HasSuffix(text, "\n") {
				rest = strings.TrimSpace(text)
				return true, nil
			}
		}
		return false, err
	})
	return rest, err
}

// Memory is a line of /proc/PID/status in bytes, such as VmHWM, the most that was
// resident so far; 0 once the process has ended.
func (p *Process) Memory(name string) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// ticksPerSecond is the kernel's USER_HZ, in which /proc tells of CPU time.
const ticksPerSecond = 100

// CPU is how long it has kept cores busy so far; for one that has ended, with what it
// had started and waited for.
func (p *Process) CPU() time.Duration {
	if p.Alive() != nil {
		return p.Cmd.ProcessState.UserTime() + p.Cmd.ProcessState.SystemTime()
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The name, which may hold spaces, is the second field and in brackets; utime and
	// stime are the 14th and 15th.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / ticksPerSecond
}

// Until waits for a condition to hold or to fail.
func Until(ctx context.Context, what string, holds func() (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if done, err := holds(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// Metrics reads the numbers without labels from a Prometheus page; an error where it
// lacks one of the names.
func Metrics(ctx context.Context, client *http.Client, url string, names ...string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	found := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				found[name] = v
			}
		}
	}
	for _, name := range names {
		if _, ok := found[name]; !ok && lines.Err() == nil {
			return nil, fmt.Errorf("%s has no %s", url, name)
		}
	}
	return found, lines.Err()
}
