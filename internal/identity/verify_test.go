package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// forge has an authority whose key the attacker holds sign whatever he likes.
type forge struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  time.Time
}

func newForge(t *testing.T, now time.Time) *forge {
	f := &forge{t: t, key: identitytest.Key(t), now: now}
	template := f.template()
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	f.cert = f.sign(template, template, f.key)
	return f
}

func (f *forge) template(uris ...string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		f.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "spiffe://prod/seeder/s1"},
		NotBefore: f.now.Add(-time.Hour), NotAfter: f.now.Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			f.t.Fatal(err)
		}
		c.URIs = append(c.URIs, parsed)
	}
	return c
}

func (f *forge) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	f.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), f.key)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// leaf signs a leaf, changed at will.
func (f *forge) leaf(change func(*x509.Certificate), uris ...string) []*x509.Certificate {
	template := f.template(uris...)
	if change != nil {
		change(template)
	}
	return []*x509.Certificate{f.sign(template, f.cert, identitytest.Key(f.t)), f.cert}
}

// under makes an intermediate of this authority, whose key the attacker holds.
func (f *forge) under(change func(*x509.Certificate)) *forge {
	key := identitytest.Key(f.t)
	template := f.template()
	template.Subject.CommonName = "intermediate"
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	change(template)
	return &forge{t: f.t, cert: f.sign(template, f.cert, key), key: key, now: f.now}
}

func region(domain string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{domain}, true
	}
}

