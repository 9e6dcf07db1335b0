package fetch

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/retry"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/swarm"
)

// segment is one of a build's torrents; it is followed from when it was begun.
type segment struct {
	torrent *swarm.Torrent
	wholeAt time.Time
	// heard is what had come over the wire when something last did, at heardAt.
	heard   int64
	heardAt time.Time
	checked bool // it is here, and right; guarded by the build's mutex
}

// open begins with a segment.
func (b *Build) open(i int, n note, peers []peerwire.Peer) error {
	f := b.fetcher
	infohash := n.InfoHashes.At(i)
	if b.segments[i] == nil {
		f.acquire(infohash)
		defer func() {
			if b.segments[i] == nil { // an error, or a fault
				f.release(infohash)
			}
		}()
	}
	if fault := new(survive.Panic); errors.As(b.failure(i).err, &fault) {
		f.dropAlone(infohash) // whatever state it is in
	}
	f.cfg.reached("open")
	t, err := f.swarm.Fetch(swarm.Fetch{InfoHash: infohash, Shape: b.layout.SegmentShape(i), Build: n.ExecutionID})
	if err != nil {
		return fmt.Errorf("fetching segment %d of %s: %w", i, n.ExecutionID, err)
	}
	s := &segment{torrent: t, heardAt: time.Now()}
	b.segments[i] = s
	b.begun(i)
	here := slices.Contains(n.Checked, i) && t.Done() // else it is checked as it comes
	b.group.Go(func() {
		err := survive.Run(f.cfg.Logger, func() error { return b.bring(i, t, here) })
		if b.ctx.Err() != nil {
			return
		}
		if err != nil {
			b.failed(i, err)
		} else {
			b.came(i, s)
		}
		if errors.Is(err, ErrWrongBuild) {
			b.fail(err)
		}
		ask(b.wake)
	})
	t.AddPeers(peers)
	return nil
}

// refused is why the disk does not take what comes of a segment; nil while it does.
func (b *Build) refused(i int, s *segment) error {
	times, err := s.torrent.Refused()
	if err != nil {
		err = fmt.Errorf("writing segment %d of %s: %w", i, b.ExecutionID(), err)
		if times >= MaxFailures {
			err = fmt.Errorf("%w: %w", ErrFailing, err)
		}
	}
	return err
}

// begun has a segment's failures count as long as it has not come.
func (b *Build) begun(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f, ok := b.failures[i]; ok {
		f.begun = true
		b.failures[i] = f
	}
}

// came forgets what has gone wrong until a segment was here.
func (b *Build) came(i int, s *segment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.checked = true
	delete(b.failures, i)
	delete(b.failures, itself)
}

// bring waits until a segment is here, checks it, and keeps it.
func (b *Build) bring(i int, t *swarm.Torrent, checked bool) error {
	b.mu.Lock()
	room := b.room
	b.mu.Unlock()
	b.fetcher.cfg.reached("bring")
	entry, err := t.Entry(b.ctx, room)
	switch {
	case errors.Is(err, manifest.ErrInvalid):
		return fmt.Errorf("segment %d of %s: %w: %w", i, b.ExecutionID(), ErrWrongBuild, err)
	case errors.Is(err, swarm.ErrDropped):
		t.Drop() // its entry is gone: the next try is another torrent
		return fmt.Errorf("segment %d of %s: %w", i, b.ExecutionID(), err)
	case err != nil:
		return fmt.Errorf("segment %d of %s: %w", i, b.ExecutionID(), err)
	}
	defer entry.Unpin()
	select {
	case <-t.Whole():
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	for round := 1; !checked; round++ {
		for !t.Done() { // what the disk has changed comes again
			if !retry.Wait(b.ctx, tick) {
				return b.ctx.Err()
			}
		}
		b.fetcher.cfg.reached("check")
		err := b.check(i, entry)
		if err == nil {
			break
		}
		switch damaged, disk := t.Verify(0, entry.Shape().NumPieces()); {
		case damaged == 0:
			return cmp.Or(disk, err)
		case round == MaxFailures:
			return fmt.Errorf("segment %d of %s: the disk has changed it %d times", i, b.ExecutionID(), round)
		}
	}
	kept, err := b.fetcher.cache.Keep(t.InfoHash(), b.ExecutionID())
	if err != nil {
		return fmt.Errorf("segment %d of %s: %w", i, b.ExecutionID(), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.files[i] != nil {
		b.files[i].Unkeep()
	}
	b.files[i] = kept
	if !slices.Contains(b.note.Checked, i) {
		b.note.Checked = append(b.note.Checked, i)
	}
	return nil
}

// check hashes the parts of a segment. The infohash covers what its info dictionary says of
// pieces and of parts, but not that both are of the same bytes; peers are held to the
// pieces, the goal to the parts.
func (b *Build) check(i int, entry *cache.Entry) error {
	m := entry.Manifest()
	for part := range m.NumParts() {
		offset, length := m.PartRange(part)
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(entry, offset, length)); err != nil {
			return fmt.Errorf("checking segment %d of %s: %w", i, b.ExecutionID(), err)
		}
		if !bytes.Equal(h.Sum(nil), m.PartSHA256(part)) {
			return fmt.Errorf("segment %d of %s: %w: part %d is not what its info dictionary says", i, b.ExecutionID(), ErrWrongBuild, part)
		}
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
	}
	return nil
}

// look dials peers that are not connected while pieces lack, and hangs up on those that
// have all of it too, once it was whole for a while. Where hardly anything comes of the
// segment that is waited for, the peers are connected anew.
func (s *segment) look(now time.Time, peers []peerwire.Peer, first bool) {
	if s.torrent.Done() {
		if s.wholeAt.IsZero() {
			s.wholeAt = now
		}
		if now.Sub(s.wholeAt) >= hangUpAfter {
			s.torrent.DisconnectComplete()
		}
		return
	}
	s.wholeAt = time.Time{}
	if stats := s.torrent.Stats(); !first || len(stats.Peers) == 0 || stats.WireBytes-s.heard >= stuckBytes || s.torrent.Arriving(s.heardAt) {
		s.heard, s.heardAt = stats.WireBytes, now
	} else if now.Sub(s.heardAt) >= stuckAfter {
		s.heard, s.heardAt = stats.WireBytes, now
		s.torrent.Disconnect()
	}
	s.torrent.AddPeers(peers)
}
