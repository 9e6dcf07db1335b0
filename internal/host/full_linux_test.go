package host

import (
	"archive/zip"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/retry"
)

const (
	// insideEnv is set in the process that may mount.
	insideEnv = "LANDFALL_TEST_INSIDE"
	// diskSize is that of the host's disk, of which 64 MiB are to stay free; unpacked is what a
	// build needs there, in bytes, when it is unpacked.
	diskSize, unpacked = "160m", 8 << 20
)

// onDisk runs the calling test once more in a process that has a file system of diskSize, and
// returns its directory there; empty where the test is over.
func onDisk(t *testing.T) string {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), insideEnv+"=1")
		processtest.Isolate(c, syscall.CLONE_NEWNS)
		out, err := c.CombinedOutput()
		if processtest.Refused(err) {
			t.Skipf("no namespace with a file system of its own can be made here: %v", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return ""
	}
	dir := t.TempDir()
	err := processtest.LoopbackUp()
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+diskSize)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestFullDisk: a host whose disk is full, before it fetches, before it unpacks or as it
// switches, says so, runs the build before, whole, and goes on when there is room again.
func TestFullDisk(t *testing.T) {
	dir := onDisk(t)
	if dir == "" {
		return
	}
	dir = filepath.Join(dir, "host")
	a := newAgent(t)
	h := startHost(t, dir, func(c *Config) { c.again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond} }, a.url)
	filler := filepath.Join(filepath.Dir(dir), "filler")
	// fill leaves so many bytes.
	fill := func(leave int64) {
		t.Helper()
		var s unix.Statfs_t
		if err := unix.Statfs(filepath.Dir(dir), &s); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		zeros := make([]byte, 1<<20)
		for left := int64(s.Bavail)*s.Bsize - leave; left > 0; left -= int64(len(zeros)) {
			if _, err := f.Write(zeros[:min(left, int64(len(zeros)))]); errors.Is(err, unix.ENOSPC) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	version, stable := int64(10), newBuild(t, 1)
	a.has(stable)
	leave := func() *hostwire.Leave { return &hostwire.Leave{Service: "web", Version: version, Seconds: 30} }
	runsNow := func(b *testBuild) func(hostwire.ServiceState) bool {
		return func(s hostwire.ServiceState) bool { return s.State == goal.Healthy && s.Running == b.goal.ExecutionID }
	}
	a.say(sign(t, goalOf(version, stable, nil), key), stable.recipe)
	a.await("the first wants leave", func(s hostwire.ServiceState) bool { return s.Wants != "" })
	a.say(leave())
	a.await("the first runs", runsNow(stable))

	for i, of := range []struct {
		phase, says string
		before      int64 // bytes that are left before it is fetched; 0 for all
		atSwitch    bool  // the disk is full from then on
	}{
		{phase: "fetch", says: "not enough disk space", before: 32 << 20},
		{phase: "place", says: "no room on the disk", before: 64<<20 + unpacked/2},
		{phase: "begin", says: "no space left on device", atSwitch: true},
	} {
		next := large(t, i+2)
		a.has(next)
		version += 10
		if of.before > 0 {
			fill(of.before)
		}
		a.say(sign(t, goalOf(version, next, stable), key), next.recipe)
		if of.atSwitch {
			a.await("it wants leave", func(s hostwire.ServiceState) bool { return s.Wants == next.goal.ExecutionID })
			fill(0)
		}
		until(t, of.phase+" has failed", func() bool {
			if a.last().Wants != "" {
				a.say(leave())
			}
			return a.last().State == goal.Failed
		})
		if s := a.last(); s.Phase != of.phase || !strings.Contains(s.Error, of.says) || s.Running != stable.goal.ExecutionID {
			t.Errorf("%s: %+v", of.phase, s)
		}
		if runs(t, dir) != "build 1" {
			t.Errorf("%s: runs %q", of.phase, runs(t, dir))
		}
		if code, body := h.get(t, "/readyz"); code != 200 {
			t.Errorf("%s: /readyz: %d %s", of.phase, code, body)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		until(t, of.phase+" goes on", func() bool {
			if a.last().Wants != "" {
				a.say(leave())
			}
			return runsNow(next)(a.last())
		})
		if got := runs(t, dir); len(got) != unpacked {
			t.Errorf("%s: runs %d bytes", of.phase, len(got))
		}
		version += 10 // back, for the next
		a.say(sign(t, goalOf(version, stable, stable), key), stable.recipe)
		until(t, "back", func() bool {
			if a.last().Wants != "" {
				a.say(leave())
			}
			return runsNow(stable)(a.last())
		})
	}
}

// large is a small build that is unpacked to many bytes.
func large(t *testing.T, n int) *testBuild {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("version")
	if err == nil {
		_, err = f.Write(bytes.Repeat([]byte{byte(n)}, unpacked))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return remade(t, b.Bytes())
}
