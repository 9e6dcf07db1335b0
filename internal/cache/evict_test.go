package cache

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/private"
)

// segments makes whole entries of a build of that name, of a piece each.
func segments(t testing.TB, c *Cache, name string, seeds ...byte) (made []*Entry) {
	t.Helper()
	for i, seed := range seeds {
		b, m := build(t, seed, piece)
		p, err := c.Pull(name, i, "etag", piece, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		e, err := p.Commit(m)
		if err != nil {
			t.Fatal(err)
		}
		e.Unpin()
		made = append(made, e)
	}
	return made
}

// stay are the entries that a cache has, of those named.
func stay(c *Cache, named map[string]*Entry) []string {
	var names []string
	for name, e := range named {
		if got, ok := c.Entry(e.InfoHash()); ok && got == e {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Over whichever bound, builds go one after the other, the one that was used least recently
// first, whole but for what is pinned; and no more of them than have to.
func TestEvictionGoesByBuild(t *testing.T) {
	for name, test := range map[string]struct {
		bound  func(*Cache)
		pinned []string
		room   int64
		want   string
		count  int
	}{
		"within":                    {bound: func(c *Cache) { c.limit = 9 * piece }, want: "a0 a1 a2 b0 b1 b2 c0 c1 c2"},
		"a byte too much":           {bound: func(c *Cache) { c.limit = 9*piece - 1 }, want: "b0 b1 b2 c0 c1 c2", count: 1},
		"half":                      {bound: func(c *Cache) { c.limit = 4 * piece }, want: "c0 c1 c2", count: 2},
		"too many builds":           {bound: func(c *Cache) { c.maxBuilds = 2 }, want: "b0 b1 b2 c0 c1 c2", count: 1},
		"too many segments":         {bound: func(c *Cache) { c.maxSegments = 8 }, want: "b0 b1 b2 c0 c1 c2", count: 1},
		"room":                      {bound: func(*Cache) {}, room: piece, want: "b0 b1 b2 c0 c1 c2", count: 1},
		"the oldest is in use":      {bound: func(c *Cache) { c.limit = 8 * piece }, pinned: []string{"a1"}, want: "a0 a1 a2 c0 c1 c2", count: 1},
		"all are in use":            {bound: func(c *Cache) { c.limit = 8 * piece }, pinned: []string{"a1", "b0", "c2"}, want: "a1 b0 b1 b2 c0 c1 c2", count: 1},
		"nothing may go":            {bound: func(c *Cache) { c.limit = 0 }, pinned: []string{"a0", "a1", "a2", "b0", "b1", "b2", "c0", "c1", "c2"}, want: "a0 a1 a2 b0 b1 b2 c0 c1 c2"},
		"a build cannot go whole":   {bound: func(c *Cache) { c.maxBuilds = 2 }, pinned: []string{"a1", "b0", "c2"}, want: "a0 a1 a2 b0 b1 b2 c0 c1 c2"},
		"what is pinned of it goes": {bound: func(c *Cache) { c.limit = 0 }, pinned: []string{"b1"}, want: "b1", count: 3},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, tempDir(t))
			named := make(map[string]*Entry)
			start := time.Now()
			for i, build := range []string{"c", "a", "b"} {
				for n, e := range segments(t, c, build, byte(3*i), byte(3*i+1), byte(3*i+2)) {
					named[fmt.Sprintf("%s%d", build, n)] = e
				}
			}
			for _, name := range test.pinned {
				pin(t, named[name])
			}
			for name, e := range named {
				usedAt(e, start.Add(time.Duration(name[0])*time.Second))
			}
			c.free = func() (int64, error) {
				c.mu.Lock()
				defer c.mu.Unlock()
				return minFree + int64(9-len(c.entries))*piece, nil
			}
			test.bound(c)
			dropped := make(map[manifest.InfoHash]int)
			if err := c.Evict(test.room, func(h manifest.InfoHash) { dropped[h]++ }); err != nil {
				t.Fatal(err)
			}
			got := stay(c, named)
			if strings.Join(got, " ") != test.want || len(dropped) != 9-len(got) || c.evicted != test.count {
				t.Errorf("left are %v, %d were dropped, %d builds counted", got, len(dropped), c.evicted)
			}
			if want := int64(len(got)) * piece; c.Size() != want {
				t.Errorf("%d bytes, expected %d", c.Size(), want)
			}
			files, err := private.Glob(c.dir, "*/"+infoFile)
			if err != nil || len(files) != len(got) {
				t.Errorf("on disk are %d, %v", len(files), err)
			}
		})
	}
}

// An entry is of the build that has asked for it last, also after a restart; one of which
// no build is known is one of its own.
func TestEntriesKnowTheirBuild(t *testing.T) {
	dir := tempDir(t)
	c := open(t, dir)
	old := segments(t, c, "old", 1, 2)
	segments(t, c, "new", 3)
	named := map[string]*Entry{"shared": old[1]}
	builds := func() map[string]int {
		c.mu.Lock()
		defer c.mu.Unlock()
		sizes := make(map[string]int)
		for name, b := range c.builds {
			if sizes[name] = len(b.entries); b.unpinnedBytes != int64(len(b.entries))*piece || b.pinned != 0 {
				t.Errorf("%s: %d bytes are not pinned, %d entries are", name, b.unpinnedBytes, b.pinned)
			}
		}
		return sizes
	}
	e, err := c.Pinned(old[1].InfoHash(), "new")
	if err != nil {
		t.Fatal(err)
	}
	e.Unpin()
	if err := old[0].Pin(); err != nil { // by who knows of no build
		t.Fatal(err)
	}
	old[0].Unpin()
	want := map[string]int{"old": 1, "new": 2}
	if got := builds(); !maps.Equal(got, want) {
		t.Errorf("builds are %v", got)
	}
	usedAt(old[0], time.Now().Add(-time.Hour))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if got := builds(); !maps.Equal(got, want) {
		t.Errorf("after a restart builds are %v", got)
	}
	if c.Size() != 3*piece || c.lacking.Load() != 0 {
		t.Errorf("%d bytes, %d lacking", c.Size(), c.lacking.Load())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	path := func(i int, name string) string { return filepath.Join(dir, old[i].InfoHash().String(), name) }
	before := time.Now().Add(-time.Hour)
	if err := errors.Join(os.Remove(path(0, buildFile)), os.WriteFile(path(1, buildFile), make([]byte, maxBuildName+1), 0o600),
		os.Chtimes(path(1, infoFile), before, before)); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if got, want := builds(), map[string]int{old[0].InfoHash().String(): 1, old[1].InfoHash().String(): 1, "new": 1}; !maps.Equal(got, want) {
		t.Errorf("without names builds are %v", got)
	}
	named["shared"], _ = c.Entry(old[1].InfoHash())
	c.limit = 2 * piece
	if err := c.Evict(0, func(manifest.InfoHash) {}); err != nil {
		t.Fatal(err)
	}
	if got := stay(c, named); len(got) != 0 || c.Size() != 2*piece {
		t.Errorf("the oldest is left, %d bytes", c.Size())
	}
}

// openFilesOf counts what this process has open below a folder.
func openFilesOf(t testing.TB, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("files are counted where there is /proc/self/fd: ", err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && strings.HasPrefix(to, dir) {
			n++
		}
	}
	return n
}

// An entry that nobody uses holds no file; each user, of whatever kind, finds it open.
func TestColdEntriesHoldNoFile(t *testing.T) {
	dir := tempDir(t)
	c := open(t, dir)
	const lock = 1
	check := func(when string, want int) {
		t.Helper()
		if n := openFilesOf(t, dir); n != want+lock {
			t.Errorf("%s %d files are open, expected %d", when, n-lock, want)
		}
	}
	b, _ := build(t, 1, piece)
	e := segments(t, c, "build", 1, 2, 3)[0]
	check("cold", 0)
	readable := func(want bool) {
		t.Helper()
		got := make([]byte, piece)
		_, err := e.ReadVerified(0, got, 0)
		if want && (err != nil || !slices.Equal(got, b)) || !want && !errors.Is(err, errCold) {
			t.Errorf("reading: %v", err)
		}
		if (e.Manifest() != nil) != want || e.Complete(0) != want || !e.Whole() || e.VerifiedBytes() != piece {
			t.Errorf("manifest %v, complete %v, whole %v", e.Manifest(), e.Complete(0), e.Whole())
		}
	}
	readable(false)
	pin(t, e)
	check("pinned", 2)
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	pin(t, e)
	check("used three times", 2)
	e.Unpin()
	e.Unpin()
	readable(true)
	if c.limit = 2 * piece; e.Whole() {
		usedAt(e, time.Now().Add(time.Hour))
	}
	e.Close()
	check("cold again", 0)
	readable(false)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	check("after a restart", 0)
}

// What is open for others, and not pinned, goes all the same, and whoever has it open finds
// that it is closed.
func TestOpenEntriesAreEvicted(t *testing.T) {
	c := open(t, tempDir(t))
	e := segments(t, c, "build", 1)[0]
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	c.limit = 0
	if err := c.Evict(0, func(manifest.InfoHash) {
		if _, err := e.ReadAt(make([]byte, 1), 0); err != nil {
			t.Errorf("before it is dropped: %v", err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ReadAt(make([]byte, 1), 0); !errors.Is(err, errCold) {
		t.Errorf("after it: %v", err)
	}
	e.Close()
	if err := e.Open(); !errors.Is(err, ErrNotKept) {
		t.Errorf("opened again: %v", err)
	}
	if n := openFilesOf(t, c.dir); n != 1 {
		t.Errorf("%d files are open", n)
	}
}

// Entries that are opened, pinned, read and evicted at the same time are read right or not
// at all, and none stays open.
func TestReadWhileEvicted(t *testing.T) {
	c := open(t, tempDir(t))
	contents := make(map[manifest.InfoHash][]byte)
	var all []manifest.InfoHash
	for seed := range byte(6) {
		b, m := build(t, seed, piece)
		contents[m.InfoHash()] = b
		all = append(all, m.InfoHash())
	}
	pull := func() {
		segments(t, c, "a", 0, 1, 2)
		segments(t, c, "b", 3, 4, 5)
	}
	pull()
	var read, missed int
	for range 30 {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i, infohash := range all {
			for range 2 {
				wg.Go(func() {
					e, err := c.Pinned(infohash, string(rune('a'+i%2)))
					if errors.Is(err, ErrNotKept) {
						mu.Lock()
						defer mu.Unlock()
						missed++
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					got := make([]byte, piece)
					if _, err := e.ReadVerified(0, got, 0); err != nil || !slices.Equal(got, contents[infohash]) {
						t.Errorf("reading what is pinned: %v", err)
					}
					e.Unpin()
					mu.Lock()
					defer mu.Unlock()
					read++
				})
			}
		}
		for range 2 {
			wg.Go(func() {
				c.mu.Lock()
				c.limit = 3 * piece
				c.mu.Unlock()
				if err := c.Evict(0, func(manifest.InfoHash) {}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := openFilesOf(t, c.dir); n != 1 {
			t.Fatalf("%d files are open", n)
		}
		pull()
	}
	if read == 0 {
		t.Error("nothing was read")
	}
	t.Log(read, "read,", missed, "missed")
	if got := c.Size(); got != 6*piece || c.lacking.Load() != 0 {
		t.Errorf("%d bytes, %d lacking", got, c.lacking.Load())
	}
}

// Damage that came while an entry was cold is found when it is read again: it is not there
// then, and can be made anew. So is what the disk has forgotten of its pieces.
func TestDamageIsFoundWhenReadAgain(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"other info":  func(dir string) error { return os.WriteFile(filepath.Join(dir, infoFile), []byte("de"), 0o600) },
		"no info":     func(dir string) error { return os.Remove(filepath.Join(dir, infoFile)) },
		"short data":  func(dir string) error { return os.Truncate(filepath.Join(dir, dataFile), 1) },
		"no bitmap":   func(dir string) error { return os.Remove(filepath.Join(dir, haveFile)) },
		"no files":    os.RemoveAll,
		"long bitmap": func(dir string) error { return os.Truncate(filepath.Join(dir, haveFile), 9) },
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, tempDir(t))
			e := segments(t, c, "build", 1, 2)[0]
			if err := damage(c.path(e.InfoHash())); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if _, err := c.Pinned(e.InfoHash(), "build"); !errors.Is(err, ErrNotKept) {
						t.Errorf("pinned: %v", err)
					}
				})
			}
			wg.Wait()
			if _, ok := c.Entry(e.InfoHash()); ok || c.Size() != piece || c.lacking.Load() != 0 {
				t.Errorf("it is there, %d bytes", c.Size())
			}
			again := segments(t, c, "build", 1)[0]
			if again == e || !again.Whole() || c.Size() != 2*piece {
				t.Errorf("made anew: whole %v, %d bytes", again.Whole(), c.Size())
			}
			pin(t, again)
		})
	}
	c := open(t, tempDir(t))
	e := segments(t, c, "build", 1)[0]
	if err := os.WriteFile(filepath.Join(c.path(e.InfoHash()), haveFile), []byte{0}, 0o600); err != nil {
		t.Fatal(err)
	}
	pin(t, e)
	if e.Whole() || e.VerifiedBytes() != 0 || c.lacking.Load() != piece {
		t.Errorf("pieces that are not noted: whole %v, %d bytes, %d lacking", e.Whole(), e.VerifiedBytes(), c.lacking.Load())
	}
}

// A disk that fails is said as what it is: the entry stays.
func TestUnreadableEntryStays(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	c := open(t, tempDir(t))
	e := segments(t, c, "build", 1)[0]
	info := filepath.Join(c.path(e.InfoHash()), infoFile)
	if err := os.Chmod(info, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pinned(e.InfoHash(), ""); !errors.Is(err, os.ErrPermission) || errors.Is(err, ErrNotKept) {
		t.Errorf("pinned: %v", err)
	}
	if err := os.Chmod(info, 0o600); err != nil {
		t.Fatal(err)
	}
	pin(t, e)
}

// memoryOfOne is what a cold entry may take in bytes, and some more, for the garbage
// collector's rounding.
const memoryOfOne = 2 * 200

// What nobody uses takes little memory, and the bound on segments is arithmetic on that.
func TestMemoryOfEntries(t *testing.T) {
	const entries, size = 1000, 64 * piece
	dir := tempDir(t)
	c := open(t, dir)
	for i := range entries {
		m := &manifest.Manifest{Shape: manifest.ShapeOf(size), Pieces: make([]byte, 20*64), Parts: make([]byte, 32*2)}
		m.Pieces[0], m.Pieces[1] = byte(i), byte(i>>8)
		e, err := c.Create(fmt.Sprint("build ", i/64), m, nil)
		if err != nil {
			t.Fatal(err)
		}
		e.Unpin()
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	c = nil
	before := heap()
	c = open(t, dir)
	cold := heap() - before
	var all []*Entry
	for _, e := range c.entries {
		pin(t, e)
		all = append(all, e)
	}
	hot := heap() - before
	for _, e := range all {
		e.Unpin()
	}
	again := heap() - before
	t.Logf("bytes an entry: %d cold, %d used, %d cold again", cold/entries, hot/entries, again/entries)
	if cold/entries > memoryOfOne || again/entries > memoryOfOne || hot < 4*cold {
		t.Errorf("%d entries take %d bytes cold, %d used, %d cold again", entries, cold, hot, again)
	}
	if most := int64(maxSegments) * memoryOfOne; most > 128<<20 {
		t.Errorf("all that may be kept take %d bytes", most)
	}
}
