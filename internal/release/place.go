package release

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/private"
)

const (
	// copyBuffer is how much is read of a build at a time, in bytes.
	copyBuffer = 1 << 20
	// spare is what is left free on a disk beside a release, in bytes: for the journal,
	// and what the service writes.
	spare = 64 << 20
	// maxManifestLine bounds a manifest's first line in bytes: a key has 1,024, all of
	// them escaped in JSON.
	maxManifestLine = 16 << 10
	// otherName is what a build's file is called whose key ends in no name of a file.
	otherName = "build"
)

// Place makes a release of a build's bytes, of which whoever calls knows that they are the
// right ones: its file, or what it unpacks to. A release that is there stays as it is; on
// error nothing is left.
func (s *Service) Place(ctx context.Context, b Build, from io.ReaderAt) error {
	if err := checkID(b.ExecutionID); err != nil {
		return err
	}
	if s.Placed(b.ExecutionID) {
		return nil
	}
	if err := s.place(ctx, b, from); err != nil {
		what := "placing"
		if s.cfg.Unpack {
			what = "unpacking"
		}
		return fmt.Errorf("%s %s: %w", what, b.Key, err)
	}
	return nil
}

func (s *Service) place(ctx context.Context, b Build, from io.ReaderAt) (err error) {
	dir := s.path("releases", ".new-"+b.ExecutionID)
	if err := removeTree(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(explainFull(err), removeTree(dir))
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := newTree(ctx, root, room(dir))
	content := &source{ctx: ctx, r: from, size: b.Size}
	if s.cfg.Unpack {
		err = t.unpack(content, b.Size)
	} else {
		err = t.single(fileName(b.Key), io.NewSectionReader(content, 0, b.Size), b.Size)
	}
	if content.err != nil {
		return content.err // whatever an archive seemed to be that could not be read
	}
	if err != nil {
		return err
	}
	if err := t.finish(); err != nil {
		return err
	}
	if err := syncTree(dir); err != nil {
		return err
	}
	if err := s.writeManifest(b, t.sums); err != nil {
		return err
	}
	s.reached("unpacked")
	if err := os.Rename(dir, s.Path(b.ExecutionID)); err != nil {
		return err
	}
	return private.SyncDir(s.path("releases"))
}

// fileName is what the file of a build is called: as its key ends, unless that is no name
// of a file.
func fileName(key string) string {
	name := path.Base(key)
	if len(name) > maxNameLength || checkPath(name) != nil {
		return otherName
	}
	return name
}

// source is a build that is read until the context ends, or reading has failed once.
type source struct {
	ctx  context.Context
	r    io.ReaderAt
	size int64 // bytes
	err  error // why not all could be read that was asked for
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if s.err == nil && s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.ReadAt(p, off)
	switch {
	case err == nil || errors.Is(err, io.EOF) && off+int64(n) >= s.size:
		return n, err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	s.err = err
	return n, err
}

// room is how much may be written below a directory, in bytes; as much as one likes where
// the file system does not say.
func room(dir string) int64 {
	var f unix.Statfs_t
	if err := unix.Statfs(dir, &f); err != nil {
		return 1 << 62
	}
	return max(0, int64(f.Bavail)*int64(f.Bsize)-spare)
}

// explainFull has the disk's own words mean what is told of it elsewhere, too.
func explainFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return err
}

// tree is a release that is being written.
type tree struct {
	ctx  context.Context
	root *os.Root
	room int64                        // bytes that may be written yet
	sums map[string][sha256.Size]byte // of the files
	// entries are how many files, directories and links there are, written how many bytes.
	entries int
	written int64
	modes   map[string]fs.FileMode // of directories, set at the end: one may be closed to writing
	links   []string
}

func newTree(ctx context.Context, root *os.Root, room int64) *tree {
	return &tree{ctx: ctx, root: root, room: room, sums: map[string][sha256.Size]byte{}, modes: map[string]fs.FileMode{}}
}

// single writes a build's one file.
func (t *tree) single(name string, from io.Reader, size int64) error {
	if err := t.reserve(size); err != nil {
		return err
	}
	return t.file(name, 0o644, from, size)
}

// reserve reports whether there is room for so many bytes.
func (t *tree) reserve(size int64) error {
	if size > t.room {
		return fmt.Errorf("%w: it needs %d bytes, and %d are free beside the %d that stay so", ErrNoRoom, size, t.room, spare)
	}
	return nil
}

// file writes a file of exactly size bytes, which is not there yet.
func (t *tree) file(name string, perm fs.FileMode, from io.Reader, size int64) (err error) {
	f, err := t.root.OpenFile(filepath.FromSlash(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := hash.Hash(sha256.New())
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, io.LimitReader(from, size+1), make([]byte, min(copyBuffer, size+1)))
	switch {
	case err != nil:
		return err
	case n < size:
		return fmt.Errorf("%s: %w after %d of %d bytes", name, io.ErrUnexpectedEOF, n, size)
	case n > size:
		return fmt.Errorf("%s: longer than the %d bytes that it says", name, size)
	}
	t.written += n
	t.room -= n
	t.sums[name] = [sha256.Size]byte(h.Sum(nil))
	return f.Chmod(perm&^notKept | 0o400)
}

// finish sets the modes of directories, the deepest first.
func (t *tree) finish() error {
	names := slices.Sorted(maps.Keys(t.modes))
	slices.Reverse(names)
	for _, name := range names {
		if err := t.root.Chmod(filepath.FromSlash(name), t.modes[name]&^notKept|0o700); err != nil {
			return err
		}
	}
	return nil
}

// writeManifest writes a release's list of files, as `sha256sum --check` takes it within
// the release. The first line, which that skips, says what the release was made of.
func (s *Service) writeManifest(b Build, sums map[string][sha256.Size]byte) error {
	about, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return private.ReplacePublic(s.path("manifests", b.ExecutionID), func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "# %s\n", about)
		for _, name := range slices.Sorted(maps.Keys(sums)) {
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(w, "%x  %s\n", sums[name], name)
		}
		return err
	})
}

