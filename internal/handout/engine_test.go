package handout

import (
	"context"
	"crypto/sha1"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/storage"
	"golang.org/x/time/rate"

	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	enginePiece = 256 << 10
	engineSize  = 32 << 20
)

// engineSettings are those of every engine here: loopback only, nobody is found
// but who is named.
func engineSettings(t *testing.T) *torrent.ClientConfig {
	c := torrent.NewDefaultClientConfig()
	c.DataDir = t.TempDir()
	c.SetListenAddr("127.0.0.1:0")
	c.NoDHT, c.DisableTrackers, c.DisablePEX, c.DisableUTP = true, true, true, true
	c.NoDefaultPortForwarding, c.DisableWebtorrent, c.DisableWebseeds, c.DisableIPv6 = true, true, true, true
	c.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{RequirePreferred: true}
	c.Seed = true
	c.MaxUnverifiedBytes = 0 // what is hidden would use it up
	c.Slogger = slog.New(slog.DiscardHandler)
	c.DefaultStorage = storage.NewFileOpts(storage.NewFileClientOpts{
		ClientBaseDir:   c.DataDir,
		PieceCompletion: storage.NewMapPieceCompletion(),
	})
	return c
}

func startEngine(t *testing.T, c *torrent.ClientConfig) *torrent.Client {
	t.Helper()
	client, err := torrent.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range client.Close() {
			t.Error(err)
		}
	})
	return client
}

// wrapping is a listener whose connections have the hand-out in them.
type wrapping struct {
	net.Listener
	set *Set
}

func (w wrapping) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return w.set.Wrap(c), nil
}

// seeder is an engine that has everything, behind a Set.
type seeder struct {
	t    *testing.T
	set  *Set
	addr net.Addr
	info []byte
	hash metainfo.Hash
	*torrent.Torrent
}

func newSeeder(t *testing.T) *seeder {
	t.Helper()
	data := make([]byte, engineSize)
	rand.NewChaCha8([32]byte{1}).Read(data)
	info := metainfo.Info{Name: "build", Length: engineSize, PieceLength: enginePiece}
	for at := 0; at < engineSize; at += enginePiece {
		sum := sha1.Sum(data[at : at+enginePiece])
		info.Pieces = append(info.Pieces, sum[:]...)
	}
	s := &seeder{t: t, set: NewSet(Config{}), info: bencode.MustMarshal(info)}
	s.hash = metainfo.HashBytes(s.info)

	c := engineSettings(t)
	if err := os.WriteFile(filepath.Join(c.DataDir, "build"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	c.DisableTCP, c.DialForPeerConns = true, false
	// As a rule the uplink is the slow link. On loopback the trade among the others would
	// lag behind it wherever the machine is busy, and second copies would be right.
	c.UploadRateLimiter = rate.NewLimiter(16<<20, 4*enginePiece)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.set.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	client := startEngine(t, c)
	t.Cleanup(func() { l.Close() }) // the engine does not
	client.AddListener(wrapping{l, s.set})
	s.set.Add(manifest.InfoHash(s.hash), Place{}, false, info.NumPieces(), enginePiece)
	s.Torrent, _ = client.AddTorrentOpt(torrent.AddTorrentOpts{InfoHash: s.hash, InfoBytes: s.info, ChunkSize: enginePiece})
	if err := s.VerifyDataContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.BytesMissing() != 0 {
		t.Fatal("the seeder lacks something")
	}
	return s
}

// sent is how many bytes of payload the seeder has given away.
func (s *seeder) sent() int64 {
	stats := s.Stats()
	return stats.BytesWrittenData.Int64()
}

// leecher adds an engine that asks for blocks of chunk bytes.
func (s *seeder) leecher(chunk pp.Integer) (*torrent.Client, *torrent.Torrent) {
	s.t.Helper()
	client := startEngine(s.t, engineSettings(s.t))
	tt, _ := client.AddTorrentOpt(torrent.AddTorrentOpts{InfoHash: s.hash, InfoBytes: s.info, ChunkSize: chunk})
	tt.DownloadAll()
	return client, tt
}

// wait until a torrent is complete.
func (s *seeder) wait(tt *torrent.Torrent) {
	s.t.Helper()
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	select {
	case <-tt.Complete().On():
	case <-timer.C:
		stats, _ := s.set.Stats(manifest.InfoHash(s.hash))
		s.t.Fatalf("%d of %d bytes; %+v", tt.BytesCompleted(), int64(engineSize), stats)
	}
}

func (s *seeder) peer() torrent.PeerInfo {
	return torrent.PeerInfo{Addr: s.addr, Trusted: true}
}

func TestEngines(t *testing.T) {
	if testing.Short() {
		t.Skip("needs some seconds")
	}
	tests := map[string]struct {
		leechers int
		chunk    pp.Integer
	}{
		"four that trade":           {4, enginePiece},
		"four ordinary ones":        {4, 16 << 10},
		"one alone":                 {1, enginePiece},
		"an ordinary one all alone": {1, 16 << 10},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSeeder(t)
			var clients []*torrent.Client
			var torrents []*torrent.Torrent
			for range test.leechers {
				client, tt := s.leecher(test.chunk)
				clients, torrents = append(clients, client), append(torrents, tt)
			}
			start := time.Now()
			for i, tt := range torrents {
				for _, other := range clients[:i] {
					tt.AddClientPeer(other)
				}
				tt.AddPeers([]torrent.PeerInfo{s.peer()})
			}
			for _, tt := range torrents {
				s.wait(tt)
			}
			stats, _ := s.set.Stats(manifest.InfoHash(s.hash))
			t.Logf("%v, the seeder sent %.3f × the build; %+v",
				time.Since(start), float64(s.sent())/engineSize, stats)
			if s.sent() > engineSize*5/4 {
				t.Errorf("the seeder sent %d bytes for a build of %d", s.sent(), engineSize)
			}
		})
	}
}

// TestEngineJoinsLate: after the others are done and gone, whose copies the queue
// still counts.
func TestEngineJoinsLate(t *testing.T) {
	if testing.Short() {
		t.Skip("needs some seconds")
	}
	s := newSeeder(t)
	first, one := s.leecher(enginePiece)
	second, two := s.leecher(enginePiece)
	two.AddClientPeer(first)
	one.AddPeers([]torrent.PeerInfo{s.peer()})
	two.AddPeers([]torrent.PeerInfo{s.peer()})
	s.wait(one)
	s.wait(two)
	first.Close()
	second.Close()
	_, late := s.leecher(enginePiece)
	late.AddPeers([]torrent.PeerInfo{s.peer()})
	s.wait(late)
}
