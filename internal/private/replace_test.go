package private

import (
	"errors"
	"io"
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

// Everybody may read what is written so; where it is not written to its end the former file
// stays, and nothing is left of the try.
func TestReplacePublic(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	fails := errors.New("fails")
	for text, want := range map[string]error{"whole": nil, "cut short": fails} {
		err := ReplacePublic(file, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return errors.Join(err, want)
		})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "whole" {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
