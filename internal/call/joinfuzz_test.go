package call

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/ca"
)

// FuzzEnrolAnswer: whatever a seeder answers who asks for its first certificate, it keeps one
// of its own name and key, by the authority that it knows, or nothing.
func FuzzEnrolAnswer(f *testing.F) {
	dir, err := ca.Init(filepath.Join(f.TempDir(), "ca"), "prod", nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	other, err := ca.New("prod", nil)
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	own := identity.ID{Cluster: "prod", Kind: identity.Agent, Region: "region-a", Name: "a1"}
	seed := func(a *ca.Authority, id identity.ID) {
		chain, err := a.Issue(id, key.Public())
		if err != nil {
			f.Fatal(err)
		}
		b, err := json.Marshal(EnrolAnswer{Certificates: string(identity.FormatCerts(chain...)), Roots: string(identity.FormatCerts(a.Certificate()))})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(dir.Authority, own)
	seed(other, own)
	seed(dir.Authority, identity.ID{Cluster: "prod", Kind: identity.Seeder, Name: "a1"})
	by := identity.Peer{ID: identity.ID{Cluster: "prod", Kind: identity.Seeder, Name: "s1"}}
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		files := identity.FilesIn(folder)
		for _, file := range []string{files.Cert, files.Roots, files.Denied} {
			_ = os.Remove(file) // where it is there
		}
		j := Joiner{
			Files: files, Anchor: identity.Anchor{Pin: identity.FingerprintOf(dir.Certificate())},
			Ask:    EnrolRequest{Kind: own.Kind, Region: own.Region, Name: own.Name},
			Logger: slog.New(slog.DiscardHandler),
		}
		err := j.keep(by, text, key)
		certs, readErr := identity.ReadCerts(files.Cert, maxJoinChain)
		if err != nil {
			if readErr == nil {
				t.Errorf("%v, and it keeps %s", err, certs[0].URIs)
			}
			return
		}
		if readErr != nil {
			t.Fatal(readErr)
		}
		if id, err := identity.Of(certs[0]); err != nil || id != own || !key.PublicKey.Equal(certs[0].PublicKey) {
			t.Errorf("it keeps a certificate of %s, %v", id, err)
		}
	})
}
