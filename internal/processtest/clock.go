package processtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// clockEnv says by how many seconds the wall clock of a program of BuildWithClock is ahead.
const clockEnv = "LANDFALL_TEST_CLOCK"

// ClockEnv is the environment in which a program of BuildWithClock has a wall clock that is
// ahead of this machine's; behind it, where that is negative.
func ClockEnv(ahead time.Duration) string {
	return fmt.Sprintf("%s=%d", clockEnv, int64(ahead/time.Second))
}

const (
	// readsClock is where package time reads the clock, of Go 1.26, and offsetsClock is added.
	readsClock   = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {"
	offsetsClock = "\tsec, nsec, mono := runtimeNow()\n\tsec += clockAhead\n\tif mono == 0 {"
	// clockAhead is a file of package time. Its variable is set before any other package begins.
	clockAhead = `package time

import "syscall"

var clockAhead = func() (seconds int64) {
	text, _ := syscall.Getenv("` + clockEnv + `")
	sign := int64(1)
	if text != "" && text[0] == '-' {
		sign, text = -1, text[1:]
	}
	for _, c := range []byte(text) {
		seconds = 10*seconds + int64(c-'0')
	}
	return sign * seconds
}()
`
)

// BuildWithClock is Build for the seeder and the agent, with a wall clock that stands as ClockEnv
// says; their monotonic clock is left alone. All of them is compiled anew, package time being
// another one.
func BuildWithClock(dir string) error {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return err
	}
	if n := bytes.Count(source, []byte(readsClock)); n != 1 {
		return fmt.Errorf("package time reads the clock in %d places that this knows, expected 1", n)
	}
	overlay := make(map[string]string)
	for name, text := range map[string][]byte{"time.go": bytes.Replace(source, []byte(readsClock), []byte(offsetsClock), 1), "clock_ahead.go": []byte(clockAhead)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
		defer os.Remove(file)
		overlay[filepath.Join(std, name)] = file
	}
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	defer os.Remove(file)
	return build(dir, "-overlay", file, "./cmd/seeder", "./cmd/agent")
}
