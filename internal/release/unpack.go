package release

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
)

// Bounds of what an archive may hold.
const (
	// maxEntries bounds its files, directories and links: more than the largest
	// installations of interpreted languages have.
	maxEntries = 200_000
	// maxUnpacked bounds all files together in bytes.
	maxUnpacked = 256 << 30
	// maxRatio is how many times as long as the archive the files may be, once they are
	// longer than freeRatio: text shrinks to a tenth, a bomb to a thousandth.
	maxRatio, freeRatio = 100, 1 << 30
	// maxPath, maxNameLength and maxDepth bound a path in bytes and levels: what Linux and
	// macOS take, below a directory with a long name of its own.
	maxPath, maxNameLength, maxDepth = 1024, 255, 64
	// maxLink bounds where a link points to, in bytes.
	maxLink = 1024
	// maxDirectory bounds a zip's directory in bytes, which is held in memory: 160 for each
	// of maxEntries.
	maxDirectory = 32 << 20
	// notKept are the bits of a mode that no release has.
	notKept = ^fs.FileMode(0o777)
)

// ErrRefused is wrapped by errors about an archive that is refused for what it holds.
var ErrRefused = errors.New("archive refused")

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// unpack writes what an archive of so many bytes holds.
func (t *tree) unpack(from io.ReaderAt, size int64) error {
	var magic [4]byte
	if _, err := from.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	limit := min(int64(maxUnpacked), max(freeRatio, size*maxRatio))
	var err error
	switch {
	case bytes.HasPrefix(magic[:], []byte("PK\x03\x04")), bytes.HasPrefix(magic[:], []byte("PK\x05\x06")):
		err = t.unzip(from, size, limit)
	case bytes.HasPrefix(magic[:], []byte{0x1f, 0x8b}):
		err = t.untar(from, size, limit)
	default:
		return refused("it is neither a zip nor a tar.gz")
	}
	if err != nil {
		return err
	}
	return t.checkLinks()
}

// entry is one more thing in an archive.
func (t *tree) entry(name string) error {
	if t.ctx.Err() != nil {
		return t.ctx.Err()
	}
	if t.entries++; t.entries > maxEntries {
		return refused("more than %d files", maxEntries)
	}
	if err := checkPath(name); err != nil {
		return refused("%w", err)
	}
	return t.parents(name)
}

// parents makes the directories above a path that are missing.
func (t *tree) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	return t.directory(dir, 0o755)
}

// directory makes a directory, and those above it that are missing. One that is there
// keeps what is in it.
func (t *tree) directory(name string, perm fs.FileMode) error {
	if info, err := t.root.Lstat(filepath.FromSlash(name)); err == nil {
		if !info.IsDir() {
			return refused("%.80q is a directory and something else", name)
		}
		return nil
	}
	if err := t.parents(name); err != nil {
		return err
	}
	if t.entries++; t.entries > maxEntries {
		return refused("more than %d files and directories", maxEntries)
	}
	if err := t.root.Mkdir(filepath.FromSlash(name), 0o700); err != nil {
		return err
	}
	t.modes[name] = perm
	return nil
}

// namedDirectory is a directory that the archive names, with its mode.
func (t *tree) namedDirectory(name string, perm fs.FileMode) error {
	name = strings.TrimSuffix(name, "/")
	if err := t.entry(name); err != nil {
		return err
	}
	if err := t.directory(name, perm); err != nil {
		return err
	}
	t.modes[name] = perm
	return nil
}

// regular is a file of an archive.
func (t *tree) regular(name string, perm fs.FileMode, from io.Reader, size, limit int64) error {
	if err := t.entry(name); err != nil {
		return err
	}
	if size < 0 || size > limit-t.written {
		return refused("its files are longer than %d bytes together", limit)
	}
	if err := t.reserve(size); err != nil {
		return err
	}
	err := t.file(name, perm, from, size)
	if errors.Is(err, fs.ErrExist) {
		return refused("%.80q is there twice", name)
	}
	return err
}

