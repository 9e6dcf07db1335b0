package handout

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/landfall-dist/landfall/internal/manifest"
)

const testPieces = 19

var testHash = manifest.InfoHash{1, 2, 3}

// greeting is a handshake.
func greeting(infohash manifest.InfoHash, fast bool) []byte {
	b := make([]byte, handshakeLength)
	copy(b, handshakeStart)
	if fast {
		b[fastByte] |= fastBit
	}
	copy(b[infohashAt:], infohash[:])
	return b
}

// message is one of the peer wire protocol; kind and payload both absent make a
// keep-alive.
func message(kindAndPayload ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(kindAndPayload))), kindAndPayload...)
}

func have(piece uint32) []byte {
	return message(binary.BigEndian.AppendUint32([]byte{kindHave}, piece)...)
}

var (
	extended = message(kindExtended, 0, 'd', 'e')
	block    = message(append([]byte{7, 0, 0, 0, 1, 0, 0, 0, 0}, bytes.Repeat([]byte("block"), 100)...)...)
	unchoke  = message(1)
)

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// split cuts b into stretches by the bytes of how, each the length of one, and
// what is left; nil cuts nothing.
func split(b, how []byte) (parts [][]byte) {
	for _, n := range how {
		n := min(1+int(n), len(b))
		if n == 0 {
			break
		}
		parts, b = append(parts, b[:n]), b[n:]
	}
	if len(b) > 0 {
		parts = append(parts, b)
	}
	return parts
}

// filter runs an outbound over b as conn does.
func filter(b, how []byte, peerFast bool) []byte {
	var o outbound
	var out []byte
	for _, part := range split(b, how) {
		for len(part) > 0 {
			n, pass, instead := o.next(part, peerFast)
			if pass {
				out = append(out, part[:n]...)
			}
			out = append(out, instead...)
			part = part[n:]
		}
	}
	return out
}

func TestOutbound(t *testing.T) {
	hello := greeting(testHash, true)
	tests := map[string]struct {
		in, want []byte
		slow     bool // the peer lacks the fast extension
	}{
		"have all becomes have none": {
			in:   join(hello, extended, message(kindHaveAll), unchoke, block),
			want: join(hello, extended, haveNone, unchoke, block),
		},
		"bitfield becomes have none": {
			in:   join(hello, message(kindBitfield, 0xff, 0xff, 0xe0), block),
			want: join(hello, haveNone, block),
		},
		"bitfield is dropped": {
			in:   join(hello, message(kindBitfield, 0xff, 0xff, 0xe0), extended, block),
			want: join(hello, extended, block),
			slow: true,
		},
		"the engine has no fast extension": {
			in:   join(greeting(testHash, false), message(kindBitfield, 0xff, 0xff, 0xe0), block),
			want: join(greeting(testHash, false), block),
		},
		"have none stays one": {
			in:   join(hello, message(kindHaveNone), block),
			want: join(hello, haveNone, block),
		},
		"what tells of pieces later": {
			in:   join(hello, message(kindHaveAll), have(3), message(kindAllowedFast, 0, 0, 0, 1), message(kindSuggest, 0, 0, 0, 1), block),
			want: join(hello, haveNone, block),
		},
		"keep-alives": {
			in:   join(hello, message(kindHaveAll), message(), message(), have(3), message(), block, message()),
			want: join(hello, haveNone, message(), message(), message(), block, message()),
		},
		"not a handshake": {
			in:   join([]byte("GET / HTTP/1.1\r\n"), message(kindHaveAll)),
			want: join([]byte("GET / HTTP/1.1\r\n"), message(kindHaveAll)),
		},
		"not quite a handshake": {
			in:   join([]byte(handshakeStart[:10]), message(kindHaveAll)),
			want: join([]byte(handshakeStart[:10]), message(kindHaveAll)),
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, step := range []int{0, 1, 2, 3, 4, 5, 6, 7, 67, 68, 100} {
				var how []byte
				if step > 0 {
					how = bytes.Repeat([]byte{byte(step - 1)}, len(test.in))
				}
				if got := filter(test.in, how, !test.slow); !bytes.Equal(got, test.want) {
					t.Errorf("in steps of %d:\n got %q\nwant %q", step, got, test.want)
				}
			}
		})
	}
}

// reference says what outbound is to make of a whole stream, with no regard to
// cost: the bytes of the last message, when it is cut, as far as they are known
// to pass.
func reference(b []byte, peerFast bool) (out []byte) {
	for i := range min(len(b), len(handshakeStart)) {
		if b[i] != handshakeStart[i] {
			return b
		}
	}
	if len(b) < handshakeLength {
		return b
	}
	fast := peerFast && b[fastByte]&fastBit != 0
	out, b = append(out, b[:handshakeLength]...), b[handshakeLength:]
	for first := true; len(b) >= 4; {
		length := uint64(binary.BigEndian.Uint32(b))
		if length == 0 {
			out, b = append(out, b[:4]...), b[4:]
			continue
		}
		if len(b) == 4 {
			break
		}
		whole := b[:min(uint64(len(b)), 4+length)]
		switch b[4] {
		case kindBitfield, kindHaveAll, kindHaveNone:
			if first && fast {
				out = append(out, haveNone...)
			}
		case kindHave, kindSuggest, kindAllowedFast:
		default:
			out = append(out, whole...)
		}
		first = first && b[4] == kindExtended
		b = b[len(whole):]
	}
	return out
}

