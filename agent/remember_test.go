package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/landfall-dist/landfall/internal/announce"
)

func TestMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "announced")
	m, err := newMemory(dir)
	if err != nil {
		t.Fatal(err)
	}
	for id, wire := range map[string]string{"one": "first", "two": "second", "three": "refused"} {
		if err := m.keep(id, []byte(wire)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(m.keep("one", []byte("newer")), m.forget("two"), m.forget("two")); err != nil {
		t.Fatal(err)
	}
	killed := filepath.Join(dir, ".unfinished-123") // as a process leaves it that is killed in keep
	if err := os.WriteFile(killed, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err = newMemory(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed); !os.IsNotExist(err) {
		t.Errorf("unfinished announcement is still there: %v", err)
	}
	large := bytes.Repeat([]byte("x"), announce.MaxLength+1)
	if err := os.WriteFile(filepath.Join(dir, "large"), large, 0o644); err != nil {
		t.Fatal(err)
	}
	var got []string
	recall := func() {
		got = nil
		err := m.recall(func(wire []byte) error {
			got = append(got, string(wire))
			if string(wire) == "refused" {
				return errors.New("expired")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	recall()
	if len(got) != 2 {
		t.Errorf("recalled %q", got)
	}
	recall()
	if len(got) != 1 || got[0] != "newer" {
		t.Errorf("then recalled %q", got)
	}
}
