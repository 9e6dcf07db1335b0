package host

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/release"
)

// write leaves a file of services.
func write(t *testing.T, content string) (name string) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "services.json")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestReadServices(t *testing.T) {
	names, hooks, err := ReadServices(write(t, `{"services": [
		{"service": "worker"},
		{"service": "web", "dir": "/srv/web", "before": "drain", "exec": "restart", "check": "http://127.0.0.1/", "unpack": true, "keep": 5, "hookTimeout": "90s", "checkTimeout": "24h"}
	]}`))
	want := map[string]release.Config{
		"worker": {},
		"web":    {Dir: "/srv/web", Before: "drain", Exec: "restart", Check: "http://127.0.0.1/", Unpack: true, Keep: 5, HookTimeout: 90 * time.Second, CheckTimeout: 24 * time.Hour},
	}
	if err != nil || !slices.Equal(names, []string{"worker", "web"}) || !maps.Equal(hooks, want) {
		t.Errorf("%q %+v %v", names, hooks, err)
	}
	page, err := os.ReadFile("../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "\n```json\n")
	block, _, _ = strings.Cut(block, "```")
	if names, hooks, err := ReadServices(write(t, block)); err != nil || len(names) != 2 || hooks["worker"].HookTimeout != 10*time.Minute {
		t.Errorf("that of docs/fleet.md: %q %+v %v", names, hooks, err)
	}
	many := func(n int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`{"service": "s%d"}`, i))
		}
		return `{"services": [` + strings.Join(all, ",") + `]}`
	}
	if names, _, err := ReadServices(write(t, many(hostwire.MaxServices))); err != nil || len(names) != hostwire.MaxServices {
		t.Errorf("as many as a host may have: %d, %v", len(names), err)
	}
	of := func(rest string) string { return `{"services": [{"service": "web"` + rest + `}]}` }
	if _, _, err := ReadServices(write(t, of("")+strings.Repeat(" ", maxServicesFile-len(of(""))))); err != nil {
		t.Errorf("as long as a file may be: %v", err)
	}
	for content, why := range map[string]string{
		"":                                 "EOF",
		`[]`:                               "cannot unmarshal",
		of("") + "{}":                      "something follows",
		many(hostwire.MaxServices + 1):     "has 17, a host may have 16",
		of(`}, {"service": "web"`):         `"web" twice`,
		`{"services": [{}]}`:               "number 1",
		`{"services": [{"service":".x"}]}`: "no dot at the beginning",
		of(`, "exce": "restart"`):          `unknown field "exce"`,
		of(`, "dir": "srv"`):               "must be absolute",
		of(`, "keep": 0`):                  "keep is 0",
		of(`, "keep": 1001`):               "at most 1000",
		of(`, "hookTimeout": "soon"`):      `hookTimeout is "soon"`,
		of(`, "checkTimeout": "0s"`):       `checkTimeout is "0s"`,
		of(`, "checkTimeout": "24h1s"`):    "at most 24h0m0s",
		of(`, "exec": "` + strings.Repeat("x", maxServicesFile) + `"`): "is over 131072 bytes",
		of("") + strings.Repeat(" ", maxServicesFile):                  "is over 131072 bytes",
	} {
		if _, _, err := ReadServices(write(t, content)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.60q: %v, want %q", content, err, why)
		}
	}
	if _, _, err := ReadServices(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there is read")
	}
}

// TestServices: each service of a host has a directory and hooks of its own, and one whose
// goal has not come, or whose build is bad, holds up no other.
func TestServices(t *testing.T) {
	a := newAgent(t)
	dir, elsewhere := t.TempDir(), t.TempDir()
	names, hooks, err := ReadServices(write(t, `{"services": [
		{"service": "web", "exec": "echo $LANDFALL_SERVICE >ran", "unpack": true},
		{"service": "worker", "dir": "`+elsewhere+`", "exec": "echo $LANDFALL_SERVICE >ran", "check": "[ -e ran ]"},
		{"service": "sick", "exec": "exit 3"},
		{"service": "later"}
	]}`))
	if err != nil {
		t.Fatal(err)
	}
	h := startHost(t, dir, func(c *Config) { c.Services, c.HooksOf = names, hooks }, a.url)
	b := newBuild(t, 1)
	a.has(b)
	for _, service := range []string{"web", "worker", "sick"} {
		g := goalOf(1, b, nil)
		g.Service = service
		a.say(sign(t, g, key), b.recipe)
	}
	last := func(service string) (s hostwire.ServiceState) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, said := range a.states {
			if said.Service == service {
				s = said
			}
		}
		return s
	}
	for service, state := range map[string]string{"web": goal.Healthy, "worker": goal.Healthy, "sick": goal.Failed} {
		until(t, service+" holds it", func() bool { return last(service).Wants == b.goal.ExecutionID })
		a.say(&hostwire.Leave{Service: service, Version: 1, Seconds: 30})
		until(t, service+" is "+state, func() bool { return last(service).State == state })
	}
	for at, want := range map[string]string{
		filepath.Join(dir, "web", "current", "version"): "build 1", filepath.Join(dir, "web", "ran"): "web\n",
		filepath.Join(elsewhere, "worker", "current", "web-1.zip"): string(b.content), filepath.Join(elsewhere, "worker", "ran"): "worker\n",
	} {
		if got, err := os.ReadFile(at); err != nil || string(got) != want {
			t.Errorf("%s is %.40q, %v, want %.40q", at, got, err, want)
		}
	}
	for _, path := range []string{filepath.Join(dir, "worker"), filepath.Join(elsewhere, ".landfall"), filepath.Join(dir, "sick", "current")} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("there is %s", path)
		}
	}
	if code, body := h.get(t, "/readyz"); code != 503 || !strings.Contains(body, "exec: exit status 3") || !strings.Contains(body, "service later: no goal has come yet") || strings.Contains(body, "service web") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if st := h.Status(); len(st.Services) != 4 || st.Services[1].Service != "worker" || st.Services[1].State != goal.Healthy || len(st.Builds) != 1 {
		t.Errorf("%+v", st)
	}
}
