package web

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"iter"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/audit"
	"github.com/landfall-dist/landfall/internal/operator"
	"github.com/landfall-dist/landfall/internal/operator/operatortest"
)

// A change is in the record and in the log, with who has asked, from where, about what and
// what came of it; refused ones, too. What only reads is not, and no token is anywhere.
func TestChangesAreRecorded(t *testing.T) {
	access, tokens := operatortest.Roles(t)
	var log bytes.Buffer
	record, err := audit.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m := NewMux(Options{
		Page: "agent", Ready: func() error { return nil }, State: State{All: func() iter.Seq2[string, any] { return func(func(string, any) bool) {} }}, Metrics: NewRegistry("test", func() error { return nil }),
		Roles: map[string]operator.Role{"POST /things/{id}": operator.Publish, "GET /things": operator.View}, Logger: slog.New(slog.DiscardHandler),
	})
	m.JSON("POST /things/{id}", func(r *http.Request) (int, any, error) {
		About(r, "key", "build.zip")
		About(r, "nothing", "")
		switch r.PathValue("id") {
		case "bad":
			return 0, nil, Errorf(http.StatusConflict, "it is so")
		case "gone":
			panic(http.ErrAbortHandler)
		}
		return http.StatusAccepted, map[string]string{}, nil
	})
	m.JSON("GET /things", func(r *http.Request) (int, any, error) {
		About(r, "key", "nobody sees it")
		return http.StatusOK, map[string]string{}, nil
	})
	m.HandleFunc("POST /roleless", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	p := Protection{Security: Security{Access: access, Audit: record}, Role: m.Role, Action: m.Action, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	h := p.Wrap(m)
	ask := func(method, path, token, host string) (code int) {
		r := httptest.NewRequest(method, path+"?query=secret", nil)
		r.Host, r.RemoteAddr = host, "192.0.2.7:1234"
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		defer func() { _ = recover(); code = w.Code }()
		h.ServeHTTP(w, r)
		return
	}
	for _, c := range []struct {
		method, path, token, host string
		code                      int
	}{
		{"GET", "/things", "wrong", "localhost", 200}, // reading is open
		{"POST", "/things/a", tokens[operator.Publish], "localhost", 202},
		{"POST", "/things/bad", tokens[operator.Admin], "localhost", 409},
		{"POST", "/things/gone", tokens[operator.Admin], "localhost", 200}, // nothing was answered
		{"POST", "/things/a", tokens[operator.View], "localhost", 403},
		{"POST", "/things/a", "wrong-" + tokens[operator.Admin], "localhost", 401},
		{"POST", "/things/a", tokens[operator.Admin], "evil.example", 421},
		{"POST", "/roleless", tokens[operator.Admin], "localhost", 403},
		{"DELETE", "/none", "", "localhost", 401},
	} {
		if code := ask(c.method, c.path, c.token, c.host); code != c.code {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, code, c.code)
		}
	}
	record.Close()
	got, err := record.Newest(100)
	if err != nil || len(got) != 8 {
		t.Fatalf("%d records, %v: %+v", len(got), err, got)
	}
	for i, want := range []struct {
		operator, role, action, path string
		status                       int
		err                          string
	}{
		{"", "", "DELETE", "/none", 401, "wrong"},
		{"adminer", "admin", "POST /roleless", "/roleless", 403, "asks for nobody"},
		{"", "", "POST /things/{id}", "/things/a", 421, "does not answer to the name"},
		{"", "", "POST /things/{id}", "/things/a", 401, "wrong"},
		{"viewer", "view", "POST /things/{id}", "/things/a", 403, "viewer has the role view, and this asks for publish"},
		{"adminer", "admin", "POST /things/{id}", "/things/gone", 0, "without an answer"},
		{"adminer", "admin", "POST /things/{id}", "/things/bad", 409, "it is so"},
		{"publisher", "publish", "POST /things/{id}", "/things/a", 202, ""},
	} {
		r := got[i]
		if r.Operator != want.operator || r.Role != want.role || r.Action != want.action || r.Path != want.path || r.Status != want.status || !strings.Contains(r.Error, want.err) || r.From != "192.0.2.7:1234" {
			t.Errorf("%d: %+v, want %+v", i, r, want)
		}
		if about := r.About["key"] == "build.zip" && len(r.About) == 1; about != (r.Status == 202 || r.Status == 409 || r.Status == 0) {
			t.Errorf("%d is about %v", i, r.About)
		}
	}
	if lines := strings.Count(log.String(), `msg="change requested"`); lines != 8 {
		t.Errorf("%d lines:\n%s", lines, &log)
	}
	for _, secret := range []string{tokens[operator.Admin], tokens[operator.Publish], tokens[operator.View], "query=", "nobody sees it"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// Where no token is asked for, a change is recorded without a name; a stranger's that is
// refused is in no log of who keeps no record.
func TestRecordWithoutTokens(t *testing.T) {
	var log bytes.Buffer
	p := Protection{Logger: slog.New(slog.NewTextHandler(&log, nil)), Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}
	h := p.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "done") })) //nolint:errcheck // a recorder
	for _, host := range []string{"localhost", "evil.example"} {
		r := httptest.NewRequest("POST", "/deploy", nil)
		r.Host = host
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	if n := strings.Count(log.String(), `msg="change requested"`); n != 1 || !strings.Contains(log.String(), "status=200") {
		t.Errorf("%s", &log)
	}
}

// certify writes a certificate for loopback, and its key.
func certify(t *testing.T, dir, name string, lasts time.Duration) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lasts),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		err := os.WriteFile(file+".new", pem.EncodeToMemory(block), 0o600)
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// The HTTP side speaks TLS with the certificate that its files have, also when they change,
// and keeps the one of before when they are broken.
func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenCertificate(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without files: %v", err)
	}
	cert, key := certify(t, dir, "first", time.Hour) // which ends soon
	c, err := OpenCertificate(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said := make(logLines, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() {
		done <- Serve(ctx, Security{Certificate: c}.Listener(l), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), slog.New(slog.DiscardHandler))
	}()
	go func() { done <- c.run(ctx, slog.New(slog.NewTextHandler(said, nil)), 10*time.Millisecond) }()
	speaks := func() string {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true}) // which certificate it is, is looked at
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	said.await("expires")
	if got := speaks(); got != "first" {
		t.Errorf("speaks with %s", got)
	}
	certify(t, dir, "second", 30*24*time.Hour)
	said.await("certificate of the HTTP side changed")
	for speaks() != "second" { // the first file was seen alone, and did not fit the other
		said.await("certificate of the HTTP side changed")
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	said.await("not read again")
	if got := speaks(); got != "second" {
		t.Errorf("after nonsense it speaks with %s", got)
	}
	// Without TLS nobody gets an answer.
	res, err := http.Get("http://" + l.Addr().String())
	if err == nil {
		res.Body.Close()
	}
	if err == nil && res.StatusCode < 400 {
		t.Errorf("%v, %v", res, err)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if none := (*Certificate)(nil); none.Run(t.Context(), nil) != nil {
		t.Error("no certificate has something to do")
	}
}

// logLines is a log that hands on each line.
type logLines chan string

func (l logLines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func (l logLines) await(want string) {
	for line := range l {
		if strings.Contains(line, want) {
			return
		}
	}
}
