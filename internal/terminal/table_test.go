package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/mattn/go-runewidth"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/terminal/terminaltest"
)

// inTerminal is what is seen of what show prints in a terminal of so many columns.
func inTerminal(t *testing.T, width int, show func(w io.Writer) error) *terminaltest.Screen {
	t.Helper()
	t.Setenv("TERM", "xterm")
	control, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if err := pty.Setsize(tty, &pty.Winsize{Cols: uint16(width), Rows: 24}); err != nil {
		t.Fatal(err)
	}
	seen, read := terminaltest.NewScreen(width), make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(seen, control) //nolint:errcheck // EIO is how a terminal ends
	}()
	if err := show(tty); err != nil {
		t.Error(err)
	}
	tty.Close()
	<-read
	return seen
}

// long is a page, an execution and an agent whose names and errors are as long as they
// may be.
func long() (*api.Executions, *api.Execution, *api.AgentStatus) {
	key := "releases/" + strings.Repeat("very-long-", 40) + "build-1.2.3.zip"
	reason := "landing " + key + ": " + strings.Repeat("part 12: access denied; ", 20) + "allow it s3:PutObject"
	e := underWay(10)
	e.Key, e.Error = key, reason
	for i := range e.Destinations {
		e.Destinations[i].Agent = fmt.Sprintf("agent-%d-with-a-name-01K0Z4V5QW8TQ0H6Q9M3N7R2XD", i)
		e.Destinations[i].Bucket = fmt.Sprintf("acme-production-builds-of-everything-eu-central-%d", i)
	}
	e.Destinations[3].Error = reason
	e.Destinations[3].Region = "建物建物建物建物建物建物"
	page := &api.Executions{
		Executions: []api.Execution{*e, *ended()}, Next: e.ExecutionID, Loading: true, SkippedItems: 12,
		Unserved: []api.Unserved{{Bucket: e.Destinations[3].Bucket}, {Bucket: e.Destinations[4].Bucket, Error: reason}},
	}
	s := &api.AgentStatus{
		Node: e.Destinations[0].Agent, Region: "region-a", Bucket: e.Destinations[0].Bucket, Version: "v1.2.3-with-much-behind-it",
		Members:  []api.Member{{Name: e.Destinations[0].Agent, Role: "seeder", Region: "region-a", Addr: "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:7946", State: "alive"}},
		BadPeers: []api.BadPeer{{Name: e.Destinations[1].Agent, Addr: "[2001:db8::1]:7071", Reason: "corrupt", Since: began, Until: &began, Times: 12}},
		Builds: []api.Build{
			{Key: key, Size: 1000 * mib, State: api.StateDownloading, VerifiedBytes: 999 * mib, LandedBytes: 900 * mib, DownRate: 1000 * mib, UpRate: 1000 * mib, Error: reason},
			{Key: "build.zip", Size: mib, State: api.StateLanded},
		},
	}
	return page, e, s
}

// longService is a service whose names, reasons and numbers are as long as they may be.
func longService() *api.Service {
	_, e, _ := long()
	counts := api.HostCounts{Total: 100_000, Waiting: 10_000, Ready: 10_000, Switching: 10_000, Healthy: 50_000, Failed: 10_000, Absent: 5_000, Sick: 5_000, Target: 50_000}
	b := &api.ServiceBuild{Key: e.Key, SourceBucket: e.SourceBucket, ExecutionID: e.ExecutionID, Size: 1 << 40}
	d := &api.Deployment{
		DeploymentID: e.ExecutionID, Service: strings.Repeat("service-", 7), State: api.DeploymentPaused, Reason: e.Error, Target: b, From: b, By: "operator-" + strings.Repeat("x", 50),
		Policy: api.Policy{Waves: []string{"0.125%", "12.5%", "100%"}}, Wave: 2, StartedAt: began, Hosts: counts,
	}
	return &api.Service{
		Service: d.Service, Version: 1_767_323_045, Issued: began, By: d.By, Target: b, Stable: b, Hosts: counts, Deployment: d, Error: e.Error,
		Regions: []api.ServiceRegion{
			{Region: strings.Repeat("region-", 9), Open: true, Share: 0.125, Roster: 100_000, Hosts: counts, CountedAt: &began},
			{Region: "region-b", Skipped: true},
		},
		Failures: []api.FailureGroup{{Phase: "check", Error: e.Error, Hosts: 10_000, Example: strings.Repeat("host-", 12), Output: strings.Repeat("a line that goes on and on ", 20) + "\nport 80 is taken\n"}},
	}
}

