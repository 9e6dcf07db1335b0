package swarm

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/landfall-dist/landfall/internal/cache"
)

// hashBuffer is how much of a piece is read at a time to hash it, in bytes.
const hashBuffer = 128 << 10

var errCorruptPiece = errors.New("the piece is not the one that was seeded")

// storageOf lets the engine read and write a torrent's cache entry.
type storageOf struct{ t *Torrent }

func (s storageOf) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl {
			return piece{s.t, s.t.entry, p.Index(), p.Offset()}
		},
	}, nil
}

// noStorage is the engine's default, so that it does not open one of its own in
// the working directory; every torrent is given storageOf.
type noStorage struct{}

func (noStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{}, errors.New("no storage was given")
}

// piece is one piece of an entry. That a piece is complete is known from the
// cache, so nothing is hashed again, or fetched again, after a restart.
type piece struct {
	t      *Torrent
	entry  *cache.Entry
	index  int
	offset int64
}

// ReadAt reads for peers, and for the engine's hashing of pieces that are not
// complete yet. The engine sends what it gets here without checking it once more,
// so that is done here.
func (p piece) ReadAt(b []byte, offset int64) (int, error) {
	if !p.entry.Complete(p.index) {
		return p.entry.ReadAt(b, p.offset+offset)
	}
	n, err := p.entry.ReadVerified(p.index, b, offset)
	if errors.Is(err, cache.ErrCorrupt) {
		p.t.damaged(p.index, err)
	}
	return n, err
}

func (p piece) WriteAt(b []byte, offset int64) (int, error) {
	return p.entry.WriteAt(b, p.offset+offset)
}

// SelfHash hashes the piece in the engine's place, for the engine would refuse the
// IP address of whoever sent a wrong one, and with it every member behind the
// address. To the engine the piece could not be read; origins finds who it was.
func (p piece) SelfHash() (sum metainfo.Hash, err error) {
	m := p.entry.Manifest()
	if m == nil { // the torrent has left the engine
		return sum, fmt.Errorf("hashing piece %d of %s: %w", p.index, p.entry.InfoHash(), ErrDropped)
	}
	_, length := m.PieceRange(p.index)
	buffer := p.t.swarm.buffers.Get().(*[]byte)
	defer p.t.swarm.buffers.Put(buffer)
	h := sha1.New()
	if _, err := io.CopyBuffer(onlyWriter{h}, io.NewSectionReader(p, 0, length), *buffer); err != nil {
		return sum, fmt.Errorf("hashing piece %d of %s: %w", p.index, p.entry.InfoHash(), err)
	}
	h.Sum(sum[:0])
	if !bytes.Equal(sum[:], m.PieceSHA1(p.index)) {
		p.t.swarm.badFromPeer.Add(1)
		p.t.origins.failed(p.index, p)
		return sum, errCorruptPiece
	}
	p.t.origins.passed(p.index, p)
	return sum, nil
}

// onlyWriter keeps io.CopyBuffer to the buffer it is given.
type onlyWriter struct{ io.Writer }

func (p piece) MarkComplete() error {
	if err := p.entry.SetComplete(p.index, true); err != nil {
		return err
	}
	p.t.verified(p.index)
	return nil
}

func (p piece) MarkNotComplete() error { return p.entry.SetComplete(p.index, false) }

func (p piece) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: p.entry.Complete(p.index)}
}
