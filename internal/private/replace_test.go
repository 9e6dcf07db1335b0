package private

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a [strange] name")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	for _, text := range []string{"first, and longer", "second"} {
		if err := Replace(file, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}

	// A directory cannot be replaced, and nothing is left of the try.
	if err := Replace(dir, nil); err == nil {
		t.Error("a directory was replaced")
	}
	if err := Replace(filepath.Join(dir, "missing", "file"), nil); err == nil {
		t.Error("written into a directory that does not exist")
	}

	// What a killed process left goes, and nothing else.
	f, err := os.CreateTemp(dir, unfinished)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := RemoveUnfinished(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "file" {
		t.Errorf("left: %v, %v", left, err)
	}
}
