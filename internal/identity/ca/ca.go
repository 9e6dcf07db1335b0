// Package ca is a small certificate authority: a root, an intermediate for the hosts of
// each region, and the certificates of seeders, agents and hosts. Who is accepted by
// what it issues is for package identity to say.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

const (
	// rootLife, regionLife, memberLife and hostLife are how long certificates hold:
	// members renew theirs daily, hosts several times a day.
	rootLife   = 10 * 365 * 24 * time.Hour
	regionLife = 365 * 24 * time.Hour
	memberLife = 30 * 24 * time.Hour
	hostLife   = 24 * time.Hour
	// commonName and the cluster's are the root's name.
	commonName = "Landfall "
)

// Authority signs certificates. Its methods may be called concurrently.
type Authority struct {
	cluster string
	domain  string // of whose hosts alone it issues; empty for the root
	key     crypto.Signer
	cert    *x509.Certificate
	clock   identity.Clock
}

// New makes a root with a key of its own.
func New(cluster string, clock identity.Clock) (*Authority, error) {
	if err := (identity.ID{Cluster: cluster, Kind: identity.Seeder, Name: "x"}).Check(); err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	a := &Authority{cluster: cluster, key: key, clock: clock}
	template, err := a.template(commonName+cluster, rootLife)
	if err != nil {
		return nil, err
	}
	authority(template)
	a.cert, err = sign(template, template, key.Public(), key)
	return a, err
}

// Region makes the intermediate that issues the hosts of a region and nothing else.
func (a *Authority) Region(region string) (*Authority, error) {
	id := identity.ID{Cluster: a.cluster, Kind: identity.Host, Region: region, Name: "x"}
	if err := id.Check(); err != nil {
		return nil, err
	}
	if a.domain != "" {
		return nil, errors.New("a region's authority makes no other")
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template, err := a.template("Landfall hosts of "+id.TrustDomain(), regionLife)
	if err != nil {
		return nil, err
	}
	authority(template)
	template.MaxPathLenZero = true
	template.PermittedDNSDomainsCritical = true // of all name constraints
	template.PermittedURIDomains = []string{id.TrustDomain()}
	template.URIs = []*url.URL{{Scheme: "spiffe", Host: id.TrustDomain()}}
	cert, err := sign(template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return &Authority{cluster: a.cluster, domain: id.TrustDomain(), key: key, cert: cert, clock: a.clock}, nil
}

// Issue makes a certificate of an identity for a public key, and returns it with what is
// between it and the root.
func (a *Authority) Issue(id identity.ID, public crypto.PublicKey) ([]*x509.Certificate, error) {
	chain, err := a.issue(id, public)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate of %s: %w", id, err)
	}
	return chain, nil
}

func (a *Authority) issue(id identity.ID, public crypto.PublicKey) ([]*x509.Certificate, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	switch {
	case id.Cluster != a.cluster:
		return nil, fmt.Errorf("this authority is of cluster %s", a.cluster)
	case a.domain != "" && (id.Kind != identity.Host || id.TrustDomain() != a.domain):
		return nil, fmt.Errorf("this authority issues hosts of %s alone", a.domain)
	}
	if err := identity.CheckKey(public); err != nil {
		return nil, err
	}
	life := memberLife
	if id.Kind == identity.Host {
		life = hostLife
	}
	template, err := a.template(id.Name, life)
	if err != nil {
		return nil, err
	}
	template.URIs = []*url.URL{id.URL()}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	leaf, err := sign(template, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	if a.domain == "" {
		return []*x509.Certificate{leaf}, nil
	}
	return []*x509.Certificate{leaf, a.cert}, nil
}

// Certificate is the authority's own.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Cluster is whose authority it is.
func (a *Authority) Cluster() string { return a.cluster }

// template has what all certificates have; it ends no later than the authority.
func (a *Authority) template(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	now := a.clock.Now().Truncate(time.Second)
	end := now.Add(life)
	if a.cert != nil && end.After(a.cert.NotAfter) {
		if end = a.cert.NotAfter; !now.Before(end) {
			return nil, fmt.Errorf("%q has expired at %s", a.cert.Subject.CommonName, end.UTC().Format(time.RFC3339))
		}
	}
	return &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-identity.Backdate),
		NotAfter:              end,
		BasicConstraintsValid: true,
	}, nil
}

func authority(template *x509.Certificate) {
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}
