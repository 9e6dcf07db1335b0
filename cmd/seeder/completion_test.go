package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/terminal/terminaltest"
)

// shell is where completion is tried: a directory with a file, a seeder that knows
// some executions, and a command that completes as the real one does and
// otherwise says which words it was called with.
type shell struct {
	dir string
	env []string
}

func newShell(t *testing.T, name string) *shell {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed here", name)
	}
	url := pretend(t,
		api.Execution{ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XD", Key: "build:1 one.zip", Status: "IN_PROGRESS", Destinations: []api.Destination{{State: api.StateQueued}}},
		api.Execution{ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XC", Key: "releases/2.zip", Status: "COMPLETED", Destinations: []api.Destination{{State: api.StateLanded}}},
		api.Execution{ExecutionID: "01K0Z4V5QW8TQ0H6Q9M3N7R2XB", Key: "evil\n$(touch pwned)\x1b[2J", Status: "COMPLETED"},
	)
	s := &shell{dir: t.TempDir()}
	home := t.TempDir()
	script := "#!/bin/sh\ncase $1 in complete|completion) exec " + os.Args[0] + " \"$@\";; esac\nprintf '<%s>' \"$@\"\necho\n"
	if err := os.WriteFile(filepath.Join(s.dir, "seeder"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "file one.zip"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.env = append(binary(nil).Env, "LANDFALL_SEEDER="+url, "HOME="+home, "INPUTRC=/dev/null", "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home,
		"LC_ALL=C.UTF-8", "PATH="+s.dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return s
}

func (s *shell) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	c.Dir, c.Env = s.dir, s.env
	return c
}

// typed are lines with a Tab at their ends, and the words that they then are.
var typed = []struct{ line, words string }{
	{"seeder stat\t", "<status>"},
	{"seeder status --wa\t", "<status><--watch>"},
	{"seeder status build.zip --wa\t", "<status><build.zip><--watch>"},
	{"seeder status -o j\t", "<status><-o><json>"},
	{"seeder status --output=j\t", "<status><--output=json>"},
	{"seeder status rel\t", "<status><releases/2.zip>"},
	{"seeder cancel \t", "<cancel><build:1 one.zip>"},
	{"seeder status bui\t", "<status><build:1 one.zip>"},
	{"seeder status build:1\t", "<status><build:1 one.zip>"},
	{"seeder publish fi\t", "<publish><file one.zip>"},
	{"seeder completion zs\t", "<completion><zsh>"},
	{"seeder run --log-level de\t", "<run><--log-level><debug>"},
}

// interactive types the lines into a shell.
func (s *shell) interactive(t *testing.T, c *exec.Cmd, setup string) {
	t.Helper()
	p := terminaltest.Start(t, 300, c)
	p.Type(setup + "\r")
	p.Until(`(?m)^ready>$`)
	for i, l := range typed {
		if strings.HasPrefix(l.words, "<completion>") {
			continue // that one is run
		}
		p.Type(l.line + "\r")
		p.Until(fmt.Sprintf(`(?s)(%s.*){%d}\nready>\n$`, regexp.QuoteMeta(l.words), 1+seenBefore(i, l.words)))
	}
	// What stands on the line is not run to complete it.
	p.Type("seeder status $(touch pwned) --wa\t")
	p.Until(`\) --watch ?\n$`)
	if _, err := os.Stat(filepath.Join(s.dir, "pwned")); err == nil {
		t.Error("completing a line ran what stands on it")
	}
}

// seenBefore is how often the words were printed for earlier lines.
func seenBefore(i int, words string) int {
	n := 0
	for _, l := range typed[:i] {
		if l.words == words {
			n++
		}
	}
	return n
}

func TestBash(t *testing.T) {
	s := newShell(t, "bash")
	s.interactive(t, s.command("bash", "--norc", "--noprofile", "-i"), `PS1='ready>'; bind 'set enable-bracketed-paste off'; source <(seeder completion bash)`)
}

func TestZsh(t *testing.T) {
	s := newShell(t, "zsh")
	s.interactive(t, s.command("zsh", "-f", "-i"), `unsetopt PROMPT_SP PROMPT_CR; PS1='ready>'; autoload -Uz compinit; compinit -D -u; source <(seeder completion zsh)`)
}

func TestFish(t *testing.T) {
	s := newShell(t, "fish")
	script := "seeder completion fish | source\n"
	for _, l := range typed {
		script += "complete --do-complete='" + strings.TrimSuffix(l.line, "\t") + "'\necho end\n"
	}
	out, err := s.command("fish", "-N", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	answers := strings.Split(string(out), "end\n")
	for i, l := range typed {
		var offered []string
		for line := range strings.Lines(answers[i]) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			offered = append(offered, strings.ReplaceAll(word, `\`, ""))
		}
		want := l.words[strings.LastIndex(l.words, "<")+1 : len(l.words)-1]
		if !slices.Equal(offered, []string{want}) {
			t.Errorf("%q: %q, want %q", l.line, offered, want)
		}
	}
}

// TestKeysOfASilentSeeder: a shell does not hang on a seeder that does not answer.
func TestKeysOfASilentSeeder(t *testing.T) {
	end := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	t.Cleanup(func() { close(end); s.Close() })
	for _, url := range []string{s.URL, "http://127.0.0.1:1", "nonsense:"} {
		out, err := binary(nil, "complete", "status", "--seeder", url, "").Output()
		if err != nil || string(out) != "words\n" {
			t.Errorf("%s: %v: %q", url, err, out)
		}
	}
}
