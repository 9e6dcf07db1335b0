//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"path/filepath"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// authority issues the identities of one measurement.
type authority struct {
	root    *ca.Authority
	regions map[string]*ca.Authority // of hosts
	dir     string
}

func newAuthority(dir string) (*authority, error) {
	root, err := ca.New("bench", nil)
	return &authority{root, make(map[string]*ca.Authority), dir}, err
}

// issue returns a directory with an identity's files; an empty region is a seeder's.
func (a *authority) issue(region, name string) (dir string, err error) {
	id := identity.ID{Cluster: a.root.Cluster(), Kind: identity.Agent, Region: region, Name: name}
	if region == "" {
		id.Kind = identity.Seeder
	}
	return a.write(a.root, id)
}

// issueHost is issue for a host of a region.
func (a *authority) issueHost(region, name string) (dir string, err error) {
	by := a.regions[region]
	if by == nil {
		if by, err = a.root.Region(region); err != nil {
			return "", err
		}
		a.regions[region] = by
	}
	return a.write(by, identity.ID{Cluster: a.root.Cluster(), Kind: identity.Host, Region: region, Name: name})
}

func (a *authority) write(by *ca.Authority, id identity.ID) (dir string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	chain, err := by.Issue(id, key.Public())
	if err != nil {
		return "", err
	}
	keys, err := identity.FormatKeys(key)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(a.dir, "identity-"+id.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	files := identity.FilesIn(dir)
	for file, text := range map[string][]byte{
		files.Key: keys, files.Cert: identity.FormatCerts(chain...), files.Roots: identity.FormatCerts(a.root.Certificate()),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}
