package swarm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

const (
	// maxOpenOfBuild, where Config has no other, and maxOpen bound the segments that the
	// engine holds, of one build and in all: each has the state of all its pieces there, and
	// connections of its own.
	// Downloads count, and are their owner's to bound: see RoomToFetch.
	maxOpenOfBuild, maxOpen = 8, 64
	// maxFetched is how many of them are downloads before RoomToFetch says no.
	maxFetched = 48
	// sleepsAfter is how long nothing of a segment may have passed, though somebody who is
	// connected lacks pieces of it, before it may have to make room for another one: what a
	// slow region wants next would keep everybody else from theirs. Whoever is connected for
	// its sake connects again.
	sleepsAfter = 2 * time.Second
	// roomWait is how long a peer that asks for a segment is kept waiting for room: until
	// others sleep, and less than the engine's four seconds for a handshake; roomLook is how
	// often is looked for it.
	roomWait, roomLook = 2500 * time.Millisecond, 50 * time.Millisecond
	// noticeInterval is the time between two lines about a lack of room.
	noticeInterval = time.Minute
)

var errNoRoom = errors.New("as many segments are open as may be, all in use")

// openings are the segments that the engine holds. Those that are whole are there for as
// long as somebody lacks pieces of them, and others may need the place: the owner of a
// segment has a *Torrent all the time, a handshake that names it opens it.
type openings struct {
	mostOfBuild int
	mu          sync.Mutex // held for no I/O, and not over the engine
	list        []*Torrent // the one that was asked for last at the end
}

// enter takes in a torrent, if there is room or it need not wait for any; or else returns
// those, in the order to be looked at, of which one would have to go.
func (o *openings) enter(t *Torrent, pending int32, must bool) (in bool, instead []*Torrent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.Index(o.list, t)
	ofBuild := 0
	for _, other := range o.list {
		if other.fetch.Build == t.fetch.Build {
			ofBuild++
		}
	}
	switch {
	case i >= 0:
		o.list = slices.Delete(o.list, i, i+1)
	case must || ofBuild < o.mostOfBuild && len(o.list) < maxOpen:
	default:
		for _, other := range o.list {
			if ofBuild < o.mostOfBuild || other.fetch.Build == t.fetch.Build {
				instead = append(instead, other)
			}
		}
		return false, instead
	}
	o.list = append(o.list, t)
	t.pending.Add(pending)
	return true, nil
}

// leave takes a torrent out, unless somebody is about to connect for its sake.
func (o *openings) leave(t *Torrent, whatever bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t.pending.Load() > 0 && !whatever {
		return false
	}
	if i := slices.Index(o.list, t); i >= 0 {
		o.list = slices.Delete(o.list, i, i+1)
	}
	return true
}

// fetched is how many of them are not whole.
func (o *openings) fetched() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range o.list {
		if !t.Done() {
			n++
		}
	}
	return n
}

// all are those that the engine holds.
func (o *openings) all() []*Torrent {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.list)
}

func (o *openings) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.list)
}

// RoomToFetch reports whether segments may be fetched that are not waited for first: what
// is whole needs room as well, or nobody gets it.
func (s *Swarm) RoomToFetch() bool { return s.openings.fetched() < maxFetched }

// begun says what a connection is about. For one that a peer has made, the engine is to
// hold the torrent, with a place for the connection; an infohash that is not known is the
// engine's to refuse.
func (s *Swarm) begun(c *peerwire.Conn, infohash manifest.InfoHash) (peerwire.Torrent, error) {
	t, ok := s.Torrent(infohash)
	if !ok {
		return nil, nil
	}
	if !t.mayHave(s.wire.Member(c.ID())) {
		return nil, peerwire.ErrNoDestination
	}
	if !c.Inbound() {
		return t, nil
	}
	if err := s.makeRoom(t, 1, c.Gone()); err != nil {
		if omitted, due := s.notices.Pass("room"); due && errors.Is(err, errNoRoom) {
			m := s.wire.Member(c.ID())
			s.cfg.Logger.Warn("a peer has to ask again for a segment: as many are open as may be, and all are in use",
				"member", m.Name, "region", m.Region, "from", c.Addr(), "ofOneBuild", s.openings.mostOfBuild, "inAll", maxOpen, "omitted", omitted)
		}
		return nil, err
	}
	return t, t.reopen()
}

// Passed says that something of it passed.
func (t *Torrent) Passed(at time.Time) { t.useful.Store(at.UnixNano()) }

// Arrived ends the place that a connection had among those who are about to connect.
func (t *Torrent) Arrived() { t.pending.Add(-1) }

// makeRoom waits until a torrent that is whole may be in the engine, for so many
// connections.
func (s *Swarm) makeRoom(t *Torrent, pending int32, gone <-chan struct{}) error {
	late := time.NewTimer(roomWait)
	defer late.Stop()
	for {
		in, instead := s.openings.enter(t, pending, false)
		if in {
			return nil
		}
		if s.closeOne(instead) {
			continue
		}
		select {
		case <-time.After(roomLook):
		case <-late.C:
			return errNoRoom
		case <-gone:
			return errNoRoom
		case <-s.ctx.Done():
			return errNoRoom
		}
	}
}

