package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/clustertest"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/terminal/terminaltest"
)

// build writes a file to publish.
func build(t *testing.T, name string) string {
	t.Helper()
	b := make([]byte, 300_000)
	var seed [32]byte
	copy(seed[:], name)
	rand.NewChaCha8(seed).Read(b)
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

var colours = regexp.MustCompile(`\x1b\[[0-9;]*m`)

// check fails the test when what a program showed has broken lines, or escapes that
// are not its own.
func check(t *testing.T, p *terminaltest.Program) {
	t.Helper()
	if wrapped := p.Wrapped(); len(wrapped) > 0 {
		t.Errorf("longer than a line: %q in\n%s", wrapped, p)
	}
	if unknown := p.Unknown(); len(unknown) > 0 {
		t.Errorf("escapes %q in\n%s", unknown, p)
	}
}

// TestPublishInTerminals publishes in terminals of several kinds at the same time.
// One of the two regions has no member until all of them have said so.
func TestPublishInTerminals(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 2, Unserved: 1})
	type kind struct {
		name     string
		width    int
		env      []string
		unserved string // what is said of the region without a member
		coloured bool
		moving   bool
	}
	kinds := []kind{
		{"w40.zip", 40, nil, `region-b\S* +\[ +\] +0% unserved`, true, true},
		{"w80.zip", 80, nil, `region-b\S* +\[ +\] +0% no member serves it`, true, true},
		{"w120.zip", 120, nil, `region-b\S* +\[ +\] +0% no member serves it`, true, true},
		{"nocolor.zip", 80, []string{"NO_COLOR=1"}, `no member serves it`, false, true},
		{"dumb.zip", 80, []string{"TERM=dumb"}, `region-b\S*: unserved: no living member serves this bucket`, false, false},
	}
	var programs []*terminaltest.Program
	for _, k := range kinds {
		programs = append(programs, terminaltest.Start(t, k.width, binary(k.env, "publish", build(t, k.name), "--seeder", c.Seeder.URL)))
	}
	for i, k := range kinds {
		programs[i].Until(k.unserved)
		programs[i].Until(`region-a.* landed`)
	}
	c.AddAgent(1, "late")
	for i, k := range kinds {
		p := programs[i]
		if status := p.Wait(); status != 0 {
			t.Errorf("%s: exit status %d", k.name, status)
		}
		seen := p.String()
		if !regexp.MustCompile(`(?s)region-b.* landed.*\n2 of 2 regions landed in [^\n]*,\s[^\n]*/s\n$`).MatchString(seen) {
			t.Errorf("%s: not how it ended:\n%s", k.name, seen)
		}
		if got := colours.MatchString(p.Raw()); got != k.coloured {
			t.Errorf("%s: colours: %v\n%q", k.name, got, p.Raw())
		}
		if k.coloured && (!strings.Contains(p.Raw(), "\x1b[32mlanded") || strings.Contains(p.Raw(), "\x1b[31m")) {
			t.Errorf("%s: landed is not green, or something is red:\n%q", k.name, p.Raw())
		}
		if got := strings.Contains(p.Raw(), "\x1b"); got != k.moving {
			t.Errorf("%s: escapes: %v\n%q", k.name, got, p.Raw())
		}
		if k.moving {
			check(t, p)
			if strings.Count(seen, "region-b") != 1 {
				t.Errorf("%s: drawn below each other:\n%s", k.name, seen)
			}
		}
	}
}

// TestCtrlC leaves a publish, looks at it again with the command that it said, and
// sees it end.
func TestCtrlC(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1, Unserved: 1})
	publish := terminaltest.Start(t, 120, binary(nil, "publish", build(t, "it's one.zip"), "--seeder", c.Seeder.URL))
	publish.Until("no member serves it")
	publish.Type("\x03")
	if status := publish.Wait(); status != 1 {
		t.Errorf("exit status %d", status)
	}
	check(t, publish)
	said := regexp.MustCompile(`The distribution goes on. Look at it again with:\n  (.*)\n`).FindStringSubmatch(publish.String())
	if want := `seeder status 'it'\''s one.zip' --watch --seeder ` + c.Seeder.URL; said == nil || said[1] != want {
		t.Fatalf("not said: %s in\n%s", want, publish)
	}
	if e, err := c.Seeder.ByKey(t.Context(), "it's one.zip"); err != nil || e.Status != "IN_PROGRESS" {
		t.Errorf("%+v, %v", e, err)
	}

	dir := t.TempDir()
	if err := os.Symlink(os.Args[0], filepath.Join(dir, "seeder")); err != nil {
		t.Fatal(err)
	}
	again := exec.Command("sh", "-c", said[1])
	again.Env = append(binary(nil).Env, "PATH="+dir)
	if sh, err := exec.LookPath("sh"); err == nil {
		again.Path = sh
	}
	watch := terminaltest.Start(t, 60, again)
	watch.Until("no member serves it")
	c.AddAgent(0, "late")
	if status := watch.Wait(); status != 0 || !strings.Contains(watch.String(), "1 of 1 regions landed") {
		t.Errorf("exit status %d\n%s", status, watch)
	}
	check(t, watch)
}

