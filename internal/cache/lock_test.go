package cache

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// A disk that does not answer holds up those who write to it, and nobody who looks at
// what there is.
func TestNobodyWaitsForTheDiskOfAnother(t *testing.T) {
	c := open(t, tempDir(t))
	e := put(t, c, 1, 10*piece)
	free := c.free
	asked, letGo := make(chan struct{}, 2), make(chan struct{})
	c.free = func() (int64, error) { asked <- struct{}{}; <-letGo; return free() }
	var wg sync.WaitGroup
	wg.Go(func() {
		room, err := c.Reserve(piece, false)
		if err != nil {
			t.Error(err)
		}
		room.Free()
	})
	wg.Go(func() {
		if err := c.Evict(piece, func(manifest.InfoHash) {}); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		<-asked
	}
	if got, ok := c.Entry(e.InfoHash()); !ok || got != e {
		t.Error("an entry is not there")
	}
	if got, err := c.Pinned(e.InfoHash(), ""); err != nil || got != e {
		t.Error("an entry is not there to be pinned")
	}
	e.Unpin()
	_, m := build(t, 2, piece)
	made, err := c.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	made.Unpin()
	p, err := c.Pull("pull", 0, "etag", piece, nil)
	if err == nil {
		err = p.Abort()
	}
	if err != nil {
		t.Error(err)
	}
	if n := c.Size(); n != 11*piece {
		t.Errorf("%d bytes", n)
	}
	close(letGo)
	wg.Wait()
}

// Entries that are made, evicted and completed at the same time are one each, and what
// is said of their pieces is on disk.
func TestAtTheSameTime(t *testing.T) {
	dir := tempDir(t)
	c := open(t, dir)
	c.limit = 1 // everything goes that nobody has pinned
	b, m := build(t, 1, 64*piece)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				e, err := c.Create("made", m, nil)
				if err != nil {
					t.Error(err)
					return
				}
				for n := i; n < m.NumPieces(); n += 8 {
					offset, length := m.PieceRange(n)
					if _, err := e.WriteAt(b[offset:offset+length], offset); err != nil {
						t.Error(err)
					}
					if err := e.SetComplete(n, true); err != nil {
						t.Error(err)
					}
				}
				e.Unpin()
				if err := c.Evict(0, func(manifest.InfoHash) {}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	e, err := c.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range m.NumPieces() {
		wg.Go(func() {
			offset, length := m.PieceRange(n)
			if _, err := e.WriteAt(b[offset:offset+length], offset); err != nil {
				t.Error(err)
			}
			if err := e.SetComplete(n, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	infohash := e.InfoHash()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := open(t, dir).Pinned(infohash, "")
	if err != nil || !again.Whole() {
		t.Fatalf("not whole after a restart: %v", err)
	}
	got := make([]byte, len(b))
	if _, err := again.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
		t.Error(fmt.Errorf("other bytes: %w", err))
	}
}
