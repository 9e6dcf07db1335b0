// Package cmd_test runs the real binaries as a person would: every command, and
// the README's own code blocks. It does so in a network namespace of its own,
// where every port is free, so it can use the ones that the README names.
package cmd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

const (
	// insideEnv is set in the process that runs in the namespace.
	insideEnv = "LANDFALL_TEST_INSIDE"
	// timeout bounds every wait.
	timeout = 90 * time.Second
)

// root is the top of the source tree.
var root = func() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(file))
}()

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// inside runs the calling test once more in a process with a network of its own;
// it returns true in that process.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), insideEnv+"=1", "LANDFALL_TEST_BIN="+binaries(t))
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid := os.Getuid(); uid != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := c.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("no network namespace can be made here: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skip(string(out))
	}
	return false
}

// binaries builds the three commands.
func binaries(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	c := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "./cmd/...")
	c.Dir = root
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

func TestDemo(t *testing.T)      { script(t, "demo.txtar") }
func TestProcesses(t *testing.T) { script(t, "processes.txtar") }

// script runs a file of testdata, with a cloud and daemons that it starts itself.
func script(t *testing.T, file string) {
	t.Parallel() // each has its own ports
	if !inside(t) {
		return
	}
	testscript.Run(t, testscript.Params{
		Files: []string{filepath.Join(root, "cmd", "testdata", file)},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", os.Getenv("LANDFALL_TEST_BIN")+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")
			e.Setenv("AWS_REGION", "us-east-1")
			e.Setenv("AWS_ACCESS_KEY_ID", "test")
			e.Setenv("AWS_SECRET_ACCESS_KEY", "test")
			e.Setenv("BUILD", filepath.Join(root, "testdata", "builds", "hello-1.0.0.zip"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"until": until},
	})
}

// until runs a program again and again until it succeeds and, with a first
// argument of stdout=REGEXP, prints what matches.
func until(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile("")
	if expr, ok := strings.CutPrefix(args[0], "stdout="); ok {
		want, args = regexp.MustCompile(expr), args[1:]
	}
	deadline := time.Now().Add(timeout)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not in %s: %s: %v", timeout, strings.Join(args, " "), err)
		}
		time.Sleep(50 * time.Millisecond) // between tries, not for something to happen
	}
}
