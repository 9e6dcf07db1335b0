package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/handout"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 60 * time.Second

// node is one member's engine with its cache.
type node struct {
	*Swarm
	cache *cache.Cache
	addr  peerwire.Peer
}

func start(t *testing.T, name, dir string, change func(*Config)) *node {
	t.Helper()
	c, err := cache.Open(dir, 1<<40, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Cache: c, Name: name, Config: peerwire.Config{Listener: l, Logger: slog.New(slog.DiscardHandler)}}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{s, c, peerwire.Peer{ID: peerwire.PeerID(name), Addr: l.Addr().(*net.TCPAddr).AddrPort()}}
	t.Cleanup(func() { n.stop(t) })
	return n
}

func (n *node) stop(t *testing.T) {
	t.Helper()
	if err := errors.Join(n.Close(), n.cache.Close()); err != nil {
		t.Error(err)
	}
}

func handOut(c *Config) { c.HandOut = true }

// seed starts a seeder of a segment of size bytes.
func seed(t *testing.T, size int, change func(*Config)) (*node, *Torrent, []byte, *manifest.Manifest) {
	t.Helper()
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(content)
	m := manifesttest.Segment(content)
	n := start(t, "seeder", t.TempDir(), change)
	return n, n.pull(t, content, m), content, m
}

// pull puts a segment into the node's cache, and seeds or hands it out.
func (n *node) pull(t *testing.T, content []byte, m *manifest.Manifest) *Torrent {
	t.Helper()
	p, err := n.cache.Pull("x", 0, "etag", m.Size, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	e, err := p.Commit(m)
	if err != nil {
		t.Fatal(err)
	}
	torrent, err := n.HandOut(e, handout.Place{}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return torrent
}

// fetch begins to download what is seeded.
func (n *node) fetch(t *testing.T, from *Torrent, size int, onPiece func(int, bool)) *Torrent {
	t.Helper()
	f, err := n.Fetch(Fetch{InfoHash: from.InfoHash(), Shape: manifest.ShapeOf(int64(size)), OnPiece: onPiece})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// finish names the peers again and again, as callers do, until the build is whole
// and equal.
func finish(t *testing.T, f *Torrent, content []byte, peers ...peerwire.Peer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	named := make(chan struct{})
	go func() {
		defer close(named)
		f.nameUntil(ctx, peers...)
	}()
	defer func() { cancel(); <-named }()
	e, err := f.Entry(ctx, nil)
	if err != nil {
		t.Error(err)
		return
	}
	select {
	case <-f.Whole():
	case <-ctx.Done():
		t.Errorf("not whole in %s: %+v", timeout, f.Stats())
		return
	}
	got := make([]byte, len(content))
	if _, err := e.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("not the bytes that were seeded: %v", err)
	}
}

// nameUntil names peers again and again, as callers do.
func (t *Torrent) nameUntil(ctx context.Context, peers ...peerwire.Peer) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for t.AddPeers(peers); ; t.AddPeers(peers) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func TestOneToOne(t *testing.T) {
	const size = 8<<20 + 5
	s, from, content, m := seed(t, size, nil)
	n := start(t, "agent", t.TempDir(), nil)
	var verified atomic.Int64
	f := n.fetch(t, from, size, func(int, bool) { verified.Add(1) })
	finish(t, f, content, s.addr)
	if got := verified.Load(); got != int64(m.NumPieces()) {
		t.Errorf("told of %d pieces, not %d", got, m.NumPieces())
	}
	stats := f.Stats()
	if stats.VerifiedBytes != size || len(stats.Peers) != 1 || stats.Peers[0].ID != s.addr.ID || stats.Peers[0].Downloaded != size {
		t.Errorf("%+v", stats)
	}
	if again := n.fetch(t, from, size, nil); again != f {
		t.Error("the same build is in the engine twice")
	}
	f.DisconnectComplete()
	f.Drop()
	f.Drop() // again does nothing
	if _, err := f.Entry(t.Context(), nil); err != nil {
		t.Errorf("the entry stays: %v", err)
	}
	e, ok := n.cache.Entry(from.InfoHash())
	if !ok || !e.Whole() {
		t.Fatal("the entry left the cache")
	}
	if _, err := n.Seed(e, "build", nil); err != nil {
		t.Errorf("seeded after it was dropped: %v", err)
	}
}

func TestHandOutToSeveral(t *testing.T) {
	const size, agents = 16 << 20, 4
	s, from, content, _ := seed(t, size, handOut)
	peers := []peerwire.Peer{s.addr}
	var nodes []*node
	for i := range agents {
		n := start(t, fmt.Sprint("agent-", i), t.TempDir(), nil)
		nodes, peers = append(nodes, n), append(peers, n.addr)
	}
	done := make(chan struct{})
	for _, n := range nodes {
		f := n.fetch(t, from, size, nil)
		go func() {
			defer func() { done <- struct{}{} }()
			finish(t, f, content, peers...)
		}()
	}
	for range nodes {
		<-done
	}
	// Each on his own would be 4 times.
	if sent := from.Stats().UploadedBytes; sent > 2*size {
		t.Errorf("the seeder sent %.2f times the build", float64(sent)/size)
	}
}

// The segments of a build go side by side between the same members, who stay good ones.
func TestSegmentsSideBySide(t *testing.T) {
	const segments, size = 4, 2<<20 + 7
	s := start(t, "seeder", t.TempDir(), handOut)
	nodes := []*node{start(t, "agent-0", t.TempDir(), nil), start(t, "agent-1", t.TempDir(), nil)}
	var wg sync.WaitGroup
	for i := range segments {
		content := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(i)}).Read(content)
		from := s.pull(t, content, manifesttest.Segment(content))
		for _, n := range nodes {
			f := n.fetch(t, from, size, nil)
			wg.Go(func() { finish(t, f, content, s.addr, nodes[0].addr, nodes[1].addr) })
		}
	}
	wg.Wait()
	for _, n := range append(nodes, s) {
		if bad := n.BadPeers(); len(bad) != 0 {
			t.Errorf("%+v", bad)
		}
	}
}

