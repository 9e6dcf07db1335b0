package peerwire

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// sayer is a peer that says something, cut into pieces, and hangs up.
type sayer struct {
	net.Conn // nil: nothing else is called
	says     []byte
	cut      int
	heard    bytes.Buffer
}

func (s *sayer) Read(b []byte) (int, error) {
	if len(s.says) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), s.cut)], s.says)
	s.says = s.says[n:]
	return n, nil
}

func (s *sayer) Write(b []byte) (int, error)      { return s.heard.Write(b) }
func (s *sayer) Close() error                     { return nil }
func (s *sayer) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 1} }
func (s *sayer) SetDeadline(time.Time) error      { return nil }
func (s *sayer) SetWriteDeadline(time.Time) error { return nil }

// handshake is that of BEP 3.
func handshake(infohash manifest.InfoHash, id [20]byte) []byte {
	b := append([]byte(pp.Protocol), make([]byte, 8)...)
	return append(append(b, infohash[:]...), id[:]...)
}

// greeted is what came of a handshake: what the engine has read and the peer has heard,
// why it ended, and for whom it was taken.
type greeted struct {
	read, heard string
	err         error
	known       bool
	infohash    manifest.InfoHash
	id          [20]byte
	begun       int
}

// greetOnce lets a peer say something to a Wire of its own.
func greetOnce(says []byte, cut int, inbound, allowed bool) (g greeted) {
	member := PeerID("a")
	w := &Wire{
		cfg: Config{
			Member: func(id [20]byte) (m Member) {
				if id == member {
					m = Member{Name: "a-1", ID: "a", Region: "region-a"}
				}
				return m
			},
			Begin: func(_ *Conn, infohash manifest.InfoHash) (Torrent, error) {
				g.begun++
				switch infohash[0] {
				case 1:
					return nil, ErrNoDestination
				case 2:
					return nil, ErrNoPlace
				}
				return nil, nil
			},
			Logger: slog.New(slog.DiscardHandler),
		},
		conduct: newConduct(time.Now), notices: newNotices(), doors: newDoors(),
	}
	peer := &sayer{says: says, cut: cut}
	c := w.watch(w.newLink(peer), [20]byte{}, "192.0.2.1:7777")
	c.inbound, c.allowed = inbound, allowed
	if !inbound {
		c.dialled = PeerID("b")
	}
	if _, err := io.WriteString(c, "the engine's own"); err != nil {
		g.err = err
		return g
	}
	var read bytes.Buffer
	_, g.err = io.CopyBuffer(&read, struct{ io.Reader }{c}, make([]byte, 100))
	g.read, g.heard, g.id = read.String(), peer.heard.String(), c.id
	if key := c.key.Load(); key != nil {
		g.known, g.infohash = true, key.infohash
		if w.Conn(c.remote, key.infohash) != c {
			panic("not among the connections")
		}
	}
	c.Close()
	for range w.Conns() {
		panic("closed, and among the connections")
	}
	if silent, greeting, strangers := w.doors.count(); silent+greeting+strangers > 0 {
		panic("closed, and in a place")
	}
	return g
}

// FuzzHandshake: a handshake is read the same however it comes in pieces, nothing comes to
// the engine that the peer has not said, and nothing that the engine says to a peer that is
// not admitted.
func FuzzHandshake(f *testing.F) {
	whole := handshake(manifest.InfoHash{9}, PeerID("a"))
	f.Add(whole, uint8(1), true, false)
	f.Add(append(bytes.Clone(whole), 0, 0, 0), uint8(67), true, false)
	f.Add(handshake(manifest.InfoHash{1}, PeerID("a")), uint8(100), true, true) // no destination
	f.Add(handshake(manifest.InfoHash{2}, PeerID("a")), uint8(100), true, true) // no place
	f.Add(handshake(manifest.InfoHash{9}, PeerID("c")), uint8(20), true, true)  // a stranger
	f.Add(handshake(manifest.InfoHash{9}, PeerID("c")), uint8(20), true, false)
	for _, id := range [][20]byte{RefusedID, unwantedID, fullID} {
		f.Add(handshake(manifest.InfoHash{9}, id), uint8(48), false, false)
	}
	f.Add(whole[:67], uint8(100), true, false)
	f.Add([]byte("\x13BitTorrent protocoL"), uint8(3), true, true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(100), true, true)
	const own = "the engine's own"
	f.Fuzz(func(t *testing.T, says []byte, cut uint8, inbound, allowed bool) {
		says = says[:min(len(says), handshakeLength+3)] // no whole message: those are FuzzMessages'
		g := greetOnce(says, max(1, int(cut)), inbound, allowed)
		if at := greetOnce(says, len(says)+1, inbound, allowed); at.known != g.known || at.id != g.id || at.infohash != g.infohash || at.begun != g.begun || at.heard != g.heard || (at.err == nil) != (g.err == nil) {
			t.Fatalf("in pieces %+v, at once %+v", g, at)
		}
		if !strings.HasPrefix(string(says), g.read) {
			t.Fatalf("%q was read, and %q said", g.read, says)
		}
		isHandshake := len(says) >= handshakeLength && string(says[:len(pp.Protocol)]) == pp.Protocol
		switch {
		case g.known && (!isHandshake || g.infohash != manifest.InfoHash(says[28:48]) || g.id != [20]byte(says[48:68])):
			t.Fatalf("taken for %q of %s", g.id, g.infohash)
		case g.known && (g.err != nil || g.read != string(says) || g.begun != 1):
			t.Fatalf("known, and %+v", g)
		case !g.known && isHandshake && g.err == nil:
			t.Fatal("a whole handshake is neither taken nor refused")
		case g.known && inbound && !allowed && g.id != PeerID("a"):
			t.Fatal("a stranger was taken")
		}
		switch answer, ours := strings.CutPrefix(g.heard, own); {
		case !inbound || g.known:
			if !ours || answer != "" {
				t.Fatalf("heard %q", g.heard)
			}
		case g.heard != "" && (len(g.heard) != handshakeLength || !strings.HasPrefix(g.heard[48:], IDPrefix+"refused-")):
			t.Fatalf("not admitted, and heard %q", g.heard)
		}
	})
}