func FuzzOutbound(f *testing.F) {
	hello := greeting(testHash, true)
	f.Add(join(hello, extended, message(kindHaveAll), block, have(1)), []byte{0, 1, 2, 3, 4}, true)
	f.Add(join(hello, message(kindBitfield, 1, 2, 3), message(), block[:20]), []byte{60, 60}, false)
	f.Add(join(hello, []byte{0xff, 0xff, 0xff, 0xff, 7, 1, 2, 3}), []byte{}, true)
	f.Add(join(hello[:30]), []byte{5}, true)
	f.Add([]byte("\x13BitTorrent something else"), []byte{5}, true)
	f.Fuzz(func(t *testing.T, b, how []byte, peerFast bool) {
		if got, want := filter(b, how, peerFast), reference(b, peerFast); !bytes.Equal(got, want) {
			t.Errorf("%q\n got %q\nwant %q", b, got, want)
		}
	})
}

// record is a watcher that writes down what it is told.
type record struct {
	pieces int
	events []string
}

func (r *record) greeted(h manifest.InfoHash, _ [20]byte) int {
	r.events = append(r.events, fmt.Sprintf("greeted %x", h[:4]))
	if h != testHash {
		return 0
	}
	return r.pieces
}

func (r *record) requested(i int, length int64) bool {
	r.events = append(r.events, fmt.Sprint("request ", i, " ", length))
	return i != 13
}

func (r *record) announced(i int) { r.events = append(r.events, fmt.Sprint("have ", i)) }

func (r *record) opened(has bitmap) {
	event := "opened"
	has.each(func(i int) { event += fmt.Sprint(" ", i) })
	r.events = append(r.events, event)
}

func TestInbound(t *testing.T) {
	hello := greeting(testHash, true)
	const greeted = "greeted 01020300"
	all := "opened 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18"
	tests := map[string]struct {
		in   []byte
		want []string
	}{
		"bitfield":           {join(hello, extended, message(kindBitfield, 0x81, 0, 0x20)), []string{greeted, "opened 0 7 18"}},
		"spare bits are set": {join(hello, message(kindBitfield, 0, 0, 0x3f)), []string{greeted, "opened 18"}},
		"bitfield too short": {join(hello, message(kindBitfield, 0xff, 0xff), have(1)), []string{greeted, "have 1"}},
		"bitfield too long":  {join(hello, message(kindBitfield, 0xff, 0xff, 0xff, 0xff), have(1)), []string{greeted, "have 1"}},
		"have all":           {join(hello, message(kindHaveAll)), []string{greeted, all}},
		"have all again":     {join(hello, message(kindHaveNone), message(kindHaveAll), have(2)), []string{greeted, "opened", "have 2"}},
		"have none":          {join(hello, message(kindHaveNone), block, message(), have(2), have(0xffffffff)), []string{greeted, "opened", "have 2", "have 4294967295"}},
		"have too long":      {join(hello, message(kindHave, 0, 0, 0, 1, 1), have(2)), []string{greeted, "have 2"}},
		"another torrent":    {join(greeting(manifest.InfoHash{9}, true), message(kindHaveAll)), []string{"greeted 09000000"}},
		"not a handshake":    {bytes.Repeat([]byte("hello, world. "), 10), nil},
		"endless message":    {join(hello, []byte{0xff, 0xff, 0xff, 0xff, kindBitfield}, have(2), have(3)), []string{greeted}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, step := range []int{0, 1, 2, 3, 4, 5, 67, 68, 69} {
				var how []byte
				if step > 0 {
					how = bytes.Repeat([]byte{byte(step - 1)}, len(test.in))
				}
				r := &record{pieces: testPieces}
				var in inbound
				for _, part := range split(test.in, how) {
					in.feed(part, r)
				}
				if !slices.Equal(r.events, test.want) {
					t.Errorf("in steps of %d:\n got %q\nwant %q", step, r.events, test.want)
				}
			}
		})
	}
}

func FuzzInbound(f *testing.F) {
	hello := greeting(testHash, true)
	f.Add(join(hello, message(kindBitfield, 0x81, 0, 0x20), have(1), block, have(20)), []byte{1, 2, 3, 4, 5})
	f.Add(join(hello, message(kindHaveAll), message(kindHaveAll), message(), have(3)), []byte{200, 1})
	f.Add(join(hello, []byte{0xff, 0xff, 0xff, 0xff, kindHave, 1, 2, 3}), []byte{0, 0, 0})
	f.Add(hello[:50], []byte{0})
	f.Fuzz(func(t *testing.T, b, how []byte) {
		whole, parts := &record{pieces: testPieces}, &record{pieces: testPieces}
		var one, many inbound
		one.feed(b, whole)
		for _, part := range split(b, how) {
			many.feed(part, parts)
			if len(many.buf) > handshakeLength || cap(many.buf) > 4*handshakeLength {
				t.Fatalf("%d bytes kept of %q", len(many.buf), b)
			}
		}
		if !slices.Equal(whole.events, parts.events) {
			t.Errorf("at once %q, in parts %q", whole.events, parts.events)
		}
		opened := 0
		for _, e := range whole.events {
			if bytes.HasPrefix([]byte(e), []byte("opened")) {
				opened++
			}
		}
		if opened > 1 {
			t.Errorf("opened %d times", opened)
		}
	})
}

// BenchmarkOutbound is the hot path of a seeder: blocks of 256 KiB, as the engine
// writes them.
func BenchmarkOutbound(b *testing.B) {
	var o outbound
	o.next(greeting(testHash, true), true)
	piece := message(append([]byte{7}, make([]byte, 8+256<<10)...)...)
	b.SetBytes(int64(len(piece)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := piece; len(rest) > 0; {
			n, pass, _ := o.next(rest, true)
			if !pass {
				b.Fatal("dropped")
			}
			rest = rest[n:]
		}
	}
}

// randomSplit is lengths for split.
func randomSplit(r *rand.Rand, n int) []byte {
	how := make([]byte, n)
	for i := range how {
		how[i] = byte(r.IntN(256))
	}
	return how
}
