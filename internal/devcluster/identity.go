package devcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/landfall-dist/landfall/internal/call"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// clusterName is whose authority the cluster's is.
const clusterName = "demo"

// AgentOf is the name of a region's first agent.
func AgentOf(region string) string { return "agent-" + region }

// IdentityOf is the directory of a member's certificate.
func (cfg Config) IdentityOf(name string) string { return filepath.Join(cfg.Dir, name, "identity") }

// Certify opens the cluster's authority, which it makes where there is none, and gives each
// member a new certificate: what lay about for months works again. It returns what the
// regions' agents serve; nothing without TLS.
func Certify(cfg Config) (*ca.Dir, call.Serves, error) {
	if !cfg.secured() {
		return nil, nil, nil
	}
	dir := filepath.Join(cfg.Dir, "ca")
	authority, err := ca.Open(dir, nil)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ca.ErrNoKey) {
		authority, err = ca.Init(dir, clusterName, nil, nil)
	}
	if err != nil {
		return nil, nil, err
	}
	serves := call.Serves{}
	members := []identity.ID{{Cluster: authority.Cluster(), Kind: identity.Seeder, Name: "seeder"}}
	for _, r := range slices.Concat(cfg.Regions, cfg.Expected) {
		if serves[r] == nil {
			serves[r] = []string{BucketOf(r)}
			members = append(members, identity.ID{Cluster: authority.Cluster(), Kind: identity.Agent, Region: r, Name: AgentOf(r)})
		}
	}
	for _, id := range members {
		if err := id.Check(); err != nil {
			return nil, nil, fmt.Errorf("certificate of %s: %w", id.Name, err)
		}
		if err := certify(authority, id, cfg.IdentityOf(id.Name)); err != nil {
			return nil, nil, err
		}
	}
	return authority, serves, certifyHosts(cfg, authority)
}

// certify makes a certificate, a new one where there is one already.
func certify(authority *ca.Dir, id identity.ID, dir string) error {
	_, _, err := authority.Renew(dir)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = authority.Write(id, dir)
	}
	return err
}

// secured reports whether members have certificates.
func (cfg Config) secured() bool { return cfg.TLS != "" && cfg.TLS != identity.Off }

// identity opens a member's certificate; nil without TLS.
func (c *Cluster) identity(name string) (*identity.Source, error) {
	if !c.cfg.secured() {
		return nil, nil
	}
	return identity.Open(identity.FilesIn(c.cfg.IdentityOf(name)), nil)
}
