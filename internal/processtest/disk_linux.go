package processtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// diskEnv is set in the process that may mount.
const diskEnv = "LANDFALL_TEST_DISK"

// Disk is a file system of its own, which is small.
type Disk struct {
	t testing.TB
	// Dir is an empty directory on it, filler a file beside it that takes room.
	Dir, filler string
}

// OnDisk runs the calling test once more in a process that has a file system of so many bytes,
// as mount has them ("160m"); nil where the test is over.
func OnDisk(t testing.TB, size string) *Disk {
	t.Helper()
	if os.Getenv(diskEnv) == "" {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), diskEnv+"=1")
		Isolate(c, syscall.CLONE_NEWNS)
		out, err := c.CombinedOutput()
		if Refused(err) {
			t.Skipf("no namespace with a file system of its own can be made here: %v", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return nil
	}
	dir := t.TempDir()
	err := LoopbackUp()
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	d := &Disk{t: t, Dir: filepath.Join(dir, "own"), filler: filepath.Join(dir, "filler")}
	if err := os.Mkdir(d.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// Fill leaves so many bytes.
func (d *Disk) Fill(leave int64) {
	d.t.Helper()
	f, err := os.OpenFile(d.filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for {
		var s unix.Statfs_t
		if err := unix.Statfs(d.Dir, &s); err != nil {
			d.t.Fatal(err)
		}
		left := int64(s.Bavail)*s.Bsize - leave
		if left <= 0 {
			return
		}
		if _, err := f.Write(zeros[:min(left, int64(len(zeros)))]); errors.Is(err, unix.ENOSPC) {
			return // somebody else was as fast
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
}

// Free makes the room again that Fill has taken.
func (d *Disk) Free() {
	d.t.Helper()
	if err := os.Remove(d.filler); err != nil {
		d.t.Fatal(err)
	}
}
