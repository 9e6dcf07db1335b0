package main

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/landfall-dist/landfall/internal/clustertest"
	"github.com/landfall-dist/landfall/internal/command/commandtest"
	"github.com/landfall-dist/landfall/internal/processtest"
)

func daemon(t *testing.T, endpoint string, more ...string) *commandtest.Daemon {
	return commandtest.Run(t, binary(processtest.AWSEnv(endpoint), append([]string{"run", "--bucket", cloud.Bucket(t), "--table", cloud.Table(t), "--signing-key", commandtest.Key(t),
		"--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--gossip-listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--log-level", "debug"}, more...)...))
}

// A daemon outlives the readers of its log, and a hang-up.
func TestLogReaderGoesAway(t *testing.T) { daemon(t, cloud.URL).Outlives("seeder is up") }

// SIGTERM ends a daemon that waits for something as cleanly as any other.
func TestToldToEndWhileItWaits(t *testing.T) {
	for name, hangs := range map[string]commandtest.Hanging{
		"table":      {Target: "DescribeTable"},
		"bucket":     {Method: http.MethodHead},
		"first scan": {Target: "Scan"},
	} {
		t.Run(name, func(t *testing.T) {
			asked, endpoint := hangs.Start(t, cloud.URL)
			d := daemon(t, endpoint)
			<-asked
			d.Told()
		})
	}
}

// A command in a pipe ends with its reader, without a word.
func TestPipeReaderGoesAway(t *testing.T) {
	c := clustertest.Start(t, cloud, clustertest.Options{Regions: 1})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	var stderr strings.Builder
	list := binary(nil, "list", "--seeder", c.Seeder.URL)
	list.Stdout, list.Stderr = w, &stderr
	_ = list.Run() // its state says more
	w.Close()
	if s, ok := list.ProcessState.Sys().(syscall.WaitStatus); ok && (!s.Signaled() || s.Signal() != syscall.SIGPIPE) || stderr.Len() > 0 {
		t.Errorf("%v, and said %q", list.ProcessState, &stderr)
	}
}
