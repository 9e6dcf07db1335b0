package wholefile

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUnchanged(t *testing.T) {
	for _, size := range []int{0, 1, 100_000} {
		name := filepath.Join(t.TempDir(), "build.zip")
		content := bytes.Repeat([]byte("x"), size)
		write(t, name, content)
		f, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, content) || f.Size() != int64(size) {
			t.Errorf("%d bytes of %d: %v", len(got), size, err)
		}
	}
}

// Whatever happens to a file between its first and its last byte, a reader that counts
// bytes never gets all of them.
func TestChanged(t *testing.T) {
	const size = 100_000
	for how, change := range map[string]func(name string) error{
		"grows": func(name string) error {
			f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("more")
			return errors.Join(err, f.Close())
		},
		"is cut short":  func(name string) error { return os.Truncate(name, 1000) },
		"is emptied":    func(name string) error { return os.Truncate(name, 0) },
		"is written to": func(name string) error { return os.Chtimes(name, time.Time{}, time.Now().Add(time.Minute)) },
		"is removed":    os.Remove,
		"is replaced": func(name string) error {
			write(t, name+".new", make([]byte, size))
			return os.Rename(name+".new", name)
		},
		"is a directory": func(name string) error { return errors.Join(os.Remove(name), os.Mkdir(name, 0o700)) },
	} {
		t.Run(how, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "build.zip")
			write(t, name, make([]byte, size))
			f, err := Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := io.ReadFull(f, make([]byte, size/2)); err != nil {
				t.Fatal(err)
			}
			if err := change(name); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(f)
			if !errors.Is(err, ErrChanged) || len(rest) >= size/2 {
				t.Errorf("%d bytes more, %v", len(rest), err)
			}
		})
	}
}

func TestNotRegular(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skipf("no pipes here: %v", err)
	}
	for _, name := range []string{dir, fifo, os.DevNull} {
		if f, err := Open(name); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

func TestOpenIn(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	write(t, filepath.Join(outside, "secret"), []byte("secret"))
	write(t, filepath.Join(dir, "build"), []byte("build"))
	for name, target := range map[string]string{"out": filepath.Join(outside, "secret"), "up": "../" + filepath.Base(outside) + "/secret", "in": "build"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"build", "in"} {
		f, err := OpenIn(root, name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != "build" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		f.Close()
	}
	for _, name := range []string{"out", "up", "../" + filepath.Base(outside) + "/secret"} {
		if f, err := OpenIn(root, name); err == nil {
			f.Close()
			t.Errorf("%s leads out of the directory", name)
		}
	}
	if _, err := OpenIn(root, "nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}
