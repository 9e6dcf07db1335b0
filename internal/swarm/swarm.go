// Package swarm is the torrent engine set up as Landfall needs it: builds from
// the cache are seeded, builds named by infohash are fetched into it. Peers are
// those it is told of; there is no DHT, tracker, peer exchange, uTP or port
// forwarding.
package swarm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/seldom"
	"github.com/landfall-dist/landfall/internal/turns"
)

const (
	// maxChunk, where Config has no less, bounds what is asked of a peer at a time, in bytes.
	maxChunk = 256 << 10
	// stealGrace keeps the engine from asking a second peer for what the first
	// is about to send. Two pieces of 128 KiB at a sixteenth of 20 Mbit/s take
	// 1.7 s: with 1 s, 5 % of all bytes came twice there.
	stealGrace = 2 * time.Second
	// maxConns bounds the connections of one build: each of 512 members has a place,
	// strangers have theirs beside them, and some are about to end.
	maxConns = 600
	// dialRate: the engine's own 10 dials a second are meant for strangers found by
	// the hundred; these are known members.
	dialRate = 1000
	// writePause is waited after a failed write to the disk before the
	// download is tried again.
	writePause = 10 * time.Second
)

// Config says what a Swarm works with.
type Config struct {
	Cache *cache.Cache
	// Name is this member's; the peer id follows from it.
	Name string
	// HandOut makes the seeder's super-seeding (see package handout).
	HandOut bool
	// Config is that of the connections with peers; the Swarm sets the last part of it,
	// and closes the Listener. The limits hold over all builds.
	peerwire.Config
	// Fleet is a second listener, for hosts; nil for none. The Limits, TLS and Identity hold
	// for it too.
	Fleet *Fleet
	// OpenOfBuild is how many segments of a build the engine holds; 0 for 8.
	OpenOfBuild int
	// MaxChunk bounds what is asked of a peer at a time, in bytes; 0 for 256 KiB. Each
	// connection by which such a peer sends keeps three times as much in memory.
	MaxChunk int64

	// patience is shortened by tests; the zero value means defaultPatience.
	patience patience
}

// Swarm is a running engine.
type Swarm struct {
	cfg    Config
	client *torrent.Client
	// engineConfig is read by the engine under its lock, and changed under it alone.
	engineConfig *torrent.ClientConfig
	handout      *handout.Set // nil unless HandOut
	fleet        *fleet       // nil for no hosts
	ctx          context.Context
	cancel       context.CancelFunc
	wg           sync.WaitGroup
	begin        sync.Mutex // held while wg grows, so that nothing begins once Close waits
	closing      sync.Once

	wire      *peerwire.Wire
	openings  openings
	notices   *seldom.Lines
	patience  patience
	exchanges sync.Map // of *torrent.Peer to *exchange
	flow      flow     // of judge alone
	narrowed  atomic.Bool
	// miscounted: the engine holds a torrent that is closed (drop).
	miscounted atomic.Bool
	buffers    sync.Pool
	// badFromPeer and badOnDisk are pieces with another hash than the build's: as they
	// came, and as they were found on the disk after they had been right.
	badFromPeer, badOnDisk atomic.Int64

	// turns are of who adds, opens or drops a torrent: all that touch the disk.
	turns turns.Turns[manifest.InfoHash]

	mu       sync.Mutex // never held over the engine or the disk
	torrents map[manifest.InfoHash]*Torrent
	// wanted has a *wanted for each *torrent.Torrent that downloads: the engine
	// asks for it under its own lock, which who holds mu may be waiting for. So has
	// byEngine for the *Torrent.
	wanted, byEngine sync.Map

	// wholeTurn is of who seeds a build as a whole, or drops one: only then wholes is used.
	wholeTurn turns.Turns[struct{}]
	wholes    []*whole // the one that was asked for last at the end
}

