package identity_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// What seeders have told is denied stays denied, whoever says less later and over a restart;
// what cannot be taken changes nothing.
func TestTakeDenied(t *testing.T) {
	prod := identitytest.New(t, "prod", nil)
	files := prod.Files(t, prod.Agent("region-a", "a1"))
	files.Told, files.Authority = filepath.Join(t.TempDir(), "denied"), filepath.Join(t.TempDir(), "denied")
	s := identitytest.Open(t, files, nil)
	one, two, three := prod.Agent("region-b", "b1"), prod.Agent("region-b", "b2"), prod.Agent("region-b", "b3")
	if text, digest := s.Denied(); text != "" || digest != "" {
		t.Errorf("denied at first: %q %s", text, digest)
	}
	is := func(id identity.ID) bool {
		_, err := s.Verify(prod.Source(t, id).Chain())
		return errors.Is(err, identity.ErrDenied)
	}
	line := func(id identity.ID) string { return "id " + id.String() + "\n" }
	for i, k := range []struct {
		told            string
		added           int
		err             string
		one, two, three bool
	}{
		{"", 0, "", false, false, false},
		{"# nothing\n", 0, "", false, false, false},
		{line(one), 1, "", true, false, false},
		{line(one), 0, "", true, false, false},
		{line(two) + line(one) + "serial 0AFF # again\n", 2, "", true, true, false},
		{line(one), 0, "", true, true, false}, // an older list
		{line(three) + "nonsense\n", 0, "line 2", true, true, false},
		{strings.Repeat(" ", identity.MaxDenied) + line(three), 0, "at most", true, true, false},
	} {
		added, err := s.TakeDenied(k.told)
		if added != k.added || (err == nil) != (k.err == "") || err != nil && !strings.Contains(err.Error(), k.err) {
			t.Errorf("%d: %d, %v", i, added, err)
		}
		if is(one) != k.one || is(two) != k.two || is(three) != k.three {
			t.Errorf("%d: %v %v %v", i, is(one), is(two), is(three))
		}
	}
	many := new(strings.Builder)
	for i := range 9_999 {
		fmt.Fprintf(many, "serial %x\n", i+0x10000)
	}
	if added, err := s.TakeDenied(many.String()); err == nil || !strings.Contains(err.Error(), "at most 10000") || added != 0 {
		t.Errorf("too many: %d, %v", added, err)
	}
	text, digest := s.Denied()
	if text != line(one)+line(two)+"serial aff\n" || digest == "" {
		t.Errorf("handed on: %q", text)
	}

	// The lists of files and what is told are one; each is kept to by itself.
	if err := os.WriteFile(files.Authority, []byte(line(three)), 0o600); err != nil {
		t.Fatal(err)
	}
	s = identitytest.Open(t, files, nil)
	if _, again := s.Denied(); !is(one) || !is(two) || !is(three) || again == digest {
		t.Error("after a restart something is not denied")
	}
	for _, file := range []string{files.Told, files.Authority} {
		if err := os.Rename(file, file+".gone"); err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(); err == nil || !strings.Contains(err.Error(), file) || !is(one) || !is(three) {
			t.Errorf("%s is gone: %v", file, err)
		}
		if err := os.Rename(file+".gone", file); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(files.Authority, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil || is(three) || !is(one) {
		t.Errorf("taken off the authority's list: %v", err)
	}
	if _, err := prod.Source(t, one).TakeDenied(line(two)); err != nil {
		t.Errorf("where it is not kept: %v", err)
	}
}