// readManifest returns what a release was made of.
func (s *Service) readManifest(id string) (b Build, err error) {
	f, err := os.Open(s.path("manifests", id))
	if err != nil {
		return b, err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, maxManifestLine)).ReadString('\n')
	about, ok := strings.CutPrefix(line, "# ")
	if err != nil || !ok {
		return b, fmt.Errorf("%s does not begin with what it is about", f.Name())
	}
	if err := json.Unmarshal([]byte(about), &b); err != nil {
		return b, err
	}
	if b.ExecutionID != id {
		return b, fmt.Errorf("%s is about %.80q", f.Name(), b.ExecutionID)
	}
	return b, nil
}

// Releases are the executionIds of what is in its place, the newest first.
func (s *Service) Releases() ([]string, error) {
	entries, err := os.ReadDir(s.path("releases"))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids) // ULIDs sort by time
	slices.Reverse(ids)
	return ids, nil
}

// Prune removes the oldest releases beyond those that are kept: never what runs, what the
// last switch was between, nor those that are needed.
func (s *Service) Prune(needed ...string) error {
	ids, err := s.Releases()
	if err != nil {
		return err
	}
	now := s.State()
	needed = append(slices.Clone(needed), now.Running.ExecutionID, now.To.ExecutionID, now.From.ExecutionID)
	stay := 0
	for _, id := range ids {
		if slices.Contains(needed, id) {
			stay++
		}
	}
	for _, id := range ids {
		if slices.Contains(needed, id) {
			continue
		}
		if stay < s.cfg.Keep {
			stay++
			continue
		}
		s.cfg.Logger.Info("removing an old release", "executionId", id)
		going := s.path("releases", ".old-"+id) // from one moment to the next it is none
		if err = errors.Join(err, os.Rename(s.Path(id), going)); err != nil {
			return err
		}
		if err = errors.Join(removeTree(going), os.Remove(s.path("manifests", id))); err != nil {
			return fmt.Errorf("removing the release %s: %w", id, err)
		}
	}
	return nil
}

// removeTree removes a directory with all in it, closed to writing as it may be.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(name, 0o700) // before it is read; RemoveAll says what is left
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// checkPath reports whether a path of an archive, with slashes, is one below the release
// that means the same everywhere: no ".", no "..", nothing that a terminal or another
// system reads otherwise.
func checkPath(name string) error {
	switch {
	case name == "":
		return errors.New("the path is empty")
	case len(name) > maxPath:
		return fmt.Errorf("path of %d bytes, at most %d", len(name), maxPath)
	case !utf8.ValidString(name):
		return fmt.Errorf("path %.80q is not UTF-8", name)
	case path.IsAbs(name):
		return fmt.Errorf("path %.80q is absolute", name)
	}
	elements := strings.Split(name, "/")
	if len(elements) > maxDepth {
		return fmt.Errorf("path %.80q: %d levels deep, at most %d", name, len(elements), maxDepth)
	}
	for _, e := range elements {
		if e == "" || e == "." || e == ".." || len(e) > maxNameLength {
			return fmt.Errorf("path %.80q leads elsewhere, or has a name that is empty or longer than %d bytes", name, maxNameLength)
		}
	}
	for _, r := range name {
		if r == '\\' || unicode.IsControl(r) {
			return fmt.Errorf("path %.80q has a backslash or a control character", name)
		}
	}
	return nil
}
