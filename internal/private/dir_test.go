package private

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// open lists what is open to others below dir, dir itself being ".".
func open(t *testing.T, dir string) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&notOwners != 0 {
			name, _ := filepath.Rel(dir, path)
			found = append(found, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, " ")
}

// loose makes a tree as older versions did.
func loose(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "cache", "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cache/a/data", "cache/.new", "name", "theirs"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../theirs", filepath.Join(dir, "cache", "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "cache", "cache/a"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTighten(t *testing.T) {
	dir := loose(t)
	if got := open(t, dir); got != ". cache cache/.new cache/a cache/a/data name theirs" {
		t.Fatal("the test's own tree:", got)
	}
	if err := Tighten(dir, "cache", "name", "none*"); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir); got != ". theirs" {
		t.Errorf("still open: %s", got)
	}
	odd := filepath.Join(t.TempDir(), "a[b]*?")
	if err := os.Rename(loose(t), odd); err != nil {
		t.Fatal(err)
	}
	if err := Tighten(odd, "*"); err != nil || open(t, odd) != "." {
		t.Errorf("%v, still open: %s", err, open(t, odd))
	}
}

func TestMkdirAll(t *testing.T) {
	made := filepath.Join(t.TempDir(), "a", "b")
	if err := MkdirAll(made); err != nil || open(t, filepath.Dir(made)) != "" {
		t.Errorf("%v, open: %s", err, open(t, filepath.Dir(made)))
	}
	dir := loose(t)
	if err := MkdirAll(dir); err != nil || strings.HasPrefix(open(t, dir), ".") {
		t.Errorf("one that was there: %v, %s", err, open(t, dir))
	}
	// What is not this process's alone stays as it is.
	shared := loose(t)
	if err := os.Chmod(shared, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	here := loose(t)
	t.Chdir(filepath.Join(here, "cache"))
	for _, dir := range []string{shared, here, "."} {
		if err := MkdirAll(dir); err != nil || !strings.HasPrefix(open(t, dir), ".") {
			t.Errorf("%s: %v, open: %s", dir, err, open(t, dir))
		}
	}
}
