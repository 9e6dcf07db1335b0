package cache

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
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
			dir := t.TempDir()
			c := open(t, dir)
			p, err := c.Pull("build", "etag", 4*block)
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
			test.damage(t, filepath.Join(dir, pulls, "build"))
			c = open(t, dir)
			for round := range 2 { // the second time with what the first has mended
				if p, err = c.Pull("build", test.tag, 4*block); err != nil {
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
			if err := c.ForgetPull("build"); err != nil {
				t.Fatal(err)
			}
			if n := left(t, dir); n != 0 {
				t.Errorf("%d files are left", n)
			}
		})
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
