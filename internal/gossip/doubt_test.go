package gossip

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/landfall-dist/landfall/internal/announce"
)

// accuse tells a member that another one is dead, with the greatest number there is, as
// whoever has the gossip key can: a message of memberlist's, a map in MessagePack.
func accuse(t *testing.T, to *node, name string) {
	t.Helper()
	text := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	const dead = 5
	b := text([]byte{dead, 0x83}, "Incarnation")
	b = binary.BigEndian.AppendUint32(append(b, 0xce), math.MaxUint32)
	b = text(text(text(text(b, "Node"), name), "From"), "nobody")
	c, err := net.Dial("udp", to.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// Who is said to be dead and answers stays a member; who does not answer any more is none.
func TestForgedDeath(t *testing.T) {
	log := listen()
	s := start(t, seeder("s"), log.logger)
	a := start(t, agent("a", "a"), join(s))
	killed, err := New(Config{
		Meta: agent("killed", "b"), Listen: "127.0.0.1:0", Join: []string{s.Addr()},
		Book: announce.NewBook(trust, nil), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var joining sync.WaitGroup
	joining.Go(func() { killed.join(ctx) })
	s.await(t, 3)
	for _, name := range []string{a.Name(), killed.Name()} {
		accuse(t, s, name)
	}
	log.line(t, "level=WARN", "member is said to be dead, and answers")
	// What it says goes out as before.
	for len(s.progress) > 0 {
		<-s.progress
	}
	a.Report(Progress{Node: a.Name(), Region: "a", Bucket: "a-builds"})
	if p := receive(t, s.progress); p.Node != a.Name() {
		t.Errorf("progress of %s", p.Node)
	}
	if n := len(s.Members()); n != 3 {
		t.Errorf("%d members", n)
	}
	// Again and again changes nothing.
	for range 20 {
		accuse(t, s, a.Name())
	}
	cancel()
	joining.Wait()
	if err := killed.list.Shutdown(); err != nil { // no good-bye
		t.Fatal(err)
	}
	log.line(t, "member is dead or cut off", "member="+killed.Name())
	s.await(t, 2)
	if strings.Contains(log.String(), "cut off\" member="+a.Name()) {
		t.Error("who answers is taken for dead")
	}
	a.stop()
	log.line(t, "member left", "member="+a.Name())
	s.await(t, 1)
}
