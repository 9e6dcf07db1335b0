package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ids() (seeder, agent, host identity.ID) {
	return identity.ID{Cluster: "prod", Kind: identity.Seeder, Name: "s1"},
		identity.ID{Cluster: "prod", Kind: identity.Agent, Region: "region-a", Name: "a1"},
		identity.ID{Cluster: "prod", Kind: identity.Host, Region: "region-a", Name: "h1"}
}

// TestDir has what is written by one accepted by the others, and by nobody of another
// authority.
func TestDir(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	dir := filepath.Join(t.TempDir(), "ca")
	made, err := Init(dir, "prod", []string{"region-a"}, clock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, "prod", nil, clock); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("made again: %v", err)
	}
	d, err := Open(dir, clock)
	if err != nil || d.Cluster() != "prod" || !d.Certificate().Equal(made.Certificate()) {
		t.Fatalf("opened: %v", err)
	}
	var sources []*identity.Source
	for _, id := range []identity.ID{d.id(t, "seeder"), d.id(t, "agent"), d.id(t, "host")} {
		out := filepath.Join(t.TempDir(), id.Name)
		chain, err := d.Write(id, out)
		if err != nil {
			t.Fatal(err)
		}
		life := 30 * 24 * time.Hour
		if id.Kind == identity.Host {
			life = 24 * time.Hour
		}
		if got := chain[0]; !got.NotBefore.Equal(now.Add(-time.Hour)) || !got.NotAfter.Equal(now.Add(life)) {
			t.Errorf("%s holds from %s to %s", id, got.NotBefore, got.NotAfter)
		}
		if _, err := d.Write(id, out); err == nil {
			t.Errorf("%s: what was there has been replaced", id)
		}
		s, err := identity.Open(identity.FilesIn(out), clock)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, s)
	}
	for _, s := range sources {
		for _, other := range sources {
			if p, err := s.Verify(other.Chain()); err != nil || p.ID != other.ID() {
				t.Errorf("%s of %s: %v", s.ID(), other.ID(), err)
			}
		}
	}
	if _, err := d.For(identity.ID{Cluster: "prod", Kind: identity.Host, Region: "region-b", Name: "h1"}); err == nil || !strings.Contains(err.Error(), "--regions region-b") {
		t.Errorf("a region without an authority: %v", err)
	}
	region, err := d.For(sources[2].ID())
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	seeder, agent, _ := ids()
	for _, id := range []identity.ID{seeder, agent, {Cluster: "prod", Kind: identity.Host, Region: "region-b", Name: "h1"}} {
		if _, err := region.Issue(id, key.Public()); err == nil {
			t.Errorf("a region has issued %s", id)
		}
	}
	if _, err := d.Issue(identity.ID{Cluster: "test", Kind: identity.Seeder, Name: "s1"}, key.Public()); err == nil {
		t.Error("issued for another cluster")
	}
	if _, err := region.Region("region-b"); err == nil {
		t.Error("a region has made an authority")
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Issue(seeder, other.Public()); err == nil {
		t.Error("issued for a key that nobody accepts")
	}
	// Nobody but the owner reads what is secret.
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".key") {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func (d *Dir) id(t *testing.T, kind string) identity.ID {
	t.Helper()
	seeder, agent, host := ids()
	return map[string]identity.ID{"seeder": seeder, "agent": agent, "host": host}[kind]
}

func TestRenewAndDeny(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	d, err := Init(filepath.Join(t.TempDir(), "ca"), "prod", nil, clock)
	if err != nil {
		t.Fatal(err)
	}
	_, agent, _ := ids()
	out := filepath.Join(t.TempDir(), "a1")
	before, err := d.Write(agent, out)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.Open(identity.FilesIn(out), clock)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(100 * 24 * time.Hour)
	if err := s.Expired(); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("after 100 days: %v", err)
	}
	after, id, err := d.Renew(out)
	if err != nil || id != agent.String() || after[0].Equal(before[0]) || !now.Before(after[0].NotAfter) {
		t.Fatalf("renewed: %v, %s", err, id)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := s.Expired(); err != nil {
		t.Errorf("renewed: %v", err)
	}
	entry := "fingerprint " + identity.FingerprintOf(after[0]).String()
	for i, want := range []bool{true, false} {
		if added, err := d.Deny(entry, "stolen\nserial 1"); err != nil || added != want {
			t.Errorf("denied %d: %t, %v", i, added, err)
		}
	}
	if _, err := d.Deny("everybody", ""); err == nil {
		t.Error("rubbish denied")
	}
	if _, _, err := d.Renew(out); err != nil { // brings the list along
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Verify(after); !errors.Is(err, identity.ErrDenied) {
		t.Errorf("denied: %v", err)
	}
	if err := os.Remove(filepath.Join(d.path, keyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d.path, clock); !errors.Is(err, ErrNoKey) {
		t.Errorf("without its key: %v", err)
	}
}

// An operator's certificate is nobody's among members, and is renewed by hand.
func TestOperatorsCertificate(t *testing.T) {
	dir := t.TempDir()
	d, err := Init(filepath.Join(dir, "ca"), "prod", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "ci")
	chain, err := d.WriteOperator("ci", out)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if got := leaf.URIs[0].String(); got != "spiffe://prod/operator/ci" || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("%s, %v", got, leaf.ExtKeyUsage)
	}
	if _, err := identity.Open(identity.FilesIn(out), nil); err == nil || !strings.Contains(err.Error(), "expected spiffe://CLUSTER/seeder/NAME") {
		t.Errorf("a member runs by it: %v", err)
	}
	if _, err := d.WriteOperator("ci", out); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("twice: %v", err)
	}
	for _, name := range []string{"", "CI", "a/b", "..", strings.Repeat("a", 64)} {
		if _, err := d.WriteOperator(name, filepath.Join(dir, "x")); err == nil {
			t.Errorf("%q was issued", name)
		}
	}
	after, name, err := d.Renew(out)
	if err != nil || name != "spiffe://prod/operator/ci" || after[0].URIs[0].String() != name || after[0].Equal(leaf) {
		t.Errorf("renewed: %s, %v", name, err)
	}
}