// TestCtrlCInUpload breaks off before there is anything to distribute.
func TestCtrlCInUpload(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1})
	file := build(t, "slow.zip")
	// More than any buffer on the way holds: the upload cannot end at once.
	if err := os.Truncate(file, 4<<30); err != nil {
		t.Fatal(err)
	}
	p := terminaltest.Start(t, 80, binary(nil, "publish", file, "--seeder", c.Seeder.URL))
	p.Until(`uploading slow.zip +\[`)
	p.Type("\x03")
	if status := p.Wait(); status != 1 {
		t.Errorf("exit status %d", status)
	}
	if !strings.Contains(p.Raw(), "broken off and nothing is distributed") {
		t.Errorf("%s", p)
	}
}

// TestPublishInStep publishes a file whose upload stops in the middle, in a terminal and in
// a pipe: how the regions stand is seen meanwhile.
func TestPublishInStep(t *testing.T) {
	const part = manifest.MinPartLength
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1})
	to, err := url.Parse(c.Seeder.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, env := range map[string][]string{"bars.zip": nil, "lines.zip": {"TERM=dumb"}} {
		goesOn := make(chan struct{})
		proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = to.Host
			if r.In.Method == http.MethodPut {
				r.Out.Body = &held{r.In.Body, 3 * part, goesOn}
			}
		}}
		server := httptest.NewServer(proxy)
		defer server.Close()
		file := build(t, name)
		if err := os.Truncate(file, 5*part); err != nil {
			t.Fatal(err)
		}
		p := terminaltest.Start(t, 80, binary(env, "publish", file, "--seeder", server.URL))
		if env == nil {
			p.Until(`uploading ` + name + ` +\[[^\n]*\n` + c.Bucket(0) + ` +\[=[^\n]*downloading[^\n]*\n0 of 1 landed`)
		} else {
			p.Until(c.Bucket(0) + `: downloading`)
		}
		close(goesOn)
		if status := p.Wait(); status != 0 {
			t.Errorf("%s: exit status %d", name, status)
		}
		if env == nil {
			check(t, p)
		}
		seen := p.String()
		for what, n := range map[string]int{"uploading": 1, c.Bucket(0) + " ": 1} {
			if got := strings.Count(seen, what); env == nil && got != n {
				t.Errorf("%s: %q is on the screen %d times:\n%s", name, what, got, seen)
			}
		}
		if !strings.Contains(seen, "1 of 1 regions landed in ") || strings.Count(seen, ": downloading") > 1 {
			t.Errorf("%s:\n%s", name, seen)
		}
	}
}

// held is a body that stops after some bytes, until it goes on.
type held struct {
	io.ReadCloser
	left   int
	goesOn <-chan struct{}
}

func (h *held) Read(p []byte) (int, error) {
	if h.left == 0 {
		<-h.goesOn
		return h.ReadCloser.Read(p)
	}
	n, err := h.ReadCloser.Read(p[:min(len(p), h.left)])
	h.left -= n
	return n, err
}

// TestFailedRegion watches an execution that is cancelled meanwhile.
func TestFailedRegion(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 2, Unserved: 1})
	file := build(t, "build.zip")
	if out, err := binary(nil, "publish", file, "--no-wait", "--seeder", c.Seeder.URL).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "seeder status build.zip --watch --seeder "+c.Seeder.URL) {
		t.Fatalf("%v\n%s", err, out)
	}
	p := terminaltest.Start(t, 40, binary(nil, "status", "build.zip", "--watch", "--seeder", c.Seeder.URL))
	p.Until(`region-a.* landed`)
	p.Until(`region-b.* unserved`)
	e, err := c.Seeder.ByKey(t.Context(), "build.zip")
	if err == nil {
		_, err = c.Seeder.Cancel(t.Context(), e.ExecutionID)
	}
	if err != nil {
		t.Fatal(err)
	}
	if status := p.Wait(); status != 3 {
		t.Errorf("exit status %d\n%s", status, p)
	}
	// Errors are broken by the terminal itself: a command in them is there to
	// be copied.
	flat := strings.Join(strings.Fields(p.Raw()), " ")
	for _, want := range []string{
		c.Bucket(1) + ": cancelled by request", "1 of 2 regions landed in ",
		"build.zip was cancelled before it arrived in " + c.Bucket(1),
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("without %q:\n%s", want, p)
		}
	}
	if !strings.Contains(p.Raw(), "\x1b[31mcancelled\x1b[0m") || !strings.Contains(p.Raw(), "seeder retry build.zip --seeder") {
		t.Errorf("cancelled is not red, or what to do is not said:\n%q", p.Raw())
	}
	// One that has ended is shown at once, with the same status.
	if again := terminaltest.Start(t, 80, binary(nil, "status", "build.zip", "--watch", "--seeder", c.Seeder.URL)); again.Wait() != 3 {
		t.Errorf("another exit status\n%s", again)
	}
}

