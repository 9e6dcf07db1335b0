// Package cmd_test runs the real binaries as a person would: every command, and
// the README's own code blocks. It does so in a network namespace of its own,
// where every port is free, so it can use the ones that the README names.
package cmd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/landfall-dist/landfall/internal/identity/awsproof/ststest"
	"github.com/landfall-dist/landfall/internal/processtest"
)

const (
	// insideEnv is set in the process that runs in the namespace.
	insideEnv = "LANDFALL_TEST_INSIDE"
	// timeout bounds every wait.
	timeout = 90 * time.Second
)

// root is the top of the source tree.
var root = processtest.Root

func TestMain(m *testing.M) {
	if dir := os.Getenv(engineEnv); dir != "" {
		if err := engine(dir, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(insideEnv) != "" {
		if err := processtest.LoopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// inside runs the calling test once more in a process with a network of its own;
// it returns true in that process.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*timeout) // of the test alone: building can take minutes
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), insideEnv+"=1", "LANDFALL_TEST_BIN="+bin)
	processtest.Isolate(c, 0)
	out, err := c.CombinedOutput()
	if processtest.Refused(err) {
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

// binaries builds the three commands, once; TestMain removes them.
var binaries = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "landfall-cmd-"); err != nil {
		return "", err
	}
	built = dir
	return dir, processtest.Build(dir)
})

// built is the directory of binaries; empty where they were not needed.
var built string

func TestDemo(t *testing.T)          { script(t, "demo.txtar") }
func TestProcesses(t *testing.T)     { script(t, "processes.txtar") }
func TestKeys(t *testing.T)          { script(t, "keys.txtar") }
func TestHostKeys(t *testing.T)      { script(t, "hostkeys.txtar") }
func TestFleetCommands(t *testing.T) { script(t, "fleet.txtar") }
func TestWithoutTable(t *testing.T)  { script(t, "withouttable.txtar") }
func TestTLS(t *testing.T)           { script(t, "tls.txtar") }
func TestAuthority(t *testing.T)     { script(t, "ca.txtar") }
func TestNewAuthority(t *testing.T)  { script(t, "authority.txtar") }
func TestJoinByAWS(t *testing.T)     { script(t, "join-aws.txtar") }
func TestJoin(t *testing.T)          { script(t, "join.txtar") }
func TestOperators(t *testing.T)     { script(t, "operators.txtar") }
func TestKeyring(t *testing.T)       { script(t, "keyring.txtar") }

func TestClientCertificates(t *testing.T) { script(t, "certificates.txtar") }

// script runs a file of testdata, with a cloud and daemons that it starts itself.
func script(t *testing.T, file string) {
	t.Parallel() // each has its own ports
	if !inside(t) {
		return
	}
	runScript(t, file)
}

// runScript is script within the namespace, with more directories of programs.
func runScript(t *testing.T, file string, programs ...string) {
	testscript.Run(t, testscript.Params{
		Files: []string{filepath.Join(root, "cmd", "testdata", file)},
		Setup: func(e *testscript.Env) error {
			path := append([]string{os.Getenv("LANDFALL_TEST_BIN")}, append(programs, e.Getenv("PATH"))...)
			e.Setenv("PATH", strings.Join(path, string(os.PathListSeparator)))
			e.Vars = append(e.Vars, processtest.AWSEnv("http://127.0.0.1:4566")...)
			e.Setenv("BUILD", filepath.Join(root, "testdata", "builds", "hello-1.0.0.zip"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"until": until, "certify": certify, "sts": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Setenv("STS", ststest.New(t, map[string]ststest.Caller{args[0]: {Secret: args[1], ARN: args[2]}}).URL)
		}},
	})
}

// certify writes a certificate for loopback that stands for itself, and its key.
func certify(ts *testscript.TestScript, _ bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	ts.Check(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
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