// symlink is a symbolic link of an archive; checkLinks looks at where it leads.
func (t *tree) symlink(name, to string) error {
	if err := t.entry(name); err != nil {
		return err
	}
	if to == "" || len(to) > maxLink || strings.ContainsAny(to, "\x00\\") {
		return refused("link %.80q leads to a path that is empty, longer than %d bytes, or has a backslash or a zero", name, maxLink)
	}
	if path.IsAbs(to) {
		return refused("link %.80q leads to %.80q, which is absolute", name, to)
	}
	if at := path.Join(path.Dir(name), to); at == ".." || strings.HasPrefix(at, "../") {
		return refused("link %.80q leads to %.80q, out of the release", name, to)
	}
	if err := t.root.Symlink(filepath.FromSlash(to), filepath.FromSlash(name)); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return refused("%.80q is there twice", name)
		}
		return err
	}
	t.links = append(t.links, name)
	return nil
}

// checkLinks follows each symbolic link, over others too, when all of the archive is
// there: one that leads out of the release, or to nothing in it, is refused.
func (t *tree) checkLinks() error {
	for _, name := range t.links {
		if _, err := t.root.Stat(filepath.FromSlash(name)); err != nil {
			return refused("link %.80q leads out of the release or to nothing in it: %w", name, err)
		}
	}
	return nil
}

// unzip writes what a zip holds.
func (t *tree) unzip(from io.ReaderAt, size, limit int64) error {
	n, err := zipEntries(from, size)
	if err != nil {
		return err
	}
	if n > maxEntries {
		return refused("%d files, at most %d", n, maxEntries)
	}
	directory := &budget{r: from, left: maxDirectory}
	z, err := zip.NewReader(directory, size)
	if err != nil {
		if errors.Is(err, zip.ErrFormat) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = refused("%w", err)
		}
		return err
	}
	directory.left = -1 // what follows is the files
	var all int64
	for _, f := range z.File {
		if f.UncompressedSize64 > uint64(limit) || all > limit-int64(f.UncompressedSize64) {
			return refused("its files are longer than %d bytes together", limit)
		}
		all += int64(f.UncompressedSize64)
	}
	if err := t.reserve(all); err != nil {
		return err
	}
	for _, f := range z.File {
		if err := t.zipped(f, limit); err != nil {
			return err
		}
	}
	return nil
}

// zipped writes one entry of a zip.
func (t *tree) zipped(f *zip.File, limit int64) error {
	if f.Flags&1 != 0 {
		return refused("%.80q is encrypted", f.Name)
	}
	name, mode := strings.TrimPrefix(f.Name, "./"), f.Mode()
	if isDirectory := strings.HasSuffix(f.Name, "/"); isDirectory || mode.IsDir() {
		if name == "" {
			return nil // the archive's own top
		}
		return t.namedDirectory(name, permOf(f, 0o755))
	}
	if mode.Type()&^fs.ModeSymlink != 0 {
		return refused("%.80q is neither file, directory nor symbolic link (%s)", f.Name, mode.Type())
	}
	r, err := f.Open()
	if err != nil {
		return refused("%.80q: %w", f.Name, err)
	}
	defer r.Close()
	if mode.Type() == fs.ModeSymlink {
		to, err := io.ReadAll(io.LimitReader(r, maxLink+1))
		if err != nil {
			return explainZip(f, err)
		}
		return t.symlink(name, string(to))
	}
	return explainZip(f, t.regular(name, permOf(f, 0o644), r, int64(f.UncompressedSize64), limit))
}

// permOf is the mode of an entry, or otherwise where who made the zip knows of none.
func permOf(f *zip.File, otherwise fs.FileMode) fs.FileMode {
	const unix, macOS = 3, 19 // of the upper byte, as the ZIP specification has it
	if made := f.CreatorVersion >> 8; made != unix && made != macOS || f.Mode().Perm() == 0 {
		return otherwise
	}
	return f.Mode().Perm()
}

func explainZip(f *zip.File, err error) error {
	if isCorrupt(err) || errors.Is(err, zip.ErrChecksum) || errors.Is(err, zip.ErrFormat) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refused("%.80q: %w", f.Name, err)
	}
	return err
}

