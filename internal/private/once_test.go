package private

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// TestWriteOnce: of many who write a file at a time one does, and nothing else is left.
func TestWriteOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	var wg sync.WaitGroup
	var wrote atomic.Int64
	for i := range 16 {
		wg.Go(func() {
			switch err := WriteOnce(file, []byte{byte('a' + i)}); {
			case err == nil:
				wrote.Store(int64('a' + i))
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(file)
	if err != nil || len(got) != 1 || int64(got[0]) != wrote.Load() {
		t.Errorf("%q of %q, %v", got, rune(wrote.Load()), err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := WriteOnce(filepath.Join(dir, "missing", "file"), nil); err == nil {
		t.Error("written into a directory that does not exist")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
