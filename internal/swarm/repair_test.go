package swarm

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// flip changes one bit of a build on disk.
func (n *node) flip(t *testing.T, dir string, of *Torrent, offset int64) {
	t.Helper()
	infohash := of.InfoHash()
	f, err := os.OpenFile(filepath.Join(dir, hex.EncodeToString(infohash[:]), "data"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedPieceIsNotPassedOnButFetchedAgain(t *testing.T) {
	const size = 5*manifest.MinPieceLength + 7
	s, from, content, _ := seed(t, size, nil)
	dir := t.TempDir()
	first := start(t, "first", dir, nil)
	told := make(chan bool, 20)
	f := first.fetch(t, from, size, func(piece int, verified bool) {
		if piece == 2 {
			told <- verified
		}
	})
	finish(t, f, content, s.addr)
	first.flip(t, dir, from, 2*manifest.MinPieceLength+100)

	second := start(t, "second", t.TempDir(), nil).fetch(t, from, size, nil)
	ctx, cancel := context.WithCancel(t.Context())
	named := make(chan struct{})
	go func() {
		defer close(named)
		f.nameUntil(ctx, s.addr)
	}()
	finish(t, second, content, first.addr)
	cancel()
	<-named
	if bad := second.engine().Stats().PiecesDirtiedBad; bad.Int64() != 0 {
		t.Errorf("%d damaged pieces were passed on", bad.Int64())
	}
	if missing := f.Missing(); len(missing) != 0 {
		t.Errorf("pieces %v are not mended", missing)
	}
	for _, want := range []bool{true, false, true} {
		if got := <-told; got != want {
			t.Errorf("told %v, expected %v", got, want)
		}
	}
	select {
	case <-f.Lost():
	default:
		t.Error("the loss was not told")
	}
}

// A piece that is found damaged in the moment in which the engine marks it complete is fetched
// again, too.
func TestDamagedAsItIsMarked(t *testing.T) {
	t.Parallel()
	const size = 5*manifest.MinPieceLength + 7
	s, from, content, _ := seed(t, size, nil)
	dir := t.TempDir()
	n := start(t, "agent", dir, nil)
	var f *Torrent
	var once sync.Once
	ready := make(chan struct{})
	f = n.fetch(t, from, size, func(piece int, verified bool) {
		if piece != 2 || !verified {
			return
		}
		<-ready
		once.Do(func() {
			n.flip(t, dir, f, 2*manifest.MinPieceLength+100)
			if damaged, err := f.Verify(2, 3); damaged != 1 || err != nil {
				t.Errorf("%d pieces are damaged, %v", damaged, err)
			}
			for range 30 { // the engine must not be told before this has returned, but would hang up then
				if len(f.conns()) == 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	})
	close(ready)
	ctx, cancel := context.WithCancel(t.Context())
	named := make(chan struct{})
	go func() {
		defer close(named)
		f.nameUntil(ctx, s.addr)
	}()
	if _, err := f.Entry(ctx, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		if !f.Done() {
			return false
		}
		state := f.engine().PieceState(2)
		return state.Complete && !state.Marking
	})
	cancel()
	<-named
	finish(t, f, content, s.addr)
}

func TestPutAndVerify(t *testing.T) {
	const size = 3*manifest.MinPieceLength + 7
	dir := t.TempDir()
	s, torrent, content, m := seed(t, size, nil)
	s.stop(t)
	s = start(t, "again", dir, nil)
	e, err := s.cache.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	e.Unpin()
	f, err := s.Fetch(Fetch{InfoHash: torrent.InfoHash(), Shape: m.Shape})
	if err != nil {
		t.Fatal(err)
	}
	for piece := range m.NumPieces() {
		offset, length := m.PieceRange(piece)
		b := slices.Clone(content[offset : offset+length])
		b[0] ^= 1
		if err := f.Put(t.Context(), piece, b); !errors.Is(err, ErrWrongBytes) {
			t.Errorf("wrong bytes: %v", err)
		}
		b[0] ^= 1
		if err := f.Put(t.Context(), piece, b); err != nil {
			t.Error(err)
		}
	}
	finish(t, f, content)
	if damaged, err := f.Verify(0, m.NumPieces()); damaged != 0 || err != nil {
		t.Errorf("%d damaged pieces, %v", damaged, err)
	}
	s.flip(t, dir, f, size-1)
	if damaged, err := f.Verify(0, m.NumPieces()); damaged != 1 || err != nil {
		t.Errorf("%d damaged pieces, %v", damaged, err)
	}
	if got := f.Missing(); !slices.Equal(got, []int{3}) {
		t.Errorf("missing are %v", got)
	}
}

// A build that is pulled while a peer brings its info, but no piece, is whole all the
// same.
func TestPulledWhileTheInfoCame(t *testing.T) {
	const size = 3*manifest.MinPieceLength + 7
	s, from, content, m := seed(t, size, nil)
	s.stop(t)
	s = start(t, "again", t.TempDir(), nil)
	e, err := s.cache.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	e.Unpin()
	told := 0
	f, err := s.Fetch(Fetch{InfoHash: from.InfoHash(), Shape: m.Shape, OnPiece: func(int, bool) { told++ }})
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.cache.Pull("x", 0, "etag", size, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	pulled, err := p.Commit(m)
	if err != nil {
		t.Fatal(err)
	}
	pulled.Unpin()
	if err := f.Pulled(m); err != nil {
		t.Fatal(err)
	}
	finish(t, f, content)
	if told != m.NumPieces() {
		t.Errorf("told of %d pieces, not %d", told, m.NumPieces())
	}
}

// Nothing begins once Close waits for what has.
func TestNothingBeginsAfterClose(t *testing.T) {
	s := &Swarm{}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	began := make(chan bool, 1)
	s.alongside(func() { began <- true })
	s.wg.Wait()
	if !<-began {
		t.Fatal("not begun before the end")
	}
	s.cancel()
	s.alongside(func() { t.Error("begun after the end") })
	s.wg.Wait()
}
