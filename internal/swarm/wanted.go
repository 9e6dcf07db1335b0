package swarm

import (
	"cmp"
	"context"
	"slices"
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
	entry   *cache.Entry
	wake    chan struct{}

	mu        sync.Mutex
	announced []bool   // by piece
	fresh     []int    // announced, and the engine is not told yet
	anchor    int      // the last missing piece, wanted whoever has it
	narrowed  bool     // the engine is told of a few only, see narrow
	high      [][2]int // as Torrent.Prioritize has it
}

func newWanted(t *torrent.Torrent, e *cache.Entry) *wanted {
	pieces := e.Shape().NumPieces()
	return &wanted{
		torrent:   t,
		entry:     e,
		wake:      make(chan struct{}, 1),
		announced: make([]bool, pieces),
		anchor:    pieces,
	}
}

// receive takes a peer's message, under the engine's lock.
func (w *wanted) receive(msg *pp.Message) {
	switch msg.Type {
	case pp.Have, pp.Bitfield, pp.HaveAll:
	default:
		return
	}
	w.mu.Lock()
	switch msg.Type {
	case pp.Have:
		w.announce(int(msg.Index))
	case pp.Bitfield:
		for i, has := range msg.Bitfield {
			if has {
				w.announce(i)
			}
		}
	case pp.HaveAll:
		for i := range w.announced {
			w.announce(i)
		}
	}
	due := len(w.fresh) > 0
	w.mu.Unlock()
	if due {
		w.wakeUp()
	}
}

// announce notes a piece; what lies beyond the last one is the engine's to
// punish. The caller holds mu.
func (w *wanted) announce(i int) {
	if i < len(w.announced) && !w.announced[i] {
		w.announced[i] = true
		w.fresh = append(w.fresh, i)
	}
}

// verified is told of each piece that is here, under the engine's lock.
func (w *wanted) verified(piece int) {
	w.mu.Lock()
	due := piece == w.anchor
	w.mu.Unlock()
	if due {
		w.wakeUp()
	}
}

func (w *wanted) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run tells the engine what to want, until the build is whole, the torrent is
// dropped, or ctx ends. What it hears of must reach receive already.
func (w *wanted) run(ctx context.Context, dropped <-chan struct{}) {
	for _, c := range w.torrent.PeerConns() {
		has := c.PeerPieces().ToArray() // announced before
		w.mu.Lock()
		for _, i := range has {
			w.announce(int(i))
		}
		w.mu.Unlock()
	}
	w.mu.Lock()
	high, narrowed := w.high, w.narrowed
	w.mu.Unlock()
	for _, r := range high {
		if !narrowed {
			w.setPriority(r, torrent.PiecePriorityHigh)
		}
	}
	for {
		w.pass()
		w.moveAnchor()
		if w.entry.Whole() {
			return
		}
		select {
		case <-w.wake:
		case <-dropped:
			return
		case <-ctx.Done():
			return
		}
	}
}

// pass makes what was announced wanted, by runs of pieces: each takes the engine's
// lock.
func (w *wanted) pass() {
	w.mu.Lock()
	fresh := w.fresh
	w.fresh = nil
	if w.narrowed {
		fresh = nil // narrow looks at all that was announced
	}
	w.mu.Unlock()
	for len(fresh) > 0 {
		n := 1
		for n < len(fresh) && fresh[n] == fresh[0]+n {
			n++
		}
		w.torrent.DownloadPieces(fresh[0], fresh[0]+n)
		fresh = fresh[n:]
	}
}

// moveAnchor makes the last missing piece wanted.
func (w *wanted) moveAnchor() {
	w.mu.Lock()
	before := w.anchor
	for i := min(before, len(w.announced)-1); ; i-- {
		// Set before it is looked at: should the piece come in between, then
		// verified sees that it is the anchor.
		w.anchor = i
		if i < 0 || !w.entry.Complete(i) {
			break
		}
	}
	anchor, narrowed := w.anchor, w.narrowed
	w.mu.Unlock()
	if anchor != before && anchor >= 0 && !narrowed {
		w.torrent.DownloadPieces(anchor, anchor+1)
	}
}

// prioritize has pieces asked for before all others; see Torrent.Prioritize.
func (w *wanted) prioritize(high [][2]int) {
	w.mu.Lock()
	before, narrowed := w.high, w.narrowed
	w.high = high
	w.mu.Unlock()
	if narrowed {
		return // narrow looks at it
	}
	for _, r := range before {
		if !slices.Contains(high, r) {
			w.setPriority(r, torrent.PiecePriorityNormal)
		}
	}
	for _, r := range high {
		if !slices.Contains(before, r) {
			w.setPriority(r, torrent.PiecePriorityHigh)
		}
	}
}

func (w *wanted) setPriority(r [2]int, p torrent.PiecePriority) {
	for i := r[0]; i < r[1]; i++ {
		w.torrent.Piece(i).SetPriority(p)
	}
}

// narrow has the engine want at most so many pieces at a time, of those that a connected
// peer has, what is high first; what it asks for already stays, for it is on its way. It
// returns how many it wants then. Whoever calls it calls it again soon, or widens.
func (w *wanted) narrow(most int, asked map[int]bool) (open int) {
	here := make([]bool, len(w.announced)) // at a peer that is connected now
	for _, c := range w.torrent.PeerConns() {
		for _, i := range c.PeerPieces().ToArray() {
			if int(i) < len(here) {
				here[i] = true
			}
		}
	}
	w.mu.Lock()
	w.narrowed = true
	pieces := make([]int, 0, len(w.announced))
	for _, r := range w.high {
		for i := r[0]; i < r[1]; i++ {
			pieces = append(pieces, i)
		}
	}
	for i := range w.announced {
		if !slices.ContainsFunc(w.high, func(r [2]int) bool { return r[0] <= i && i < r[1] }) {
			pieces = append(pieces, i)
		}
	}
	pieces = slices.DeleteFunc(pieces, func(i int) bool { return w.entry.Complete(i) })
	w.mu.Unlock()
	if i := slices.IndexFunc(pieces, func(i int) bool { return here[i] }); i >= 0 {
		pieces = slices.DeleteFunc(pieces, func(i int) bool { return !here[i] })
	} else {
		pieces = pieces[:min(1, len(pieces))] // for the engine to look for peers
	}
	slices.SortStableFunc(pieces, func(a, b int) int { return cmp.Compare(rank(asked[a]), rank(asked[b])) })
	for _, i := range pieces {
		p := torrent.PiecePriorityNone
		if open < most || asked[i] {
			open++
			p = torrent.PiecePriorityNormal
		}
		if w.torrent.PieceState(i).Priority != p {
			w.torrent.Piece(i).SetPriority(p)
		}
	}
	return open
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// widen ends narrow: all that was announced is wanted.
func (w *wanted) widen() {
	w.mu.Lock()
	if !w.narrowed {
		w.mu.Unlock()
		return
	}
	w.narrowed, w.fresh = false, w.fresh[:0]
	for i, announced := range w.announced {
		if announced && !w.entry.Complete(i) {
			w.fresh = append(w.fresh, i)
		}
	}
	high, anchor := w.high, w.anchor
	w.mu.Unlock()
	w.pass()
	for _, r := range high {
		w.setPriority(r, torrent.PiecePriorityHigh)
	}
	if anchor >= 0 {
		w.torrent.DownloadPieces(anchor, anchor+1)
	}
}
