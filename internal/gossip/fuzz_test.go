package gossip

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/landfall-dist/landfall/internal/announce"
)

// FuzzMeta: whatever a member says of itself, what it is taken for is within its bounds, and
// what counts as signed by it is what it says.
func FuzzMeta(f *testing.F) {
	b, err := json.Marshal(Meta{ID: "a1", Role: Agent, Region: "region-a", Bucket: "a-builds", PeerPort: 7, HTTPPort: 8, Cert: "x", Hello: "y", Trusts: []string{"z"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a1-01", b)
	f.Add("a1-01", append(bytes.TrimSuffix(b, []byte("}")), signatureField+`AAAA"}`...))
	f.Add("s1-01", []byte(`{"id":"s1","role":"seeder","sig":"AAAA","sig":"BBBB"}`))
	f.Fuzz(func(t *testing.T, name string, meta []byte) {
		n := &memberlist.Node{Name: name, Addr: net.IPv4(10, 0, 0, 1), Port: 7, Meta: meta}
		if m, ok := member(n); ok {
			if len(m.ID) > maxName || len(m.Region) > maxName || len(m.Table) > maxTable || m.Role != Seeder && announce.CheckBucketName(m.Bucket) != nil {
				t.Errorf("taken for %+v", m)
			}
			if isSeeder(meta) != (m.Role == Seeder) || isCertified(meta) != (m.Cert != "") {
				t.Errorf("judged as another: %+v", m)
			}
		}
		_ = startOf(name)
		message, signature, err := signedMeta(name, "10.0.0.1:7", meta)
		if err != nil {
			return
		}
		// The signature is the end of the meta, and covers all before it.
		said, ok := strings.CutPrefix(string(message), name+"\x0010.0.0.1:7\x00")
		if !ok || !bytes.HasPrefix(meta, []byte(said)) || len(said)+len(signatureField)+len(signature) > len(meta) {
			t.Errorf("%q is signed of %q", said, meta)
		}
	})
}

// FuzzGreeting: who greets has a name and an address within bounds, or is told why not.
func FuzzGreeting(f *testing.F) {
	f.Add([]byte(`{"n":"a1-01","a":"10.0.0.1:7946"}`))
	f.Add([]byte(`{"n":"a1-01","a":"[fe80::1%eth0]:0"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		name, addr, err := readGreeting(body)
		if err == nil && (!addr.IsValid() || len(name) > maxHello) {
			t.Errorf("%q greets from %s", name, addr)
		}
	})
}

// fed is a connection that has received all that it will.
type fed struct {
	net.Conn
	io.Reader
}

func (f fed) Read(b []byte) (int, error) { return f.Reader.Read(b) }
func (fed) Close() error                 { return nil }
func (fed) RemoteAddr() net.Addr         { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7} }

// FuzzStream: whatever a connection begins with, no more is read of it than came, in its
// order, nothing is kept back beyond the bounds, and all that was taken is given back.
func FuzzStream(f *testing.F) {
	f.Add([]byte{encryptedMessage, 0, 0, 0, 4, 1, 2, 3, 4, 5})
	f.Add([]byte{encryptedMessage, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{6, 1, 2, 3})
	f.Fuzz(func(t *testing.T, came []byte) {
		g := &gate{ctx: t.Context(), places: make(chan struct{}, 1)}
		closed := false
		s := &stream{Conn: fed{Reader: bytes.NewReader(came)}, left: maxStream, gate: g, warn: func(string, ...any) {}, closed: func() { closed = true }}
		read, _ := io.ReadAll(s) // it may be cut short
		if !bytes.HasPrefix(came, read) {
			t.Errorf("%x of %x", read, came)
		}
		s.Close()
		if g.bytes.Load() != 0 || len(g.places) != 0 || !closed {
			t.Errorf("%d bytes and %d places are kept", g.bytes.Load(), len(g.places))
		}
	})
}
