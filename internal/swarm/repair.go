package swarm

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"time"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/retry"
)

// markingLook is how often is looked whether the engine has ended marking a piece.
const markingLook = 10 * time.Millisecond

// ErrWrongBytes says that bytes are not those of the piece.
var ErrWrongBytes = errors.New("bytes do not have the piece's hash")

// damaged takes note that a piece was verified once and is not any more: the
// engine has to forget it, and to fetch it again from whoever has it. It is told
// within a read, so the engine is told later. All peers have to connect anew: they
// were told that the piece is here, and one whose request was rejected may never
// ask for anything again.
func (t *Torrent) damaged(piece int, err error) {
	t.swarm.cfg.Logger.Warn("piece is fetched again", "infohash", t.fetch.InfoHash.String(), "error", err)
	t.swarm.badOnDisk.Add(1)
	t.notify(piece, false)
	select {
	case t.lost <- struct{}{}:
	default:
	}
	t.swarm.alongside(func() {
		engine := t.engine()
		if engine == nil {
			t.comeBack()
			return
		}
		for engine.PieceState(piece).Marking { // then it takes the piece for complete, whatever it is by then
			if !retry.Wait(t.swarm.ctx, markingLook) {
				return
			}
		}
		engine.Piece(piece).UpdateCompletion()
		engine.DownloadPieces(piece, piece+1)
		t.Disconnect()
	})
}

// Damaged says that who read a piece has found it damaged, and that the cache knows: it is
// fetched again.
func (t *Torrent) Damaged(piece int, err error) { t.damaged(piece, err) }

// Disconnect hangs up on all peers. They, or AddPeers, connect again.
func (t *Torrent) Disconnect() {
	for _, c := range t.conns() {
		// Its error is that of a connection that is gone already.
		_ = c.Close()
	}
}

// Lost has a value when pieces were found damaged since it was last read.
func (t *Torrent) Lost() <-chan struct{} { return t.lost }

// Verify hashes pieces that count as complete, from first up to but without end;
// those that are damaged are fetched again. It returns how many were.
func (t *Torrent) Verify(first, end int) (damaged int, err error) {
	e := t.entryNow()
	if e == nil {
		return 0, nil
	}
	if err := e.Open(); err != nil {
		return 0, err
	}
	defer e.Close()
	for piece := first; piece < end; piece++ {
		if !e.Complete(piece) {
			continue
		}
		err := e.Verify(piece)
		switch {
		case errors.Is(err, cache.ErrCorrupt):
			damaged++
			t.damaged(piece, err)
		case err != nil:
			return damaged, err
		}
	}
	return damaged, nil
}

// Done reports whether all pieces are here at the moment; one that was found
// damaged is not.
func (t *Torrent) Done() bool {
	e := t.entryNow()
	return e != nil && e.Whole()
}

// Missing returns the pieces that are not complete; nil before the info is here, and when
// the entry is not in use by the caller or the engine.
func (t *Torrent) Missing() []int {
	e := t.entryNow()
	if e == nil {
		return nil
	}
	return e.Missing()
}

// Pulled says that the cache has got the whole build from elsewhere, with the info
// dictionary that no peer may have; it must be that of the torrent's infohash.
func (t *Torrent) Pulled(m *manifest.Manifest) error {
	engine := t.engine()
	if engine == nil {
		return nil // it was whole before
	}
	if err := engine.SetInfoBytes(m.InfoBytes()); err != nil {
		return fmt.Errorf("info dictionary of %s: %w", t.fetch.InfoHash, err)
	}
	e := t.entryNow()
	if e == nil {
		return nil // Entry finds all of it
	}
	// A peer brought the info meanwhile.
	for piece := range m.NumPieces() {
		if e.Complete(piece) {
			engine.Piece(piece).UpdateCompletion()
			t.verified(piece)
		}
	}
	return nil
}

// Put brings in a piece that came from elsewhere than a peer. ErrWrongBytes when it
// does not have the piece's hash; then nothing was written.
func (t *Torrent) Put(ctx context.Context, piece int, b []byte) error {
	e := t.entryNow()
	if e == nil {
		return fmt.Errorf("piece %d of %s: its info is not here", piece, t.fetch.InfoHash)
	}
	if err := e.Pin(); err != nil {
		return fmt.Errorf("piece %d of %s: %w", piece, t.fetch.InfoHash, err)
	}
	defer e.Unpin()
	if sum := sha1.Sum(b); !bytes.Equal(sum[:], e.Manifest().PieceSHA1(piece)) {
		return fmt.Errorf("piece %d of %s: %w", piece, t.fetch.InfoHash, ErrWrongBytes)
	}
	if e.Complete(piece) {
		return nil
	}
	offset, _ := e.Shape().PieceRange(piece)
	if _, err := e.WriteAt(b, offset); err != nil {
		return fmt.Errorf("piece %d of %s: %w", piece, t.fetch.InfoHash, err)
	}
	engine := t.engine()
	if engine == nil {
		if err := e.SetComplete(piece, true); err != nil {
			return fmt.Errorf("piece %d of %s: %w", piece, t.fetch.InfoHash, err)
		}
		t.verified(piece)
		if engine = t.engine(); engine != nil { // meanwhile
			engine.Piece(piece).UpdateCompletion()
		}
		return nil
	}
	// The engine reads it back, so that it also tells its peers.
	if err := engine.Piece(piece).VerifyDataContext(ctx); err != nil {
		return fmt.Errorf("piece %d of %s: %w", piece, t.fetch.InfoHash, err)
	}
	return nil
}
