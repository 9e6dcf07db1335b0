package swarm

import (
	"bytes"
	"log/slog"
	"net"
	"testing"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/storage"
	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
)

// A peer whose connection ends in the moment in which a torrent's info comes harms neither the
// torrent's end nor the engine's.
func TestPeerGoneAsTheInfoComes(t *testing.T) {
	others := goleak.IgnoreCurrent()
	m := manifesttest.Segment(make([]byte, 1<<20))
	tc := torrent.NewDefaultClientConfig()
	tc.NoDHT, tc.DisableTrackers, tc.DisableUTP, tc.DisableTCP, tc.NoDefaultPortForwarding, tc.DisableWebtorrent = true, true, true, true, true, true
	files := storage.NewFileWithCompletion(t.TempDir(), storage.NewMapPieceCompletion())
	defer files.Close()
	tc.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{Preferred: false, RequirePreferred: true}
	tc.DefaultStorage = files
	client, err := torrent.NewClient(tc)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client.AddDialer(torrent.NetworkDialer{Network: "tcp", Dialer: new(net.Dialer)})
	log := new(bytes.Buffer)
	s := &Swarm{client: client}
	s.cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	for range 500 { // which of the two comes first is not ours to say
		engine, _ := client.AddTorrentInfoHash(metainfo.Hash(m.InfoHash()))
		engine.AddPeers([]torrent.PeerInfo{{Addr: l.Addr()}})
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(append(handshake(m.InfoHash(), [20]byte{1}), pp.Message{Type: pp.Have, Index: 0}.MustMarshalBinary()...)); err != nil {
			t.Fatal(err)
		}
		var peer *torrent.PeerConn
		eventually(t, func() bool {
			for _, peer = range engine.PeerConns() {
				return peer.PeerPieces().Contains(0)
			}
			return false
		})
		if err := peer.Close(); err != nil {
			t.Fatal(err)
		}
		if err := engine.SetInfoBytes(m.InfoBytes()); err != nil {
			t.Fatal(err)
		}
		s.drop(engine)
		if s.miscounted.Load() {
			break
		}
	}
	// Else the engine is mended, and drop needs no guard.
	if !s.miscounted.Load() || !bytes.Contains(log.Bytes(), []byte("miscounted")) {
		t.Errorf("the engine has not miscounted: %s", log)
	}
	if again, added := client.AddTorrentInfoHash(metainfo.Hash(m.InfoHash())); !added {
		t.Error("the torrent cannot be added again")
	} else {
		s.drop(again)
	}
	// Nobody may need the engine's lock after this.
	eventually(t, func() bool {
		return goleak.Find(others, goleak.IgnoreTopFunction("github.com/anacrolix/torrent.(*Client).acceptLimitClearer")) == nil
	})
	s.abandonEngine()
}