// A single receiver is shown everything at once; once the build goes to others as
// well, whoever comes then is not.
func TestOneReceiverIsShownEverything(t *testing.T) {
	const size = 1 << 20
	s, dropped, content, m := seed(t, size, handOut)
	e, _ := s.cache.Entry(dropped.InfoHash())
	dropped.Drop()
	from, err := s.HandOut(e, handout.Place{}, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	first := start(t, "first", t.TempDir(), nil).fetch(t, from, size, nil)
	finish(t, first, content, s.addr)
	if has := first.Stats().Peers[0].Has; has != m.NumPieces() {
		t.Errorf("shown %d pieces of %d", has, m.NumPieces())
	}
	if _, counted := s.handout.Stats(from.InfoHash()); counted {
		t.Error("its pieces were handed out")
	}
	if again, err := s.HandOut(e, handout.Place{}, nil, false); err != nil || again != from {
		t.Fatalf("seeded again: %v, %v", again, err)
	}
	finish(t, start(t, "second", t.TempDir(), nil).fetch(t, from, size, nil), content, s.addr)
	if stats, _ := s.handout.Stats(from.InfoHash()); stats.Handed != m.NumPieces() {
		t.Errorf("%d pieces were handed out, of %d", stats.Handed, m.NumPieces())
	}
}

func TestRestartContinues(t *testing.T) {
	const size = 16 << 20
	s, from, content, m := seed(t, size, nil)
	dir := t.TempDir()
	first := start(t, "agent", dir, nil)
	half := make(chan struct{})
	var verified atomic.Int64
	f := first.fetch(t, from, size, func(int, bool) {
		if verified.Add(1) == int64(m.NumPieces()/2) {
			close(half)
		}
	})
	f.AddPeers([]peerwire.Peer{s.addr})
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if _, err := f.Entry(ctx, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-half:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	first.stop(t)
	again := start(t, "agent", dir, nil)
	e, ok := again.cache.Entry(from.InfoHash())
	if !ok {
		t.Fatal("nothing was kept")
	}
	missing := size - e.VerifiedBytes()
	f = again.fetch(t, from, size, nil)
	finish(t, f, content, s.addr)
	if got := f.Stats().DownloadedBytes; got > missing+2*m.PieceLength {
		t.Errorf("%d bytes were missing, %d were downloaded", missing, got)
	}
}

// An info dictionary that is not cut as was announced is refused, though its hash is right:
// who offers another length than follows from that is a bad peer.
func TestWrongShapeIsRefused(t *testing.T) {
	const size = 1 << 20
	s, from, _, m := seed(t, size, nil)
	for name, change := range map[string]func(*manifest.Shape){
		"size":         func(s *manifest.Shape) { s.Size++ },
		"piece length": func(s *manifest.Shape) { s.PieceLength *= 2 },
		"part length":  func(s *manifest.Shape) { s.PartLength *= 2 },
	} {
		t.Run(name, func(t *testing.T) {
			shape := m.Shape
			change(&shape)
			agent := start(t, "agent", t.TempDir(), nil)
			f, err := agent.Fetch(Fetch{InfoHash: from.InfoHash(), Shape: shape})
			if err != nil {
				t.Fatal(err)
			}
			f.AddPeers([]peerwire.Peer{s.addr})
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			if shape.InfoLength() != m.InfoLength() {
				eventually(t, func() bool { return len(agent.BadPeers()) == 1 })
				cancel()
				if _, err := f.Entry(ctx, nil); !errors.Is(err, context.Canceled) {
					t.Errorf("an info of another length: %v", err)
				}
				return
			}
			if _, err := f.Entry(ctx, nil); !errors.Is(err, manifest.ErrInvalid) {
				t.Errorf("an info of another shape: %v", err)
			}
		})
	}
}

func TestEntryCanBeWaitedForAgain(t *testing.T) {
	s, from, content, _ := seed(t, 1<<20, nil)
	f := start(t, "agent", t.TempDir(), nil).fetch(t, from, 1<<20, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Entry(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with nobody there: %v", err)
	}
	finish(t, f, content, s.addr)
}

func TestDropEndsTheWait(t *testing.T) {
	_, from, _, _ := seed(t, 1<<20, nil)
	f := start(t, "agent", t.TempDir(), nil).fetch(t, from, 1<<20, nil)
	end := make(chan error)
	go func() {
		_, err := f.Entry(t.Context(), nil)
		end <- err
	}()
	f.Drop()
	if err := <-end; !errors.Is(err, ErrDropped) {
		t.Errorf("%v", err)
	}
}

// Whoever is at the disk for one build keeps nobody from another, and who waits can
// go.
func TestNobodyWaitsForTheDiskOfAnotherBuild(t *testing.T) {
	n := start(t, "a", t.TempDir(), nil)
	at := manifest.InfoHash{1}
	atDisk, err := n.turns.Take(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan error)
	go func() {
		_, err := n.Fetch(Fetch{InfoHash: at, Shape: manifest.ShapeOf(1)})
		began <- err
	}()
	other, err := n.Fetch(Fetch{InfoHash: manifest.InfoHash{2}, Shape: manifest.ShapeOf(1)})
	if err != nil {
		t.Fatal(err)
	}
	other.Drop()
	select {
	case err := <-began:
		t.Fatalf("two add one build at a time: %v", err)
	default:
	}
	if _, ok := n.Torrent(at); ok {
		t.Fatal("two add one build at a time")
	}
	atDisk()
	if err := <-began; err != nil {
		t.Fatal(err)
	}
}

func TestPriorities(t *testing.T) {
	const size = 8 << 20
	s, from, content, m := seed(t, size, nil)
	f := start(t, "agent", t.TempDir(), nil).fetch(t, from, size, nil)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	f.AddPeers([]peerwire.Peer{s.addr})
	if _, err := f.Entry(ctx, nil); err != nil {
		t.Fatal(err)
	}
	f.Prioritize([][2]int{{0, 4}, {8, 12}})
	f.Prioritize([][2]int{{8, 12}, {12, m.NumPieces()}})
	f.Prioritize(nil)
	finish(t, f, content, s.addr)
}

// Nothing is asked for of a torrent that is held, while others come; then all of it is.
func TestHold(t *testing.T) {
	const size = 4 << 20
	s, from, content, _ := seed(t, size, nil)
	other := bytes.Repeat([]byte("other"), size/5)
	second := s.pull(t, other, manifesttest.Segment(other))
	agent := start(t, "agent", t.TempDir(), nil)
	f := agent.fetch(t, from, size, nil)
	f.Hold(true)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	f.AddPeers([]peerwire.Peer{s.addr})
	if _, err := f.Entry(ctx, nil); err != nil {
		t.Fatal(err)
	}
	finish(t, agent.fetch(t, second, len(other), nil), other, s.addr)
	if n := f.Stats().DownloadedBytes; n != 0 {
		t.Errorf("%d bytes have come of what is held", n)
	}
	f.Hold(false)
	finish(t, f, content, s.addr)
}

func TestWantedOnceAnnounced(t *testing.T) {
	const size = 20 * manifest.MinPieceLength
	seeder, seeded, content, m := seed(t, size, handOut)
	agent := start(t, "agent", t.TempDir(), nil)
	e, err := agent.cache.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Unpin()
	// The last piece is here from an earlier run, so that the one before it is
	// what makes the engine dial.
	last := m.NumPieces() - 1
	if _, err := e.WriteAt(content[int64(last)*m.PieceLength:], int64(last)*m.PieceLength); err != nil {
		t.Fatal(err)
	}
	if err := e.SetComplete(last, true); err != nil {
		t.Fatal(err)
	}
	f := agent.fetch(t, seeded, size, nil)
	for i := range last - 1 {
		if p := f.engine().PieceState(i).Priority; p != torrent.PiecePriorityNone {
			t.Fatalf("piece %d, which nobody has announced, is wanted: %v", i, p)
		}
	}
	finish(t, f, content, seeder.addr)
}

func TestRefusedPeersGetNothing(t *testing.T) {
	s, _, _, _ := seed(t, 1<<20, func(c *Config) {
		c.AllowPeer = func(a netip.Addr) bool { return a != netip.MustParseAddr("127.0.0.1") }
	})
	conn, err := net.Dial("tcp", s.addr.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// An ordinary client knows nothing of hand-outs and segments, and asks for 16 KiB at a
// time.
func TestOrdinaryClient(t *testing.T) {
	const size = 2*manifest.MinPartLength + 3
	s := start(t, "seeder", t.TempDir(), handOut)
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(content)
	var entries []*cache.Entry
	for segment := range slices.Chunk(content, manifest.MinPartLength) {
		e, _ := s.cache.Entry(s.pull(t, segment, manifesttest.Segment(segment)).InfoHash())
		entries = append(entries, e)
	}
	if _, err := s.SeedWhole("build", manifest.ShapeOf(size), entries[1:]); err == nil {
		t.Error("seeded without its first segment")
	}
	torrentFile, err := s.SeedWhole("build", manifest.ShapeOf(size), entries)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.SeedWhole("build", manifest.ShapeOf(size), entries); err != nil || !bytes.Equal(again, torrentFile) || len(s.wholes) != 1 {
		t.Errorf("asked for again: %v", err)
	}
	dir := t.TempDir()
	files := storage.NewFileWithCompletion(dir, storage.NewMapPieceCompletion())
	defer files.Close()
	tc := torrent.NewDefaultClientConfig()
	tc.NoDHT, tc.DisableTrackers, tc.DisableUTP, tc.NoDefaultPortForwarding, tc.DisableWebtorrent = true, true, true, true, true
	tc.ListenHost, tc.ListenPort = torrent.LoopbackListenHost, 0
	tc.DefaultStorage = files
	client, err := torrent.NewClient(tc)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	file, err := metainfo.Load(bytes.NewReader(torrentFile))
	if err != nil {
		t.Fatal(err)
	}
	download, err := client.AddTorrent(file)
	if err != nil {
		t.Fatal(err)
	}
	download.AddPeers([]torrent.PeerInfo{{Addr: net.TCPAddrFromAddrPort(s.addr.Addr)}})
	download.DownloadAll()
	select {
	case <-download.Complete().On():
	case <-time.After(timeout):
		t.Fatalf("%d of %d bytes in %s", download.BytesCompleted(), size, timeout)
	}
	got, err := os.ReadFile(filepath.Join(dir, download.Name()))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("not the bytes that were seeded: %v", err)
	}
	if s.DropSegment(entries[1].InfoHash()); len(s.wholes) != 0 {
		t.Error("seeded although a segment has left the cache")
	}
	for i := range maxWholes + 2 {
		if _, err := s.SeedWhole(fmt.Sprint("build ", i), manifest.ShapeOf(size), entries); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.wholes) != maxWholes {
		t.Errorf("%d builds are seeded whole", len(s.wholes))
	}
}

func TestSeedNeedsAll(t *testing.T) {
	_, _, _, m := seed(t, 1<<20, nil)
	n := start(t, "agent", t.TempDir(), nil)
	e, err := n.cache.Create("made", m, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Seed(e, "build", nil); err == nil {
		t.Error("a build with pieces missing was seeded")
	}
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Error(err)
	}
	if _, err := n.Fetch(Fetch{InfoHash: e.InfoHash(), Shape: m.Shape}); err == nil {
		t.Error("fetched after the end")
	}
}

// unwritten is a log that nobody can write to any more.
type unwritten struct{ slog.Handler }

func (unwritten) Enabled(context.Context, slog.Level) bool  { return true }
func (unwritten) Handle(context.Context, slog.Record) error { return errors.New("broken pipe") }
func (h unwritten) WithAttrs([]slog.Attr) slog.Handler      { return h }
func (h unwritten) WithGroup(string) slog.Handler           { return h }

// A log that cannot be written, whose reader is gone or whose disk is full, ends nothing.
func TestLogThatCannotBeWritten(t *testing.T) {
	const size = 1 << 20
	noLog := func(c *Config) { c.Logger = slog.New(unwritten{}) }
	s, from, content, _ := seed(t, size, noLog)
	n := start(t, "agent", t.TempDir(), noLog)
	finish(t, n.fetch(t, from, size, nil), content, s.addr)
}

// What is asked of a peer at a time is a piece, or what the Config or the engine bears.
func TestChunkSize(t *testing.T) {
	for _, c := range []struct{ piece, most, want int64 }{
		{128 << 10, 0, 128 << 10},
		{128 << 10, 1 << 20, 128 << 10},
		{128 << 10, 32 << 10, 32 << 10},
		{256 << 10, 128 << 10, 128 << 10},
		{512 << 10, 0, maxChunk},
		{512 << 10, 1 << 20, maxChunk},
	} {
		s := &Swarm{cfg: Config{MaxChunk: c.most}}
		if got := s.chunkSize(manifest.Shape{PieceLength: c.piece}); int64(got) != c.want {
			t.Errorf("pieces of %d, at most %d: %d, want %d", c.piece, c.most, got, c.want)
		}
	}
}
