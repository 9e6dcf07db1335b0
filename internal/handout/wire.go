package handout

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// The peer wire protocol: BEP 3, and BEP 6 for the fast extension.
const (
	handshakeLength = 68
	handshakeStart  = "\x13BitTorrent protocol"
	infohashAt      = 28 // 20 bytes
	peerIDAt        = 48 // 20 bytes
	fastByte        = 27 // the last of the 8 reserved ones
	fastBit         = 0x04

	headerLength = 5 // length of the message, and its kind
	haveLength   = headerLength + 4

	kindHave        = 4
	kindBitfield    = 5
	kindRequest     = 6
	kindSuggest     = 13
	kindHaveAll     = 14
	kindHaveNone    = 15
	kindAllowedFast = 17
	kindExtended    = 20 // BEP 10
)

var haveNone = []byte{0, 0, 0, 1, kindHaveNone}

// watcher is who inbound tells what it sees.
type watcher interface {
	// greeted is called with the handshake's infohash and peer id. It returns the number
	// of pieces, 0 when the rest is not to be looked at.
	greeted(infohash manifest.InfoHash, peerID [20]byte) (pieces int)
	// announced is called with a piece that the peer says it has. It may be
	// out of range.
	announced(piece int)
	// opened is called once at most, with all that the peer has from the
	// start.
	opened(bitmap)
	// requested is called with what the peer asks for, in bytes, where the watcher wants to
	// know (inbound.asks), and reports whether it may.
	requested(piece int, length int64) bool
}

// inbound follows the peer's messages, of which it keeps only what tells of
// pieces: at most pieces/8+1 bytes at a time, whatever lengths the peer names.
type inbound struct {
	state  inboundState
	pieces int
	buf    []byte
	left   uint32 // of the present message, its kind included
	opened bool   // a second bitfield is against BEP 3, and costs much to count
	fast   atomic.Bool
	// asks: the peer's requests are looked at; misused is set when one was out of place.
	asks, misused bool
}

type inboundState uint8

const (
	inHandshake inboundState = iota
	inHeader
	inKind
	inPayload
	inSkip
	inIgnored // not BitTorrent, or not ours
)

// feed takes the next bytes, cut anywhere.
func (in *inbound) feed(b []byte, w watcher) {
	for len(b) > 0 {
		switch in.state {
		case inHandshake:
			if b = in.collect(b, handshakeLength); len(in.buf) == handshakeLength {
				in.handshake(w)
			}
		case inHeader:
			if b = in.collect(b, 4); len(in.buf) < 4 {
				return
			}
			if in.left = binary.BigEndian.Uint32(in.buf); in.left > 0 { // 0 is a keep-alive
				in.state = inKind
			}
			in.buf = in.buf[:0]
		case inKind:
			if in.state = inSkip; in.wanted(b[0]) {
				in.state = inPayload
			}
		case inPayload:
			if b = in.collect(b, int(in.left)); len(in.buf) == int(in.left) {
				in.message(w)
				in.buf, in.state = in.buf[:0], inHeader
			}
		case inSkip:
			n := min(uint32(min(len(b), 1<<30)), in.left)
			b = b[n:]
			if in.left -= n; in.left == 0 {
				in.state = inHeader
			}
		case inIgnored:
			return
		}
	}
}

// collect moves bytes into buf until it holds n, and returns the rest.
func (in *inbound) collect(b []byte, n int) []byte {
	take := min(n-len(in.buf), len(b))
	in.buf = append(in.buf, b[:take]...)
	return b[take:]
}

func (in *inbound) handshake(w watcher) {
	h := in.buf
	in.buf, in.state = nil, inIgnored
	if !bytes.HasPrefix(h, []byte(handshakeStart)) {
		return
	}
	in.fast.Store(h[fastByte]&fastBit != 0)
	if in.pieces = w.greeted(manifest.InfoHash(h[infohashAt:]), [20]byte(h[peerIDAt:])); in.pieces > 0 {
		in.state = inHeader
	}
}

