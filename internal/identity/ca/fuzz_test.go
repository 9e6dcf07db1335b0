package ca

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// FuzzRequest: a request for the next certificate gets one of the name that was shown, or none.
func FuzzRequest(f *testing.F) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	d, err := Init(f.TempDir()+"/ca", "prod", nil, func() time.Time { return at })
	if err != nil {
		f.Fatal(err)
	}
	// The same in every process: what a fuzzer tries is shared between some.
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	for _, names := range [][]string{nil, {"spiffe"}} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	p := identity.Peer{ID: identity.ID{Cluster: "prod", Kind: identity.Agent, Region: "region-a", Name: "a1"}}
	f.Fuzz(func(t *testing.T, request []byte) {
		text, err := d.RenewFor(p, request)
		if err != nil {
			return
		}
		certs, err := identity.ParseCerts(text, 5)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := identity.Of(certs[0]); err != nil || id != p.ID || certs[0].IsCA || len(certs[0].DNSNames)+len(certs[0].EmailAddresses)+len(certs[0].IPAddresses) > 0 {
			t.Errorf("issued to %v, %v", id, err)
		}
	})
}
