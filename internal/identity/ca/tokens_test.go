package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
)

// asker is a new member with a key of its own.
type asker struct {
	id      identity.ID
	request []byte
}

func newAsker(t *testing.T, kind identity.Kind, region, name string) asker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return asker{identity.ID{Cluster: "prod", Kind: kind, Region: region, Name: name}, request}
}

func (a asker) join(d *Dir, token identity.JoinToken) (identity.ID, error) {
	text, id, err := d.Join(token, a.id, "made-up", a.request, "192.0.2.1:1234")
	if err != nil {
		return id, err
	}
	certs, err := identity.ParseCerts(text, 5)
	if err != nil {
		return id, err
	}
	return identity.Of(certs[0])
}

// authorityAt is a cluster's directory with a clock that the test sets.
func authorityAt(t *testing.T) (*Dir, *atomic.Int64) {
	t.Helper()
	now := new(atomic.Int64)
	now.Store(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC).Unix())
	d, err := Init(filepath.Join(t.TempDir(), "ca"), "prod", nil, func() time.Time { return time.Unix(now.Load(), 0) })
	if err != nil {
		t.Fatal(err)
	}
	return d, now
}

func token(t *testing.T, d *Dir, kind identity.Kind, region, name string) identity.JoinToken {
	t.Helper()
	made, _, err := d.NewJoinToken(kind, region, name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// refused looks at what who asks is told.
func refused(t *testing.T, name string, err error, want string) {
	t.Helper()
	if !errors.Is(err, ErrJoinRefused) || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, expected a refusal with %q", name, err, want)
	}
}

// TestJoinTokenIsForOne: for one key, once, of what it was made for, until it ends.
func TestJoinTokenIsForOne(t *testing.T) {
	d, now := authorityAt(t)
	any, named := token(t, d, identity.Agent, "region-a", ""), token(t, d, identity.Agent, "region-a", "a1")
	for _, c := range []struct {
		name  string
		who   asker
		token identity.JoinToken
		want  string
	}{
		{"another region", newAsker(t, identity.Agent, "region-b", "a1"), any, "it is for agent region-a, and was shown by spiffe://prod/agent/region-b/a1"},
		{"a seeder", newAsker(t, identity.Seeder, "", "s1"), any, "it is for agent region-a"},
		{"a host", newAsker(t, identity.Host, "region-a", "h1"), any, "it is for agent region-a"},
		{"another name", newAsker(t, identity.Agent, "region-a", "a2"), named, "it is for agent region-a a1"},
		{"a name in capitals", newAsker(t, identity.Agent, "region-a", "A1"), any, "lower-case"},
		{"another secret", newAsker(t, identity.Agent, "region-a", "a1"), identity.JoinToken{ID: any.ID, Root: any.Root}, "not known here"},
		{"another id", newAsker(t, identity.Agent, "region-a", "a1"), identity.NewJoinToken(any.Root), "not known here"},
		{"an id that is a path", newAsker(t, identity.Agent, "region-a", "a1"), identity.JoinToken{ID: "../ca.key"}, "not known here"},
		{"rubbish to be signed", asker{identity.ID{Kind: identity.Agent, Region: "region-a", Name: "a1"}, []byte("rubbish")}, any, "request of"},
	} {
		_, err := c.who.join(d, c.token)
		refused(t, c.name, err, c.want)
	}
	// None of them has used it up.
	first, second := newAsker(t, identity.Agent, "region-a", ""), newAsker(t, identity.Agent, "region-a", "")
	if id, err := first.join(d, any); err != nil || id.String() != "spiffe://prod/agent/region-a/made-up" {
		t.Errorf("%v, %v", id, err)
	}
	_, err := second.join(d, any)
	refused(t, "a second key", err, "it was used at 2030-01-02T03:04:05Z by spiffe://prod/agent/region-a/made-up; make another with `seeder ca token agent region-a`")
	// Who lost the answer asks again, also after the seeder has started again, and as nobody else.
	again, err := Open(d.path, d.clock)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := first.join(again, any); err != nil || id.Name != "made-up" {
		t.Errorf("again: %v, %v", id, err)
	}
	other := first
	other.id.Name = "other"
	_, err = other.join(d, any)
	refused(t, "the same key by another name", err, "it was used")
	if id, err := newAsker(t, identity.Agent, "region-a", "").join(d, named); err != nil || id.Name != "a1" {
		t.Errorf("the token's name: %v, %v", id, err)
	}
	if id, err := newAsker(t, identity.Seeder, "", "s2").join(d, token(t, d, identity.Seeder, "", "")); err != nil || id.String() != "spiffe://prod/seeder/s2" {
		t.Errorf("a seeder: %v, %v", id, err)
	}
	list, err := d.JoinTokens()
	if err != nil || len(list) != 3 || list[0].Used == nil || list[0].Used.From != "192.0.2.1:1234" {
		t.Errorf("%+v, %v", list, err)
	}
	late, removed := token(t, d, identity.Agent, "region-a", ""), token(t, d, identity.Agent, "region-a", "")
	if err := d.RemoveJoinToken(removed.ID); err != nil {
		t.Error(err)
	}
	_, err = second.join(d, removed)
	refused(t, "removed", err, "not known here")
	now.Add(3600)
	_, err = first.join(d, any)
	refused(t, "again after the end", err, "it ended at 2030-01-02T04:04:05Z and here it is 2030-01-02T04:04:05Z; make another")
	_, err = second.join(d, late)
	refused(t, "after the end", err, "it ended")
}

// TestJoinTokenIsUsedOnce: whoever asks whichever seeder of the directory at a time, one
// gets a certificate.
func TestJoinTokenIsUsedOnce(t *testing.T) {
	d, _ := authorityAt(t)
	for range 8 {
		made := token(t, d, identity.Agent, "region-a", "")
		var wg sync.WaitGroup
		var given atomic.Int64
		for range 8 {
			who := newAsker(t, identity.Agent, "region-a", "")
			seeder, err := Open(d.path, d.clock)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if _, err := who.join(seeder, made); err == nil {
					given.Add(1)
				} else if !errors.Is(err, ErrJoinRefused) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if given.Load() != 1 {
			t.Errorf("%d certificates for one token", given.Load())
		}
	}
}

// TestJoinTokenIsMarkedFirst: where it cannot be marked as used there is no certificate.
func TestJoinTokenIsMarkedFirst(t *testing.T) {
	d, _ := authorityAt(t)
	made, who := token(t, d, identity.Agent, "region-a", ""), newAsker(t, identity.Agent, "region-a", "a1")
	// A directory in the place of the mark: root may write where nobody may, too.
	mark := d.tokenFile(made.ID) + usedSuffix
	if err := os.Mkdir(mark, 0o700); err != nil {
		t.Fatal(err)
	}
	if id, err := who.join(d, made); err == nil || errors.Is(err, ErrJoinRefused) {
		t.Errorf("%v, %v", id, err)
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	// A mark that a crash of the disk has left empty is one.
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := who.join(d, made); err == nil {
		t.Errorf("certificate of %v", id)
	}
	// Neither does one that is removed meanwhile give any.
	removed := token(t, d, identity.Agent, "region-a", "")
	kept, err := d.known(removed)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveJoinToken(removed.ID); err != nil {
		t.Fatal(err)
	}
	refused(t, "removed meanwhile", d.markUsed(kept, JoinTokenUse{ID: "x"}), "not known here")
}

// TestJoinTokensAreKept: for their owner alone, without the secret, bounded in number; what
// has ended goes.
func TestJoinTokensAreKept(t *testing.T) {
	d, now := authorityAt(t)
	made := token(t, d, identity.Agent, "region-a", "")
	if _, err := newAsker(t, identity.Agent, "region-a", "a1").join(d, made); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{made.ID, made.ID + usedSuffix} {
		file := filepath.Join(d.tokens(), name)
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), strings.Split(made.Text(), ".")[2]) {
			t.Errorf("%s, %v", text, err)
		}
	}
	if info, err := os.Stat(d.tokens()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	for name, c := range map[string]struct {
		kind         identity.Kind
		region, name string
		life         time.Duration
	}{
		"a host": {identity.Host, "region-a", "", time.Hour}, "no region": {identity.Agent, "", "", time.Hour}, "a seeder's region": {identity.Seeder, "region-a", "", time.Hour},
		"a name in capitals": {identity.Seeder, "", "S1", time.Hour}, "for ever": {identity.Seeder, "", "", MaxJoinTokenLife + 1}, "for a moment": {identity.Seeder, "", "", time.Second},
	} {
		if _, _, err := d.NewJoinToken(c.kind, c.region, c.name, c.life); err == nil {
			t.Errorf("a token for %s", name)
		}
	}
	for range maxJoinTokens - 1 {
		// As NewJoinToken writes them, without looking at all of them each time.
		one := identity.NewJoinToken(made.Root)
		text, err := os.ReadFile(d.tokenFile(made.ID))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.tokenFile(one.ID), []byte(strings.ReplaceAll(string(text), made.ID, one.ID)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := d.NewJoinToken(identity.Seeder, "", "", time.Hour); err == nil || !strings.Contains(err.Error(), "at most 1000; remove some") {
		t.Errorf("one more: %v", err)
	}
	now.Add(3600)
	last := token(t, d, identity.Seeder, "", "")
	if left, err := os.ReadDir(d.tokens()); err != nil || len(left) != 1 || left[0].Name() != last.ID {
		t.Errorf("%d files are left, %v", len(left), err)
	}
	if err := os.WriteFile(d.tokenFile(last.ID), make([]byte, maxJoinTokenFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.JoinTokens(); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a token's file without a bound: %v", err)
	}
}
