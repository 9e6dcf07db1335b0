package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/clustertest"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/terminal/terminaltest"
)

// asAgent makes the test's binary the agent's.
const asAgent = "LANDFALL_TEST_AS_AGENT"

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		main()
		return
	}
	cloudtest.VerifyTestMain(m, &cloud)
}

// binary is the command with arguments, and with more in its environment.
func binary(env []string, args ...string) *exec.Cmd { return terminaltest.Self(asAgent, env, args...) }

// TestWatch looks at an agent in terminals of several kinds while a build comes.
func TestWatch(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1})
	var programs []*terminaltest.Program
	for _, width := range []int{40, 80, 120} {
		programs = append(programs, terminaltest.Start(t, width, binary(nil, "status", "--watch", "--agent", c.Agents[0].URL)))
	}
	plain := terminaltest.Start(t, 120, binary([]string{"NO_COLOR=1"}, "status", "--watch", "--agent", c.Agents[0].URL))
	dumb := terminaltest.Start(t, 120, binary([]string{"TERM=dumb"}, "status", "--watch", "--agent", c.Agents[0].URL))
	programs = append(programs, plain)
	for _, p := range programs {
		p.Until(`no build has come by yet`)
	}
	dumb.Until(`agent-\S+ serves ` + c.Bucket(0))
	c.Publish("build.zip", []byte("a build"))
	for _, p := range programs {
		p.Until(`build.zip +\[=+\] 100% landed\ndown .*members?`)
	}
	dumb.Until(`build.zip: landed`)
	for _, p := range append(programs, dumb) {
		p.Type("\x03")
		if status := p.Wait(); status != 0 {
			t.Errorf("exit status %d\n%s", status, p)
		}
		if len(p.Unknown()) > 0 || p != dumb && len(p.Wrapped()) > 0 {
			t.Errorf("wrapped %q, escapes %q in\n%s", p.Wrapped(), p.Unknown(), p)
		}
		if got, want := strings.Contains(p.Raw(), "\x1b[32m"), p != plain && p != dumb; got != want {
			t.Errorf("colours: %v, want %v\n%q", got, want, p.Raw())
		}
	}
	if strings.Contains(dumb.Raw(), "\x1b") {
		t.Errorf("escapes in a dumb terminal: %q", dumb.Raw())
	}
}

func TestStatusAsJSON(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1})
	out, err := binary(nil, "status", "-o", "json", "--agent", c.Agents[0].URL+"/").Output()
	if err != nil {
		t.Fatal(err)
	}
	var s api.AgentStatus
	if err := json.Unmarshal(out, &s); err != nil || s.Bucket != c.Bucket(0) {
		t.Errorf("%v in\n%s", err, out)
	}
}

// TestErrors: each says what to do next.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"statsu", 2, "did you mean `agent status`?"},
		{"status --wathc", 2, "there is no flag --wathc; did you mean `--watch`?\nTry `agent status --help`."},
		{"status --agent 127.0.0.1:7081", 2, "expected a URL"},
		{"status --agent http://127.0.0.1:1", 1, "no agent answers at http://127.0.0.1:1 (dial tcp 127.0.0.1:1: connect: connection refused); is `agent run`"},
		{"host --dir x --agents http://a --trust k", 2, "Name them with --service NAME,… or --services FILE"},
		{"host --dir x --agents http://a --trust k --services f --exec true", 2, "--exec and --services exclude each other"},
		{"host --dir x --agents http://a --trust k --services f --service web", 2, "--service and --services exclude each other"},
		{"host --dir x --agents http://a --trust k --services /none", 1, "services: open /none: no such file"},
		{"host --dir x --agents http://a --trust k --service web --keep 0", 2, "--keep is 0, expected more than 0"},
		{"status --watch --agent http://127.0.0.1:1", 1, "no agent answers at http://127.0.0.1:1"},
	} {
		var stderr strings.Builder
		cmd := binary(nil, strings.Fields(c.args)...)
		cmd.Stderr = &stderr
		_ = cmd.Run() // its status says more
		if got := cmd.ProcessState.ExitCode(); got != c.status || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("agent %s: exit status %d, want %d with %q:\n%s", c.args, got, c.status, c.want, stderr.String())
		}
	}
}
