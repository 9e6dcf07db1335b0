package swarm

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// maxWholes bounds the builds that are seeded whole, for ordinary clients; the one that was
// asked for the longest ago goes first.
const maxWholes = 16

// errReadOnly is why nothing is written to what is seeded from segments.
var errReadOnly = errors.New("a build that is seeded whole is not written to")

// whole is a build that is seeded as one torrent.
type whole struct {
	infohash metainfo.Hash
	torrent  *torrent.Torrent
	segments map[manifest.InfoHash]bool
}

// SeedWhole seeds a build as one torrent, for ordinary clients, from its segments, which
// must be all of them, whole, in order, and pinned meanwhile. It returns the bencoded .torrent (BEP 3), whose
// name is the one given. Peers that may connect are those of every torrent. A segment that
// leaves the cache takes it along: see DropSegment.
func (s *Swarm) SeedWhole(name string, shape manifest.Shape, entries []*cache.Entry) ([]byte, error) {
	w := &whole{segments: make(map[manifest.InfoHash]bool)}
	var pieces []byte
	var from []wholePiece
	for _, e := range entries {
		m := e.Manifest()
		w.segments[e.InfoHash()] = true
		pieces = append(pieces, m.Pieces...)
		for i := range m.NumPieces() {
			from = append(from, wholePiece{e, i})
		}
	}
	if len(from) != shape.NumPieces() {
		return nil, fmt.Errorf("seeding %s as a whole: %d of %d pieces are here", name, len(from), shape.NumPieces())
	}
	private := true
	info := bencode.MustMarshal(metainfo.Info{
		Name: name, Length: shape.Size, PieceLength: shape.PieceLength, Pieces: pieces, Private: &private,
	})
	file := bencode.MustMarshal(metainfo.MetaInfo{InfoBytes: info})
	w.infohash = sha1.Sum(info)
	release, err := s.wholeTurn.Take(s.ctx, struct{}{})
	if err == nil {
		defer release()
		err = s.ctx.Err()
	}
	if err != nil {
		return nil, errors.New("the torrent engine is ending")
	}
	for i, other := range s.wholes {
		if other.infohash == w.infohash {
			s.wholes = append(append(s.wholes[:i:i], s.wholes[i+1:]...), other)
			return file, nil
		}
	}
	if len(s.wholes) >= maxWholes {
		s.wholes[0].torrent.Drop()
		s.wholes = s.wholes[1:]
	}
	storage := wholeStorage{pieces: from}
	for _, e := range entries {
		if err := e.Open(); err != nil {
			storage.close()
			return nil, fmt.Errorf("seeding %s as a whole: %w", name, err)
		}
		storage.entries = append(storage.entries, e)
	}
	w.torrent, _ = s.client.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash: w.infohash, InfoBytes: info, ChunkSize: s.chunkSize(shape), Storage: storage,
	})
	s.wholes = append(s.wholes, w)
	return file, nil
}

// DropSegment ends the builds seeded whole that have a segment: it leaves the cache.
func (s *Swarm) DropSegment(infohash manifest.InfoHash) {
	release, err := s.wholeTurn.Take(s.ctx, struct{}{})
	if err != nil {
		return // all of them end with the engine
	}
	defer release()
	kept := s.wholes[:0]
	for _, w := range s.wholes {
		if w.segments[infohash] {
			w.torrent.Drop()
		} else {
			kept = append(kept, w)
		}
	}
	clear(s.wholes[len(kept):])
	s.wholes = kept
}

// wholeStorage is the pieces of a build, each in a segment's entry. Those are open until
// the engine has dropped the torrent.
type wholeStorage struct {
	pieces  []wholePiece
	entries []*cache.Entry
}

func (w wholeStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl { return w.pieces[p.Index()] },
		Close: w.close,
	}, nil
}

func (w wholeStorage) close() error {
	for _, e := range w.entries {
		e.Close()
	}
	return nil
}

// wholePiece is one of them.
type wholePiece struct {
	entry *cache.Entry
	index int
}

func (p wholePiece) ReadAt(b []byte, offset int64) (int, error) {
	return p.entry.ReadVerified(p.index, b, offset)
}

func (p wholePiece) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }
func (p wholePiece) MarkComplete() error                { return nil }
func (p wholePiece) MarkNotComplete() error             { return nil }

func (p wholePiece) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: p.entry.Complete(p.index)}
}
