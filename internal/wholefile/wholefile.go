// Package wholefile reads a regular file from its beginning to its end as it was when
// it was opened, or says that it has changed since.
package wholefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
)

var (
	// ErrChanged says that the file is not what it was when it was opened.
	ErrChanged = errors.New("file has changed")
	// ErrNotRegular says that what was opened is a directory, a device, a pipe.
	ErrNotRegular = errors.New("not a regular file")
)

// File is a file that is being read. Its last byte is given only when the file is what
// it was: the same one, as long, and not written to.
type File struct {
	file   *os.File
	opened fs.FileInfo
	stat   func() (fs.FileInfo, error) // what is there under its name
	read   int64
	err    atomic.Pointer[error]
}

// Open opens a file. It does not wait for the other end of a pipe.
func Open(name string) (*File, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return of(file, name, func() (fs.FileInfo, error) { return os.Stat(name) })
}

// OpenIn opens a file of a directory, which no link leads out of.
func OpenIn(root *os.Root, name string) (*File, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return of(file, name, func() (fs.FileInfo, error) { return root.Stat(name) })
}

func of(file *os.File, name string, stat func() (fs.FileInfo, error)) (*File, error) {
	opened, err := file.Stat()
	if err == nil && !opened.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", name, ErrNotRegular)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &File{file: file, opened: opened, stat: stat}, nil
}

// Size is the file's length in bytes when it was opened.
func (f *File) Size() int64 { return f.opened.Size() }

// Read gives at most Size bytes. ErrChanged comes in place of the last of them.
func (f *File) Read(p []byte) (int, error) {
	left := f.Size() - f.read
	if left == 0 && f.read > 0 {
		return 0, io.EOF
	}
	n, err := f.file.Read(p[:min(int64(len(p)), left)])
	f.read += int64(n)
	switch {
	case f.read == f.Size():
		if err := f.unchanged(); err != nil {
			return 0, f.failed(err)
		}
		return n, io.EOF
	case err == io.EOF:
		return 0, f.failed(fmt.Errorf("%w: it has %d bytes and had %d", ErrChanged, f.read, f.Size()))
	case err != nil:
		return n, f.failed(err)
	}
	return n, nil
}

func (f *File) failed(err error) error {
	f.err.Store(&err)
	return err
}

// Err is why the file could not be read to its end; nil otherwise. It may be asked
// beside a Read.
func (f *File) Err() error {
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

// unchanged compares what is there with what was opened.
func (f *File) unchanged() error {
	now, err := f.file.Stat()
	if err != nil {
		return err
	}
	named, err := f.stat()
	switch {
	case now.Size() != f.Size():
		return fmt.Errorf("%w: it has %d bytes and had %d", ErrChanged, now.Size(), f.Size())
	case !now.ModTime().Equal(f.opened.ModTime()):
		return fmt.Errorf("%w: it was written to", ErrChanged)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: it was removed", ErrChanged)
	case err == nil && !os.SameFile(f.opened, named):
		return fmt.Errorf("%w: another is in its place", ErrChanged)
	}
	return nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }
