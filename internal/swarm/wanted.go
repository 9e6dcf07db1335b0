package swarm

import (
	"context"
	"sync"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/cache"
)

// wanted makes the engine want a piece only once a peer has announced it. The
// engine looks for its next requests in order of priority, then of availability,
// the rarest first: with everything wanted from the start it walks past every
// piece that nobody has, at each announcement of each peer. One missing piece is
// wanted at all times, for the engine dials nobody while it wants nothing.
type wanted struct {
	torrent *torrent.Torrent

	mu        sync.Mutex
	announced []bool // by piece; nil before the download begins
	all       bool   // somebody has everything
	fresh     []int  // not wanted yet
	anchor    int    // the last missing piece, wanted whoever has it
	wake      chan struct{}
}

func newWanted() *wanted { return &wanted{wake: make(chan struct{}, 1)} }

// heard takes a peer's message, under the engine's lock.
func (w *wanted) heard(msg *pp.Message) {
	switch msg.Type {
	case pp.Have:
		w.mu.Lock()
		w.announce(int(msg.Index))
	case pp.Bitfield:
		w.mu.Lock()
		for i, has := range msg.Bitfield {
			if has {
				w.announce(i)
			}
		}
	case pp.HaveAll:
		w.mu.Lock()
		w.all = true
	default:
		return
	}
	due := w.announced != nil && (w.all || len(w.fresh) > 0)
	w.mu.Unlock()
	if due {
		w.tell()
	}
}

// verified is told of each piece that is here, under the engine's lock.
func (w *wanted) verified(piece int) {
	w.mu.Lock()
	due := piece == w.anchor
	w.mu.Unlock()
	if due {
		w.tell()
	}
}

func (w *wanted) tell() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// announce notes a piece. The caller holds mu.
func (w *wanted) announce(i int) {
	if i < len(w.announced) && !w.announced[i] {
		w.announced[i] = true
		w.fresh = append(w.fresh, i)
	}
}

// run tells the engine what to want of an entry, until the torrent is dropped, ctx
// ends, or everything is wanted.
func (w *wanted) run(ctx context.Context, e *cache.Entry, dropped <-chan struct{}) {
	w.mu.Lock()
	w.announced = make([]bool, e.Manifest().NumPieces())
	w.anchor = len(w.announced)
	w.mu.Unlock()
	// What was announced before.
	for _, c := range w.torrent.PeerConns() {
		has := c.PeerPieces()
		w.mu.Lock()
		for _, i := range has.ToArray() {
			w.announce(int(i))
		}
		w.mu.Unlock()
	}
	for {
		w.mu.Lock()
		fresh, all := w.fresh, w.all
		w.fresh = nil
		w.mu.Unlock()
		if all {
			w.torrent.DownloadAll()
			return
		}
		for len(fresh) > 0 {
			n := 1
			for n < len(fresh) && fresh[n] == fresh[0]+n {
				n++
			}
			w.torrent.DownloadPieces(fresh[0], fresh[0]+n)
			fresh = fresh[n:]
		}
		if e.Whole() {
			return
		}
		w.moveAnchor(e)
		select {
		case <-w.wake:
		case <-dropped:
			return
		case <-ctx.Done():
			return
		}
	}
}

// moveAnchor makes the last missing piece wanted.
func (w *wanted) moveAnchor(e *cache.Entry) {
	w.mu.Lock()
	before := w.anchor
	for i := min(before, len(w.announced)-1); ; i-- {
		// Set before it is looked at: should the piece come in between, then
		// verified sees that it is the anchor.
		w.anchor = i
		if i < 0 || !e.Complete(i) {
			break
		}
	}
	anchor := w.anchor
	w.mu.Unlock()
	if anchor != before && anchor >= 0 {
		w.torrent.DownloadPieces(anchor, anchor+1)
	}
}
