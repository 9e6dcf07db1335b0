package swarm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anacrolix/torrent"
	"golang.org/x/sys/unix"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// ErrDropped is returned by waits on a torrent that left the engine.
var ErrDropped = errors.New("torrent was dropped")

// Torrent is one build in the engine.
type Torrent struct {
	swarm *Swarm
	fetch Fetch
	// infoLength is that of the info dictionary, in bytes; infoHere is set when a peer
	// has sent it.
	infoLength int
	infoHere   atomic.Bool
	// inEngine is nil while the engine does not hold it; see openings. useful is when
	// something of it passed last, in Unix nanoseconds; pending is how many connections
	// are about to be made for its sake.
	inEngine atomic.Pointer[torrent.Torrent]
	useful   atomic.Int64
	pending  atomic.Int32
	opened   chan struct{} // closed when entry is set
	whole    chan struct{} // closed when all pieces are verified
	dropped  chan struct{}
	lost     chan struct{} // has a value when a piece was found damaged
	handed   atomic.Bool   // to hosts
	origins  origins
	// served is the entry, open for the engine; nil while that has none. It is of who has
	// the turn.
	served *cache.Entry

	mu      sync.Mutex
	former  counters // of the times before that it was in the engine
	entry   *cache.Entry
	wanted  *wanted // nil for a build that was whole from the start
	onPiece []func(piece int, verified bool)
	// destinations are the buckets of all builds that have it; public: one of them goes to
	// whoever asks.
	destinations map[string]bool
	public       bool
	isWhole      bool
	isDropped    bool
	high         [][2]int
	paused       bool
	held         bool
	// refused is why the disk took no write last, refusals how often that was so; both until
	// a piece is verified.
	refused  error
	refusals int
}

// InfoHash names the build.
func (t *Torrent) InfoHash() manifest.InfoHash { return t.fetch.InfoHash }

// Entry waits until the info dictionary is here, checks it and begins the download, on
// disk that comes out of the room; at once when the cache had the segment. The entry is
// pinned, for the caller to Unpin. Errors wrap manifest.ErrInvalid for an info that
// cannot be right.
func (t *Torrent) Entry(ctx context.Context, room *cache.Room) (*cache.Entry, error) {
	select {
	case <-t.opened: // also when it was dropped since
		return t.pinned()
	default:
	}
	select {
	case <-t.gotInfo():
	case <-t.dropped:
		return nil, ErrDropped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	release, err := t.swarm.turns.Take(ctx, t.fetch.InfoHash) // one opens; others find it open
	if err != nil {
		return nil, err
	}
	defer release()
	select {
	case <-t.opened:
		return t.pinned()
	case <-t.dropped:
		return nil, ErrDropped
	default:
	}
	m, err := t.info()
	if err != nil {
		return nil, err
	}
	e, err := t.swarm.cfg.Cache.Create(t.fetch.Build, m, room)
	if err != nil {
		return nil, err
	}
	if err := t.open(e); err != nil {
		e.Unpin()
		return nil, err
	}
	return e, nil
}

// pinned is the entry of an open torrent; ErrDropped when it was evicted.
func (t *Torrent) pinned() (*cache.Entry, error) {
	e := t.entryNow()
	err := e.Pin()
	switch {
	case errors.Is(err, cache.ErrNotKept):
		return nil, ErrDropped
	case err != nil:
		return nil, err
	}
	return e, nil
}

// open takes the entry, gives the engine its storage and begins.
func (t *Torrent) open(e *cache.Entry) error {
	t.mu.Lock()
	t.entry = e
	t.mu.Unlock()
	err := t.use(e)
	if err == nil {
		err = t.serve()
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", t.fetch.InfoHash, err)
	}
	close(t.opened)
	if e.Whole() {
		t.markWhole()
	}
	return nil
}

// serve gives the engine its storage, and has it fetch what lacks.
func (t *Torrent) serve() error {
	var w *wanted
	engine, e := t.engine(), t.entryNow()
	if !e.Whole() {
		w = newWanted(engine, e)
	}
	t.mu.Lock()
	t.wanted = w
	held := t.held
	if w != nil {
		w.high, w.narrowed = t.high, t.swarm.narrowed.Load()
	}
	t.mu.Unlock()
	if held {
		engine.DisallowDataDownload()
	}
	if err := engine.OpenStorage(t.swarm.ctx, storageOf{t}); err != nil {
		return err
	}
	if w != nil {
		t.swarm.wanted.Store(engine, w)
		t.swarm.alongside(func() { w.run(t.swarm.ctx, t.dropped) })
	}
	return nil
}

func (t *Torrent) subscribe(f func(piece int, verified bool)) {
	if f == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onPiece = append(t.onPiece, f)
}

// GoesTo adds the destinations of a build that has the segment; nil for whoever asks.
func (t *Torrent) GoesTo(destinations []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.destinations == nil {
		t.destinations = make(map[string]bool)
	}
	for _, bucket := range destinations {
		t.destinations[bucket] = true
	}
	t.public = t.public || destinations == nil
}

// mayHave reports whether a member may have pieces. Who is no member is for the doors.
func (t *Torrent) mayHave(m peerwire.Member) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.public || m.Name == "" || m.MayHave(t.destinations)
}

