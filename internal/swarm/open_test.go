package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// segments has a node hand out so many segments of one build.
func (n *node) segments(t *testing.T, build string, count, size int) (all []*Torrent, contents [][]byte) {
	t.Helper()
	for i := range count {
		content := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), build[0]}).Read(content)
		m := manifesttest.Segment(content)
		p, err := n.cache.Pull(build, i, "etag", m.Size, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		e, err := p.Commit(m)
		if err != nil {
			t.Fatal(err)
		}
		torrent, err := n.HandOut(e, handout.Place{Execution: build, Segment: i}, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		all, contents = append(all, torrent), append(contents, content)
	}
	return all, contents
}

// fetchAll downloads segments, the oldest four at a time.
func (n *node) fetchAll(t *testing.T, build string, of []*Torrent, contents [][]byte, peers ...peerwire.Peer) (got []*Torrent) {
	t.Helper()
	var running sync.WaitGroup
	places := make(chan struct{}, 4)
	for i, from := range of {
		places <- struct{}{}
		f, err := n.Fetch(Fetch{InfoHash: from.InfoHash(), Shape: manifest.ShapeOf(int64(len(contents[i]))), Build: build})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, f)
		running.Go(func() {
			defer func() { <-places }()
			finish(t, f, contents[i], peers...)
		})
	}
	running.Wait()
	return got
}

// watchOpen returns the most torrents that a node's engine has held, until it is asked.
func (n *node) watchOpen() (most func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	seen := make(chan int)
	go func() {
		most := 0
		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			most = max(most, len(n.client.Torrents()))
			<-ticker.C
		}
		seen <- most
	}()
	return func() int { cancel(); return <-seen }
}

// A build has many segments, and the engine holds a few of them: those that somebody asks
// for. Who comes late gets all the same, from a seeder and an agent that have all closed.
func TestOpenSegmentsAreBounded(t *testing.T) {
	t.Parallel()
	const count, size = 100, 256 << 10
	s := start(t, "seeder", t.TempDir(), handOut)
	atSeeder := s.watchOpen()
	seeded, contents := s.segments(t, "build", count, size)
	if open := len(s.client.Torrents()); open != 0 {
		t.Errorf("%d segments are open that nobody has asked for", open)
	}
	first := start(t, "first", t.TempDir(), nil)
	atFirst := first.watchOpen()
	first.fetchAll(t, "build", seeded, contents, s.addr)
	late := start(t, "late", t.TempDir(), nil)
	got := late.fetchAll(t, "build", seeded, contents, s.addr, first.addr)
	for name, most := range map[string]int{"seeder": atSeeder(), "agent": atFirst()} {
		if most > maxOpenOfBuild || most < 2 {
			t.Errorf("%s: up to %d segments were open", name, most)
		}
	}
	var sent, received int64
	for i := range count {
		sent += seeded[i].Stats().UploadedBytes
		received += got[i].Stats().DownloadedBytes
	}
	if sent < count*size || received < count*size {
		t.Errorf("%d bytes were sent and %d received of %d: what was counted is lost", sent, received, count*size)
	}
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	t.Logf("%d KiB on the heap, %d goroutines, with three engines and %d segments each", mem.HeapAlloc>>10, runtime.NumGoroutine(), count)
}

// All builds together have a bound as well.
func TestOpenSegmentsOfAllBuilds(t *testing.T) {
	t.Parallel()
	const builds, size = 12, 1 << 10
	s := start(t, "seeder", t.TempDir(), nil)
	most := s.watchOpen()
	n := start(t, "agent", t.TempDir(), nil)
	for i := range builds {
		build := fmt.Sprintf("%c", 'a'+i)
		seeded, contents := s.segments(t, build, maxOpenOfBuild+1, size)
		n.fetchAll(t, build, seeded, contents, s.addr)
	}
	if most := most(); most > maxOpen || most <= maxOpenOfBuild {
		t.Errorf("up to %d segments were open", most)
	}
}

// Peers that are connected and take nothing keep nobody from the other segments.
func TestSleepersMakeRoom(t *testing.T) {
	t.Parallel()
	const size = 256 << 10
	s := start(t, "seeder", t.TempDir(), func(c *Config) {
		c.HandOut, c.patience = true, defaultPatience()
		c.patience.sleeps = 100 * time.Millisecond
	})
	seeded, contents := s.segments(t, "build", maxOpenOfBuild+3, size)
	for _, from := range seeded[:maxOpenOfBuild] {
		c := greet(t, s.addr, "127.0.0.1", from.InfoHash(), peerwire.PeerID("sleeper"))
		go io.Copy(io.Discard, c)
	}
	eventually(t, func() bool { return len(s.client.Torrents()) == maxOpenOfBuild })
	n := start(t, "agent", t.TempDir(), nil)
	n.fetchAll(t, "build", seeded, contents, s.addr)
}

