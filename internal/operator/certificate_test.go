package operator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issuer makes certificates.
type issuer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "CA"}}
	i.cert = template
	i.cert = i.issue(func(c *x509.Certificate) { *c = *template })
	return i
}

// issue makes one for a client, as change has it.
func (i *issuer) issue(change func(*x509.Certificate)) *x509.Certificate {
	i.t.Helper()
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, Subject: pkix.Name{CommonName: "ci"}}
	change(template)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		i.t.Fatal(err)
	}
	template.SerialNumber = serial
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = noon.Add(-time.Hour), noon.Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, i.key.Public(), i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return cert
}

func named(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, s := range uris {
			u, err := url.Parse(s)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

func keep(t *testing.T, file string, certs ...*x509.Certificate) {
	t.Helper()
	var text []byte
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if err := errors.Join(os.WriteFile(file+".new", text, 0o600), os.Rename(file+".new", file)); err != nil {
		t.Fatal(err)
	}
}

func addShown(t *testing.T, list, name string, role Role, expires time.Time, which string) {
	t.Helper()
	c, err := ParseCertificate(which)
	if err == nil {
		err = AddCertificate(list, name, role, expires, c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhoShows(t *testing.T) {
	dir := t.TempDir()
	list, authorities := filepath.Join(dir, "operators"), filepath.Join(dir, "ca.pem")
	ours, theirs := newIssuer(t), newIssuer(t)
	keep(t, authorities, ours.cert)
	nameless := ours.issue(func(*x509.Certificate) {})
	addShown(t, list, "ci", Publish, noon.Add(time.Minute), "spiffe://prod/operator/ci")
	keep(t, filepath.Join(dir, "nameless.pem"), nameless)
	addShown(t, list, "ann", Admin, time.Time{}, filepath.Join(dir, "nameless.pem"))
	two := ours.issue(named("spiffe://prod/operator/a", "spiffe://prod/operator/b"))
	sum := sha256.Sum256(two.Raw)
	addShown(t, list, "two", View, time.Time{}, strings.ToUpper(hex.EncodeToString(sum[:])))
	a, err := Open(Files{List: list, ClientCA: authorities})
	if err != nil {
		t.Fatal(err)
	}
	between := ours.issue(func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.Subject.CommonName = true, true, x509.KeyUsageCertSign, "between"
		c.MaxPathLen, c.ExtKeyUsage = -1, nil
	})
	below := &issuer{t: t, cert: between, key: ours.key}
	many := make([]*x509.Certificate, maxShown+1)
	for i := range many {
		many[i] = nameless
	}
	for name, k := range map[string]struct {
		shown []*x509.Certificate
		at    time.Time
		want  string
		role  Role
		err   error
		says  string
	}{
		"by its URI":          {[]*x509.Certificate{ours.issue(named("spiffe://prod/operator/ci"))}, noon, "ci", Publish, nil, ""},
		"through another":     {[]*x509.Certificate{below.issue(named("spiffe://prod/operator/ci")), between}, noon, "ci", Publish, nil, ""},
		"without the other":   {[]*x509.Certificate{below.issue(named("spiffe://prod/operator/ci"))}, noon, "", 0, ErrCertificate, "spiffe://prod/operator/ci"},
		"by its SHA-256":      {[]*x509.Certificate{nameless}, noon, "ann", Admin, nil, ""},
		"two URIs, SHA-256":   {[]*x509.Certificate{two}, noon, "two", View, nil, ""},
		"two URIs":            {[]*x509.Certificate{ours.issue(named("spiffe://prod/operator/ci", "spiffe://prod/operator/b"))}, noon, "", 0, ErrNotListed, ""},
		"the same subject":    {[]*x509.Certificate{ours.issue(func(*x509.Certificate) {})}, noon, "", 0, ErrNotListed, "CN=ci"},
		"not listed":          {[]*x509.Certificate{ours.issue(named("spiffe://prod/operator/other"))}, noon, "", 0, ErrNotListed, "spiffe://prod/operator/other"},
		"of another":          {[]*x509.Certificate{theirs.issue(named("spiffe://prod/operator/ci"))}, noon, "", 0, ErrCertificate, "unknown authority"},
		"of another, with it": {[]*x509.Certificate{theirs.issue(named("spiffe://prod/operator/ci")), theirs.cert}, noon, "", 0, ErrCertificate, "unknown authority"},
		"over in the list":    {[]*x509.Certificate{ours.issue(named("spiffe://prod/operator/ci"))}, noon.Add(2 * time.Minute), "ci", Publish, ErrCertificate, "ci was an operator until"},
		"expired":             {[]*x509.Certificate{ours.issue(named("spiffe://prod/operator/ci"))}, noon.Add(2 * time.Hour), "", 0, ErrCertificate, "has expired"},
		"not yet":             {[]*x509.Certificate{ours.issue(named("spiffe://prod/operator/ci"))}, noon.Add(-2 * time.Hour), "", 0, ErrCertificate, "compare the clocks"},
		"a server's": {[]*x509.Certificate{ours.issue(func(c *x509.Certificate) {
			named("spiffe://prod/operator/ci")(c)
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})}, noon, "", 0, ErrCertificate, "incompatible key usage"},
		"an authority's": {[]*x509.Certificate{ours.cert}, noon, "", 0, ErrCertificate, "an authority's"},
		"too many":       {many, noon, "", 0, ErrCertificate, "6 certificates"},
		"none":           {nil, noon, "", 0, ErrMissing, ""},
	} {
		got, err := a.WhoShows(k.shown, k.at)
		if got.Name != k.want || got.Role != k.role || !errors.Is(err, k.err) || err != nil && !strings.Contains(err.Error(), k.says) {
			t.Errorf("%s: %q %s, %v", name, got.Name, got.Role, err)
		}
	}
	if _, err := a.Who("a-token-of-nobody", noon); !errors.Is(err, ErrWrong) {
		t.Errorf("a token beside: %v", err)
	}
	if none, err := Open(Files{List: list}); err != nil || none.Authorities() != nil || (*Access)(nil).Authorities() != nil {
		t.Errorf("none are asked for: %v", err)
	} else if _, err := none.WhoShows([]*x509.Certificate{nameless}, noon); !errors.Is(err, ErrMissing) {
		t.Errorf("shown where none is asked for: %v", err)
	}

	// Another authority, and another token, count from when their files have them.
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("the-token-of-before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err = Open(Files{Token: token, List: list, ClientCA: authorities}); err != nil {
		t.Fatal(err)
	}
	said := make(lines, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx, slog.New(slog.NewTextHandler(said, nil)), 10*time.Millisecond)
	}()
	keep(t, authorities, theirs.cert)
	said.await(t, "authorities of client certificates changed")
	if got, err := a.WhoShows([]*x509.Certificate{theirs.issue(named("spiffe://prod/operator/ci"))}, noon); err != nil || got.Name != "ci" {
		t.Errorf("the next authority's: %v", err)
	}
	if _, err := a.WhoShows([]*x509.Certificate{nameless}, noon); !errors.Is(err, ErrCertificate) {
		t.Errorf("the last authority's: %v", err)
	}
	if err := errors.Join(os.WriteFile(token+".new", []byte("the-token-of-after\n"), 0o600), os.Rename(token+".new", token)); err != nil {
		t.Fatal(err)
	}
	said.await(t, "operator token changed")
	if o, err := a.Who("the-token-of-after", noon); err != nil || o.Name != TokenName {
		t.Errorf("the next token: %v", err)
	}
	if _, err := a.Who("the-token-of-before", noon); !errors.Is(err, ErrWrong) {
		t.Errorf("the last token: %v", err)
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	said.await(t, "operator token not read again")
	if _, err := a.Who("the-token-of-after", noon); err != nil {
		t.Errorf("without its file: %v", err)
	}
	cancel()
	<-done
}

func TestParseCertificate(t *testing.T) {
	for which, want := range map[string]string{
		"spiffe://prod/operator/ci":                    "uri:spiffe://prod/operator/ci",
		strings.Repeat("AB:", 31) + "AB":               "cert-sha256:" + strings.Repeat("ab", 32),
		"spiffe://prod":                                "",
		"spiffe://prod/":                               "",
		"spiffe://PROD/x":                              "",
		"spiffe://prod:80/x":                           "",
		"spiffe://u@prod/x":                            "",
		"spiffe://prod/x?y":                            "",
		"spiffe://prod/x#y":                            "",
		"spiffe://prod/a b":                            "",
		"https://prod/x":                               "",
		"spiffe://prod/" + strings.Repeat("a", maxURI): "",
		"none.pem":                                     "",
		"abcd":                                         "",
	} {
		got, err := ParseCertificate(which)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%.80q: %s, %v", which, got, err)
		}
	}
	for text, want := range map[string]string{
		"ci view never uri:spiffe://prod/operator/ci\nbob view never uri:spiffe://prod/operator/ci": "line 2: bob has another's",
		"ci view never uri:https://prod":                       "no name such as",
		"ci view never cert-sha256:abcd":                       "64 hexadecimal digits",
		"ci view never cert-sha256:" + strings.Repeat("z", 64): "64 hexadecimal digits",
	} {
		if _, err := parseList(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	one := "ci view never cert-sha256:" + strings.Repeat("ab", 32) + "\n"
	if list, err := parseList(one); err != nil || list[0].line() != one || list[0].Certificate() != "SHA-256 "+strings.Repeat("ab", 32) {
		t.Errorf("%v", err)
	}
}
