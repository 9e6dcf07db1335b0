package cmd_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
)

// TestFleet runs docs/fleet.md as it stands, with the demo's ten hosts: they switch wave by
// wave to a second build, and back to the first without fetching a byte; one more joins them
// as a process of its own.
func TestFleet(t *testing.T) {
	t.Parallel()
	if !inside(t) {
		return
	}
	dir, build := workplace(t)
	blocks := blocksOf(t, filepath.Join(root, "docs", "fleet.md"))
	lines, another := blocks["On this machine"], blocks["One more host, as a process of its own"]
	back := slices.Index(lines, "bin/seeder rollback web")
	if len(lines) < 3 || back < 1 || !strings.HasPrefix(lines[0], "bin/seeder deploy web hello-1.0.0.zip") || len(another) != 2 {
		t.Fatalf("docs/fleet.md has other lines than this test knows: %q, %q", lines, another)
	}
	// The README has some of these lines, in this order, and no others.
	some := blocksOf(t, filepath.Join(root, "README.md"))["And on to the machines"]
	at := 0
	for _, line := range some {
		i := slices.Index(lines[at:], line)
		if i < 0 {
			t.Fatalf("README.md has %q, docs/fleet.md does not, or earlier", line)
		}
		at += i + 1
	}
	if len(some) == 0 {
		t.Error("nothing to run: has a heading of the README changed?")
	}
	demo := startDemo(t, dir, build, "--hosts", "5")
	for _, line := range []string{lines[0], "bin/seeder rollback web"} {
		if program, _, _ := strings.Cut(line, " hello"); !strings.Contains(demo.Said(), program) {
			t.Errorf("the demo does not print %q:\n%s", program, demo.Said())
		}
	}
	run(t, dir, lines[:1])
	first := current(t, dir)
	run(t, dir, lines[1:back])
	if second := current(t, dir); second == first {
		t.Errorf("after the second deployment the hosts run %s, as before", second)
	}
	if text, err := os.ReadFile(filepath.Join(dir, ".landfall/hosts/region-b-5/web/current/hello")); err != nil || !strings.Contains(string(text), "version 2.0.0") {
		t.Errorf("a host runs %.100q, %v", text, err)
	}
	before := fetched(t)
	run(t, dir, lines[back:])
	if got := current(t, dir); got != first {
		t.Errorf("rolled back, the hosts run %s, want %s", got, first)
	}
	after := fetched(t)
	for i := range before {
		if id := filepath.Base(first); before[i][id] == 0 || after[i][id] != before[i][id] {
			t.Errorf("host %d had fetched %d bytes of the stable build, and has fetched %d after the roll-back", i, before[i][id], after[i][id])
		}
	}

	t.Cleanup(func() {
		text, err := os.ReadFile(filepath.Join(dir, "srv/web/pid"))
		if pid, errPID := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && errPID == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	run(t, dir, append(another, "for i in $(seq 1800); do bin/seeder hosts web | grep -q 'extra .*healthy' && break; sleep 0.05; done", "bin/seeder hosts web | grep 'extra .*healthy'"))
	// The daemon has ended with the shell, the service goes on.
	if code, text := ask(t, "http://127.0.0.1:8080/"); code != http.StatusOK || !strings.Contains(text, "hello from a build") {
		t.Errorf("the service answers %d %q", code, text)
	}
	interrupt(t, demo)
}

// current is what current of each of the ten hosts points to: the same.
func current(t *testing.T, dir string) string {
	t.Helper()
	links, err := filepath.Glob(filepath.Join(dir, ".landfall/hosts/*/web/current"))
	if err != nil || len(links) != 10 {
		t.Fatalf("%d links, %v", len(links), err)
	}
	all := make(map[string]int)
	last := ""
	for _, l := range links {
		if last, err = os.Readlink(l); err != nil {
			t.Fatal(err)
		}
		all[last]++
	}
	if len(all) != 1 {
		t.Errorf("the hosts run %v", all)
	}
	return last
}

// fetched are the bytes that each host has fetched of its builds, by executionId.
func fetched(t *testing.T) (all []map[string]int64) {
	t.Helper()
	for port := 7201; port <= 7210; port++ {
		_, text := ask(t, fmt.Sprintf("http://127.0.0.1:%d/status", port))
		var s api.HostStatus
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		of := make(map[string]int64)
		for _, b := range s.Builds {
			of[b.ExecutionID] = b.DownloadedBytes
		}
		all = append(all, of)
	}
	return all
}

func ask(t *testing.T, url string) (code int, text string) {
	t.Helper()
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
