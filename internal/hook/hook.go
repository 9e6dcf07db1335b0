// Package hook runs the commands that people give a host or a seeder: each in a process
// group of its own, with a time limit, and with the end of what it prints.
package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// MaxOutput bounds what is kept of what a hook prints, in bytes: the last of it.
	MaxOutput = 4 << 10
	// hookGrace is how long a hook may take to end after SIGTERM. The whole process has
	// nine seconds for its end.
	hookGrace = 5 * time.Second
	// outputGrace is how long, after a hook has ended, its output is read that others
	// hold open.
	outputGrace = time.Second
	// endPoll is how often it is looked whether a command of an earlier host has ended.
	endPoll = 20 * time.Millisecond
)

// Environment is this process's, without LANDFALL_…: they are its flags.
func Environment() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LANDFALL_") {
			env = append(env, v)
		}
	}
	return env
}

// Hook is a command to run.
type Hook struct {
	// Args are the program and its arguments, Dir is where it is run, and Env its environment
	// as os/exec has it.
	Args []string
	Dir  string
	Env  []string
	// Limit is how long it may take.
	Limit time.Duration
	// Started is called before the command begins; its error keeps it from it. May be nil.
	Started func(Process) error
}

// Shell are the Args of a line for the shell.
func Shell(line string) []string { return []string{"/bin/sh", "-c", line} }

// waits has a shell wait, before it becomes the command, until Started has returned: it
// ends when the process that has started it does.
const waits = `IFS= read -r go <&3 || exit 125; exec 3<&-; exec "$@"`

// Run runs the command, and returns the end of what it printed. What does not end in time
// is killed with its process group; so is what a command that fails leaves behind. What a
// command that succeeds leaves behind goes on, but may not hold its output open.
func (h Hook) Run(ctx context.Context) (string, error) {
	ready, release, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer release.Close()
	out := new(Tail)
	c := exec.Command("/bin/sh", append([]string{"-c", waits, "landfall-hook"}, h.Args...)...)
	c.Dir, c.Env, c.ExtraFiles, c.Stdout, c.Stderr = h.Dir, h.Env, []*os.File{ready}, out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = outputGrace
	err = c.Start()
	ready.Close()
	if err != nil {
		return "", err
	}
	group := c.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	if h.Started != nil {
		p, err := Identify(group)
		if err == nil {
			err = h.Started(p)
		}
		if err != nil {
			killGroup(group, syscall.SIGKILL)
			<-ended
			return "", err
		}
	}
	if _, err := release.WriteString("go\n"); err != nil {
		killGroup(group, syscall.SIGKILL)
		<-ended
		return "", fmt.Errorf("letting the command begin: %w", err)
	}
	limit := time.NewTimer(h.Limit)
	defer limit.Stop()
	var why error
	select {
	case err = <-ended:
	case <-ctx.Done():
		why = context.Cause(ctx)
	case <-limit.C:
		why = fmt.Errorf("it has not ended in %s, and was killed", h.Limit)
	}
	if why != nil {
		killGroup(group, syscall.SIGTERM)
		grace := time.NewTimer(hookGrace)
		defer grace.Stop()
		select {
		case <-ended:
		case <-grace.C:
			killGroup(group, syscall.SIGKILL)
			<-ended
		}
		err = why
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = errors.New("it ended, and left a process that holds its output open; have that write elsewhere: COMMAND >FILE 2>&1 </dev/null &")
	}
	if err != nil {
		killGroup(group, syscall.SIGKILL)
	}
	return out.String(), err
}

// killGroup signals all of a process group; one that has ended is as good.
func killGroup(group int, sig syscall.Signal) { _ = syscall.Kill(-group, sig) }

// Process is a running command, told from a later one with the same number.
type Process struct {
	PID int `json:"pid,omitempty"`
	// Start is when it was started, as this system says it.
	Start string `json:"start,omitempty"`
}

// Identify finds out which process has a number; os.ErrProcessDone for none.
func Identify(pid int) (Process, error) {
	start, err := startOf(pid)
	if err != nil {
		return Process{}, fmt.Errorf("asking when process %d was started: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// End kills a command with all that it has started, and waits until it is gone. One that
// has ended is left alone, and so is what it has left behind.
func (p Process) End(ctx context.Context, logger *slog.Logger) error {
	if p.PID <= 1 {
		return nil
	}
	for said := false; ; {
		start, err := startOf(p.PID)
		if errors.Is(err, os.ErrProcessDone) || err == nil && start != p.Start {
			return nil
		}
		if err != nil {
			return err
		}
		if !said {
			logger.Warn("killing a command that has outlived its host", "pid", p.PID)
			said = true
		}
		if err := syscall.Kill(-p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		if !retry.Wait(ctx, endPoll) {
			return context.Cause(ctx)
		}
	}
}

// Tail keeps the last MaxOutput bytes that are written to it.
type Tail struct {
	buf  []byte
	more int64 // bytes before
}

func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	if over := len(p) - MaxOutput; over > 0 {
		t.more += int64(over)
		p = p[over:]
	}
	if over := len(t.buf) + len(p) - MaxOutput; over > 0 {
		t.more += int64(over)
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

// String is what was kept, without what would move the cursor of a terminal.
func (t *Tail) String() string {
	text := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, string(bytes.ToValidUTF8(t.buf, nil)))
	if text = strings.TrimSpace(text); t.more > 0 {
		text = fmt.Sprintf("(%d bytes before) %s", t.more, text)
	}
	return text
}
