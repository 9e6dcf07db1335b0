package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// A daemon's certificate is one of the host that was asked for, or of a member of the kind
// that is asked, of the authorities of the file as it is now.
func TestTLS(t *testing.T) {
	prod, other := identitytest.New(t, "prod", nil), identitytest.New(t, "prod", nil)
	authorities := filepath.Join(t.TempDir(), "ca.pem")
	settle := func(files ...string) { // as if they were written a while ago
		t.Helper()
		for _, f := range files {
			if err := os.Chtimes(f, time.Time{}, time.Now().Add(-time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
	}
	trust := func(certs ...*x509.Certificate) {
		t.Helper()
		if err := errors.Join(os.WriteFile(authorities+".new", identity.FormatCerts(certs...), 0o600), os.Rename(authorities+".new", authorities)); err != nil {
			t.Fatal(err)
		}
		settle(authorities)
	}
	trust(prod.Root.Certificate())
	serve := func(own *identity.Source) *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(r.TLS.PeerCertificates) > 0 {
				w.Header().Set("Shown", r.TLS.PeerCertificates[0].URIs[0].String())
			}
		}))
		s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
		if own != nil {
			s.TLS.Certificates = []tls.Certificate{*own.Certificate()}
		}
		s.Config.ErrorLog = nil
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	seeder := serve(prod.Source(t, prod.Seeder("s1")))
	agent := serve(prod.Source(t, prod.Agent("region-a", "a1")))
	ask := func(files TLS, s *httptest.Server) (http.Header, error) {
		t.Helper()
		c, err := files.Client(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseIdleConnections()
		res, err := c.Get(s.URL)
		if err != nil {
			return nil, err
		}
		return res.Header, res.Body.Close()
	}
	for name, k := range map[string]struct {
		member string
		s      *httptest.Server
		want   string
	}{
		"a seeder":                    {"seeder", seeder, ""},
		"an agent":                    {"agent", agent, ""},
		"an agent for a seeder":       {"seeder", agent, "spiffe://prod/agent/region-a/a1, which is no seeder"},
		"a member where none will do": {"", seeder, "127.0.0.1"},
		"another cluster's":           {"seeder", serve(other.Source(t, other.Seeder("s1"))), "no authority that is trusted"},
		"a stranger":                  {"seeder", serve(nil), "unknown authority"},
	} {
		if _, err := ask(TLS{CA: authorities, Member: k.member}, k.s); (err == nil) != (k.want == "") || err != nil && !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// By the host's name: of httptest's certificate, an authority of its own.
	host := serve(nil)
	trust(host.Certificate())
	if _, err := ask(TLS{CA: authorities, Member: "seeder"}, host); err != nil {
		t.Errorf("by its address: %v", err)
	}
	if err := (TLS{}).verify("other.example", []*x509.Certificate{host.Certificate()}, poolOf(host.Certificate())); err == nil || !strings.Contains(err.Error(), "other.example") {
		t.Errorf("by another name: %v", err)
	}
	if err := (TLS{}).verify("", []*x509.Certificate{host.Certificate()}, poolOf(host.Certificate())); err == nil {
		t.Error("by no name")
	}

	// The same client goes by the files as they are.
	own := prod.Files(t, prod.Agent("region-a", "a1"))
	c, err := TLS{CA: authorities, Cert: own.Cert, Key: own.Key, Member: "seeder"}.Client(seeder.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	get := func() (string, error) {
		c.CloseIdleConnections()
		res, err := c.Get(seeder.URL)
		if err != nil {
			return "", err
		}
		return res.Header.Get("Shown"), res.Body.Close()
	}
	if _, err := get(); err == nil {
		t.Error("an authority that is not in the file")
	}
	trust(prod.Root.Certificate())
	if got, err := get(); err != nil || got != "spiffe://prod/agent/region-a/a1" {
		t.Errorf("shown: %s, %v", got, err)
	}
	key := identitytest.Key(t)
	chain, err := prod.Root.IssueOperator("ci", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(own.Key, own.Key+".gone"); err != nil { // in between it shows the one of before
		t.Fatal(err)
	}
	if got, err := get(); err != nil || got != "spiffe://prod/agent/region-a/a1" {
		t.Errorf("shown without a key: %s, %v", got, err)
	}
	identitytest.Write(t, own, key, chain, prod.Root.Certificate())
	settle(own.Cert, own.Key)
	if got, err := get(); err != nil || got != "spiffe://prod/operator/ci" {
		t.Errorf("shown then: %s, %v", got, err)
	}

	for name, files := range map[string]TLS{"authorities": {CA: "none"}, "a key": {Cert: own.Cert, Key: "none"}} {
		if _, err := files.Client(seeder.URL); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without %s: %v", name, err)
		}
	}
	if err := os.Chmod(own.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (TLS{Cert: own.Cert, Key: own.Key}).Client(seeder.URL); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("everybody may read the key: %v", err)
	}
}

func poolOf(c *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return pool
}
