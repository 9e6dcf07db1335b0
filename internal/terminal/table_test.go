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
			"agent":  {func(w io.Writer) error { return AgentStatus(w, s) }, []string{"MEMBER", "alive", "BAD PEER", "corrupt", "BUILD", "99%", "build.zip", "downloading", "PutObject"}},
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