func isCorrupt(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.As(err, &corrupt)
}

// zipEntries is how many entries the end of a zip says there are: archive/zip believes it
// when it makes room for them.
func zipEntries(from io.ReaderAt, size int64) (uint64, error) {
	const end, locator, end64 = 22, 20, 56 // bytes of the records; a comment of 64 KiB may follow the first
	buf := make([]byte, min(size, end+locator+1<<16))
	if _, err := from.ReadAt(buf, size-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	at := bytes.LastIndex(buf, []byte("PK\x05\x06"))
	if at < 0 || at+end > len(buf) {
		return 0, refused("a zip without an end")
	}
	n := uint64(binary.LittleEndian.Uint16(buf[at+10:]))
	if at < locator || !bytes.HasPrefix(buf[at-locator:], []byte("PK\x06\x07")) {
		return n, nil
	}
	var longer [end64]byte
	off := binary.LittleEndian.Uint64(buf[at-locator+8:])
	if off > uint64(size) {
		return 0, refused("a zip whose end is elsewhere")
	}
	if _, err := from.ReadAt(longer[:], int64(off)); err != nil {
		return 0, refused("a zip whose end is elsewhere: %w", err)
	}
	return binary.LittleEndian.Uint64(longer[32:]), nil
}

// budget bounds how many bytes are read; a negative one does not.
type budget struct {
	r    io.ReaderAt
	left int64
}

func (b *budget) ReadAt(p []byte, off int64) (int, error) {
	if b.left >= 0 {
		if b.left -= int64(len(p)); b.left < 0 {
			b.left = 0
			return 0, refused("its list of files is longer than %d bytes", maxDirectory)
		}
	}
	return b.r.ReadAt(p, off)
}

// untar writes what a tar.gz holds.
func (t *tree) untar(from io.ReaderAt, size, limit int64) error {
	z, err := gzip.NewReader(io.NewSectionReader(from, 0, size))
	if err != nil {
		return refused("%w", err)
	}
	// Headers, and what is skipped, count too.
	stream := &bounded{r: z, left: limit + maxEntries*1024}
	r := tar.NewReader(stream)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = t.tarred(h, r, limit)
		}
		if err != nil {
			return explainTar(err)
		}
	}
	_, err = io.Copy(io.Discard, stream) // to the end of it: there is gzip's own checksum
	return explainTar(err)
}

// tarred writes one entry of a tar.
func (t *tree) tarred(h *tar.Header, r io.Reader, limit int64) error {
	name := strings.TrimPrefix(h.Name, "./")
	perm := fs.FileMode(h.Mode) & 0o777
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.regular(name, perm, r, h.Size, limit)
	case tar.TypeDir:
		if name == "" || name == "." { // the archive's own top
			return nil
		}
		return t.namedDirectory(name, perm)
	case tar.TypeSymlink:
		return t.symlink(name, h.Linkname)
	case tar.TypeLink:
		return t.hardLink(name, strings.TrimPrefix(h.Linkname, "./"))
	case tar.TypeXGlobalHeader:
		return nil // as `git archive` writes it
	default:
		return refused("%.80q is of type %q, neither file, directory nor link", h.Name, h.Typeflag)
	}
}

// hardLink is a second name of a file that came before in the archive.
func (t *tree) hardLink(name, of string) error {
	if err := t.entry(name); err != nil {
		return err
	}
	if err := checkPath(of); err != nil {
		return refused("link %.80q: %w", name, err)
	}
	info, err := t.root.Lstat(filepath.FromSlash(of))
	if err != nil || !info.Mode().IsRegular() {
		return refused("link %.80q leads to %.80q, which is no file before it in the archive", name, of)
	}
	if err := t.root.Link(filepath.FromSlash(of), filepath.FromSlash(name)); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return refused("%.80q is there twice", name)
		}
		return err
	}
	t.sums[name] = t.sums[of]
	return nil
}

func explainTar(err error) error {
	if isCorrupt(err) || errors.Is(err, tar.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refused("%w", err)
	}
	return err
}

// bounded ends with an error once so many bytes were read.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, refused("it unpacks to more than is allowed")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
