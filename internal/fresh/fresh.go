// Package fresh keeps what files say, and reads it again when they change, so that a
// secret or a certificate is replaced without a new start. What a file means is for who
// uses it to say.
package fresh

import (
	"context"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

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
	if err := v.reread(); err != nil {
		return nil, err
	}
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

// Refresh reads the files again if they have changed, and says whether the value was read
// anew. On error that of before holds; an error like the one before is not returned again.
// While another is at it, Refresh does nothing.
func (v *Value[T]) Refresh() (changed bool, err error) {
	if len(v.files) == 0 || !v.turn.TryLock() {
		return false, nil
	}
	defer v.turn.Unlock()
	if now, err := stat(v.files); err == nil && slices.EqualFunc(now, v.seen, same) {
		v.said = ""
		return false, nil
	}
	if err := v.reread(); err != nil {
		if err.Error() == v.said {
			return false, nil
		}
		v.said = err.Error()
		return false, err
	}
	v.said = ""
	return true, nil
}

// reread reads the files. The caller is the only one.
func (v *Value[T]) reread() error {
	seen, err := stat(v.files) // before: what changes meanwhile is read once more
	if err != nil {
		return err
	}
	value, err := v.read()
	if err != nil {
		return err
	}
	v.seen = seen
	v.newest.Store(&value)
	return nil
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

func stat(files []string) (all []os.FileInfo, err error) {
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		all = append(all, info)
	}
	return all, nil
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}