// takeRoom has a place for a torrent that is to be downloaded, whoever has to go, or nobody.
func (s *Swarm) takeRoom(t *Torrent) {
	in, instead := s.openings.enter(t, 0, false)
	for !in && s.closeOne(instead) {
		in, instead = s.openings.enter(t, 0, false)
	}
	if !in {
		s.openings.enter(t, 0, true)
	}
}

// closeOne takes one of the torrents out of the engine: the first that nobody needs, else
// the one of which nothing has passed for the longest time.
func (s *Swarm) closeOne(of []*Torrent) bool {
	now := time.Now()
	for _, t := range of {
		if t.needed() == notNeeded && t.close(notNeeded) {
			return true
		}
	}
	slices.SortStableFunc(of, func(a, b *Torrent) int { return cmp.Compare(a.useful.Load(), b.useful.Load()) })
	for _, t := range of {
		if now.UnixNano()-t.useful.Load() >= int64(s.patience.sleeps) && t.needed() <= connected && t.close(connected) {
			return true
		}
	}
	return false
}

// need is how much a torrent is needed in the engine.
type need int

const (
	notNeeded need = iota // every peer that is connected has all of it
	connected             // some peer lacks pieces
	fetching              // pieces are not here, or somebody is about to connect
)

func (t *Torrent) needed() need {
	e := t.entryNow()
	if e == nil || !e.Whole() || t.pending.Load() > 0 {
		return fetching
	}
	engine := t.engine()
	if engine == nil {
		return fetching // on its way
	}
	for _, c := range engine.PeerConns() {
		if c.Stats().RemotePieceCount < e.Shape().NumPieces() {
			return connected
		}
	}
	return notNeeded
}

// close takes a torrent out of the engine if it is needed no more than that, and reports
// whether its place is free then.
func (t *Torrent) close(most need) bool {
	release, err := t.swarm.turns.Take(t.swarm.ctx, t.fetch.InfoHash)
	if err != nil {
		return false
	}
	defer release()
	if t.needed() > most {
		return false
	}
	t.end()
	return t.swarm.openings.leave(t, false) // or somebody has come, and waits for the turn to reopen it
}

// engine is the engine's side of a torrent; nil while it is closed.
func (t *Torrent) engine() *torrent.Torrent { return t.inEngine.Load() }

// begin gives the torrent to the engine, with what the cache has of it; nil for nothing.
// The caller has the turn, and a place in openings.
func (t *Torrent) begin(e *cache.Entry) error {
	opts := torrent.AddTorrentOpts{InfoHash: metainfo.Hash(t.fetch.InfoHash), ChunkSize: t.swarm.chunkSize(t.fetch.Shape), DeferStorageOpen: true}
	if e != nil {
		if err := t.use(e); err != nil {
			return err
		}
		m := e.Manifest()
		if m == nil {
			return ErrDropped // it is just evicted
		}
		opts.InfoBytes = m.InfoBytes()
	}
	engine, _ := t.swarm.client.AddTorrentOpt(opts)
	t.swarm.byEngine.Store(engine, t)
	engine.SetOnWriteChunkError(t.writeFailed)
	t.useful.Store(time.Now().UnixNano())
	t.inEngine.Store(engine)
	return nil
}

// use opens the entry for as long as the engine has the torrent: whoever reads it for
// nobody else finds it cold. The caller has the turn.
func (t *Torrent) use(e *cache.Entry) error {
	if t.served != nil {
		return nil
	}
	if err := e.Open(); err != nil {
		return err
	}
	t.served = e
	return nil
}

// end takes the torrent away from the engine, and keeps what was counted. The caller has
// the turn.
func (t *Torrent) end() {
	defer func() {
		if t.served != nil {
			t.served.Close()
			t.served = nil
		}
	}()
	engine := t.engine()
	if engine == nil {
		return
	}
	t.swarm.drop(engine)
	t.swarm.wanted.Delete(engine)
	t.swarm.byEngine.Delete(engine)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.former = t.former.plus(counted(engine))
	t.inEngine.Store(nil)
}

// reopen has the engine hold a torrent of which the cache has something. With a place in
// openings, it stays there until the caller has used it.
func (t *Torrent) reopen() error {
	// Whoever closes it has the turn, and has looked for places before.
	release, err := t.swarm.turns.Take(t.swarm.ctx, t.fetch.InfoHash)
	if err != nil {
		return errors.New("the torrent engine is ending")
	}
	defer release()
	t.mu.Lock()
	dropped := t.isDropped
	t.mu.Unlock()
	if dropped {
		t.swarm.openings.leave(t, true)
		return ErrDropped
	}
	if t.engine() != nil {
		return nil
	}
	err = t.begin(t.entryNow())
	if err == nil {
		err = t.serve()
	}
	if err != nil {
		t.end()
		t.swarm.openings.leave(t, true)
		if errors.Is(err, cache.ErrNotKept) { // evicted, or found damaged
			t.drop()
		}
		return fmt.Errorf("opening %s again: %w", t.fetch.InfoHash, err)
	}
	return nil
}

// comeBack opens a torrent that is found not to be whole any more.
func (t *Torrent) comeBack() {
	t.swarm.alongside(func() {
		t.swarm.takeRoom(t)
		if err := t.reopen(); err != nil && !errors.Is(err, ErrDropped) && t.swarm.ctx.Err() == nil {
			t.swarm.cfg.Logger.Warn("segment not fetched again yet", "error", err)
		}
	})
}
