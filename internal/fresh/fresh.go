// Package fresh keeps what files say, and reads it again when they change, so that a
// secret or a certificate is replaced without a new start. What a file means is for who
// uses it to say. A file that is just being written, as by an editor that has emptied it
// first, is left alone until that has ended.
package fresh

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// settle is for how long nobody may have written a file that is read again.
const settle = time.Second

// ErrUnsettled says that files are being written, or were just now, so that what they say
// may not be all.
var ErrUnsettled = errors.New("the files were written just now")

// Settled has files read that nobody has written for a second, nor writes meanwhile; else
// it returns ErrUnsettled. A file that is not there is for read to find.
func Settled[T any](read func() (T, error), files ...string) (T, error) {
	return settled(read, files, stat(files))
}

// settled is Settled with how the files were before.
func settled[T any](read func() (T, error), files []string, before []os.FileInfo) (value T, err error) {
	now := time.Now()
	for _, info := range before {
		// One from the future is of another clock, or of a test's.
		if info != nil && now.Sub(info.ModTime()) < settle && !info.ModTime().After(now) {
			return value, ErrUnsettled
		}
	}
	found, err := read()
	if !slices.EqualFunc(before, stat(files), same) {
		return value, ErrUnsettled
	}
	return found, err
}

// Value is what was read last from some files. It is safe for concurrent use. A nil Value
// has nothing to do.
type Value[T any] struct {
	files  []string
	read   func() (T, error)
	newest atomic.Pointer[T]

	// turn is held over the disk by one at a time; nobody waits for it.
	turn sync.Mutex
	seen []os.FileInfo // as the files were when newest was read
	said string        // the error that was returned last
}

// Open reads a value for the first time. read reads the files, whose names say when that
// is to be done again.
func Open[T any](read func() (T, error), files ...string) (*Value[T], error) {
	v := &Value[T]{files: files, read: read}
	v.seen = stat(files) // before: what changes meanwhile is read once more
	value, err := read()
	if err != nil {
		return nil, err
	}
	v.newest.Store(&value)
	return v, nil
}

// Of is a value that never changes.
func Of[T any](value T) *Value[T] {
	v := &Value[T]{}
	v.newest.Store(&value)
	return v
}

// Load is the value that was read last.
func (v *Value[T]) Load() T { return *v.newest.Load() }

// Refresh reads the files again if they have changed and nobody is writing them, and says
// whether the value was read anew. On error that of before holds; an error like the one
// before is not returned again. While another is at it, Refresh does nothing.
func (v *Value[T]) Refresh() (changed bool, err error) {
	if len(v.files) == 0 || !v.turn.TryLock() {
		return false, nil
	}
	defer v.turn.Unlock()
	now := stat(v.files)
	if slices.EqualFunc(now, v.seen, same) {
		v.said = ""
		return false, nil
	}
	value, err := settled(v.read, v.files, now)
	switch {
	case err == nil:
		v.seen, v.said = now, ""
		v.newest.Store(&value)
		return true, nil
	case errors.Is(err, ErrUnsettled), err.Error() == v.said:
		return false, nil
	}
	v.said = err.Error()
	return false, err
}

// Watch refreshes the value every so often until ctx ends. changed and failed are told.
func (v *Value[T]) Watch(ctx context.Context, every time.Duration, changed func(T), failed func(error)) {
	if v == nil || len(v.files) == 0 {
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if anew, err := v.Refresh(); err != nil {
			failed(err)
		} else if anew {
			changed(v.Load())
		}
	}
}

// stat is how files are; nil for one that is not there, or not for us.
func stat(files []string) []os.FileInfo {
	all := make([]os.FileInfo, len(files))
	for i, name := range files {
		if info, err := os.Stat(name); err == nil {
			all[i] = info
		}
	}
	return all
}

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}