// wanted reports whether a message tells of pieces, in a length that can be.
func (in *inbound) wanted(kind byte) bool {
	switch kind {
	case kindHave:
		return in.left == 5
	case kindRequest:
		return in.asks && in.left == 13
	case kindBitfield:
		return !in.opened && in.left == uint32(1+(in.pieces+7)/8)
	case kindHaveAll, kindHaveNone:
		return !in.opened && in.left == 1
	}
	return false
}

func (in *inbound) message(w watcher) {
	kind, body := in.buf[0], in.buf[1:]
	if kind == kindHave {
		w.announced(int(binary.BigEndian.Uint32(body)))
		return
	}
	if kind == kindRequest {
		if !w.requested(int(binary.BigEndian.Uint32(body)), int64(binary.BigEndian.Uint32(body[8:]))) {
			in.misused = true
		}
		return
	}
	in.opened = true
	switch kind {
	case kindBitfield:
		w.opened(wireBitmap(body, in.pieces))
	case kindHaveAll:
		w.opened(fullBitmap(in.pieces))
	case kindHaveNone:
		w.opened(newBitmap(in.pieces))
	}
}

// outbound follows the engine's messages and says what may go to the peer.
type outbound struct {
	handshake int    // bytes of it that have passed
	fast      bool   // the engine's own side of it
	through   bool   // all passes: this is not BitTorrent, or not ours
	header    []byte // of a message whose header is not complete
	left      uint32 // bytes of the present message still to come
	drop      bool   // the present message
	// begun: the engine's first word about its pieces, before which no Have
	// may come, has passed or was hidden.
	begun bool
}

// between reports whether a message may be put in now.
func (o *outbound) between() bool {
	return o.begun && !o.through && o.left == 0 && len(o.header) == 0
}

// next takes from b, which is not empty, the longest stretch that has one fate: n
// bytes that either pass as they are, or in whose place comes something else or
// nothing. So no payload is ever copied; a header that is cut is kept back until
// it is complete. peerFast says whether the peer has the fast extension.
func (o *outbound) next(b []byte, peerFast bool) (n int, pass bool, instead []byte) {
	switch {
	case o.through:
		return len(b), true, nil
	case o.handshake < handshakeLength:
		return o.greet(b), true, nil
	case o.left > 0:
		n = int(min(uint64(len(b)), uint64(o.left)))
		o.left -= uint32(n)
		return n, !o.drop, nil
	case len(o.header) > 0 || len(b) < headerLength:
		return o.cut(b, peerFast)
	}
	length := binary.BigEndian.Uint32(b)
	if length == 0 { // a keep-alive has no kind
		return 4, true, nil
	}
	o.left = length - 1
	instead = o.judge(b[4], peerFast)
	return headerLength, !o.drop, instead
}

// greet takes bytes of the handshake.
func (o *outbound) greet(b []byte) (n int) {
	for n < len(b) && o.handshake < handshakeLength {
		if o.handshake < len(handshakeStart) && b[n] != handshakeStart[o.handshake] {
			o.through = true
			return len(b)
		}
		if o.handshake == fastByte {
			o.fast = b[n]&fastBit != 0
		}
		o.handshake++
		n++
	}
	return n
}

// cut puts a header together that comes in several writes.
func (o *outbound) cut(b []byte, peerFast bool) (n int, pass bool, instead []byte) {
	for n < len(b) {
		o.header = append(o.header, b[n])
		n++
		switch len(o.header) {
		case 4:
			if binary.BigEndian.Uint32(o.header) == 0 {
				instead, o.header = o.header, nil
				return n, false, instead
			}
		case headerLength:
			header := o.header
			o.header = nil
			o.left = binary.BigEndian.Uint32(header) - 1
			if instead = o.judge(header[4], peerFast); !o.drop {
				instead = header
			}
			return n, false, instead
		}
	}
	return n, false, nil
}

// judge decides about a message by its kind: drop is set, and instead goes in the
// place of one that is dropped.
func (o *outbound) judge(kind byte, peerFast bool) (instead []byte) {
	o.drop = false
	switch kind {
	case kindExtended: // may come before the word about pieces
		return nil
	case kindBitfield, kindHaveAll, kindHaveNone:
		o.drop = true
		if peerFast && o.fast && !o.begun {
			instead = haveNone
		}
	case kindHave, kindSuggest, kindAllowedFast:
		o.drop = true
	}
	o.begun = true
	return instead
}