// own is a source of cluster prod that trusts a root.
func own(t *testing.T, root *forge, clock identity.Clock, denied ...string) *identity.Source {
	t.Helper()
	files := identity.FilesIn(t.TempDir())
	key := identitytest.Key(t)
	leaf := root.sign(root.template("spiffe://prod/seeder/own"), root.cert, key)
	identitytest.Write(t, files, key, []*x509.Certificate{leaf}, root.cert)
	if err := os.WriteFile(files.Denied, []byte(strings.Join(denied, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	return identitytest.Open(t, files, clock)
}

func TestVerify(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	root := newForge(t, now)
	stranger := newForge(t, now)
	regionA := root.under(region("region-a.prod"))
	sub := regionA.under(func(*x509.Certificate) {})
	company := root.under(func(*x509.Certificate) {})
	ofCluster := root.under(region("prod"))
	byURI := root.under(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "region-a.prod"}} })
	two := root.under(func(c *x509.Certificate) { c.PermittedURIDomains = []string{"region-a.prod", "prod"} })
	all := root.under(region(".prod"))
	noCA := &forge{t: t, key: identitytest.Key(t), now: now}
	noCA.cert = root.sign(root.template("spiffe://prod/agent/region-a/a1"), root.cert, noCA.key)
	denied := root.leaf(nil, "spiffe://prod/agent/region-a/thief")
	deniedToo := root.leaf(nil, "spiffe://prod/agent/region-a/thief")
	deniedName := root.leaf(nil, "spiffe://prod/agent/region-a/gone")
	deniedIssuer := root.under(region("region-b.prod"))
	s := own(t, root, clock,
		"serial "+denied[0].SerialNumber.Text(16)+" # stolen",
		"fingerprint "+identity.FingerprintOf(deniedToo[0]).String(),
		"fingerprint "+identity.FingerprintOf(deniedIssuer.cert).String(),
		"id spiffe://prod/agent/region-a/gone")

	const seeder, agent, host = "spiffe://prod/seeder/s1", "spiffe://prod/agent/region-a/a1", "spiffe://region-a.prod/host/h1"
	for _, c := range []struct {
		name  string
		chain []*x509.Certificate
		want  string // part of the error; empty: accepted
	}{
		{"seeder of the root", root.leaf(nil, seeder), ""},
		{"agent of the root", root.leaf(nil, agent), ""},
		{"host of the root", root.leaf(nil, host), ""},
		{"host of its region", regionA.leaf(nil, host), ""},
		{"host of its region by the authority's URI", byURI.leaf(nil, host), ""},
		{"host below its region's issuer", append(sub.leaf(nil, host), regionA.cert), ""},
		{"seeder of a company's intermediate", company.leaf(nil, seeder), ""},
		{"seeder of an intermediate held to the cluster", ofCluster.leaf(nil, seeder), ""},

		{"seeder of a region", regionA.leaf(nil, seeder), "constraint"},
		{"seeder of a region in its own domain", regionA.leaf(nil, "spiffe://region-a.prod/seeder/s1"), "cluster"},
		{"agent of a region", regionA.leaf(nil, agent), "constraint"},
		{"agent of a region in its own domain", regionA.leaf(nil, "spiffe://region-a.prod/agent/region-a/a1"), "cluster"},
		{"seeder of a region by the authority's URI", byURI.leaf(nil, seeder), "hosts of region-a.prod and no seeder"},
		{"agent of a region by the authority's URI", byURI.leaf(nil, agent), "hosts of region-a.prod and no agent"},
		{"other region's host by the authority's URI", byURI.leaf(nil, "spiffe://region-b.prod/host/h1"), "hosts of region-a.prod alone"},
		{"other region's host", regionA.leaf(nil, "spiffe://region-b.prod/host/h1"), "constraint"},
		{"other region's host below the issuer", append(sub.leaf(nil, "spiffe://region-b.prod/host/h1"), regionA.cert), "constraint"},
		{"seeder below a region's issuer", append(sub.leaf(nil, seeder), regionA.cert), "constraint"},
		// Go lets a constraint to a domain cover all below it.
		{"host of an intermediate held to the cluster", ofCluster.leaf(nil, host), "issues for prod alone"},
		{"host of an issuer held to two domains", two.leaf(nil, host), "several trust domains"},
		{"seeder of an issuer held to two domains", two.leaf(nil, seeder), "several trust domains"},
		{"host of an issuer held to all below", all.leaf(nil, host), "expected one trust domain"},
		{"two URIs", root.leaf(nil, seeder, agent), "2 URIs"},
		{"the same URI twice", root.leaf(nil, seeder, seeder), "2 URIs"},
		{"name in the subject only", root.leaf(nil), "0 URIs"},
		{"no SPIFFE name", root.leaf(nil, "https://prod/seeder/s1"), "spiffe://"},
		{"query", root.leaf(nil, seeder+"?a=b"), "name"},
		{"other cluster", root.leaf(nil, "spiffe://test/seeder/s1"), "it is of cluster test"},
		{"not yet valid", root.leaf(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, seeder), "compare the clocks"},
		{"expired", root.leaf(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }, seeder), "has expired"},
		{"issuer has expired", root.under(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }).leaf(nil, seeder), "authority"},
		{"unknown root", stranger.leaf(nil, seeder), "no authority that is trusted"},
		{"an authority", root.leaf(func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}, seeder), "authority's"},
		{"key that may not sign", root.leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, seeder), "may not sign"},
		{"issued by an agent", noCA.leaf(nil, seeder), "authority"},
		{"denied by serial", denied, "denied by its serial"},
		{"denied by fingerprint", deniedToo, "denied by its fingerprint"},
		{"denied by name", deniedName, "denied, as every one"},
		{"denied issuer", deniedIssuer.leaf(nil, "spiffe://region-b.prod/host/h1"), "denied by its fingerprint"},
		{"nothing", nil, "no certificate"},
		{"too many", append(root.leaf(nil, seeder), root.cert, root.cert, root.cert, root.cert), "at most 5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, verify := range []func([]*x509.Certificate) (identity.Peer, error){s.Verify, s.VerifyForRenewal} {
				p, err := verify(c.chain)
				if c.name == "expired" && err == nil { // which TestRenewalOnly is about
					continue
				}
				if c.want == "" {
					if err != nil || p.ID.String() != c.chain[0].URIs[0].String() || p.Fingerprint != identity.FingerprintOf(c.chain[0]) {
						t.Errorf("refused: %v", err)
					}
				} else if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, expected %q in it", err, c.want)
				}
			}
		})
	}
}

