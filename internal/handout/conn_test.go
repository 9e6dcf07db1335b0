package handout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// patience bounds what a test waits for.
const patience = 20 * time.Second

// tcpPair returns two ends of a connection over loopback.
func tcpPair(t testing.TB) (accepted, dialed net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return accepted, dialed
}

// pair is an engine's wrapped end and the peer's.
type pair struct {
	t      testing.TB
	engine net.Conn
	peer   net.Conn
}

// newPair connects a peer that has sent and been sent the handshakes, and has
// nothing.
func newPair(t testing.TB, s *Set, infohash manifest.InfoHash) *pair {
	t.Helper()
	accepted, dialed := tcpPair(t)
	p := &pair{t, s.Wrap(accepted), dialed}
	t.Cleanup(func() { p.engine.Close(); p.peer.Close() })
	deadline := time.Now().Add(patience)
	p.engine.SetDeadline(deadline)
	p.peer.SetDeadline(deadline)
	hello := greeting(infohash, true)
	p.toPeer(hello[:28]) // as the engine does, before it has read anything
	p.toEngine(hello)
	p.toPeer(hello[28:])
	p.expect(hello)
	p.toPeer(join(extended, message(kindHaveAll)))
	return p
}

func (p *pair) toPeer(b []byte) {
	p.t.Helper()
	if n, err := p.engine.Write(b); err != nil || n != len(b) {
		p.t.Fatalf("engine wrote %d of %d bytes: %v", n, len(b), err)
	}
}

