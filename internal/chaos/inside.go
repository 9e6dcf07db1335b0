//go:build linux

package chaos

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/attack"
	"github.com/landfall-dist/landfall/internal/processtest"
)

// insideEnv is set in the process that runs in the namespace.
const insideEnv = "LANDFALL_CHAOS_INSIDE"

// attackerEnv is set in the process of an attacker.
const attackerEnv = "LANDFALL_CHAOS_ATTACKER"

// Main is the TestMain of a package that uses worlds: it runs the tests once more
// in a process with a network and mounts of its own and returns the exit code.
func Main(m *testing.M) int {
	if os.Getenv(attackerEnv) != "" {
		if err := attack.Process(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if os.Getenv(insideEnv) != "" {
		defer host.close()
		if err := errors.Join(processtest.LoopbackUp(), ownMounts()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		parallel()
		return m.Run()
	}
	c := exec.Command(os.Args[0], os.Args[1:]...)
	c.Env = append(os.Environ(), insideEnv+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	processtest.Isolate(c, syscall.CLONE_NEWNS)
	// The thread that starts the child must live as long as this process does:
	// its end is what the child dies of.
	runtime.LockOSThread()
	err := c.Run()
	if processtest.Refused(err) {
		fmt.Println("chaos: no network namespace can be made here, so there are no network faults:", err)
		defer host.close()
		return m.Run()
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return c.ProcessState.ExitCode()
}

// parallel lets more worlds stand at a time than there are cores, unless the
// command line says how many: they mostly wait.
func parallel() {
	const worlds = 8
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(worlds)); err != nil {
			panic(err) // the testing package has this flag
		}
	}
}

// ownMounts keeps what is mounted here from everyone else.
func ownMounts() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }

// host is what all worlds of the process share: the binaries, the cloud.
var host shared

type shared struct {
	once  sync.Once
	err   error
	dir   string
	cloud *processtest.Process
	// keep says that a test has failed: the logs stay.
	mu     sync.Mutex
	keep   bool
	worlds int

	clockOnce sync.Once
	clockErr  error
}

// cloudAddr is the embedded S3 and DynamoDB that stand behind every Gate.
const cloudAddr = "127.0.0.1:4567"

// start builds the binaries and starts the cloud, once.
func (s *shared) start() error {
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "landfall-chaos-"); s.err != nil {
			return
		}
		// Every member is another user and has to get in.
		if s.err = os.Chmod(s.dir, 0o755); s.err != nil {
			return
		}
		if s.err = processtest.Build(s.bin("")); s.err != nil {
			return
		}
		s.cloud, s.err = processtest.Start(processtest.Config{
			Name: "cloud", Log: filepath.Join(s.dir, "cloud.log"), Dir: s.dir,
			Args: []string{s.bin("landfall-dev"), "cloud", "--listen", cloudAddr, "--dir", filepath.Join(s.dir, "cloud")},
		})
	})
	return s.err
}

// withClock builds programs whose clock can be off, once, and returns their directory.
func (s *shared) withClock() (dir string, err error) {
	if err := s.start(); err != nil {
		return "", err
	}
	dir = filepath.Join(s.dir, "with-clock") // where every member gets in
	s.clockOnce.Do(func() { s.clockErr = processtest.BuildWithClock(dir) })
	return dir, s.clockErr
}

func (s *shared) bin(name string) string { return filepath.Join(s.dir, "bin", name) }

// next numbers the worlds, whose addresses and users follow from it.
func (s *shared) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.worlds++
	return s.worlds
}

// failed keeps the directory for somebody to look at.
func (s *shared) failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = true
}

func (s *shared) close() {
	if s.cloud != nil {
		s.cloud.End(syscall.SIGTERM)
	}
	if s.keep {
		os.RemoveAll(filepath.Join(s.dir, "cloud"))
		fmt.Println("chaos: the logs are in", s.dir)
		return
	}
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}
