package release

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// item is one thing in an archive that a test makes.
type item struct {
	name string
	mode fs.FileMode // with its type
	text string      // of a link where it leads
	// tar are a tar's own types that a mode does not say.
	tar byte
	// says is a length that is not the text's.
	says int64
}

func zipOf(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, i := range items {
		h := &zip.FileHeader{Name: i.name, Method: zip.Deflate}
		h.SetMode(i.mode)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(f, i.text)
		}
		if err != nil && i.mode.IsRegular() {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarOf(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, i := range items {
		h := &tar.Header{Name: i.name, Mode: int64(i.mode.Perm()), Typeflag: i.tar, Size: int64(len(i.text))}
		for bit, m := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
			if i.mode&bit != 0 {
				h.Mode |= m
			}
		}
		switch {
		case i.tar == tar.TypeLink, i.mode&fs.ModeSymlink != 0:
			h.Linkname, h.Size = i.text, 0
			if i.tar == 0 {
				h.Typeflag = tar.TypeSymlink
			}
		case i.mode.IsDir():
			h.Typeflag = tar.TypeDir
		case i.tar == 0:
			h.Typeflag = tar.TypeReg
		}
		if i.says != 0 {
			h.Size = i.says
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, i.text); err != nil {
				t.Fatal(err)
			}
		}
		if i.says > int64(len(i.text)) { // cut off here
			z.Close()
			return b.Bytes()
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpacked makes a release of an archive, and returns what it holds: "mode path text".
func unpacked(t *testing.T, archive []byte) (got []string, err error) {
	t.Helper()
	s := open(t, Config{Dir: t.TempDir(), Unpack: true})
	b := Build{ExecutionID: "01J00000000000000000000000", Key: "app", Size: int64(len(archive))}
	if err := s.Place(t.Context(), b, bytes.NewReader(archive)); err != nil {
		if left, _ := os.ReadDir(s.path("releases")); len(left) > 0 || s.Placed(b.ExecutionID) {
			t.Errorf("left: %v", left)
		}
		return nil, err
	}
	at := s.Path(b.ExecutionID)
	err = filepath.WalkDir(at, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == at {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := ""
		switch {
		case info.Mode().IsRegular():
			var b []byte
			b, err = os.ReadFile(name)
			text = string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			text, err = os.Readlink(name)
			info = linkInfo{info}
		}
		rel, _ := filepath.Rel(at, name)
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", info.Mode(), rel, text)))
		return err
	})
	return got, err
}

// linkInfo has a link's mode be the same on all systems.
type linkInfo struct{ fs.FileInfo }

func (l linkInfo) Mode() fs.FileMode { return fs.ModeSymlink }

func TestUnpack(t *testing.T) {
	items := []item{
		{name: "bin/", mode: fs.ModeDir | 0o750},
		{name: "bin/web", mode: 0o755 | fs.ModeSetuid, text: "program"},
		{name: "bin/group", mode: 0o710 | fs.ModeSetgid | fs.ModeSticky, text: ""},
		{name: "etc/deep/web.conf", mode: 0o640, text: "a = b"},
		{name: "closed/", mode: fs.ModeDir | 0o555},
		{name: "closed/file", mode: 0o000, text: "x"},
		{name: "bin/link", mode: fs.ModeSymlink | 0o777, text: "../etc/deep"},
	}
	want := []string{
		"drwxr-x--- bin", "-rwx--x--- bin/group", "L--------- bin/link ../etc/deep", "-rwxr-xr-x bin/web program",
		"drwxr-xr-x closed", "-r-------- closed/file x",
		"drwxr-xr-x etc", "drwxr-xr-x etc/deep", "-rw-r----- etc/deep/web.conf a = b",
	}
	for name, archive := range map[string][]byte{"zip": zipOf(t, items...), "tar.gz": tarOf(t, items...)} {
		want := strings.Join(want, "\n")
		if name == "zip" { // which knows no mode of zero
			want = strings.Replace(want, "-r-------- closed", "-rw-r--r-- closed", 1)
		}
		got, err := unpacked(t, archive)
		if err != nil || strings.Join(got, "\n") != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, strings.Join(got, "\n"), want)
		}
	}
	// What only a tar has: a second name, its own top, and what git writes before all.
	got, err := unpacked(t, tarOf(t,
		item{name: "./", mode: fs.ModeDir | 0o700}, item{name: "./a", mode: 0o600, text: "A"}, item{name: "b", tar: tar.TypeLink, text: "./a"}))
	if err != nil || strings.Join(got, ", ") != "-rw------- a A, -rw------- b A" {
		t.Errorf("%v, %v", got, err)
	}
	// A zip of who knows no modes.
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range []string{"dir/", "dir/file"} {
		if _, err := w.CreateHeader(&zip.FileHeader{Name: name, CreatorVersion: 11 << 8}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := unpacked(t, b.Bytes()); err != nil || strings.Join(got, ", ") != "drwxr-xr-x dir, -rw-r--r-- dir/file" {
		t.Errorf("%v, %v", got, err)
	}
	for name, archive := range map[string][]byte{"zip": zipOf(t), "tar.gz": tarOf(t)} {
		if got, err := unpacked(t, archive); err != nil || len(got) != 0 {
			t.Errorf("an empty %s: %v, %v", name, got, err)
		}
	}
	if text, err := os.ReadFile("../../testdata/builds/hello-1.0.0.zip"); err != nil {
		t.Error(err)
	} else if got, err := unpacked(t, text); err != nil || len(got) != 2 || !strings.HasPrefix(got[1], "-rwxr-xr-x hello \x7fELF") {
		t.Errorf("the demo's build: %d files, %v", len(got), err)
	}
}

// TestHostile: an archive that would write elsewhere, or more than is right, is refused
// and leaves nothing.
func TestHostile(t *testing.T) {
	long := strings.Repeat("d/", maxDepth) + "f"
	both := map[string][]item{
		"a path that goes up":               {{name: "../x"}},
		"a path that goes up in its midst":  {{name: "a/../../x"}},
		"a path that ends up":               {{name: "a/.."}},
		"an absolute path":                  {{name: "/etc/x"}},
		"a backslash":                       {{name: `a\..\..\x`}},
		"a control character":               {{name: "a\x1b[2J"}},
		"what is not UTF-8":                 {{name: "a\xff"}},
		"an empty element":                  {{name: "a//b"}},
		"a path that is deep":               {{name: long}},
		"a path that is long":               {{name: strings.Repeat(strings.Repeat("n", 200)+"/", 6) + "x"}},
		"a name that is long":               {{name: strings.Repeat("n", 256)}},
		"the same twice":                    {{name: "a"}, {name: "a"}},
		"a file and a directory":            {{name: "a"}, {name: "a/b"}},
		"a directory and a file":            {{name: "a/b"}, {name: "a"}},
		"a link to an absolute path":        {{name: "l", mode: fs.ModeSymlink, text: "/etc/passwd"}},
		"a link that leads out":             {{name: "l", mode: fs.ModeSymlink, text: "../x"}},
		"a link that leads to nothing":      {{name: "l", mode: fs.ModeSymlink, text: "x"}},
		"links in a ring":                   {{name: "l", mode: fs.ModeSymlink, text: "m"}, {name: "m", mode: fs.ModeSymlink, text: "l"}},
		"a link with an empty end":          {{name: "l", mode: fs.ModeSymlink, text: ""}},
		"a link that is long":               {{name: "l", mode: fs.ModeSymlink, text: strings.Repeat("a/", maxLink)}},
		"a file through a link":             {{name: "d/", mode: fs.ModeDir}, {name: "l", mode: fs.ModeSymlink, text: "d"}, {name: "l/f"}},
		"a link over a file":                {{name: "l"}, {name: "l", mode: fs.ModeSymlink, text: "l"}},
		"links that lead out together":      {{name: "a/b/c/s", mode: fs.ModeSymlink, text: "../../.."}, {name: "t", mode: fs.ModeSymlink, text: "a/b/c/s/../../x"}},
		"a file through a link that is out": {{name: "a/b/c/s", mode: fs.ModeSymlink, text: "../../.."}, {name: "a/b/c/s/x"}},
	}
	tars := map[string][]item{
		"a device":                       {{name: "d", tar: tar.TypeBlock}},
		"a character device":             {{name: "d", tar: tar.TypeChar}},
		"a pipe":                         {{name: "d", tar: tar.TypeFifo}},
		"an unknown type":                {{name: "d", tar: '9'}},
		"a second name of nothing":       {{name: "l", tar: tar.TypeLink, text: "x"}},
		"a second name of what is out":   {{name: "l", tar: tar.TypeLink, text: "../x"}},
		"a second name of what is away":  {{name: "l", tar: tar.TypeLink, text: "/etc/passwd"}},
		"a second name of a directory":   {{name: "d/", mode: fs.ModeDir}, {name: "l", tar: tar.TypeLink, text: "d"}},
		"a second name of a link":        {{name: "f"}, {name: "s", mode: fs.ModeSymlink, text: "f"}, {name: "l", tar: tar.TypeLink, text: "s"}},
		"a file that is a tebibyte":      {{name: "f", says: 1 << 40}},
		"a file that is cut off":         {{name: "f", text: "abc", says: 1000}},
		"a file that is sparse and huge": {{name: "f", says: 1 << 62}},
	}
	zips := map[string][]item{
		"a device":           {{name: "d", mode: fs.ModeDevice}},
		"a character device": {{name: "d", mode: fs.ModeDevice | fs.ModeCharDevice}},
		"a pipe":             {{name: "d", mode: fs.ModeNamedPipe}},
		"a socket":           {{name: "d", mode: fs.ModeSocket}},
	}
	refuse := func(name string, archive []byte) {
		t.Run(name, func(t *testing.T) {
			if got, err := unpacked(t, archive); !errors.Is(err, ErrRefused) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	for name, items := range both {
		refuse("zip with "+name, zipOf(t, items...))
		refuse("tar.gz with "+name, tarOf(t, items...))
	}
	for name, items := range tars {
		refuse("tar.gz with "+name, tarOf(t, items...))
	}
	for name, items := range zips {
		refuse("zip with "+name, zipOf(t, items...))
	}
	refuse("neither", []byte("#!/bin/sh\n"))
	refuse("nothing", nil)
	z := zipOf(t, item{name: "f", text: strings.Repeat("text", 1000)})
	refuse("a zip that is cut off", z[:len(z)-30])
	damaged := bytes.Clone(z)
	damaged[45] ^= 0xff
	refuse("a zip that is damaged", damaged)
	g := tarOf(t, item{name: "f", text: strings.Repeat("text", 1000)})
	refuse("a tar.gz that is cut off", g[:len(g)-4])
	damaged = bytes.Clone(g)
	damaged[20] ^= 0xff
	refuse("a tar.gz that is damaged", damaged)
	damaged = bytes.Clone(g)
	damaged[len(g)-5] ^= 0xff
	refuse("a tar.gz whose checksum is wrong", damaged)
	refuse("an encrypted zip", raw(t, &zip.FileHeader{Name: "f", Flags: 1}))
	refuse("a zip with a method that is not known", raw(t, &zip.FileHeader{Name: "f", Method: 99}))
	refuse("a zip with a file that is a tebibyte", raw(t, &zip.FileHeader{Name: "f", UncompressedSize64: 1 << 40}))
	refuse("a zip with files of 2^63 bytes", raw(t, &zip.FileHeader{Name: "f", UncompressedSize64: 1<<64 - 1}))
	// Its end says that there are 2^40 files, for which room would be made.
	refuse("a zip with an end that lies", lying())
}

// raw is a zip with one entry whose header says what it likes.
func raw(t *testing.T, h *zip.FileHeader) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.CreateRaw(h)
	if err == nil {
		_, err = io.WriteString(f, "text")
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// lying is the end of a zip64 with nothing before it.
func lying() []byte {
	b := make([]byte, 4+56+20+22)
	copy(b, "PK\x03\x04")
	copy(b[4:], "PK\x06\x06")
	binary.LittleEndian.PutUint64(b[4+4:], 44)
	binary.LittleEndian.PutUint64(b[4+24:], 1<<40)
	binary.LittleEndian.PutUint64(b[4+32:], 1<<40)
	copy(b[60:], "PK\x06\x07")
	binary.LittleEndian.PutUint64(b[60+8:], 4)
	copy(b[80:], "PK\x05\x06")
	binary.LittleEndian.PutUint16(b[80+8:], 0xffff)
	binary.LittleEndian.PutUint16(b[80+10:], 0xffff)
	return b
}

// TestBombs: what unpacks to more than is allowed is refused before it is written.
func TestBombs(t *testing.T) {
	in := func(t *testing.T) *tree {
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { root.Close() })
		return newTree(t.Context(), root, 1<<40)
	}
	const limit = 1 << 20
	zeros := strings.Repeat("\x00", limit/2)
	items := []item{{name: "a", text: zeros}, {name: "b", text: zeros}}
	over := append(items, item{name: "c", text: "x"})
	for name, unpack := range map[string]func(*tree, ...item) error{
		"zip": func(t2 *tree, i ...item) error {
			z := zipOf(t, i...)
			return t2.unzip(bytes.NewReader(z), int64(len(z)), limit)
		},
		"tar.gz": func(t2 *tree, i ...item) error {
			z := tarOf(t, i...)
			return t2.untar(bytes.NewReader(z), int64(len(z)), limit)
		},
	} {
		if err := unpack(in(t), items...); err != nil {
			t.Errorf("%s as long as it may be: %v", name, err)
		}
		tr := in(t)
		if err := unpack(tr, over...); !errors.Is(err, ErrRefused) || tr.written > limit {
			t.Errorf("%s that is longer: %v, %d bytes written", name, err, tr.written)
		}
		tr = in(t)
		tr.room = limit - 1
		if err := unpack(tr, items...); !errors.Is(err, ErrNoRoom) {
			t.Errorf("%s without room: %v", name, err)
		}
		tr = in(t)
		tr.entries = maxEntries - 1
		if err := unpack(tr, items...); !errors.Is(err, ErrRefused) {
			t.Errorf("%s of too many files: %v", name, err)
		}
	}
	// Bytes that no header speaks of.
	tr := in(t)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := tar.NewWriter(z).Close(); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if _, err := io.WriteString(z, strings.Repeat("\x00", 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	z.Close()
	if err := tr.untar(bytes.NewReader(b.Bytes()), int64(b.Len()), limit); !errors.Is(err, ErrRefused) {
		t.Errorf("a tar.gz that goes on after its end: %v", err)
	}
	// A list of files that does not fit in memory.
	many := &budget{r: bytes.NewReader(make([]byte, 10)), left: 10}
	if _, err := many.ReadAt(make([]byte, 11), 0); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

// FuzzUnpack: whatever the bytes, nothing is written outside, and nothing panics.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Add(lying())
	f.Fuzz(func(t *testing.T, archive []byte) {
		dir := t.TempDir()
		within := filepath.Join(dir, "release")
		if err := os.Mkdir(within, 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(within)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		tr := newTree(t.Context(), root, 1<<20)
		if err := tr.unpack(bytes.NewReader(archive), int64(len(archive))); err == nil {
			_ = tr.finish()
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("outside: %v, %v", entries, err)
		}
		_ = removeTree(within)
	})
}

// failing is a build of which one read fails.
type failing struct {
	*bytes.Reader
	left int // reads until then
	err  error
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.left--; f.left == 0 {
		return 0, f.err
	}
	return f.Reader.ReadAt(p, off)
}

// TestUnreadable: an archive that the disk gives no more is not refused for what it holds,
// whichever read fails, and is a release when it is read again.
func TestUnreadable(t *testing.T) {
	text := strings.Repeat("of which there are many ", 40_000)
	items := []item{{name: "a", mode: 0o644, text: text}, {name: "b", mode: 0o644, text: "b"}, {name: "link", mode: fs.ModeSymlink | 0o777, text: "a"}}
	for name, archive := range map[string][]byte{"zip": zipOf(t, items...), "tar.gz": tarOf(t, items...)} {
		for _, lost := range []error{errors.New("the disk has lost it"), io.EOF} {
			s := open(t, Config{Dir: t.TempDir(), Unpack: true})
			b := Build{ExecutionID: "01J00000000000000000000000", Key: "app", Size: int64(len(archive))}
			n := 1
			for ; ; n++ {
				from := &failing{bytes.NewReader(archive), n, lost}
				err := s.Place(t.Context(), b, from)
				if err == nil {
					if from.left <= 0 {
						t.Errorf("%s: read %d has failed, and it is a release", name, n)
					}
					break
				}
				if errors.Is(err, ErrRefused) || lost != io.EOF && !errors.Is(err, lost) || lost == io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%s: read %d: %v", name, n, err)
				}
			}
			if n < 3 || !s.Placed(b.ExecutionID) {
				t.Errorf("%s: %d reads", name, n)
			}
		}
	}
}
