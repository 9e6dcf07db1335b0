//go:build linux

package chaos

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// endTimeout is how long a process that was told to end may take.
const endTimeout = 10 * time.Second

// process is one run of a program.
type process struct {
	processConfig
	cmd *exec.Cmd
	// began is where in the log this run's lines begin.
	began int64
	ended chan struct{} // closed at its end

	mu    sync.Mutex
	asked bool // its end was asked for
}

// processConfig says what to run and as whom.
type processConfig struct {
	name, log, dir string
	uid            int // 0 for the caller's own
	env, args      []string
	// onEnd is called when the process has ended without having been asked to.
	onEnd func(*process)
}

// startProcess runs a program with its output at the end of a log. It dies with
// this process.
func startProcess(cfg processConfig) (*process, error) {
	p := &process{processConfig: cfg, ended: make(chan struct{})}
	log, err := os.OpenFile(cfg.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil {
		p.began = info.Size()
	}
	p.cmd = exec.Command(cfg.args[0], cfg.args[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = cfg.dir, log, log
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, cfg.env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if cfg.uid != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(cfg.uid), Gid: uint32(cfg.uid), NoSetGroups: true}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", cfg.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in its state
		p.mu.Lock()
		asked := p.asked
		p.mu.Unlock()
		close(p.ended)
		if !asked && cfg.onEnd != nil {
			cfg.onEnd(p)
		}
	}()
	return p, nil
}

// end asks a process to end, in the way of a signal, and waits for it; false when
// it took too long and was killed. A hanging one is woken up.
func (p *process) end(sig syscall.Signal) bool {
	p.signal(sig)
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	select {
	case <-p.ended:
		return true
	case <-time.After(endTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return false
	}
}

// signal sends one of the signals that end a process.
func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = true
	_ = p.cmd.Process.Signal(sig) // it may have ended
}

// said is what this run has logged so far.
func (p *process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil || int64(len(b)) < p.began {
		return ""
	}
	return string(b[p.began:])
}
