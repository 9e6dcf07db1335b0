package private

import (
	"errors"
	"os"
	"path/filepath"
)

// WriteOnce writes a file that its owner alone may read, whole or not at all, and for one
// caller alone, whichever process it is in: for everybody after the first it is an
// fs.ErrExist.
func WriteOnce(file string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), unfinished)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Link(f.Name(), file)
	}
	if err = errors.Join(err, os.Remove(f.Name())); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(file))
}
