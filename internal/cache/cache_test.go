package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const piece = manifest.MinPieceLength

// build returns size bytes that differ between seeds, and describes them as a segment.
func build(t testing.TB, seed byte, size int) ([]byte, *manifest.Manifest) {
	t.Helper()
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b, manifesttest.Segment(b)
}

// tempDir is a directory of the test's own, with a name in which a pattern would stand for
// something else.
func tempDir(t testing.TB) string { return filepath.Join(t.TempDir(), `[1_1] *?\`) }

func open(t testing.TB, dir string) *Cache {
	t.Helper()
	c, err := Open(dir, 1<<40, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func pin(t testing.TB, e *Entry) {
	t.Helper()
	if err := e.Pin(); err != nil {
		t.Fatal(err)
	}
}

// usedAt has an entry, and its build, be used last at a time.
func usedAt(e *Entry, at time.Time) {
	e.cache.mu.Lock()
	defer e.cache.mu.Unlock()
	e.lastUse, e.build.lastUse = at.UnixNano(), at.UnixNano()
}

// put makes a whole entry.
func put(t testing.TB, c *Cache, seed byte, size int) *Entry {
	t.Helper()
	b, m := build(t, seed, size)
	p, err := c.Pull(string(rune('a'+seed)), 0, "etag", int64(size), nil)
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
	return e
}

func TestEntryOutlivesTheProcess(t *testing.T) {
	dir := tempDir(t)
	b, m := build(t, 1, 10*piece+7)
	c := open(t, dir)
	e, err := c.Create("made", m, nil)
	if err != nil || e.Whole() || e.VerifiedBytes() != 0 {
		t.Fatalf("new entry: %v", err)
	}
	if again, err := c.Create("made", m, nil); err != nil || again != e {
		t.Errorf("made twice: %v", err)
	}
	for _, i := range []int{0, 3, 10} {
		offset, length := m.PieceRange(i)
		if _, err := e.WriteAt(b[offset:offset+length], offset); err != nil {
			t.Fatal(err)
		}
		if err := e.SetComplete(i, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.SetComplete(3, false); err != nil { // found bad
		t.Fatal(err)
	}
	if _, err := e.WriteAt([]byte{1}, m.Size); err == nil {
		t.Error("written beyond the end")
	}
	// Not closed: a kill -9 would not either. Only the lock is given back.
	if err := c.lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := open(t, dir).Pinned(e.InfoHash(), "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.NumPieces() {
		if want := i == 0 || i == 10; again.Complete(i) != want {
			t.Errorf("piece %d is complete: %v", i, !want)
		}
	}
	if again.VerifiedBytes() != piece+7 || again.Whole() || !bytes.Equal(again.Manifest().InfoBytes(), m.InfoBytes()) {
		t.Errorf("%d bytes verified", again.VerifiedBytes())
	}
	got := make([]byte, 7)
	if _, err := again.ReadAt(got, 10*piece); err != nil || !bytes.Equal(got, b[10*piece:]) {
		t.Errorf("last piece: %v", err)
	}
}

func TestDamagedEntriesAreRemoved(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"info of another build": func(dir string) error { return os.WriteFile(filepath.Join(dir, "info"), []byte("de"), 0o644) },
		"no info":               func(dir string) error { return os.Remove(filepath.Join(dir, "info")) },
		"huge info":             func(dir string) error { return os.Truncate(filepath.Join(dir, "info"), manifest.MaxInfoLength+1) },
		"short data":            func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), 1) },
		"no data":               func(dir string) error { return os.Remove(filepath.Join(dir, "data")) },
		"short bitmap":          func(dir string) error { return os.Truncate(filepath.Join(dir, "have"), 0) },
		"no bitmap":             func(dir string) error { return os.Remove(filepath.Join(dir, "have")) },
	} {
		dir := tempDir(t)
		c := open(t, dir)
		e := put(t, c, 1, piece)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := damage(c.path(e.InfoHash())); err != nil {
			t.Fatal(err)
		}
		c = open(t, dir)
		if _, ok := c.Entry(e.InfoHash()); ok {
			t.Errorf("%s: still there", name)
		}
		if _, err := os.Stat(c.path(e.InfoHash())); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: its files are left: %v", name, err)
		}
	}
}

func TestPulls(t *testing.T) {
	dir := tempDir(t)
	c := open(t, dir)
	b, m := build(t, 1, 3*piece)
	left, err := c.Pull("left-over", 0, "etag", 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer left.close()
	whole := put(t, c, 1, 3*piece)
	if !whole.Whole() || whole.VerifiedBytes() != m.Size {
		t.Error("a pulled build is not whole")
	}
	if again := put(t, c, 1, 3*piece); again != whole {
		t.Error("the same bytes are kept twice")
	}
	aborted, err := c.Pull("aborted", 0, "etag", 100, nil)
	if err == nil {
		err = aborted.Abort()
	}
	if err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if err := c.ForgetPulls(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, pulls)); err != nil || len(files) != 0 {
		t.Errorf("left of pulls: %v, %v", files, err)
	}
	// What is pulled completes what peers have begun to bring.
	b2, m2 := build(t, 2, 3*piece)
	partial, err := c.Create("made", m2, nil)
	if err != nil {
		t.Fatal(err)
	}
	if filled := put(t, c, 2, 3*piece); filled != partial || !partial.Whole() {
		t.Error("a partial entry was not completed")
	}
	got := make([]byte, len(b2))
	if _, err := partial.ReadAt(got, 0); err != nil || !bytes.Equal(got, b2) {
		t.Errorf("its bytes: %v", err)
	}
	if _, err := whole.ReadAt(make([]byte, len(b)), 0); err == nil {
		t.Error("an entry of a closed cache can be read")
	}
}

func TestOneProcessToADirectory(t *testing.T) {
	dir := tempDir(t)
	c := open(t, dir)
	if _, err := Open(dir, 0, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second: %v", err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	open(t, dir)
}

// Disk that a high build has asked for in vain is kept free of others, as long as it goes
// on to ask, and not for ever.
func TestDiskIsKeptForHighBuilds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, tempDir(t))
		c.free = func() (int64, error) { return minFree + 10*piece, nil }
		reserve := func(size int64, high, want bool) *Room {
			t.Helper()
			room, err := c.Reserve(size, high)
			if err == nil != want {
				t.Errorf("%d pieces, high: %v: %v", size/piece, high, err)
			}
			if err != nil && !errors.Is(err, ErrNoSpace) {
				t.Error(err)
			}
			return room
		}
		first := reserve(8*piece, false, true)
		reserve(6*piece, true, false)
		reserve(2*piece, false, false) // is not given away under it
		reserve(2*piece, true, true).Free()
		reserve(2*piece, false, true).Free() // which took what it was about to be
		reserve(6*piece, true, false)
		first.Free()
		reserve(5*piece, false, false)
		reserve(4*piece, false, true).Free() // beside it
		reserve(6*piece, true, true).Free()
		reserve(10*piece, false, true).Free()

		reserve(20*piece, true, false)
		time.Sleep(keepFor - time.Second)
		reserve(piece, false, false)
		time.Sleep(time.Second)
		reserve(piece, false, true).Free() // it does not ask any more
		for begun := time.Now(); time.Since(begun) < keepMost; time.Sleep(time.Minute) {
			reserve(20*piece, true, false)
		}
		reserve(20*piece, true, false)
		reserve(piece, false, true).Free() // it will never have it
		time.Sleep(keepMost)
		reserve(20*piece, true, false)
		reserve(piece, false, false)
	})
}

// What is promised to a build is promised to nobody else, whether it is a room still,
// or a segment on its way.
func TestDiskIsReserved(t *testing.T) {
	c := open(t, tempDir(t))
	c.free = func() (int64, error) { return minFree + 10*piece, nil }
	refused := 0
	fits := func(when string, most int64) {
		t.Helper()
		room, err := c.Reserve(most, false)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		room.Free()
		refused++
		if _, err := c.Reserve(most+7, false); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "7 bytes are missing") {
			t.Errorf("%s: what is promised to another was given again: %v", when, err)
		}
	}
	fits("at first", 10*piece)
	room, err := c.Reserve(8*piece, false)
	if err != nil {
		t.Fatal(err)
	}
	fits("beside a room", 2*piece)
	_, m := build(t, 1, 3*piece)
	for range 2 { // it is one entry, and yet a segment of two
		e, err := c.Create("made", m, room)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Unpin()
	}
	if room.left != 2*piece {
		t.Errorf("%d bytes are left of the room", room.left)
	}
	fits("two equal segments need the disk of one", 5*piece)
	p, err := c.Pull("x", 0, "etag", 2*piece, room)
	if err != nil {
		t.Fatal(err)
	}
	fits("beside a pull", 5*piece)
	if _, err := p.WriteAt(make([]byte, piece), 0); err != nil {
		t.Fatal(err)
	}
	fits("beside what a pull lacks", 6*piece) // this disk does not fill
	if err := p.Leave(); err != nil {
		t.Fatal(err)
	}
	room.Free()
	room.Free()
	fits("beside the entry", 7*piece)
	// What is left of a pull is not taken out of the room again.
	if room, err = c.Reserve(4*piece, false); err != nil {
		t.Fatal(err)
	}
	if p, err = c.Pull("x", 0, "etag", 2*piece, room); err != nil {
		t.Fatal(err)
	}
	if room.left != 3*piece {
		t.Errorf("%d bytes are left of the room", room.left)
	}
	fits("beside the second half of a pull", 3*piece)
	if err := p.Abort(); err != nil {
		t.Fatal(err)
	}
	fits("an aborted pull keeps its room", 4*piece)
	// More than there is in the room.
	if p, err = c.Pull("y", 0, "etag", 5*piece, room); err != nil {
		t.Fatal(err)
	}
	fits("beside a pull longer than its room", 2*piece)
	if err := p.Abort(); err != nil {
		t.Fatal(err)
	}
	room.Free()
	if c.promised != 0 || c.refused != refused {
		t.Errorf("%d bytes are promised, %d refusals were counted, expected %d", c.promised, c.refused, refused)
	}
}

func TestEvict(t *testing.T) {
	c := open(t, tempDir(t))
	var entries []*Entry
	start := time.Now()
	for i := range 4 {
		e := put(t, c, byte(i), piece)
		usedAt(e, start.Add(time.Duration(i)*time.Second))
		entries = append(entries, e)
	}
	var dropped []manifest.InfoHash
	evict := func(room int64) {
		t.Helper()
		dropped = nil
		if err := c.Evict(room, func(h manifest.InfoHash) { dropped = append(dropped, h) }); err != nil {
			t.Fatal(err)
		}
	}
	if evict(0); len(dropped) != 0 {
		t.Errorf("within the limit %d were evicted", len(dropped))
	}
	pin(t, entries[0])
	usedAt(entries[0], start)
	c.limit = 3 * piece
	if evict(0); len(dropped) != 1 || dropped[0] != entries[1].InfoHash() {
		t.Errorf("not the oldest that is not pinned: %x", dropped)
	}
	if _, err := os.Stat(c.path(entries[1].InfoHash())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files are left: %v", err)
	}
	c.free = func() (int64, error) { return minFree + int64(4-len(c.entries))*piece, nil }
	if evict(2 * piece); len(dropped) != 1 || dropped[0] != entries[2].InfoHash() {
		t.Errorf("room for a build: %x", dropped)
	}
	pin(t, entries[3])
	c.limit = 0
	if evict(0); len(dropped) != 0 {
		t.Error("a pinned entry was evicted")
	}
	entries[0].Unpin()
	if evict(0); len(dropped) != 1 || c.Size() != piece {
		t.Errorf("%d bytes are left", c.Size())
	}
}

// What is pulled, made or looked up to be worked with stays, however full the
// cache is.
func TestPinnedFromTheStart(t *testing.T) {
	c := open(t, tempDir(t))
	c.limit = 0
	evicted := func() (n int) {
		t.Helper()
		if err := c.Evict(0, func(manifest.InfoHash) { n++ }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	b, m := build(t, 1, 100)
	p, err := c.Pull("one", 0, "etag", 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	pulled, err := p.Commit(m)
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.Create("made", m, nil)
	if err != nil || made != pulled {
		t.Fatalf("made twice: %v", err)
	}
	found, err := c.Pinned(pulled.InfoHash(), "")
	if err != nil || found != pulled {
		t.Fatal("not found")
	}
	for range 3 {
		if n := evicted(); n != 0 {
			t.Fatal("evicted while pinned")
		}
		pulled.Unpin()
	}
	// While it goes, the same build comes again.
	if err := c.Evict(0, func(manifest.InfoHash) {
		if _, err := c.Create("made", m, nil); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	again, ok := c.Entry(pulled.InfoHash())
	if !ok || again == pulled {
		t.Fatal("the new entry went with the old one")
	}
	if err := pulled.Pin(); !errors.Is(err, ErrNotKept) {
		t.Errorf("what was evicted is pinned: %v", err)
	}
	if _, err := again.WriteAt(b, 0); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(c.path(again.infohash), infoFile)); err != nil {
		t.Error(err)
	}
}

func TestPiecesFromManyGoroutines(t *testing.T) {
	c := open(t, tempDir(t))
	_, m := build(t, 1, 64*piece)
	e, err := c.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range m.NumPieces() {
		wg.Go(func() {
			if err := e.SetComplete(i, true); err != nil {
				t.Error(err)
			}
			e.Complete(i)
			if err := e.Pin(); err != nil {
				t.Error(err)
			}
			e.Unpin()
		})
	}
	wg.Wait()
	bits, err := os.ReadFile(filepath.Join(c.path(e.InfoHash()), "have"))
	if err != nil || !e.Whole() || !bytes.Equal(bits, bytes.Repeat([]byte{0xff}, 8)) {
		t.Errorf("whole %v, bitmap %x, %v", e.Whole(), bits, err)
	}
}

func TestDamagedPieceIsFound(t *testing.T) {
	dir := tempDir(t)
	c := open(t, dir)
	b, _ := build(t, 1, 3*piece)
	e := put(t, c, 1, 3*piece)
	pin(t, e)
	defer e.Unpin()
	flip := func(offset int64) {
		if _, err := e.WriteAt([]byte{b[offset] ^ 1}, offset); err != nil {
			t.Fatal(err)
		}
	}
	for _, length := range []int{piece, piece / 2} {
		got := make([]byte, length)
		if _, err := e.ReadVerified(1, got, 0); err != nil || !bytes.Equal(got, b[piece:piece+length]) {
			t.Errorf("chunk of %d bytes: %v", length, err)
		}
	}
	flip(5)
	if _, err := e.ReadVerified(0, make([]byte, piece), 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read whole: %v", err)
	}
	flip(3*piece - 1)
	if _, err := e.ReadVerified(2, make([]byte, 10), 20); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a chunk beside the damage: %v", err)
	}
	if got := e.Missing(); !slices.Equal(got, []int{0, 2}) || e.Whole() {
		t.Errorf("missing are %v", got)
	}
	// So is one that the file has no more of.
	if err := os.Truncate(filepath.Join(c.path(e.InfoHash()), dataFile), piece+piece/2); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ReadVerified(1, make([]byte, 2*piece), 0); errors.Is(err, ErrCorrupt) || !errors.Is(err, io.EOF) {
		t.Errorf("more than there is of a piece: %v", err)
	}
	if _, err := e.ReadVerified(1, make([]byte, piece), 0); !errors.Is(err, ErrCorrupt) || e.Complete(1) {
		t.Errorf("a file that was cut: %v", err)
	}
	if !lost(fmt.Errorf("read: %w", unix.EIO)) || lost(unix.EBADF) {
		t.Error("not every error of reading says that the bytes are lost")
	}
}