// verified is told by the storage, under the engine's locks.
func (t *Torrent) verified(piece int) {
	t.notify(piece, true)
	t.mu.Lock()
	w := t.wanted
	t.refused, t.refusals = nil, 0
	t.mu.Unlock()
	if w != nil {
		w.verified(piece)
	}
	if t.entry.Whole() {
		t.markWhole()
	}
}

// notify has those who follow the pieces hear of one: verified, or found damaged.
func (t *Torrent) notify(piece int, verified bool) {
	t.mu.Lock()
	subscribers := slices.Clone(t.onPiece)
	t.mu.Unlock()
	for _, f := range subscribers {
		f(piece, verified)
	}
	if t.handed.Load() {
		t.swarm.fleet.handout.Here(t.fetch.InfoHash, verified, piece)
	}
}

func (t *Torrent) markWhole() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.isWhole {
		t.isWhole = true
		close(t.whole)
	}
}

// Whole is closed when all pieces are verified.
func (t *Torrent) Whole() <-chan struct{} { return t.whole }

// AddPeers names peers to connect to; those that are connected, and bad ones, are
// left alone.
// The engine forgets an address that it could not reach, so call it every second
// or two as long as the build is not whole.
func (t *Torrent) AddPeers(peers []peerwire.Peer) {
	t.swarm.wire.Named(peers)
	engine := t.engine()
	if engine == nil {
		if !t.Done() {
			t.comeBack()
		}
		return
	}
	connected := make(map[[20]byte]bool)
	for _, c := range engine.PeerConns() {
		connected[c.PeerID] = true
	}
	most := peerwire.MaxDialled
	if t.swarm.narrowed.Load() {
		most = enough
	}
	var add []torrent.PeerInfo
	for _, p := range peers {
		if !connected[p.ID] && !t.swarm.wire.Refused(p.ID) {
			if len(connected)+len(add) >= most {
				break
			}
			add = append(add, torrent.PeerInfo{
				Id:      p.ID,
				Addr:    net.TCPAddrFromAddrPort(p.Addr),
				Source:  torrent.PeerSourceDirect,
				Trusted: true,
			})
		}
	}
	if len(add) > 0 {
		engine.AddPeers(add)
	}
}

// Arriving reports whether bytes of the build came from a peer after a time, whole chunks
// or not, or wait to be read since the limit does not allow more: then nothing is stuck,
// however long the next piece takes.
func (t *Torrent) Arriving(after time.Time) bool {
	return !t.Done() && t.swarm.wire.Arriving(t.fetch.InfoHash, after)
}

// Prioritize asks for the pieces in high, each from first up to but without end,
// before all others. What was high before and is not any more becomes normal.
func (t *Torrent) Prioritize(high [][2]int) {
	t.mu.Lock()
	same, w := slices.Equal(t.high, high) || t.isDropped, t.wanted
	if !same {
		t.high = slices.Clone(high)
	}
	high = t.high
	t.mu.Unlock()
	if !same && w != nil {
		w.prioritize(high)
	}
}

// Hold has nothing more asked for, or, when held is false, what is lacking again.
func (t *Torrent) Hold(held bool) {
	t.mu.Lock()
	changes, paused, engine := t.held != held && !t.isDropped, t.paused, t.engine()
	t.held = held
	t.mu.Unlock()
	switch {
	case engine == nil: // see serve
	case changes && held:
		engine.DisallowDataDownload()
	case changes && !paused:
		engine.AllowDataDownload()
	}
}

// Stats are counters of one torrent, in bytes of the build, and its peers.
type Stats struct {
	VerifiedBytes, DownloadedBytes, UploadedBytes int64
	// WireBytes is all that came from peers, in bytes, messages without content
	// too.
	WireBytes int64
	Peers     []Peer
}

// Peer is one connection. Downloaded came from it, Uploaded went to it, in bytes
// of the build; Has is in pieces, DownRate in bytes/s.
type Peer struct {
	ID                   [20]byte
	Addr                 string
	Downloaded, Uploaded int64
	Has                  int
	DownRate             int64
}