// toEngine has the peer write and the engine read, which sees the same.
func (p *pair) toEngine(b []byte) {
	p.t.Helper()
	if _, err := p.peer.Write(b); err != nil {
		p.t.Fatal(err)
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(p.engine, got); err != nil || !bytes.Equal(got, b) {
		p.t.Fatalf("engine read %q, %v; peer wrote %q", got, err, b)
	}
}

// expect has the peer read exactly that.
func (p *pair) expect(want []byte) {
	p.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(p.peer, got); err != nil || !bytes.Equal(got, want) {
		p.t.Fatalf("peer read %q, %v; want %q", got[:n], err, want)
	}
}

func newTestSet(pieces int) *Set {
	s := NewSet(Config{})
	s.Add(testHash, Place{}, false, pieces, 256<<10)
	return s
}

func (s *Set) mustStats(t testing.TB) Stats {
	t.Helper()
	stats, ok := s.Stats(testHash)
	if !ok {
		t.Fatal("no such torrent")
	}
	return stats
}

func TestOffersAreWrittenWhileTheEngineIsIdle(t *testing.T) {
	s := newTestSet(8)
	p := newPair(t, s, testHash)
	p.expect(join(extended, haveNone))
	p.toEngine(message(kindHaveNone))
	p.expect(join(have(0), have(1), have(2), have(3), have(4)))
	p.toEngine(have(0))
	p.expect(have(5))
	p.toPeer(join(have(7), unchoke)) // its own Have is not shown
	p.expect(unchoke)
	if st := s.mustStats(t); st.Peers != 1 || st.Owned != 1 || st.Handed != 6 {
		t.Errorf("%+v", st)
	}
}

func TestOffersWaitForTheEndOfAMessage(t *testing.T) {
	p := newPair(t, newTestSet(5), testHash)
	p.expect(join(extended, haveNone))
	p.toPeer(block[:100])
	p.toEngine(message(kindHaveNone))
	if err := p.engine.(*conn).flush(); err != nil { // as inject does
		t.Fatal(err)
	}
	p.expect(block[:100])
	p.toPeer(block[100:200])
	p.toPeer(join(block[200:], unchoke))
	p.expect(join(block[100:], have(0), have(1), have(2), have(3), have(4), unchoke))
}

func TestOffersWaitForTheEnginesFirstMessage(t *testing.T) {
	accepted, dialed := tcpPair(t)
	p := &pair{t, newTestSet(1).Wrap(accepted), dialed}
	defer p.peer.Close()
	defer p.engine.Close()
	p.peer.SetDeadline(time.Now().Add(patience))
	hello := greeting(testHash, true)
	p.toEngine(join(hello, message(kindHaveNone)))
	p.toPeer(join(hello, extended))
	p.toPeer(message(kindHaveAll))
	p.expect(join(hello, extended, haveNone, have(0)))
}

// TestStreamStaysWhole writes blocks in random stretches while offers come in
// between, and takes the result apart again.
func TestStreamStaysWhole(t *testing.T) {
	const pieces, blocks = 400, 300
	r := rand.New(rand.NewPCG(1, 0))
	p := newPair(t, newTestSet(pieces), testHash)
	p.expect(join(extended, haveNone))

	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // the engine writes
		for range blocks {
			b := join(message(), have(1), block)
			for _, part := range split(b, randomSplit(r, r.IntN(8))) {
				if _, err := p.engine.Write(part); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	wg.Go(func() { // and reads
		if _, err := io.CopyN(io.Discard, p.engine, int64(5+pieces*haveLength)); err != nil {
			t.Error(err)
		}
	})
	if _, err := p.peer.Write(message(kindHaveNone)); err != nil {
		t.Fatal(err)
	}
	kept, given := 0, 0
	for kept < 2*blocks || given < pieces {
		header := make([]byte, 4)
		if _, err := io.ReadFull(p.peer, header); err != nil {
			t.Fatalf("after %d messages and %d offers: %v", kept, given, err)
		}
		body := make([]byte, min(binary.BigEndian.Uint32(header), 1<<20))
		if _, err := io.ReadFull(p.peer, body); err != nil {
			t.Fatal(err)
		}
		switch got := join(header, body); {
		case bytes.Equal(got, have(uint32(given))):
			given++
			if _, err := p.peer.Write(got); err != nil {
				t.Fatal(err)
			}
		case bytes.Equal(got, message()), bytes.Equal(got, block):
			kept++
		default:
			t.Fatalf("after %d messages and %d offers: %.40q", kept, given, got)
		}
	}
}

// TestPeerThatDoesNotReadHoldsUpNobody over pipes, which buffer nothing.
func TestPeerThatDoesNotReadHoldsUpNobody(t *testing.T) {
	s := newTestSet(1000)
	engine, stuck := net.Pipe()
	wrapped := s.Wrap(engine)
	defer stuck.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer wrapped.Close()
	wg.Go(func() { stuck.Write(join(greeting(testHash, true), message(kindHaveNone))) })
	if _, err := io.ReadFull(wrapped, make([]byte, handshakeLength)); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { wrapped.Write(join(greeting(testHash, true), message(kindHaveAll), block)) }) // never returns before Close
	if _, err := io.ReadFull(wrapped, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if st := s.mustStats(t); st.Handed != initialWindow {
		t.Fatalf("%+v", st)
	}
	p := newPair(t, s, testHash)
	p.expect(join(extended, haveNone))
	p.toEngine(message(kindHaveNone))
	for i := range uint32(500) {
		p.expect(have(initialWindow + i))
		p.toEngine(have(initialWindow + i))
	}
}

func TestWhatIsNotOursPassesThrough(t *testing.T) {
	hello := greeting(manifest.InfoHash{9}, true)
	tests := map[string]struct{ in, out []byte }{
		"another torrent": {join(hello, message(kindHaveAll)), join(hello, message(kindHaveAll), have(1), block)},
		"other protocol":  {[]byte("GET / HTTP/1.1\r\nHost: landfall.example\r\n\r\n"), []byte("HTTP/1.1 400 Bad Request\r\n\r\n")},
		"other greeting":  {bytes.Repeat([]byte{1}, 100), join(greeting(testHash, true), message(kindHaveAll))},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newTestSet(8)
			accepted, dialed := tcpPair(t)
			p := &pair{t, s.Wrap(accepted), dialed}
			defer p.peer.Close()
			defer p.engine.Close()
			p.peer.SetDeadline(time.Now().Add(patience))
			p.toEngine(test.in)
			for _, part := range split(test.out, []byte{27, 39, 3, 0, 0}) {
				p.toPeer(part)
			}
			p.expect(test.out)
			if st := s.mustStats(t); st.Peers != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestPeerLeaves(t *testing.T) {
	tests := map[string]func(p *pair){
		"the engine closes": func(p *pair) { p.engine.Close(); p.engine.Close() },
		"the peer closes": func(p *pair) {
			p.peer.Close()
			if _, err := p.engine.Read(make([]byte, 1)); err == nil {
				p.t.Error("read from a closed connection")
			}
		},
	}
	for name, end := range tests {
		t.Run(name, func(t *testing.T) {
			s := newTestSet(8)
			p := newPair(t, s, testHash)
			p.toEngine(message(kindHaveNone))
			end(p)
			if st := s.mustStats(t); st.Peers != 0 || st.Requeued != initialWindow {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestPassedReadDeadlineIsNoEnd(t *testing.T) {
	s := newTestSet(8)
	p := newPair(t, s, testHash)
	p.engine.SetReadDeadline(time.Unix(1, 0))
	if _, err := p.engine.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	p.engine.SetReadDeadline(time.Time{})
	p.toEngine(message(kindHaveNone))
	if st := s.mustStats(t); st.Peers != 1 || st.Handed != initialWindow {
		t.Errorf("%+v", st)
	}
}

func TestNothingFollowsACutMessage(t *testing.T) {
	p := newPair(t, newTestSet(8), testHash)
	p.engine.SetWriteDeadline(time.Unix(1, 0))
	if n, err := p.engine.Write(unchoke); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(n, err)
	}
	p.engine.SetWriteDeadline(time.Time{})
	if _, err := p.engine.Write(unchoke); err == nil {
		t.Error("written after an error")
	}
}

func TestTooManyConnections(t *testing.T) {
	s := newTestSet(8)
	q := s.queues[testHash]
	for range maxPeers {
		q.connect([20]byte{}, func(...int) {})
	}
	accepted, dialed := tcpPair(t)
	defer dialed.Close()
	engine := s.Wrap(accepted)
	defer engine.Close()
	if _, err := dialed.Write(greeting(testHash, true)); err != nil {
		t.Fatal(err)
	}
	engine.SetDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, engine); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestSetRemove(t *testing.T) {
	s := newTestSet(8)
	p := newPair(t, s, testHash)
	p.toEngine(message(kindHaveNone))
	s.Add(testHash, Place{}, false, 99, 1) // changes nothing
	if st := s.mustStats(t); st.Pieces != 8 || st.Peers != 1 {
		t.Errorf("%+v", st)
	}
	s.Remove(testHash)
	if _, ok := s.Stats(testHash); ok {
		t.Error("is still there")
	}
	p.toEngine(have(1))
	p.engine.Close()
}

// sink is a connection that takes everything.
type sink struct {
	net.Conn
	in io.Reader
}

func (s sink) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s sink) Write(b []byte) (int, error) { return len(b), nil }
func (s sink) Close() error                { return nil }

func TestPeerThatIsGoneBeforeItsGreetingIsRead(t *testing.T) {
	s := newTestSet(8)
	engine := s.Wrap(sink{in: bytes.NewReader(join(greeting(testHash, true), message(kindHaveNone)))})
	engine.Close()
	if _, err := engine.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if st := s.mustStats(t); st.Peers != 0 {
		t.Errorf("%+v", st)
	}
}

// BenchmarkConnWrite is a seeder that serves blocks of 256 KiB, with an offer now
// and then; over loopback it is the system's TCP that is measured.
func BenchmarkConnWrite(b *testing.B) {
	hello := greeting(testHash, true)
	piece := message(append([]byte{7}, make([]byte, 8+256<<10)...)...)
	for _, name := range []string{"sink", "loopback", "loopback unwrapped"} {
		b.Run(name, func(b *testing.B) {
			s := newTestSet(1 << 16)
			var engine net.Conn
			var wg sync.WaitGroup
			defer wg.Wait()
			if name == "sink" {
				engine = s.Wrap(sink{in: bytes.NewReader(join(hello, message(kindHaveNone)))})
			} else {
				accepted, dialed := tcpPair(b)
				dialed.Write(join(hello, message(kindHaveNone)))
				wg.Go(func() {
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{dialed}, make([]byte, 1<<20))
				})
				defer dialed.Close()
				if engine = accepted; name == "loopback" {
					engine = s.Wrap(accepted)
				}
			}
			defer engine.Close()
			if _, err := io.ReadFull(engine, make([]byte, len(hello)+5)); err != nil {
				b.Fatal(err)
			}
			engine.Write(join(hello, message(kindHaveAll)))
			b.SetBytes(int64(len(piece)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := engine.Write(piece); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
