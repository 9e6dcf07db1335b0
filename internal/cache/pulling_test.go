package cache

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// What a pull has left is there for the next one of that name and tag, but for
// blocks that are not what was written.
func TestPullGoesOn(t *testing.T) {
	const block = 1000
	blocks := make([][]byte, 4)
	for i := range blocks {
		blocks[i] = bytes.Repeat([]byte{byte('a' + i)}, block)
	}
	for name, test := range map[string]struct {
		tag    string
		damage func(t *testing.T, file string)
		kept   []bool
	}{
		"all of it":      {"etag", func(*testing.T, string) {}, []bool{true, true, true, false}},
		"another object": {"other", func(*testing.T, string) {}, []bool{false, false, false, false}},
		"a block that did not reach the disk": {"etag", func(t *testing.T, file string) {
			write(t, file, block+5, "x")
		}, []bool{true, false, true, false}},
		"a file cut short": {"etag", func(t *testing.T, file string) {
			truncate(t, file, 2*block+1)
		}, []bool{true, true, false, false}},
		"a journal cut short": {"etag", func(t *testing.T, file string) {
			truncate(t, file+journalSuffix, 32+2*recordLength+3)
		}, []bool{true, true, false, false}},
		"a journal of nonsense": {"etag", func(t *testing.T, file string) {
			write(t, file+journalSuffix, 0, "nonsense")
		}, []bool{false, false, false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			c := open(t, dir)
			p, err := c.Pull("build", 0, "etag", 4*block, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range []int{1, 0, 2} {
				if _, err := p.WriteAt(blocks[i], int64(i*block)); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Leave(); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			test.damage(t, filepath.Join(dir, pulls, "build.0"))
			c = open(t, dir)
			for round := range 2 { // the second time with what the first has mended
				if p, err = c.Pull("build", 0, test.tag, 4*block, nil); err != nil {
					t.Fatal(err)
				}
				var kept []bool
				for i, want := range blocks {
					got := make([]byte, block)
					ok := p.Kept(got, int64(i*block))
					kept = append(kept, ok)
					if ok && !bytes.Equal(got, want) {
						t.Errorf("block %d is not what was written", i)
					}
					if !ok {
						if _, err := p.WriteAt(want, int64(i*block)); err != nil {
							t.Fatal(err)
						}
					}
				}
				want := test.kept
				if round == 1 {
					want = []bool{true, true, true, true}
				}
				if !slices.Equal(kept, want) {
					t.Errorf("round %d: kept are %v, expected %v", round, kept, want)
				}
				if err := p.Leave(); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.ForgetPulls(func(name string) bool { return name == "build" }); err != nil {
				t.Fatal(err)
			}
			if n := left(t, dir); n != 2 {
				t.Errorf("%d files are left, the pull is to be kept", n)
			}
			if err := c.ForgetPull("build", false); err != nil {
				t.Fatal(err)
			}
			if n := left(t, dir); n != 0 {
				t.Errorf("%d files are left", n)
			}
		})
	}
}

// The list of a pull's segments survives the process, as long as the tag is the same.
func TestPulledSegments(t *testing.T) {
	hash := func(b byte) manifest.InfoHash { return manifest.InfoHash{b, 19: b} }
	list := func(c *Cache, tag string) *Segments {
		t.Helper()
		s, err := c.PulledSegments("build", tag)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, test := range map[string]struct {
		tag    string
		change func(t *testing.T, s *Segments, file string) error
		known  []manifest.InfoHash
	}{
		"as it was":      {"etag", nil, []manifest.InfoHash{hash(1), hash(2), hash(3)}},
		"another object": {"other", nil, nil},
		"cut": {"etag", func(_ *testing.T, s *Segments, _ string) error {
			return s.Cut(1)
		}, []manifest.InfoHash{hash(1)}},
		"cut, and others then": {"etag", func(_ *testing.T, s *Segments, _ string) error {
			return errors.Join(s.Cut(1), s.Add(hash(4)))
		}, []manifest.InfoHash{hash(1), hash(4)}},
		"all of it cut": {"etag", func(_ *testing.T, s *Segments, _ string) error {
			return s.Cut(0)
		}, nil},
		"the last did not reach the disk whole": {"etag", func(t *testing.T, _ *Segments, file string) error {
			truncate(t, file, 32+2*20+7)
			return nil
		}, []manifest.InfoHash{hash(1), hash(2)}},
		"nonsense": {"etag", func(t *testing.T, _ *Segments, file string) error {
			write(t, file, 0, "nonsense")
			return nil
		}, nil},
		"cut short in its tag": {"etag", func(t *testing.T, _ *Segments, file string) error {
			truncate(t, file, 5)
			return nil
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			c := open(t, dir)
			s := list(c, "etag")
			if len(s.Known) != 0 {
				t.Errorf("a new list has %x", s.Known)
			}
			for i := range 3 {
				if err := s.Add(hash(byte(i + 1))); err != nil {
					t.Fatal(err)
				}
			}
			if test.change != nil {
				if err := test.change(t, s, filepath.Join(dir, pulls, "build"+segmentsSuffix)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(s.Close(), c.Close()); err != nil {
				t.Fatal(err)
			}
			c = open(t, dir)
			want := test.known
			looks(t, c, dir, test.tag, want)
			for range 2 { // the second time with what the first has added
				s = list(c, test.tag)
				if !slices.Equal(s.Known, want) {
					t.Errorf("known are %x, expected %x", s.Known, want)
				}
				want = append(slices.Clone(s.Known), hash(9))
				if err := errors.Join(s.Add(hash(9)), s.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.ForgetPulls(func(name string) bool { return name == "build" }); err != nil {
				t.Fatal(err)
			}
			if err := c.ForgetPull("build", true); err != nil {
				t.Fatal(err)
			}
			if n := left(t, dir); n != 1 {
				t.Errorf("%d files are left, the list is to be kept", n)
			}
			if err := c.ForgetPull("build", false); err != nil {
				t.Fatal(err)
			}
			if n := left(t, dir); n != 0 {
				t.Errorf("%d files are left", n)
			}
		})
	}
}

// looks reads a list without a change on the disk, whatever the tag, and one that is not there.
func looks(t *testing.T, c *Cache, dir, tag string, want []manifest.InfoHash) {
	t.Helper()
	file := filepath.Join(dir, pulls, "build"+segmentsSuffix)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if known, err := c.KnownSegments("build", tag); err != nil || !slices.Equal(known, want) {
		t.Errorf("who looks sees %x, expected %x: %v", known, want, err)
	}
	if known, err := c.KnownSegments("another", tag); err != nil || known != nil {
		t.Errorf("of what was never pulled: %x, %v", known, err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) || left(t, dir) != 1 {
		t.Errorf("a look has changed the list, or made one: %v", err)
	}
}

// Segments of one pull, and pulls whose names begin alike, have files of their own.
func TestPullsOfManySegments(t *testing.T) {
	dir := tempDir(t)
	c := open(t, dir)
	leave := func(name string, segment int) {
		t.Helper()
		p, err := c.Pull(name, segment, "etag", piece, nil)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if p.Kept(b, 0) {
			t.Errorf("segment %d of %s has another's bytes", segment, name)
		}
		if _, err := p.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if err := p.Leave(); err != nil {
			t.Fatal(err)
		}
	}
	for segment := range 12 {
		leave("build", segment)
	}
	leave("build2", 1)
	const journal = 32 + recordLength
	if n := c.Left("build"); n != 12*(100+journal) {
		t.Errorf("%d bytes are left", n)
	}
	if n := c.Left("buil"); n != 0 {
		t.Errorf("%d bytes are left of what was never pulled", n)
	}
	if err := c.ForgetPull("build", true); err != nil {
		t.Fatal(err)
	}
	if n := c.Left("build2"); n != 100+journal || left(t, dir) != 2 {
		t.Errorf("%d bytes of another pull are left", n)
	}
	// One that goes on is not forgotten.
	p, err := c.Pull("build", 3, "etag", piece, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ForgetPulls(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if n := left(t, dir); n != 2 {
		t.Errorf("%d files are left, expected the two of the segment that is pulled", n)
	}
	if err := p.Abort(); err != nil {
		t.Fatal(err)
	}
}

func left(t *testing.T, dir string) int {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(dir, pulls))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func write(t *testing.T, file string, offset int64, s string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(s), offset); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, file string, length int64) {
	t.Helper()
	if err := os.Truncate(file, length); err != nil {
		t.Fatal(err)
	}
}