// While all segments are in use, a peer that asks for another one is refused in the end.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	for ofBuild, most := range map[int]int{0: maxOpenOfBuild, 3: 3} {
		t.Run(fmt.Sprint(most), func(t *testing.T) { t.Parallel(); noRoom(t, ofBuild, most) })
	}
}

func noRoom(t *testing.T, ofBuild, most int) {
	s := start(t, "seeder", t.TempDir(), func(c *Config) {
		c.HandOut, c.OpenOfBuild, c.patience = true, ofBuild, defaultPatience()
		c.patience.sleeps = time.Hour
	})
	seeded, _ := s.segments(t, "build", most+1, 1<<10)
	for _, from := range seeded[:most] {
		c := greet(t, s.addr, "127.0.0.1", from.InfoHash(), peerwire.PeerID("sleeper"))
		go io.Copy(io.Discard, c)
		eventually(t, func() bool { return len(from.Stats().Peers) == 1 && from.pending.Load() == 0 })
	}
	gone := make(chan struct{})
	last := seeded[most]
	if err := s.makeRoom(last, 1, gone); !errors.Is(err, errNoRoom) {
		t.Errorf("%v", err)
	}
	close(gone) // who has hung up is not waited for
	if err := s.makeRoom(last, 1, gone); !errors.Is(err, errNoRoom) || last.pending.Load() != 0 {
		t.Errorf("%v, %d", err, last.pending.Load())
	}
	// A download is its owner's to bound.
	f, err := s.Fetch(Fetch{InfoHash: manifest.InfoHash{1}, Shape: manifest.ShapeOf(1), Build: "build"})
	if err != nil || f.engine() == nil {
		t.Errorf("a download has to wait: %v", err)
	}
	for i := byte(2); s.RoomToFetch(); i++ {
		if _, err := s.Fetch(Fetch{InfoHash: manifest.InfoHash{i}, Shape: manifest.ShapeOf(1)}); err != nil {
			t.Fatal(err)
		}
		if i > maxFetched+1 {
			t.Fatal("there is always room to fetch more")
		}
	}
}

// What is found damaged while it is closed is fetched again.
func TestDamagedWhileClosed(t *testing.T) {
	t.Parallel()
	const size = 256 << 10
	s := start(t, "seeder", t.TempDir(), handOut)
	seeded, contents := s.segments(t, "build", maxOpenOfBuild+4, size)
	dir := t.TempDir()
	n := start(t, "agent", dir, nil)
	got := n.fetchAll(t, "build", seeded, contents, s.addr)
	damage := func(dir string, of *Torrent) {
		t.Helper()
		file := filepath.Join(dir, of.InfoHash().String(), "data")
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if of.engine() != nil {
			t.Fatal("it is open")
		}
		if damaged, err := of.Verify(0, 2); damaged != 2 || err != nil {
			t.Fatalf("%d pieces are damaged, %v", damaged, err)
		}
	}
	damage(dir, got[0])
	ctx, cancel := context.WithCancel(t.Context())
	var naming sync.WaitGroup
	naming.Go(func() { got[0].nameUntil(ctx, s.addr) })
	defer naming.Wait()
	defer cancel()
	eventually(t, got[0].Done)
	b := make([]byte, size)
	if _, err := got[0].entryNow().ReadAt(b, 0); err != nil || !bytes.Equal(b, contents[0]) {
		t.Errorf("not the bytes that were seeded: %v", err)
	}
}

// A seeder reads what is damaged from the source, whether it is open or not.
func TestPutWhileClosed(t *testing.T) {
	t.Parallel()
	const size = 256 << 10
	dir := t.TempDir()
	s := start(t, "seeder", dir, handOut)
	seeded, contents := s.segments(t, "build", 1, size)
	e := seeded[0].entryNow()
	m := e.Manifest()
	for piece := range m.NumPieces() {
		if err := e.SetComplete(piece, false); err != nil {
			t.Fatal(err)
		}
		offset, length := m.PieceRange(piece)
		if err := seeded[0].Put(t.Context(), piece, contents[0][offset:offset+length]); err != nil {
			t.Fatal(err)
		}
	}
	if !seeded[0].Done() {
		t.Error("it is not whole")
	}
	finish(t, start(t, "agent", t.TempDir(), nil).fetch(t, seeded[0], size, nil), contents[0], s.addr)
}

// A segment that leaves the cache is not opened again.
func TestDroppedWhileClosed(t *testing.T) {
	t.Parallel()
	s := start(t, "seeder", t.TempDir(), handOut)
	seeded, _ := s.segments(t, "build", 1, 1<<10)
	seeded[0].Drop()
	if err := s.makeRoom(seeded[0], 0, nil); err != nil { // somebody has found it before that
		t.Fatal(err)
	}
	if err := seeded[0].reopen(); !errors.Is(err, ErrDropped) {
		t.Errorf("%v", err)
	}
	c := greet(t, s.addr, "127.0.0.1", seeded[0].InfoHash(), peerwire.PeerID("agent"))
	eventually(t, func() bool { return ended(c) })
	if open := s.openings.count(); open != 0 {
		t.Errorf("%d are open", open)
	}
}
