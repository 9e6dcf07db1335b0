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
	root *ca.Authority
	dir  string
}

func newAuthority(dir string) (*authority, error) {
	root, err := ca.New("bench", nil)
	return &authority{root, dir}, err
}

// issue returns a directory with an identity's files; an empty region is a seeder's.
func (a *authority) issue(region, name string) (dir string, err error) {
	id := identity.ID{Cluster: a.root.Cluster(), Kind: identity.Agent, Region: region, Name: name}
	if region == "" {
		id.Kind = identity.Seeder
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	chain, err := a.root.Issue(id, key.Public())
	if err != nil {
		return "", err
	}
	keys, err := identity.FormatKeys(key)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(a.dir, "identity-"+name)
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