// TestClustersThatNest: under one root of a company the cluster region-a.prod and the hosts
// of region-a in prod have the same trust domain. What issues those hosts is no authority
// of that cluster, and what issues that cluster's members none of those hosts.
func TestClustersThatNest(t *testing.T) {
	now := time.Now()
	company := newForge(t, now)
	hosts := company.under(region("region-a.prod"))
	byURI := company.under(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "region-a.prod"}} })
	// An authority of its own, which names its domain as those of SPIRE do.
	ofItself := &forge{t: t, key: identitytest.Key(t), now: now}
	template := ofItself.template("spiffe://region-a.prod")
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	ofItself.cert = ofItself.sign(template, template, ofItself.key)

	const seeder = "spiffe://region-a.prod/seeder/s1"
	nested := func(f *forge, root *forge) *identity.Source {
		files := identity.FilesIn(t.TempDir())
		key := identitytest.Key(t)
		identitytest.Write(t, files, key, []*x509.Certificate{f.sign(f.template(seeder), f.cert, key)}, root.cert)
		return identitytest.Open(t, files, nil)
	}
	s := nested(company, company)
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		ok    bool
	}{
		"seeder of the root":                      {company.leaf(nil, seeder), true},
		"seeder of the hosts' issuer":             {hosts.leaf(nil, seeder), false},
		"agent of the hosts' issuer":              {hosts.leaf(nil, "spiffe://region-a.prod/agent/r/a1"), false},
		"seeder of the hosts' issuer by its URI":  {byURI.leaf(nil, seeder), false},
		"host of the other cluster in this":       {hosts.leaf(nil, "spiffe://region-a.prod/host/h1"), false},
		"seeder of another root":                  {ofItself.leaf(nil, seeder), false},
		"seeder of the other cluster":             {company.leaf(nil, "spiffe://prod/seeder/s1"), false},
		"member of a cluster that nests the same": {company.leaf(nil, "spiffe://b.region-a.prod/seeder/s1"), false},
	} {
		if _, err := s.Verify(c.chain); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Verify(hosts.leaf(nil, seeder)); err == nil || !strings.Contains(err.Error(), "trust this authority by itself") {
		t.Errorf("not told what to do: %v", err)
	}
	// Trusted by itself there is no other cluster that it could be of.
	own := nested(ofItself, ofItself)
	if _, err := own.Verify(ofItself.leaf(nil, seeder)); err != nil {
		t.Errorf("an authority that is trusted by itself: %v", err)
	}
	if _, err := nested(hosts, hosts).Verify(hosts.leaf(nil, seeder)); err != nil {
		t.Errorf("an issuer that is trusted by itself: %v", err)
	}
}

func TestVerifyOtherKeys(t *testing.T) {
	now := time.Now()
	root := newForge(t, now)
	s := own(t, root, nil)
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain := []*x509.Certificate{root.sign(root.template("spiffe://prod/seeder/s1"), root.cert, key)}
	if _, err := s.Verify(chain); err == nil || !strings.Contains(err.Error(), "P-384") {
		t.Errorf("a key whose signatures do not fit: %v", err)
	}
}

func TestRenewalOnly(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	long := newForge(t, now)
	template := long.template()
	template.IsCA, template.KeyUsage, template.NotAfter = true, x509.KeyUsageCertSign, now.Add(1000*24*time.Hour)
	long.cert = long.sign(template, template, long.key)
	at := now
	s := own(t, long, func() time.Time { return at })
	chain := long.leaf(nil, "spiffe://prod/agent/region-a/a1") // a day
	const day = 24 * time.Hour
	for _, c := range []struct {
		after           time.Duration
		valid, renewing bool
	}{{0, true, true}, {2 * day, false, true}, {identity.RenewFor + day - time.Second, false, true}, {identity.RenewFor + day + time.Second, false, false}} {
		at = now.Add(c.after)
		if _, err := s.Verify(chain); (err == nil) != c.valid || err != nil && !errors.Is(err, identity.ErrExpired) {
			t.Errorf("after %s: %v", c.after, err)
		}
		if _, err := s.VerifyForRenewal(chain); (err == nil) != c.renewing || err != nil && !errors.Is(err, identity.ErrExpired) {
			t.Errorf("after %s, for renewal: %v", c.after, err)
		}
	}
}
