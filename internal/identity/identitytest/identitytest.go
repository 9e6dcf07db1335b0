// Package identitytest gives tests identities: a cluster's authority in memory and files
// of its certificates.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"os"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// Cluster is the authority of one.
type Cluster struct {
	Root  *ca.Authority
	clock identity.Clock
}

// New makes a cluster's authority; a nil clock is the real one.
func New(t testing.TB, cluster string, clock identity.Clock) *Cluster {
	t.Helper()
	root, err := ca.New(cluster, clock)
	if err != nil {
		t.Fatal(err)
	}
	return &Cluster{Root: root, clock: clock}
}

// Seeder is the name of one.
func (c *Cluster) Seeder(name string) identity.ID {
	return identity.ID{Cluster: c.Root.Cluster(), Kind: identity.Seeder, Name: name}
}

// Agent is the name of one.
func (c *Cluster) Agent(region, name string) identity.ID {
	return identity.ID{Cluster: c.Root.Cluster(), Kind: identity.Agent, Region: region, Name: name}
}

// Host is the name of one.
func (c *Cluster) Host(region, name string) identity.ID {
	return identity.ID{Cluster: c.Root.Cluster(), Kind: identity.Host, Region: region, Name: name}
}

// Source issues a certificate by the root and opens it.
func (c *Cluster) Source(t testing.TB, id identity.ID) *identity.Source {
	t.Helper()
	return Open(t, c.Files(t, id), c.clock)
}

// Files issues a certificate by the root and writes it, its key and the root.
func (c *Cluster) Files(t testing.TB, id identity.ID) identity.Files {
	t.Helper()
	key := Key(t)
	chain, err := c.Root.Issue(id, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	files := identity.FilesIn(t.TempDir())
	Write(t, files, key, chain, c.Root.Certificate())
	return files
}

// Key makes a key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Write writes an identity's files.
func Write(t testing.TB, files identity.Files, key *ecdsa.PrivateKey, chain []*x509.Certificate, roots ...*x509.Certificate) {
	t.Helper()
	text, err := identity.FormatKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{
		files.Key:   text,
		files.Cert:  identity.FormatCerts(chain...),
		files.Roots: identity.FormatCerts(roots...),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Open is identity.Open.
func Open(t testing.TB, files identity.Files, clock identity.Clock) *identity.Source {
	t.Helper()
	s, err := identity.Open(files, clock)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
