package terminaltest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Self is the test's own binary as the command that it tests, with arguments, and with
// more in its environment. The variable as tells TestMain to run main.
func Self(as string, env []string, args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	// As one that PATH leads to is called: advice names a command as it was called.
	c.Args[0] = strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
	c.Env = append(os.Environ(), as+"=1", "TERM=xterm", "NO_COLOR=", "LANDFALL_AGENT=", "LANDFALL_SEEDER=")
	// The race detector would wait a second at every exit.
	c.Env = append(c.Env, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	c.Env = append(c.Env, env...)
	return c
}