// Stats reads the counters.
func (t *Torrent) Stats() Stats {
	var s Stats
	t.mu.Lock()
	engine, all := t.engine(), t.former
	if t.entry != nil {
		s.VerifiedBytes = t.entry.VerifiedBytes()
	}
	t.mu.Unlock()
	if engine != nil {
		all = all.plus(counted(engine))
	}
	s.DownloadedBytes, s.UploadedBytes, s.WireBytes = all.downloaded, all.uploaded, all.wire
	for _, c := range t.conns() {
		p := c.Stats()
		s.Peers = append(s.Peers, Peer{
			ID:         c.PeerID,
			Addr:       c.RemoteAddr.String(),
			Downloaded: p.BytesReadData.Int64(),
			Uploaded:   p.BytesWrittenData.Int64(),
			Has:        p.RemotePieceCount,
			DownRate:   finite(p.DownloadRate),
		})
	}
	slices.SortFunc(s.Peers, func(a, b Peer) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return s
}

// counters are what the engine has counted of a torrent, in bytes.
type counters struct{ downloaded, uploaded, wire int64 }

func counted(engine *torrent.Torrent) counters {
	s := engine.Stats()
	return counters{s.BytesReadData.Int64(), s.BytesWrittenData.Int64(), s.BytesRead.Int64()}
}

func (c counters) plus(o counters) counters {
	return counters{c.downloaded + o.downloaded, c.uploaded + o.uploaded, c.wire + o.wire}
}

// conns are the connections with peers.
func (t *Torrent) conns() []*torrent.PeerConn {
	if engine := t.engine(); engine != nil {
		return engine.PeerConns()
	}
	return nil
}

// finite is a rate as a whole number: the engine divides by a time that is 0 at the
// beginning of a connection.
func finite(rate float64) int64 {
	if !(rate >= 0 && rate < math.MaxInt64) {
		return 0
	}
	return int64(rate)
}

// DisconnectComplete hangs up on peers that hold everything, when an execution
// has ended: each connection costs 128 KiB of buffers.
func (t *Torrent) DisconnectComplete() {
	pieces := 0
	if e := t.entryNow(); e != nil {
		pieces = e.Shape().NumPieces()
	}
	for _, c := range t.conns() {
		if pieces > 0 && c.Stats().RemotePieceCount == pieces {
			// Its error is that of a connection that is gone already.
			_ = c.Close()
		}
	}
}

func (t *Torrent) entryNow() *cache.Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entry
}

// Drop takes the torrent out of the engine; the entry stays in the cache.
func (t *Torrent) Drop() {
	// Whoever has the turn is at the disk, and comes to an end.
	release, err := t.swarm.turns.Take(context.Background(), t.fetch.InfoHash)
	if err != nil {
		return
	}
	defer release()
	t.drop()
}

// drop is called by who has the turn.
func (t *Torrent) drop() {
	t.mu.Lock()
	gone := t.isDropped
	t.isDropped = true
	t.mu.Unlock()
	if gone {
		return
	}
	t.swarm.mu.Lock()
	delete(t.swarm.torrents, t.fetch.InfoHash)
	t.swarm.mu.Unlock()
	t.end()
	t.swarm.openings.leave(t, true)
	if t.swarm.handout != nil {
		t.swarm.handout.Remove(t.fetch.InfoHash)
	}
	t.KeepFromHosts()
	close(t.dropped)
}

// writeFailed stops the download for a while after the disk refused a write: the
// pieces are not lost, and the next try may find room.
func (t *Torrent) writeFailed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused || t.isDropped {
		return
	}
	t.paused = true
	t.refusals++
	if t.refused = err; errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		t.refused = fmt.Errorf("%w: %w", cache.ErrNoSpace, err)
	}
	t.swarm.cfg.Logger.Error("build not written to disk, trying again", "infohash", t.fetch.InfoHash.String(),
		"error", err, "retryIn", writePause.String())
	t.swarm.alongside(func() {
		engine := t.engine()
		if engine == nil {
			return
		}
		engine.DisallowDataDownload()
		select {
		case <-time.After(writePause):
		case <-t.dropped:
			return
		case <-t.swarm.ctx.Done():
			return
		}
		t.mu.Lock()
		t.paused = false
		held := t.held
		t.mu.Unlock()
		if !held {
			engine.AllowDataDownload()
		}
	})
}

// Refused is why the disk does not take what comes, which is asked for again every ten
// seconds, and how often that has been so; nil once it does. It wraps cache.ErrNoSpace where
// there is no room.
func (t *Torrent) Refused() (times int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refusals, t.refused
}

// gotInfo is closed when the info dictionary is here.
func (t *Torrent) gotInfo() <-chan struct{} {
	if engine := t.engine(); engine != nil {
		return engine.GotInfo()
	}
	return nil // dropped
}
