package host

import (
	"archive/zip"
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/processtest"
	"github.com/landfall-dist/landfall/internal/retry"
)

var longFlag = flag.Bool("host.long", false, "tests that take a minute, too")

const (
	// diskSize is that of the host's disk, of which 64 MiB are to stay free; unpacked is what a
	// build needs there, in bytes, when it is unpacked.
	diskSize, unpacked = "160m", 8 << 20
)

// TestFullDisk: a host whose disk is full, before it fetches, before it unpacks or as it
// switches, says so, runs the build before, whole, and goes on when there is room again.
func TestFullDisk(t *testing.T) {
	disk := processtest.OnDisk(t, diskSize)
	if disk == nil {
		return
	}
	dir := disk.Dir
	a := newAgent(t)
	h := startHost(t, dir, func(c *Config) { c.again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond} }, a.url)
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
			disk.Fill(of.before)
		}
		a.say(sign(t, goalOf(version, next, stable), key), next.recipe)
		if of.atSwitch {
			a.await("it wants leave", func(s hostwire.ServiceState) bool { return s.Wants == next.goal.ExecutionID })
			disk.Fill(0)
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
		disk.Free()
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

// TestDiskFillsInMidFetch: a host whose disk fills when the first of a build's segments has
// come says so and runs the build before; the rest comes when there is room again.
func TestDiskFillsInMidFetch(t *testing.T) {
	if !*longFlag {
		t.Skip("a minute and more beside other tests: -host.long")
	}
	disk := processtest.OnDisk(t, diskSize)
	if disk == nil {
		return
	}
	a := newAgent(t)
	startHost(t, disk.Dir, func(c *Config) { c.again = retry.Policy{First: 10 * time.Millisecond, Max: 100 * time.Millisecond} }, a.url)
	stable, next := newBuild(t, 1), stored(t, 3*manifest.MinPartLength)
	a.has(stable)
	a.say(sign(t, goalOf(10, stable, nil), key), stable.recipe)
	a.await("the first wants leave", func(s hostwire.ServiceState) bool { return s.Wants != "" })
	a.say(&hostwire.Leave{Service: "web", Version: 10, Seconds: 30})
	a.await("the first runs", func(s hostwire.ServiceState) bool { return s.State == goal.Healthy })

	first := *next.recipe
	first.InfoHashes, first.Sealed = nil, false
	first.InfoHashes = first.InfoHashes.Append(next.recipe.InfoHashes.At(0))
	a.hasSegment(next, 0)
	a.say(sign(t, goalOf(20, next, stable), key), &first)
	_, length := next.known.SegmentRange(0)
	until(t, "the first segment has come", func() bool { return a.sent(next) >= length })
	disk.Fill(0)
	for i := range next.known.NumSegments() {
		if i > 0 {
			a.hasSegment(next, i)
		}
	}
	a.say(next.recipe)
	s := a.await("it has failed", func(s hostwire.ServiceState) bool { return s.State == goal.Failed })
	if s.Phase != "fetch" || !strings.Contains(s.Error, "cache: write") || s.Running != stable.goal.ExecutionID || runs(t, disk.Dir) != "build 1" {
		t.Errorf("%+v, runs %q", s, runs(t, disk.Dir))
	}
	disk.Free()
	a.await("it wants leave", func(s hostwire.ServiceState) bool { return s.Wants == next.goal.ExecutionID })
	a.say(&hostwire.Leave{Service: "web", Version: 20, Seconds: 30})
	a.await("it runs", func(s hostwire.ServiceState) bool {
		return s.State == goal.Healthy && s.Running == next.goal.ExecutionID
	})
	if got := len(runs(t, disk.Dir)); got != 3*manifest.MinPartLength {
		t.Errorf("runs %d bytes", got)
	}
}

// stored is a build of a file that cannot be packed.
func stored(t *testing.T, size int) *testBuild {
	t.Helper()
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(content)
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("version")
	if err == nil {
		_, err = f.Write(content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return remade(t, b.Bytes())
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
