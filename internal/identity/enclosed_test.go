package identity_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

func TestEnclosedSignature(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	prod := identitytest.New(t, "prod", clock)
	seeder, agent := prod.Source(t, prod.Seeder("s1")), prod.Source(t, prod.Agent("region-a", "a1"))
	stranger := identitytest.New(t, "prod", clock).Source(t, prod.Agent("region-a", "a1"))
	signature, err := identity.Signer{Source: agent}.Sign("arrival", []byte("it is here"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := seeder.CheckEnclosed("arrival", []byte("it is here"), signature); err != nil || p.ID != agent.ID() {
		t.Errorf("%v, %v", p.ID, err)
	}
	forged, err := identity.Signer{Source: stranger}.Sign("arrival", []byte("it is here"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		purpose, message string
		signature        []byte
	}{
		"another purpose":   {"member", "it is here", signature},
		"another message":   {"arrival", "it is there", signature},
		"another authority": {"arrival", "it is here", forged},
		"none":              {"arrival", "it is here", nil},
		"no certificate":    {"arrival", "it is here", []byte(`{"s":"AAAA"}`)},
		"rubbish":           {"arrival", "it is here", []byte(`{"c":["AAAA"]}`)},
		"too many":          {"arrival", "it is here", []byte(`{"c":["","","","","",""]}`)},
		"too long":          {"arrival", "it is here", append(bytes.Clone(signature), bytes.Repeat([]byte(" "), 8<<10)...)},
	} {
		if _, err := seeder.CheckEnclosed(c.purpose, []byte(c.message), c.signature); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	now = now.Add(60 * 24 * time.Hour) // it was read late
	if _, err := seeder.CheckEnclosed("arrival", []byte("it is here"), signature); err != nil {
		t.Errorf("after 60 days: %v", err)
	}
	now = now.Add(90 * 24 * time.Hour)
	if _, err := seeder.CheckEnclosed("arrival", []byte("it is here"), signature); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("after 150 days: %v", err)
	}
}