// TestServiceFrames: the bars of a service fit, too.
func TestServiceFrames(t *testing.T) {
	for _, width := range []int{20, 40, 60, 80, 120} {
		for _, line := range serviceFrame(longService()).lines(width, 10, false) {
			if n := runewidth.StringWidth(line); n >= width {
				t.Errorf("%d columns of %d: %q", n, width, line)
			}
		}
	}
	var text strings.Builder
	l := &serviceLines{lines: lines{w: &text, who: "seeder"}}
	s := longService()
	l.update(s, began)
	l.update(s, began.Add(time.Second))
	if n := strings.Count(text.String(), "\n"); n != 3 {
		t.Errorf("%d lines of what has not changed:\n%s", n, &text)
	}
	l.update(s, began.Add(2*stillEvery))
	s.Regions[0].Hosts.Target++
	l.update(s, began.Add(2*stillEvery+time.Second))
	if n := strings.Count(text.String(), "\n"); n != 3+3+1 || !strings.Contains(text.String(), "50001 of 100000") || !strings.Contains(text.String(), "nothing heard of its hosts") {
		t.Errorf("%d lines:\n%s", n, &text)
	}
}

// TestTablesFit: nothing is wrapped in a terminal of any width, what matters is there,
// and what is short is whole.
func TestTablesFit(t *testing.T) {
	page, e, s := long()
	for _, width := range []int{20, 40, 60, 80, 120, 200} {
		for name, c := range map[string]struct {
			show func(w io.Writer) error
			want []string // from 40 columns on
		}{
			"list":   {func(w io.Writer) error { return Executions(w, page) }, []string{"KEY", "IN_PROGRESS", "1 of 7", "…", "3.zip", "build.zip", "no agent serves", e.ExecutionID, "--after"}},
			"status": {func(w io.Writer) error { return Execution(w, e) }, []string{"BUCKET", "downloading", "…", "-0 ", "-6 ", "100%", "PutObject", "error: landing"}},
			"services": {func(w io.Writer) error {
				return Services(w, &api.Services{Services: []api.Service{*longService()}, Loading: true})
			}, []string{"SERVICE", "FAILED", "…", "still reading"}},
			"service": {func(w io.Writer) error { return Service(w, longService()) }, []string{"REGION", "ON TARGET", "FAILED", "…", "50000", "PutObject", "port 80"}},
			"hosts": {func(w io.Writer) error {
				return Hosts(w, &api.HostViews{All: 100_000, Unanswered: []string{"region-b"}, Hosts: []api.HostView{{Host: "host-" + strings.Repeat("long-", 10) + "1", Region: "region-a", State: api.HostSwitching, Error: longService().Error, SeenAt: &began}}})
			}, []string{"HOST", "switching", "…", "PutObject", "100000", "region-b"}},
			"plan": {func(w io.Writer) error {
				return Plan(w, &api.ServiceDeployAnswer{Deployment: *longService().Deployment, Plan: []api.WavePlan{{Wave: 1, Share: "0.125%", Region: strings.Repeat("region-", 9), Hosts: 50_000}}})
			}, []string{"WAVE", "0.125%", "50000"}},
			"agent": {func(w io.Writer) error { return AgentStatus(w, s) }, []string{"MEMBER", "alive", "BAD PEER", "corrupt", "BUILD", "99%", "build.zip", "downloading", "PutObject"}},
		} {
			seen := inTerminal(t, width, c.show)
			if wrapped := seen.Wrapped(); len(wrapped) > 0 && width >= 40 {
				t.Errorf("%s in %d columns: wrapped: %q in\n%s", name, width, wrapped, seen)
			}
			for _, want := range c.want {
				if width >= 40 && !strings.Contains(seen.String(), want) {
					t.Errorf("%s in %d columns: without %q:\n%s", name, width, want, seen)
				}
			}
		}
	}
}

func TestTableIn(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	_, e, s := long()
	page := &api.Executions{Executions: []api.Execution{*ended(), *e}}
	var text strings.Builder
	for _, width := range []int{40, 80, 120} {
		fmt.Fprintf(&text, "%d columns\n", width)
		for _, show := range []func(w io.Writer) error{
			func(w io.Writer) error { return Executions(w, page) },
			func(w io.Writer) error { return Arrivals(w, ended()) },
			func(w io.Writer) error { return AgentStatus(w, s) },
		} {
			text.WriteString(inTerminal(t, width, show).String())
		}
	}
	golden(t, "tables.txt", text.String())
}

// A pipe gets everything.
func TestPipeIsNotCut(t *testing.T) {
	page, e, s := long()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string)
	go func() {
		all, _ := io.ReadAll(read)
		done <- string(all)
	}()
	for _, err := range []error{Executions(write, page), Execution(write, e), AgentStatus(write, s), write.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	text := <-done
	read.Close()
	if strings.Contains(text, "…") {
		t.Errorf("cut:\n%s", text)
	}
	for _, want := range []string{e.Key, e.ExecutionID, e.Destinations[3].Error, e.Destinations[3].Bucket, s.Members[0].Name, s.Members[0].Addr} {
		if !strings.Contains(text, want) {
			t.Errorf("without %q:\n%s", want, text)
		}
	}
}

// What is wide in a terminal is padded by its width.
func TestWideCells(t *testing.T) {
	var out strings.Builder
	if err := tableIn(&out, 0, []column{{head: "A"}, {head: "B"}}, [][]string{{"建物", "x"}, {"a", "y\x1b"}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for _, line := range lines[:3] {
		if n := runewidth.StringWidth(strings.ReplaceAll(line, "\uFFFD", "")); n != 7 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}
