//go:build linux

package chaos

import (
	"os"
	"path/filepath"
	"time"

	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

const (
	// cluster is the name of every world's authority.
	cluster = "chaos"
	// foreignBucket and foreignRegion are what no build goes to.
	foreignBucket, foreignRegion = "foreign-builds", "foreign"
	// authorityAge is how long there has been the authority, and those of hosts. Certificates
	// of hosts were made then, and have ended for two days.
	authorityAge = 72 * time.Hour
)

// past is a clock that stands that far back.
func past(d time.Duration) identity.Clock {
	then := time.Now().Add(-d)
	return func() time.Time { return then }
}

// certify gives every member a certificate and the gossip key.
func (w *World) certify() {
	w.t().Helper()
	dir := filepath.Join(w.dir, "ca")
	_, err := ca.Init(dir, cluster, w.regions(), past(authorityAge))
	if err == nil {
		w.authority, err = ca.Open(dir, nil)
	}
	if err != nil {
		w.t().Fatal(err)
	}
	gossipKey := filepath.Join(w.dir, "gossip.key")
	if err := gossip.WriteKey(gossipKey); err != nil {
		w.t().Fatal(err)
	}
	key, err := os.ReadFile(gossipKey)
	if err != nil {
		w.t().Fatal(err)
	}
	w.Seeder.args = append(w.Seeder.args, "--ca", dir, "--serves", foreignRegion+"="+foreignBucket)
	for _, b := range w.Buckets {
		w.Seeder.args = append(w.Seeder.args, "--serves", regionOf(b)+"="+b)
	}
	for _, m := range w.Members() {
		id := identity.ID{Cluster: cluster, Kind: identity.Seeder, Name: m.Name}
		if m != w.Seeder {
			id.Kind, id.Region = identity.Agent, regionOf(m.Bucket)
		}
		own := w.identity(id)
		file := filepath.Join(own, "gossip.key")
		if err := os.WriteFile(file, key, 0o600); err != nil {
			w.t().Fatal(err)
		}
		m.args = append(m.args, "--tls", "require", "--identity", own, "--gossip-key", file)
		if err := giveTo(m.uid, own); err != nil {
			w.t().Fatal(err)
		}
	}
	if err := giveTo(w.Seeder.uid, dir); err != nil {
		w.t().Fatal(err)
	}
}

// identity makes a certificate and returns its directory.
func (w *World) identity(id identity.ID) string {
	w.t().Helper()
	dir := filepath.Join(w.dir, "identity-"+id.Region+"-"+id.Name)
	if _, err := w.authority.Write(id, dir); err != nil {
		w.t().Fatal(err)
	}
	return dir
}

// giveTo makes all that a directory holds a user's.
func giveTo(uid int, dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, uid)
	})
}

// regions are those of all agents.
func (w *World) regions() (all []string) {
	for _, b := range w.Buckets {
		all = append(all, regionOf(b))
	}
	return all
}

// regionOf is the region of a bucket's agents.
func regionOf(bucket string) string { return "at-" + bucket }