// TestHostile shows what would take over a terminal.
func TestHostile(t *testing.T) {
	evil := "\x1b]0;pwned\a\x1b[2J\u009b31m\u202e.zip"
	url := pretend(t, api.Execution{
		ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Key: evil, SourceBucket: evil, Status: "FAILED", Phase: "ended",
		Size: 100, StartTime: time.Now(), Error: evil,
		Destinations: []api.Destination{{Bucket: evil, Region: evil, Agent: evil, State: "failed", Error: evil}},
	})
	for _, args := range [][]string{
		{"list"}, {"status"}, {"status", evil}, {"status", evil, "--watch"}, {"status", "none" + evil},
		{"status", evil, "-o", "json"}, {"status", evil, "--watch", "-o", "json"}, {evil}, {"status", "--" + evil},
	} {
		p := terminaltest.Start(t, 120, binary([]string{"NO_COLOR=1"}, append(args, "--seeder", url)...))
		p.Wait()
		if strings.ContainsAny(p.Raw(), "\a\u009b\u202e") || len(p.Unknown()) > 0 || strings.Contains(p.Raw(), "\x1b[2J") {
			t.Errorf("%q: %q", args, p.Raw())
		}
	}
}

// TestErrors: each says what to do next.
func TestErrors(t *testing.T) {
	url := pretend(t, api.Execution{ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Key: "build.zip", Status: "COMPLETED"})
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"statsu", 2, "there is no command \"statsu\"; did you mean `seeder status`?\nTry `seeder --help`."},
		{"nonsense", 2, "there is no command \"nonsense\"\nTry `seeder --help`."},
		{"status build.zip --wathc", 2, "there is no flag --wathc; did you mean `--watch`?\nTry `seeder status --help`."},
		{"publish", 2, "Try `seeder publish --help`."},
		{"publish --priority urgent build.zip", 2, `--priority is "urgent", expected normal or high`},
		{"run", 2, "Try `seeder run --help`."},
		{"list --seeder localhost:7070", 2, `--seeder is "localhost:7070", expected a URL such as http://127.0.0.1:7070`},
		{"status none.zip --seeder " + url, 1, "no execution of \"none.zip\": `seeder list` shows what there is"},
		{"cancel none.zip --seeder " + url, 1, "`seeder list`"},
		{"list --seeder http://127.0.0.1:1", 1, "no seeder answers at http://127.0.0.1:1 (dial tcp 127.0.0.1:1: connect: connection refused); is `seeder run`"},
		{"status --watch --seeder http://127.0.0.1:1", 1, "no seeder answers"},
		{"completion tcsh", 2, "completion takes one of bash, zsh, fish"},
	} {
		var stderr bytes.Buffer
		cmd := binary(nil, strings.Fields(c.args)...)
		cmd.Stderr = &stderr
		_ = cmd.Run() // its status says more
		if got := cmd.ProcessState.ExitCode(); got != c.status || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("seeder %s: exit status %d, want %d with %q:\n%s", c.args, got, c.status, c.want, stderr.String())
		}
	}
}

// TestJSONOutput: one document at the end of a publish, a line for each change of a
// watch.
func TestJSONOutput(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1})
	out, err := binary(nil, "publish", build(t, "build.zip"), "-o", "json", "--seeder", c.Seeder.URL).Output()
	if err != nil {
		t.Fatal(err)
	}
	var answer api.DeployAnswer
	decode(t, out, 1, &answer)
	if answer.Status != "COMPLETED" || answer.Destinations[0].State != api.StateLanded || bytes.Count(out, []byte("\n")) < 10 {
		t.Errorf("%s", out)
	}
	out, err = binary(nil, "status", "build.zip", "--watch", "-o", "json", "--seeder", c.Seeder.URL).Output()
	if err != nil {
		t.Fatal(err)
	}
	var e api.Execution
	decode(t, out, 1, &e)
	if e.ExecutionID != answer.ExecutionID || bytes.Count(out, []byte("\n")) != 1 {
		t.Errorf("%s", out)
	}
	if out, err = binary(nil, "list", "-o", "json", "--seeder", c.Seeder.URL).Output(); err != nil {
		t.Fatal(err)
	}
	var page api.Executions
	decode(t, out, 1, &page)
}

// decode reads n JSON documents, which must be all there is, into v one after the
// other.
func decode(t *testing.T, b []byte, n int, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	for i := range n {
		if err := d.Decode(v); err != nil {
			t.Fatalf("document %d: %v in\n%s", i, err, b)
		}
	}
	if d.More() {
		t.Errorf("more than %d documents:\n%s", n, b)
	}
}
