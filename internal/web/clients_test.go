package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
	"github.com/landfall-dist/landfall/internal/operator"
)

// Operators show a certificate or bring a token; who shows one that is not good for anything
// reads why.
func TestClientCertificates(t *testing.T) {
	prod, other := identitytest.New(t, "prod", nil), identitytest.New(t, "prod", nil)
	dir := t.TempDir()
	list, authorities := filepath.Join(dir, "operators"), filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(authorities, identity.FormatCerts(prod.Root.Certificate()), 0o600); err != nil {
		t.Fatal(err)
	}
	which, err := operator.ParseCertificate("spiffe://prod/operator/ci")
	if err == nil {
		err = operator.AddCertificate(list, "ci", operator.Publish, time.Time{}, which)
	}
	if err != nil {
		t.Fatal(err)
	}
	token, err := operator.Add(list, "boss", operator.Admin, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	s := Security{CloseReading: true, Certificate: CertificateOf(prod.Source(t, prod.Seeder("s1")).Certificate)}
	if s.Access, err = operator.Open(operator.Files{List: list, ClientCA: authorities}); err != nil {
		t.Fatal(err)
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := Protection{Addr: l.Addr(), Security: s, Role: func(r *http.Request) operator.Role {
		if r.Method == http.MethodGet {
			return operator.View
		}
		return operator.Admin
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, s.Listener(l), p.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), slog.New(slog.DiscardHandler))
	}()
	issued := func(c *identitytest.Cluster, name string) *tls.Certificate {
		key := identitytest.Key(t)
		chain, err := c.Root.IssueOperator(name, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{chain[0].Raw}, PrivateKey: key}
	}
	for name, k := range map[string]struct {
		method string
		shows  *tls.Certificate
		token  string
		code   int
		says   string
	}{
		"a certificate":              {"GET", issued(prod, "ci"), "", 200, ""},
		"for what it may not":        {"POST", issued(prod, "ci"), "", 403, "ci has the role publish, and this asks for admin"},
		"one that is not listed":     {"GET", issued(prod, "nobody"), "", 403, "no operator's: that of spiffe://prod/operator/nobody"},
		"a member's":                 {"GET", prod.Source(t, prod.Agent("region-a", "a1")).Certificate(), "", 403, "no operator's: that of spiffe://prod/agent/region-a/a1"},
		"another authority's":        {"GET", issued(other, "ci"), "", 401, "unknown authority"},
		"neither":                    {"GET", nil, "", 401, "the operator token is missing: this daemon was started with --close-reading, and answers only those who have one or show an operator's certificate"},
		"a token":                    {"POST", nil, string(token), 200, ""},
		"a token and a certificate":  {"POST", issued(other, "ci"), string(token), 200, ""},
		"a wrong token beside a one": {"GET", issued(prod, "ci"), "wrong", 401, "the operator token is wrong"},
	} {
		config := &tls.Config{InsecureSkipVerify: true} // it is about the client's
		config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(asked.AcceptableCAs) != 1 {
				t.Errorf("%s: %d authorities are named", name, len(asked.AcceptableCAs))
			}
			if k.shows == nil {
				return &tls.Certificate{}, nil
			}
			return k.shows, nil
		}
		transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
		r, err := http.NewRequest(k.method, "https://"+l.Addr().String()+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		if k.token != "" {
			r.Header.Set("Authorization", "Bearer "+k.token)
		}
		res, err := transport.RoundTrip(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != k.code || !strings.Contains(string(text), k.says) {
			t.Errorf("%s: %d %s, %v", name, res.StatusCode, text, err)
		}
		if res.TLS.Version != tls.VersionTLS13 {
			t.Errorf("%s: TLS %x", name, res.TLS.Version)
		}
	}
	if _, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A handshake that does not go on is ended, and a connection that gives way to a new one
// goes at once.
func TestHandshakesAreBounded(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	c := CertificateOf(prod.Source(t, prod.Seeder("s1")).Certificate)
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	most := short()
	go func() {
		done <- serveWithin(ctx, c.Listener(l, func() *x509.CertPool { return nil }), reading(), slog.New(slog.DiscardHandler), most)
	}()
	for name, sent := range map[string]string{"nothing": "", "half a hello": "\x16\x03\x01\x02\x00\x01"} {
		conn := dial(t, l.Addr().String())
		io.WriteString(conn, sent)                                   //nolint:errcheck // reading says
		if _, err := io.ReadAll(conn); err != nil && !isReset(err) { // until the server closes
			t.Errorf("%s: %v", name, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
