package private

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode fs.FileMode
		want string // in the error; empty for none
	}{
		"the owner's":         {"hidden", 0o600, ""},
		"read only":           {"hidden", 0o400, ""},
		"a group's":           {"hidden", 0o440, ""},
		"as long as it may":   {"hiddenhidden", 0o600, ""},
		"everybody's":         {"hidden", 0o644, "chmod 600 "},
		"others' alone":       {"hidden", 0o604, "chmod 600 "},
		"to be put elsewhere": {"hidden", 0o602, "chmod 600 "},
		"too long":            {"hiddenhidden!", 0o600, "13 bytes, at most 12"},
	} {
		file := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		text, err := Read(file, 12)
		switch {
		case c.want == "" && (err != nil || string(text) != c.text):
			t.Errorf("%s: %q, %v", name, text, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "hidden")):
			t.Errorf("%s: %v, want %q and the file's name", name, err, c.want)
		}
	}
	if _, err := Read(t.TempDir(), 12); err == nil {
		t.Error("a directory is read")
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none"), 12); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"secret": 0o600, "public": 0o644} {
		file, write := filepath.Join(dir, name), Write
		if name == "public" {
			write = WritePublic
		}
		if err := write(file, []byte("text")); err != nil {
			t.Fatal(err)
		}
		if err := write(file, []byte("other")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s that was there: %v", name, err)
		}
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm()&^mode != 0 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}
