package gossip

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
)

// TestKeyIsChangedWithoutAStop: a member at a time, with documents on the way at each
// step; who has the old key alone is out afterwards.
func TestKeyIsChangedWithoutAStop(t *testing.T) {
	dir := t.TempDir()
	first := filepath.Join(dir, "key")
	if err := WriteKey(first); err != nil {
		t.Fatal(err)
	}
	old, err := ReadKeys(first)
	if err != nil {
		t.Fatal(err)
	}
	nodes := make([]*node, 3)
	files := make([]string, 3)
	distribute := func() {
		t.Helper()
		text, err := os.ReadFile(first)
		if err != nil {
			t.Fatal(err)
		}
		for i := range files {
			files[i] = filepath.Join(dir, strconv.Itoa(i))
			if err := os.WriteFile(files[i], text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	distribute()
	for i, m := range []Meta{seeder("s1"), agent("a1", "a"), agent("b1", "b")} {
		nodes[i] = start(t, m, func(c *Config) {
			c.Keys, c.KeyFile = old, files[i]
			if i > 0 {
				c.Join = []string{nodes[0].Addr()}
			}
		})
	}
	for _, n := range nodes {
		n.await(t, 3)
	}
	for i, step := range []func(string, string) (string, error){
		func(file, _ string) (string, error) { return AddKey(file) }, UseKey, RemoveKey,
	} {
		if _, err := step(first, ""); err != nil {
			t.Fatal(err)
		}
		distribute()
		for _, n := range nodes { // one after the other
			if err := takeFile(n.Gossip); err != nil {
				t.Fatal(err)
			}
			if err := nodes[0].Broadcast(sign(t, ulid.Make().String(), 1, byte(i)), nil); err != nil {
				t.Fatal(err)
			}
			for _, to := range nodes[1:] {
				receive(t, to.documents)
			}
		}
	}
	keys, err := ReadKeys(first)
	if err != nil || len(keys) != 1 || KeyID(keys[0]) == KeyID(old[0]) {
		t.Fatalf("keys: %d, %v", len(keys), err)
	}
	late := start(t, agent("c1", "c"), func(c *Config) { c.Keys, c.Join = old, []string{nodes[0].Addr()} })
	late.untilTrue(t, "who has the old key is not kept out", func() bool { return late.Unreached() != nil })
	// A file that cannot be used changes nothing.
	if err := os.WriteFile(files[0], []byte("rubbish\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := takeFile(nodes[0].Gossip); err == nil || len(nodes[0].keyring.GetKeys()) != 1 {
		t.Errorf("rubbish: %v", err)
	}
}

// takeFile is what a member does once its file has settled.
func takeFile(g *Gossip) error {
	keys, err := ReadKeys(g.cfg.KeyFile)
	if err == nil {
		err = g.takeKeys(keys)
	}
	return err
}

func TestKeysOfAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := WriteKey(file); err != nil {
		t.Fatal(err)
	}
	keys, err := ReadKeys(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := RemoveKey(file, ""); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the only one was removed: %v", err)
	}
	if _, err := UseKey(file, "nothing"); err == nil {
		t.Error("a key that is not there is used")
	}
	for range maxKeys - 1 {
		if _, err := AddKey(file); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := AddKey(file); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("one too many: %v", err)
	}
	if id, err := RemoveKey(file, KeyID(keys[0])); err == nil {
		t.Errorf("%s was in use and is removed", id)
	}
	if _, err := UseKey(file, ""); err != nil {
		t.Fatal(err)
	}
	if id, err := RemoveKey(file, KeyID(keys[0])); err != nil || id != KeyID(keys[0]) {
		t.Errorf("removing: %s, %v", id, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
}
