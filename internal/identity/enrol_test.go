package identity_test

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// TestAnchor: who has no certificate yet knows a seeder by its authority alone, by a
// fingerprint or by the authority itself.
func TestAnchor(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	root, other := newForge(t, now), newForge(t, now)
	company := root.under(func(*x509.Certificate) {})
	regionA := root.under(region("region-a.prod"))
	const seeder = "spiffe://prod/seeder/s1"
	shown := func(chain []*x509.Certificate, more ...*x509.Certificate) []*x509.Certificate {
		return append(chain, more...)
	}
	leaf := func(f *forge, change func(*x509.Certificate), uri string) []*x509.Certificate {
		return f.leaf(change, uri)[:1]
	}
	for _, c := range []struct {
		name  string
		chain []*x509.Certificate
		pin   bool // by the fingerprint
		ok    bool
		other bool // is of another authority
	}{
		{"seeder by fingerprint", shown(leaf(root, nil, seeder), root.cert), true, true, false},
		{"seeder by the authority", leaf(root, nil, seeder), false, true, false},
		{"below an intermediate", shown(leaf(company, nil, seeder), company.cert, root.cert), true, true, false},
		{"the authority is not shown", leaf(root, nil, seeder), true, false, true},
		{"another's", shown(leaf(other, nil, seeder), other.cert), true, false, true},
		{"another's by the authority", leaf(other, nil, seeder), false, false, true},
		{"another's that shows the right authority", shown(leaf(other, nil, seeder), root.cert), true, false, true},
		{"an agent", shown(leaf(root, nil, "spiffe://prod/agent/region-a/a1"), root.cert), true, false, true},
		{"a host", shown(leaf(root, nil, "spiffe://region-a.prod/host/h1"), root.cert), true, false, true},
		{"a seeder of a region's issuer", shown(leaf(regionA, nil, seeder), regionA.cert, root.cert), true, false, true},
		{"the authority alone", []*x509.Certificate{root.cert}, true, false, true},
		{"nothing", nil, true, false, true},
		{"expired", shown(leaf(root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }, seeder), root.cert), true, false, false},
	} {
		a := identity.Anchor{Clock: clock}
		if c.pin {
			a.Pin = identity.FingerprintOf(root.cert)
		} else {
			a.Roots = []*x509.Certificate{root.cert}
		}
		p, err := a.Seeder(c.chain)
		if (err == nil) != c.ok || errors.Is(err, identity.ErrOtherAuthority) != c.other || c.ok && p.ID.String() != seeder {
			t.Errorf("%s: %v, %v", c.name, p.ID, err)
		}
	}
}

func TestTrusted(t *testing.T) {
	root := newForge(t, time.Now())
	s := own(t, root, nil, "id spiffe://prod/agent/region-a/thief", "serial 0AFF # stolen")
	roots, denied := s.Trusted()
	if len(roots) != 1 || !roots[0].Equal(root.cert) || denied != "id spiffe://prod/agent/region-a/thief\nserial aff\n" {
		t.Errorf("%d roots, %q", len(roots), denied)
	}
	if _, denied := identitytest.New(t, "prod", nil).Source(t, identity.ID{Cluster: "prod", Kind: identity.Seeder, Name: "s"}).Trusted(); denied != "" {
		t.Errorf("nobody is denied: %q", denied)
	}
}
