package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/private"
)

// memory keeps on disk the announcements of builds that have not arrived. A member
// that comes back usually hears of them from the others; this is for the day when
// all have ended and the seeder does not come back.
type memory struct{ dir string }

func newMemory(dir string) (memory, error) {
	if dir == "" {
		return memory{}, nil
	}
	err := private.MkdirAll(dir)
	if err == nil {
		err = errors.Join(private.Tighten(dir, "*"), private.RemoveUnfinished(dir))
	}
	if err != nil {
		return memory{}, fmt.Errorf("keeping announcements: %w; choose another --data-dir", err)
	}
	return memory{dir}, nil
}

// keep writes an announcement whole or not at all.
func (m memory) keep(executionID string, wire []byte) error {
	if m.dir == "" {
		return nil
	}
	if err := private.Replace(filepath.Join(m.dir, executionID), wire); err != nil {
		return fmt.Errorf("keeping an announcement: %w", err)
	}
	return nil
}

func (m memory) forget(executionID string) error {
	if m.dir == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(m.dir, executionID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting an announcement: %w", err)
	}
	return nil
}

// recall calls f with every announcement kept, as it came. What f refuses is
// forgotten.
func (m memory) recall(f func(wire []byte) error) error {
	if m.dir == "" {
		return nil
	}
	files, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("reading kept announcements: %w", err)
	}
	for _, file := range files {
		name := filepath.Join(m.dir, file.Name())
		stat, err := file.Info()
		if err == nil && stat.Size() <= announce.MaxLength {
			var wire []byte
			if wire, err = os.ReadFile(name); err == nil {
				err = f(wire)
			}
		}
		if err != nil || stat.Size() > announce.MaxLength {
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("reading kept announcements: %w", err)
			}
		}
	}
	return nil
}
