package peerwire

import (
	"encoding/binary"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
)

// A peer's messages cost little to send and much to take: the engine has one lock.
// So each costs something, and what a peer may spend grows with time and with the
// bytes of builds that pass. Who has spent it is read more slowly, by no more than
// what it sends too much: an honest peer that is thought to babble loses nothing but
// time.
const (
	// FreeBurst is what a connection may spend at once: the info dictionary of the
	// largest build, or the Haves of all its pieces.
	FreeBurst = manifest.MaxPieces / havesPerCost
	// FreeRate is what it may spend a second. 200 connections that do it keep a core
	// half busy at 1 µs a message.
	FreeRate = 2000
	// bytesPerCost is how many bytes of builds, either way, pay for one message more:
	// a chunk of 128 KiB for its request and 127 others.
	bytesPerCost = 1 << 10
	// havesPerCost is how many Haves cost as much as one message, where each is news.
	havesPerCost = 8
	// lengthPerCost is how many bytes of a message that is no piece cost as much as
	// one message more: what they say has to be parsed.
	lengthPerCost = 256
	// slowRead is how much is read at a time from a peer that has overspent, in
	// bytes: some 800 messages.
	slowRead = 4 << 10
)

// allowance is what may be spent: a burst, and a rate.
type allowance struct {
	burst, rate float64
	left        float64
	at          time.Time
}

func newAllowance(burst, rate float64, now time.Time) *allowance {
	return &allowance{burst: burst, rate: rate, left: burst, at: now}
}

func (a *allowance) refill(now time.Time) {
	if elapsed := now.Sub(a.at); elapsed > 0 {
		a.left = min(a.burst, a.left+a.rate*elapsed.Seconds())
		a.at = now
	}
}

// owed is the time until what was spent too much is paid.
func (a *allowance) owed(now time.Time) time.Duration {
	a.refill(now)
	if a.left >= 0 {
		return 0
	}
	return time.Duration(-a.left / a.rate * float64(time.Second))
}

// messages follows what a peer sends after its handshake, and what it costs.
type messages struct {
	allowance
	header [9]byte // length, kind, and the piece of a Have
	have   int     // bytes of the header that are there
	left   uint32  // of the present message, to be skipped
	earned int64   // bytes written that were counted
	// content is how many bytes of chunks have come, of those not yet whole too.
	content int64
	chunk   bool // what is skipped is one
	pieces  []uint64
}

func newMessages(now time.Time) *messages {
	return &messages{allowance: *newAllowance(FreeBurst, FreeRate, now)}
}

// feed takes the next bytes, cut anywhere, and how many were written to the peer so
// far. It reports whether chunks or requests for them were among them.
func (m *messages) feed(b []byte, written int64, now time.Time) (useful bool) {
	m.refill(now)
	m.earn(written - m.earned)
	m.earned = written
	for len(b) > 0 {
		if m.left > 0 {
			n := min(uint32(len(b)), m.left)
			m.left -= n
			b = b[n:]
			if m.chunk {
				m.content += int64(n)
			}
			continue
		}
		n := copy(m.header[m.have:m.need()], b)
		m.have += n
		b = b[n:]
		if m.have < m.need() {
			continue
		}
		useful = m.spend() || useful
		m.have = 0
	}
	return useful
}

// need is how many bytes of the header are to be known next.
func (m *messages) need() int {
	switch {
	case m.have < 4:
		return 4
	case m.length() == 0:
		return 4
	case m.have < 5:
		return 5
	case m.length() == 5 && pp.MessageType(m.header[4]) == pp.Have:
		return 9
	}
	return 5
}

func (m *messages) length() uint32 { return binary.BigEndian.Uint32(m.header[:4]) }

// spend pays for the message whose header is known, and skips the rest of it.
func (m *messages) spend() (useful bool) {
	length := m.length()
	if length == 0 { // a keep-alive
		m.left, m.chunk = 0, false
		m.allowance.left--
		return false
	}
	m.left = length - uint32(m.have-4)
	kind := pp.MessageType(m.header[4])
	m.chunk = kind == pp.Piece
	switch {
	case kind == pp.Piece:
		m.allowance.left--
		m.earn(int64(length))
		return true
	case kind == pp.Request:
		m.allowance.left--
		return true
	case m.have == 9 && m.news(binary.BigEndian.Uint32(m.header[5:])):
		m.allowance.left -= 1.0 / havesPerCost
	default:
		m.allowance.left -= 1 + float64(length)/lengthPerCost
	}
	return false
}

func (m *messages) earn(bytes int64) {
	m.allowance.left = min(m.burst, m.allowance.left+float64(bytes)/bytesPerCost)
}

// news reports whether the peer says for the first time that it has a piece.
func (m *messages) news(piece uint32) bool {
	if piece >= manifest.MaxPieces {
		return false
	}
	if m.pieces == nil {
		m.pieces = make([]uint64, manifest.MaxPieces/64)
	}
	word, bit := &m.pieces[piece/64], uint64(1)<<(piece%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
