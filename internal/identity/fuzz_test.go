package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"
)

// fixedCluster is an authority, an agent and a region's authority for hosts with one of its
// hosts: the same in every process, as what a fuzzer tries is shared between some.
type fixedCluster struct {
	root, intermediate, agent, host *x509.Certificate
	agentKey                        ed25519.PrivateKey
	state                           *state
	source                          *Source
}

func newFixedCluster(t testing.TB) *fixedCluster {
	t.Helper()
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	var serial int64
	sign := func(key, by ed25519.PrivateKey, parent *x509.Certificate, c *x509.Certificate, uri string) *x509.Certificate {
		serial++
		c.SerialNumber, c.NotBefore, c.NotAfter, c.BasicConstraintsValid = big.NewInt(serial), at.Add(-time.Hour), at.Add(24*time.Hour), true
		if c.KeyUsage = x509.KeyUsageDigitalSignature; c.IsCA {
			c.KeyUsage = x509.KeyUsageCertSign
		}
		if uri != "" {
			u, err := url.Parse(uri)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = []*url.URL{u}
		}
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	key := func(n byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32)) }
	f := &fixedCluster{agentKey: key(2)}
	f.root = sign(key(1), key(1), nil, &x509.Certificate{IsCA: true}, "")
	f.agent = sign(key(2), key(1), f.root, &x509.Certificate{}, "spiffe://prod/agent/region-a/a1")
	f.intermediate = sign(key(3), key(1), f.root, &x509.Certificate{IsCA: true, PermittedDNSDomainsCritical: true, PermittedURIDomains: []string{"region-a.prod"}}, "")
	f.host = sign(key(4), key(3), f.intermediate, &x509.Certificate{}, "spiffe://region-a.prod/host/h1")
	f.state = &state{cluster: "prod", roots: x509.NewCertPool(), denied: denyList{"serial 63": true},
		certificate: &tls.Certificate{}, chain: []*x509.Certificate{f.agent}, key: f.agentKey}
	f.state.roots.AddCert(f.root)
	f.source = &Source{clock: func() time.Time { return at }}
	f.source.current.Store(f.state)
	return f
}

// mayBe reports whether an identity is one that the authority has vouched for.
func (f *fixedCluster) mayBe(id ID) bool {
	return id.String() == "spiffe://prod/agent/region-a/a1" || id.String() == "spiffe://region-a.prod/host/h1"
}

// FuzzChain: whatever is shown in a handshake, only whom the authority has named is believed.
func FuzzChain(f *testing.F) {
	c := newFixedCluster(f)
	for _, chain := range [][]*x509.Certificate{{c.agent}, {c.host, c.intermediate}, {c.host}, {c.agent, c.root}} {
		if _, err := c.source.Verify(chain); (err == nil) != (len(chain) == 1 && chain[0] == c.agent || len(chain) == 2) {
			f.Fatalf("%d certificates: %v", len(chain), err)
		}
		var der []byte
		for _, one := range chain {
			der = append(der, one.Raw...)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		chain, err := x509.ParseCertificates(der)
		if err != nil {
			return
		}
		if p, err := c.source.Verify(chain); err == nil && !c.mayBe(p.ID) {
			t.Errorf("believed to be %s", p.ID)
		}
		if p, err := c.source.VerifyForRenewal(chain); err == nil && !c.mayBe(p.ID) {
			t.Errorf("may renew itself as %s", p.ID)
		}
	})
}

// FuzzEnclosed: a signature with its certificates, as a row of the table has it.
func FuzzEnclosed(f *testing.F) {
	c := newFixedCluster(f)
	const purpose, message = "arrival", "it is here"
	signature, err := Signer{Source: c.source}.Sign(purpose, []byte(message))
	if err != nil {
		f.Fatal(err)
	}
	if p, err := c.source.CheckEnclosed(purpose, []byte(message), signature); err != nil || !c.mayBe(p.ID) {
		f.Fatalf("%v, %v", p.ID, err)
	}
	f.Add([]byte(message), signature)
	other, err := json.Marshal(enclosed{Chain: [][]byte{c.host.Raw, c.intermediate.Raw}, Signature: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("it is there"), other)
	f.Fuzz(func(t *testing.T, text, b []byte) {
		if p, err := c.source.CheckEnclosed(purpose, text, b); err == nil && (string(text) != message || p.ID.String() != "spiffe://prod/agent/region-a/a1") {
			t.Errorf("%q counts as signed by %s", text, p.ID)
		}
	})
}

// FuzzDenied: a list that is read denies what each of its lines names.
func FuzzDenied(f *testing.F) {
	f.Add("serial 00:ff\n# of 2026\nid spiffe://prod/agent/region-a/a1\nfingerprint " + (Fingerprint{1}).String() + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseDenied(text)
		if err != nil {
			return
		}
		for entry := range list {
			if again, err := ParseDenied(entry); err != nil || again != entry {
				t.Errorf("%q is read as %q, %v", entry, again, err)
			}
			if strings.ContainsAny(entry, "\n#") {
				t.Errorf("%q is no line", entry)
			}
		}
	})
}
