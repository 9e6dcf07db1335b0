//go:build linux

package processtest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	ended := make(chan *Process, 1)
	run := func(script string) *Process {
		t.Helper()
		p, err := Start(Config{Name: "sh", Log: log, Args: []string{"sh", "-c", script}, OnEnd: func(p *Process) { ended <- p }})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := run("echo answer is 42; exit 3")
	if got, err := first.Answer(t.Context(), "answer is "); got != "42" || err != nil {
		t.Errorf("answered %q, %v", got, err)
	}
	if p := <-ended; p != first || p.Alive() == nil || p.Cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("ended: %+v", p)
	}
	// What was said by a run before does not count, and nothing is waited for that
	// cannot come any more.
	second := run("read line; echo got $line")
	if err := second.Alive(); err != nil || second.Said() != "" || second.Memory("VmHWM") == 0 {
		t.Errorf("%v, said %q, %d bytes", err, second.Said(), second.Memory("VmHWM"))
	}
	if _, err := second.Stdin.WriteString("it\n"); err != nil {
		t.Fatal(err)
	}
	if err := second.WaitFor(t.Context(), "got it"); err != nil {
		t.Error(err)
	}
	if err := second.WaitFor(t.Context(), "answer"); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("waiting for what does not come: %v", err)
	}
	<-ended
	busy := run("while :; do :; done")
	err := Until(t.Context(), "CPU time", func() (bool, error) { return busy.CPU() > 0, busy.Alive() })
	if spent := busy.CPU(); err != nil || !busy.End(syscall.SIGKILL) || busy.CPU() < spent {
		t.Errorf("%v, CPU time of a running and an ended process: %s, %s", err, spent, busy.CPU())
	}
	third := run("read line")
	if !third.End(syscall.SIGTERM) || third.Err == nil {
		t.Errorf("the end: %v", third.Err)
	}
	select {
	case <-ended:
		t.Error("an end that was asked for is told")
	default:
	}
	if _, err := Start(Config{Name: "nothing", Log: log, Args: []string{filepath.Join(t.TempDir(), "nothing")}}); err == nil {
		t.Error("what does not exist was started")
	}
}

func TestUntil(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := Until(ctx, "the moon", func() (bool, error) { cancel(); return false, nil })
	if err == nil || !strings.Contains(err.Error(), "waiting for the moon") {
		t.Errorf("when nothing comes: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("# HELP a b\na 3\nb{c=\"d\"} 4\n"))
	}))
	defer s.Close()
	defer s.Client().CloseIdleConnections()
	if found, err := Metrics(t.Context(), s.Client(), s.URL, "a"); err != nil || found["a"] != 3 {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := Metrics(t.Context(), s.Client(), s.URL, "a", "e"); err == nil || !strings.Contains(err.Error(), "has no e") {
		t.Errorf("what is missing: %v", err)
	}
}
