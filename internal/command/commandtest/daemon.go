package commandtest

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/signing"
)

// timeout bounds a daemon's life in a test.
const timeout = 5 * time.Minute

// Daemon is a process of a daemon whose log a test reads.
type Daemon struct {
	t    *testing.T
	cmd  *exec.Cmd
	pipe *os.File
	log  *bufio.Scanner
}

// Key writes a signing key and returns its file.
func Key(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "seeder.key")
	if _, err := signing.WriteKey(file); err != nil {
		t.Fatal(err)
	}
	return file
}

// Run starts a daemon, which is killed at the end of the test if it lives on.
func Run(t *testing.T, cmd *exec.Cmd) *Daemon {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	// A hang-up that this process ignores, as under nohup, would be ignored by the
	// daemon, too; one that is taken is not inherited.
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	err = cmd.Start()
	signal.Stop(hangUp)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{t, cmd, r, bufio.NewScanner(r)}
	hangs := time.AfterFunc(timeout, func() { _ = cmd.Process.Kill() }) // which ends its log
	t.Cleanup(func() {
		hangs.Stop()
		_ = cmd.Process.Kill() // it is over already
		r.Close()
	})
	return d
}

// Until reads the log up to a line with the text, and returns that.
func (d *Daemon) Until(text string) string {
	d.t.Helper()
	var all strings.Builder
	for d.log.Scan() {
		all.WriteString(d.log.Text() + "\n")
		if strings.Contains(d.log.Text(), text) {
			return d.log.Text()
		}
	}
	d.t.Fatalf("the log ends without %q: %v\n%s", text, d.cmd.Wait(), &all)
	return ""
}

// Signal sends a signal.
func (d *Daemon) Signal(s os.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

// Outlives waits until the daemon says that it is up, and checks that it outlives a
// hang-up and the readers of its log.
func (d *Daemon) Outlives(up string) {
	d.t.Helper()
	d.Until(up)
	d.Signal(syscall.SIGHUP)
	d.Until("SIGHUP")
	d.pipe.Close()
	d.Signal(syscall.SIGHUP) // which it wants to say something about
	d.Told()
}

// Told tells the daemon to end and expects that it does, cleanly.
func (d *Daemon) Told() {
	d.t.Helper()
	d.Signal(syscall.SIGTERM)
	var log strings.Builder
	for d.log.Scan() {
		log.WriteString(d.log.Text() + "\n")
	}
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("ended by %v\n%s", err, &log)
	}
}

// Hanging says which calls an endpoint never answers: of a method, or of an operation of DynamoDB.
type Hanging struct{ Method, Target string }

// Start is an endpoint before another one; asked gets a value for each call that hangs.
func (h Hanging) Start(t *testing.T, behind string) (asked <-chan struct{}, endpoint string) {
	t.Helper()
	u, err := url.Parse(behind)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.Out.Host = r.In.Host // which is signed
	}}
	hanging := make(chan struct{}, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.Method != "" && r.Method == h.Method || h.Target != "" && strings.HasSuffix(r.Header.Get("X-Amz-Target"), "."+h.Target) {
			io.Copy(io.Discard, r.Body) //nolint:errcheck // or the end of the caller is not noticed
			hanging <- struct{}{}
			<-r.Context().Done()
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { server.Close(); transport.CloseIdleConnections() })
	return hanging, server.URL
}
