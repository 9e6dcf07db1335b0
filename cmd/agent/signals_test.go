package main

import (
	"net"
	"testing"

	"github.com/landfall-dist/landfall/internal/command/commandtest"
	"github.com/landfall-dist/landfall/internal/processtest"
)

func daemon(t *testing.T, endpoint string, more ...string) *commandtest.Daemon {
	bucket, table, key := cloud.Bucket(t), cloud.Table(t), commandtest.Key(t)
	args := append([]string{"run", "--region", "r", "--bucket", bucket, "--table", table, "--trust", key + ".pub", "--data-dir", t.TempDir(),
		"--listen", "127.0.0.1:0", "--log-level", "debug"}, more...)
	return commandtest.Run(t, binary(processtest.AWSEnv(endpoint), args...))
}

// A daemon outlives the readers of its log, and a hang-up.
func TestLogReaderGoesAway(t *testing.T) { daemon(t, cloud.URL).Outlives("agent is up") }

// SIGTERM ends a daemon that waits for something as cleanly as any other.
func TestToldToEndWhileItWaits(t *testing.T) {
	for name, hangs := range map[string]commandtest.Hanging{
		"table":  {Target: "DescribeTable"},
		"bucket": {Method: "HEAD"},
	} {
		t.Run(name, func(t *testing.T) {
			asked, endpoint := hangs.Start(t, cloud.URL)
			d := daemon(t, endpoint)
			<-asked
			d.Told()
		})
	}
	t.Run("join", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		d := daemon(t, cloud.URL, "--join", l.Addr().String())
		conn, err := l.Accept() // and never a word
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		d.Told()
	})
}
