// Package private keeps files from the other users of the machine: keys, tokens and
// URLs with credentials, which it reads and writes, and the directories where builds,
// announcements and logs lie. What is in them is for others to judge.
package private

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// others are the mode's bits that no secret has: for everybody on the machine to read
// it, or to put another in its place. A group may read: that is how a container's user
// gets at a mounted secret.
const others fs.FileMode = 0o006

// Read returns the bytes of a file of at most limit bytes. It refuses one that
// everybody may read or write, and says how to mend that. No error shows any of them;
// one for a file that does not exist is an fs.ErrNotExist.
func Read(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", file)
	case info.Mode().Perm()&others != 0:
		return nil, fmt.Errorf("%s: everybody on this machine may read it or write to it (chmod 600 %s)", file, file)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s: %d bytes, at most %d", file, info.Size(), limit)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s: it grew past %d bytes while it was read", file, limit)
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

// Write writes a file that must not exist and that its owner alone may read, and
// leaves none on error.
func Write(file string, text []byte) error { return write(file, text, 0o600) }

// WritePublic is Write for what everybody may read.
func WritePublic(file string, text []byte) error { return write(file, text, 0o644) }

func write(file string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}