// New starts the engine on the listener. On error the listener stays open.
func New(cfg Config) (*Swarm, error) {
	id := peerwire.PeerID(cfg.Name)
	tc := torrent.NewDefaultClientConfig()
	tc.PeerID = string(id[:])
	tc.Bep20 = peerwire.IDPrefix
	tc.ExtendedHandshakeClientVersion = "Landfall"
	tc.HTTPUserAgent = "Landfall"
	tc.NoDHT, tc.DisableTrackers, tc.DisablePEX, tc.DisableUTP = true, true, true, true
	tc.NoDefaultPortForwarding, tc.DisableWebtorrent, tc.DisableWebseeds = true, true, true
	// Connections come from our own listener and dialer, so that they can be
	// wrapped.
	tc.DisableTCP, tc.DialForPeerConns = true, false
	// The hand-out must read the wire: no stream encryption (MSE).
	tc.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{Preferred: false, RequirePreferred: true}
	tc.DefaultStorage = noStorage{}
	tc.Seed = true
	tc.AlwaysWantConns = true
	tc.MaxUnverifiedBytes = 0 // hidden pieces would use the budget up
	tc.StealRequestGrace = stealGrace
	tc.DropDuplicatePeerIds = true
	// A finished agent that hangs up would look like lost copies.
	tc.DropMutuallyCompletePeers = false
	tc.DisableAcceptRateLimiting = true
	tc.EstablishedConnsPerTorrent = maxConns
	tc.DialRateLimiter = rate.NewLimiter(dialRate, dialRate)
	tc.NominalDialTimeout, tc.MinDialTimeout = peerwire.DialTimeout, peerwire.DialTimeout
	tc.Slogger = slog.New(debugOnly{cfg.Logger.Handler()})
	s := &Swarm{
		cfg:      cfg,
		torrents: make(map[manifest.InfoHash]*Torrent),
		notices:  seldom.New(noticeInterval, 1),
		patience: cfg.patience,
		openings: openings{mostOfBuild: cmp.Or(cfg.OpenOfBuild, maxOpenOfBuild)},
		buffers:  sync.Pool{New: func() any { b := make([]byte, hashBuffer); return &b }},
	}
	if s.patience.tick == 0 {
		s.patience = defaultPatience()
	}
	tc.Callbacks.ReadMessage = s.receive
	tc.Callbacks.PeerConnAdded = append(tc.Callbacks.PeerConnAdded, s.added)
	tc.Callbacks.PeerConnClosed = func(c *torrent.PeerConn) { s.exchanges.Delete(&c.Peer) }
	tc.Callbacks.ReadExtendedHandshake = s.infoOffered
	tc.Callbacks.PeerConnReadExtensionMessage = append(tc.Callbacks.PeerConnReadExtensionMessage, s.infoCame)
	tc.Callbacks.SentRequest = append(tc.Callbacks.SentRequest, s.requested)
	tc.Callbacks.DeletedRequest = append(tc.Callbacks.DeletedRequest, s.settled)
	tc.Callbacks.ReceivedUsefulData = append(tc.Callbacks.ReceivedUsefulData, s.received)
	tc.Callbacks.StatusUpdated = append(tc.Callbacks.StatusUpdated, s.disconnected)
	var err error
	s.engineConfig = tc
	if s.client, err = torrent.NewClient(tc); err != nil {
		return nil, fmt.Errorf("starting the torrent engine: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	wire := cfg.Config
	wire.Begin, wire.Alongside = s.begun, s.alongside
	if cfg.HandOut {
		s.handout = handout.NewSet(handout.Config{Logger: cfg.Logger})
		wire.Wrap = s.handout.Wrap
		s.wg.Go(func() { s.handout.Run(s.ctx) })
	}
	s.wire = peerwire.New(s.ctx, wire)
	s.wg.Go(func() { s.judge(s.ctx) })
	s.client.AddDialer(s.wire)
	s.client.AddListener(s.wire.Listener())
	if cfg.Fleet != nil {
		s.fleet = newFleet(s, wire)
	}
	return s, nil
}

// receive passes a peer's message on to its torrent.
func (s *Swarm) receive(c *torrent.PeerConn, msg *pp.Message) {
	s.unheard(c, msg)
	s.answered(c, msg)
	s.setGrace()
	if w, ok := s.wanted.Load(c.Torrent()); ok {
		w.(*wanted).receive(msg)
	}
}

// alongside runs f in a goroutine that Close waits for; after Close it does not
// begin. f ends with the Swarm's context.
func (s *Swarm) alongside(f func()) (begun bool) {
	s.begin.Lock()
	defer s.begin.Unlock()
	if begun = s.ctx.Err() == nil; begun {
		s.wg.Go(f)
	}
	return begun
}

// Close ends all torrents and waits for their end. Again it does nothing.
func (s *Swarm) Close() error {
	var err error
	s.closing.Do(func() {
		s.begin.Lock()
		s.cancel()
		s.begin.Unlock()
		for _, t := range s.client.Torrents() {
			s.drop(t)
		}
		if !s.miscounted.Load() {
			err = errors.Join(s.client.Close()...)
		}
		listeners := []net.Listener{s.cfg.Listener}
		if s.cfg.Fleet != nil {
			listeners = append(listeners, s.cfg.Fleet.Listener)
		}
		for _, l := range listeners {
			if closeErr := l.Close(); !errors.Is(closeErr, net.ErrClosed) {
				err = errors.Join(err, closeErr)
			}
		}
		s.wg.Wait()
		if s.miscounted.Load() {
			s.abandonEngine()
		}
	})
	if err != nil {
		return fmt.Errorf("ending the torrent engine: %w", err)
	}
	return nil
}

// abandonEngine ends an engine that holds a torrent which is closed: its Close ends what it
// has in the background, and panics over that torrent with its lock held, so that nobody may
// use it any more.
func (s *Swarm) abandonEngine() {
	defer func() { _ = recover() }()
	s.client.Close()
}

// drop takes a torrent out of the engine. When a peer's connection ends in the moment in which
// the torrent's info comes, the engine (v1.62.0) counts that peer's pieces for ever, and here,
// when the torrent and all its connections are closed, panics over the count: what stays is
// the closed torrent in the engine's list.
func (s *Swarm) drop(engine *torrent.Torrent) {
	defer func() {
		fault := recover()
		if fault == nil {
			return
		}
		if text, ok := fault.(string); !ok || !strings.Contains(text, "has relative availability") {
			panic(fault)
		}
		s.miscounted.Store(true)
		s.cfg.Logger.Warn("the engine has miscounted the pieces of a peer that is gone", "infohash", engine.InfoHash().HexString())
	}()
	engine.Drop()
}

// BadPeers are the peers that are left alone now, the newest first.
func (s *Swarm) BadPeers() []peerwire.BadPeer { return s.wire.BadPeers() }

// ExpectMore says with which peers further torrents are expected: a connection to each of
// them is kept open for the next one. Those of others, named before, are closed. Call it
// again when that changes.
func (s *Swarm) ExpectMore(peers []peerwire.Peer) { s.wire.ExpectMore(peers) }

// Torrent returns the torrent of an infohash that is in the engine.
func (s *Swarm) Torrent(infohash manifest.InfoHash) (*Torrent, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.torrents[infohash]
	return t, ok
}

// Seed adds a whole entry, of the build of that name which goes to these buckets, or
// returns the torrent that is there. Peers are shown all of it.
func (s *Swarm) Seed(e *cache.Entry, build string, destinations []string) (*Torrent, error) {
	if !e.Whole() {
		return nil, fmt.Errorf("seeding %s: pieces are missing", e.InfoHash())
	}
	return s.add(Fetch{InfoHash: e.InfoHash(), Shape: e.Shape(), Build: build, Destinations: destinations}, e)
}

// HandOut is Seed where the Swarm was made for it: pieces are handed out, in the
// torrent's place among all. alone says that there is one receiver, which has nobody to
// trade with: while nothing else is handed out either, it is shown everything, which was
// measured to be 1.7 times faster.
func (s *Swarm) HandOut(e *cache.Entry, place handout.Place, destinations []string, alone bool) (*Torrent, error) {
	if s.handout != nil && e.Whole() && !(alone && s.handout.Idle()) {
		// Before the engine has it, or early peers are shown everything.
		s.handout.Add(e.InfoHash(), place, alone, e.Shape().NumPieces(), e.Shape().PieceLength)
	}
	return s.Seed(e, place.Execution, destinations)
}

// Raise gives a torrent that is handed out an earlier place. It does not wait.
func (s *Swarm) Raise(infohash manifest.InfoHash, place handout.Place) {
	if s.handout != nil {
		s.handout.Raise(infohash, place)
	}
}

// Fetch names a segment to be downloaded.
type Fetch struct {
	InfoHash manifest.InfoHash
	// Shape follows from what was announced; who offers an info dictionary of another
	// length is a bad peer, and one that says otherwise is refused.
	Shape manifest.Shape
	// Build names the build that it is of; of several, any one.
	Build string
	// Destinations are the buckets that the build goes to: members that serve none of
	// them, or of other builds with the same segment, get nothing of it. Nil for whoever
	// asks.
	Destinations []string
	// OnPiece is called for each piece when it becomes verified, and with false
	// when one that was is found damaged on disk. It must not block. Nil where
	// nobody asks.
	OnPiece func(piece int, verified bool)
}

// Fetch adds a build by infohash, continuing what the cache holds of it. When the
// torrent is there already, OnPiece is called for its pieces from then on.
func (s *Swarm) Fetch(f Fetch) (*Torrent, error) {
	e, err := s.cfg.Cache.Pinned(f.InfoHash, f.Build)
	if err == nil {
		defer e.Unpin() // it is the caller's to pin; here it must not go before it is in the engine
		return s.add(f, e)
	}
	if !errors.Is(err, cache.ErrNotKept) {
		return nil, err
	}
	t, err := s.add(f, nil)
	if err != nil {
		return nil, err
	}
	e, err = s.cfg.Cache.Pinned(f.InfoHash, f.Build)
	switch {
	case err == nil: // pulled meanwhile, by who did not see the torrent yet
		defer e.Unpin()
		err = t.Pulled(e.Manifest())
	case errors.Is(err, cache.ErrNotKept):
		err = nil
	}
	return t, err
}

func (s *Swarm) add(f Fetch, e *cache.Entry) (*Torrent, error) {
	release, err := s.turns.Take(s.ctx, f.InfoHash)
	if err == nil {
		defer release()
		err = s.ctx.Err()
	}
	if err != nil {
		return nil, errors.New("the torrent engine is ending")
	}
	if t, ok := s.Torrent(f.InfoHash); ok {
		select {
		case <-t.whole: // nothing to tell any more
		default:
			t.subscribe(f.OnPiece)
		}
		t.GoesTo(f.Destinations)
		return t, nil
	}
	t := &Torrent{
		swarm:      s,
		fetch:      f,
		infoLength: f.Shape.InfoLength(),
		opened:     make(chan struct{}),
		whole:      make(chan struct{}),
		dropped:    make(chan struct{}),
		lost:       make(chan struct{}, 1),
	}
	t.GoesTo(f.Destinations)
	t.subscribe(f.OnPiece)
	if e != nil && e.Whole() { // in the engine as soon as somebody asks for it
		t.entry = e
		close(t.opened)
		t.markWhole()
	} else {
		s.takeRoom(t)
		if err := t.begin(e); err != nil {
			s.openings.leave(t, true)
			return nil, err
		}
	}
	s.mu.Lock()
	s.torrents[f.InfoHash] = t
	s.mu.Unlock()
	if e != nil && t.engine() != nil {
		// Now, so that nobody connects to a torrent that has nothing yet.
		if err := t.open(e); err != nil {
			t.drop()
			return nil, err
		}
	}
	return t, nil
}

// chunkSize is what is asked of a peer at a time, in bytes: a whole piece, for with
// less the engine's queue of requests runs dry between pieces and a round trip is
// lost each time. It follows from what was announced, since the engine fixes it
// before the info is known.
func (s *Swarm) chunkSize(shape manifest.Shape) pp.Integer {
	return pp.Integer(min(shape.PieceLength, maxChunk, cmp.Or(s.cfg.MaxChunk, maxChunk)))
}

// debugOnly lets the engine's own words through as debug output. It never says that they
// could not be written: the engine panics then, and the reader of a log may go away.
type debugOnly struct{ slog.Handler }

func (h debugOnly) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h debugOnly) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	_ = h.Handler.Handle(ctx, r) // lost, as all other lines that nobody reads
	return nil
}

func (h debugOnly) WithAttrs(a []slog.Attr) slog.Handler { return debugOnly{h.Handler.WithAttrs(a)} }
func (h debugOnly) WithGroup(n string) slog.Handler      { return debugOnly{h.Handler.WithGroup(n)} }
