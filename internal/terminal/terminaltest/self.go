package terminaltest

import (
	"os"
	"os/exec"
)

// Self is the test's own binary as the command that it tests, with arguments, and with
// more in its environment. The variable as tells TestMain to run main.
func Self(as string, env []string, args ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), as+"=1", "TERM=xterm", "NO_COLOR=", "LANDFALL_AGENT=", "LANDFALL_SEEDER=")
	// The race detector would wait a second at every exit.
	c.Env = append(c.Env, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	c.Env = append(c.Env, env...)
	return c
}
