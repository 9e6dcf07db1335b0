package peerwire

import (
	"testing"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
)

func message(m pp.Message) []byte { return m.MustMarshalBinary() }

// What peers may send for nothing, and what costs them time.
func TestMessagesCost(t *testing.T) {
	now := time.Unix(1, 0)
	have := func(i int) []byte { return message(pp.Message{Type: pp.Have, Index: pp.Integer(i)}) }
	chunk := message(pp.Message{Type: pp.Piece, Piece: make([]byte, 1<<14)})
	bitfield := message(pp.Message{Type: pp.Bitfield, Bitfield: make([]bool, manifest.MaxPieces)})
	for name, k := range map[string]struct {
		send func(m *messages)
		slow bool
	}{
		"the Haves of the largest build": {func(m *messages) {
			for i := range manifest.MaxPieces {
				m.feed(have(i), 0, now)
			}
		}, false},
		"the same Have again and again": {func(m *messages) {
			for range FreeBurst + 2 {
				m.feed(have(7), 0, now)
			}
		}, true},
		"Haves beyond the largest build": {func(m *messages) {
			for i := range FreeBurst + 1 {
				m.feed(have(manifest.MaxPieces+i), 0, now)
			}
		}, true},
		"interest that comes and goes": {func(m *messages) {
			for range FreeBurst {
				m.feed(append(message(pp.Message{Type: pp.Interested}), message(pp.Message{Type: pp.NotInterested})...), 0, now)
			}
		}, true},
		"chokes": {func(m *messages) {
			for range FreeBurst {
				m.feed(append(message(pp.Message{Type: pp.Choke}), message(pp.Message{Type: pp.Unchoke})...), 0, now)
			}
		}, true},
		"keep-alives": {func(m *messages) {
			for range FreeBurst + 1 {
				m.feed([]byte{0, 0, 0, 0}, 0, now)
			}
		}, true},
		"rejects of nothing": {func(m *messages) {
			for range FreeBurst + 1 {
				m.feed(message(pp.Message{Type: pp.Reject, Length: 1 << 14}), 0, now)
			}
		}, true},
		"requests that are not answered": {func(m *messages) {
			for range FreeBurst + 1 {
				m.feed(message(pp.Message{Type: pp.Request, Length: 1 << 14}), 0, now)
			}
		}, true},
		"requests that are": {func(m *messages) {
			for i := range 10 * FreeBurst {
				m.feed(message(pp.Message{Type: pp.Request, Length: 1 << 14}), int64(i)<<14, now)
			}
		}, false},
		"chunks": {func(m *messages) {
			for range 2 * FreeBurst {
				m.feed(chunk, 0, now)
			}
		}, false},
		"empty chunks": {func(m *messages) {
			for range FreeBurst + 100 {
				m.feed(message(pp.Message{Type: pp.Piece}), 0, now)
			}
		}, true},
		"the info dictionary of the largest build": {func(m *messages) {
			for range manifest.MaxPieces * 20 >> 14 {
				m.feed(message(pp.Message{Type: pp.Extended, ExtendedID: 2, ExtendedPayload: make([]byte, 1<<14+50)}), 0, now)
			}
		}, false},
		"large extended messages": {func(m *messages) {
			for range 10 {
				m.feed(message(pp.Message{Type: pp.Extended, ExtendedPayload: make([]byte, 1<<19)}), 0, now)
			}
		}, true},
		"bitfields": {func(m *messages) {
			for range FreeBurst/32 + 1 {
				m.feed(bitfield, 0, now)
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMessages(now)
			k.send(m)
			if owed := m.owed(now); (owed > 0) != k.slow {
				t.Errorf("waits %s", owed)
			} else if m.owed(now.Add(owed)) > time.Millisecond {
				t.Error("it is never paid")
			}
		})
	}
}

// Messages are followed however they are cut.
func TestMessagesAreCutAnywhere(t *testing.T) {
	var wire []byte
	for i := range 50 {
		wire = append(wire, message(pp.Message{Type: pp.Have, Index: pp.Integer(i % 40)})...)
		wire = append(wire, 0, 0, 0, 0)
		wire = append(wire, message(pp.Message{Type: pp.Unchoke})...)
		wire = append(wire, message(pp.Message{Type: pp.Piece, Piece: make([]byte, i)})...)
	}
	now := time.Unix(1, 0)
	whole := newMessages(now)
	whole.feed(wire, 0, now)
	for _, n := range []int{1, 2, 3, 5, 7, 64} {
		m := newMessages(now)
		for rest := wire; len(rest) > 0; rest = rest[min(n, len(rest)):] {
			m.feed(rest[:min(n, len(rest))], 0, now)
		}
		if d := m.allowance.left - whole.allowance.left; d > 1e-6 || d < -1e-6 || m.have != 0 || m.left != 0 {
			t.Errorf("cut by %d: %v left, whole %v", n, m.allowance.left, whole.allowance.left)
		}
	}
}

// FuzzMessages: no bytes take more than they are, and none make what is owed endless.
func FuzzMessages(f *testing.F) {
	f.Add(message(pp.Message{Type: pp.Have, Index: 1}), 3)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 4, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		now := time.Unix(1, 0)
		m := newMessages(now)
		at := max(0, min(len(b), cut))
		m.feed(b[:at], 0, now)
		m.feed(b[at:], 0, now)
		if m.have > len(m.header) || m.allowance.left > m.burst {
			t.Errorf("%+v", m)
		}
	})
}
