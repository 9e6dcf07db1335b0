//go:build linux

package chaos

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/processtest"
)

// smallDisk puts a member's data on a disk of its own; the cache leaves 64 MiB of
// it free.
func smallDisk(t *testing.T, m *Member, mebibytes int) {
	t.Helper()
	options := fmt.Sprintf("size=%dm,uid=%d,gid=%d", mebibytes, m.uid, m.uid)
	if err := unix.Mount("chaos", m.Dir, "tmpfs", 0, options); err != nil {
		t.Skipf("no small disk can be made here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(m.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// resize makes a small disk larger.
func resize(t *testing.T, m *Member, mebibytes int) {
	t.Helper()
	if err := unix.Mount("", m.Dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", mebibytes)); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk: a build that does not fit waits and says how much is missing,
// while the others go on; when there is space it is taken up by itself.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Seed: 50, Before: func(w *World) { smallDisk(t, w.Agents[0], 70) }})
	v := w.Put("build.zip", several)
	r := w.Begun(v)
	w.Until("the other region has it", func() bool { return len(w.Record(v.Key).Successful) == 1 })
	w.Until("the agent says what it lacks", func() bool {
		b := w.Agents[0].Build(r.ExecutionID)
		return b != nil && b.State == api.StateQueued && strings.Contains(b.Error, "bytes are missing")
	})
	small := w.Put("small.zip", 1<<20)
	w.Completed(small)
	resize(t, w.Agents[0], 200)
	w.Completed(v)
	w.Settle()
}

// TestUploadWithoutRoom: an upload that finds no room on the seeder's disk goes to the bucket
// first, where it is whole at once. It is distributed when there is room; others meanwhile.
func TestUploadWithoutRoom(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1}, Seed: 54, Before: func(w *World) { smallDisk(t, w.Seeder, 70) }})
	upload := func(key string, size int, said string) *Version {
		t.Helper()
		v := &Version{Key: key, Size: size, seed: w.rng.Uint64()}
		if err := w.Upload(context.Background(), v, time.Second); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		if now, wrong := w.found(key); wrong != "" || now != v {
			t.Errorf("%s was answered, and the bucket does not have it: %s", key, wrong)
		}
		if !slices.ContainsFunc(strings.Split(w.Seeder.Said(), "\n"), func(line string) bool {
			return strings.Contains(line, `msg="`+said+`"`) && strings.Contains(line, key)
		}) {
			t.Errorf("of %s it did not say: %s", key, said)
		}
		return v
	}
	large := upload("large.zip", several, "the upload is distributed when it is in the bucket")
	w.Until("the seeder says what it lacks", func() bool {
		e, err := w.Seeder.ByKey(context.Background(), large.Key)
		return err == nil && e.Status == "IN_PROGRESS" && strings.Contains(e.Error, "bytes are missing")
	})
	w.Completed(upload("small.zip", 1<<20, "upload is distributed while it goes up"))
	resize(t, w.Seeder, 200)
	w.Completed(large)
	w.Settle()
}

// TestDiskFills: somebody else fills the disk in mid-download.
func TestDiskFills(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Link: link, Seed: 51, Before: func(w *World) { smallDisk(t, w.Agents[0], 90) }})
	w.NeedsNetwork()
	v, _ := progressed(30)(t, w, "build.zip")
	filler := filepath.Join(w.Agents[0].Dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	f.Close()
	w.Until("the other region has it", func() bool { return len(w.Record(v.Key).Successful) >= 1 })
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.Completed(v)
	t.Logf("completed %.1f s after there was space again", seconds(began))
	w.Settle()
}

// TestNoDisk: a data directory that cannot be used ends the start with a reason.
func TestNoDisk(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Down: []int{1}, Seed: 52})
	m := w.Agents[1]
	refused := func(t *testing.T, uid int, args []string, reason string) {
		t.Helper()
		p, err := processtest.Start(processtest.Config{Name: m.Name, Log: m.log(), Dir: w.dir, UID: uid, Args: args, Env: m.env()})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Ended:
		case <-time.After(Timeout):
			p.End(unix.SIGKILL)
			t.Fatal("it runs")
		}
		if code := p.Cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(p.Said(), reason) {
			t.Errorf("exit code %d, %s", code, p.Said())
		}
	}
	w.Sub(t, "in use", func(t *testing.T) {
		first := w.Agents[0]
		refused(t, first.uid, append(slices.Clone(m.args), "--data-dir", first.Dir), "in use")
	})
	w.Sub(t, "not writable", func(t *testing.T) {
		w.NeedsNetwork() // without users of their own, all may write
		if err := os.Chown(m.Dir, 0, 0); err != nil {
			t.Fatal(err)
		}
		refused(t, m.uid, m.args, "permission denied")
		if err := os.Chown(m.Dir, m.uid, m.uid); err != nil {
			t.Fatal(err)
		}
	})
	m.Run()
	w.Completed(w.Put("build.zip", several))
	w.Settle()
}

// TestCacheLimit: what was distributed long ago makes room.
func TestCacheLimit(t *testing.T) {
	t.Parallel()
	const limit = 4 << 20
	w := Start(t, Options{Agents: []int{1, 1}, CacheSize: "4MiB", Seed: 53})
	for i := range 6 {
		w.Completed(w.Put(fmt.Sprintf("%d.zip", i), limit/2-i))
	}
	big := w.Put("big.zip", 3*limit/2) // larger than the whole cache
	w.Completed(big)
	w.Completed(w.Put("last.zip", 1000))
	w.Settle()
	for _, m := range w.Members() {
		w.Until("the cache of "+m.Name+" is within its limit", func() bool { return size(m.Dir) <= limit+limit/4 })
	}
}

// size of all files in a directory, in bytes.
func size(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // went while it was looked at
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}
