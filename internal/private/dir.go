package private

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// notOwners are the mode's bits of all but the owner.
const notOwners fs.FileMode = 0o077

// Umask makes everything that the process writes from now on its owner's alone,
// whatever mode a library asks for.
func Umask() { syscall.Umask(int(notOwners)) }

// MkdirAll makes a directory, and what is missing above it, for its owner alone. One
// that is there, and wider open, is closed, unless it is not only this process's: it
// belongs to another user, everybody may write there, as in /tmp, or it is where the
// process was started.
func MkdirAll(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&notOwners == 0 || info.Mode()&fs.ModeSticky != 0 || !owned(info) || holdsWorkingDirectory(dir) {
		return nil
	}
	return os.Chmod(dir, info.Mode().Perm()&^notOwners)
}

func owned(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

func holdsWorkingDirectory(dir string) bool {
	at, err := os.Getwd()
	if err != nil {
		return true
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return true
	}
	in, err := filepath.Rel(dir, at)
	return err != nil || in == "." || in != ".." && !strings.HasPrefix(in, "../")
}

// Tighten takes the rights of all but the owner from what older versions wrote: from
// each of the files and directories of dir that match one of the patterns, as
// filepath.Match has it, and all below them. Links are left alone, and what is another
// user's.
func Tighten(dir string, patterns ...string) error {
	for _, pattern := range patterns {
		roots, err := Glob(dir, pattern)
		if err != nil {
			return fmt.Errorf("looking for %s in %s: %w", pattern, dir, err)
		}
		for _, root := range roots {
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err != nil || !d.IsDir() && !d.Type().IsRegular() {
					return err
				}
				info, err := d.Info()
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err != nil || info.Mode().Perm()&notOwners == 0 || !owned(info) {
					return err
				}
				return os.Chmod(path, info.Mode().Perm()&^notOwners)
			})
			if err != nil {
				return fmt.Errorf("closing %s to other users: %w", root, err)
			}
		}
	}
	return nil
}

// Glob returns the files of a directory that match a pattern, as filepath.Match has it. In
// the directory's own name nothing stands for anything else, as in filepath.Glob.
func Glob(dir, pattern string) ([]string, error) {
	escaped := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
	return filepath.Glob(filepath.Join(escaped, pattern))
}
