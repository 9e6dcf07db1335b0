package private

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// unfinished is how the files are called that Replace has not finished.
const unfinished = ".unfinished-*"

// Replace writes a file that its owner alone may read, in the place of what was there:
// whole or not at all, also when the process or the machine ends meanwhile.
func Replace(file string, text []byte) error {
	return replace(file, 0o600, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
}

// ReplacePublic is Replace for a file that everybody may read. write writes it, which is
// buffered.
func ReplacePublic(file string, write func(io.Writer) error) error {
	return replace(file, 0o644, func(w io.Writer) error {
		b := bufio.NewWriter(w)
		return errors.Join(write(b), b.Flush())
	})
}

func replace(file string, mode fs.FileMode, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(file), unfinished)
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(mode)) // whatever the umask
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(file))
}

// SyncDir makes the names in a directory outlive the machine's end.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// RemoveUnfinished removes from a directory what a process that was killed in Replace
// has left there. Nobody else may be writing there.
func RemoveUnfinished(dir string) error {
	files, err := Glob(dir, unfinished)
	if err != nil {
		return fmt.Errorf("looking for unfinished files in %s: %w", dir, err)
	}
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}
