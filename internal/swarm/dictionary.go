package swarm

import (
	"crypto/sha1"
	"errors"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// infoPart is how long the parts are in which a peer sends an info dictionary, but for the
// last, in bytes (BEP 9).
const infoPart = 16 << 10

// refusedPart says that a peer refuses a part (BEP 9). Every message with one is longer.
const refusedPart = "d8:msg_typei2e5:piecei0ee"

// dictionary is what one peer has sent of an info dictionary. The engine would put one together
// from the parts of all peers and could not say whose was wrong; its length follows from
// the segment's borders, and its hash is the infohash. So each peer's is put together by
// itself: one that is wrong is that peer's, and holds nobody back.
type dictionary struct {
	bytes   []byte
	here    []bool // by part
	lacking int
}

// take adds a part; false when it cannot be one of a dictionary of that length.
func (d *dictionary) take(part int, content []byte, length int) bool {
	if d.bytes == nil {
		parts := (length + infoPart - 1) / infoPart
		*d = dictionary{make([]byte, length), make([]bool, parts), parts}
	}
	if part < 0 || part >= len(d.here) || len(content) != min(infoPart, length-part*infoPart) {
		return false
	}
	copy(d.bytes[part*infoPart:], content)
	if !d.here[part] {
		d.here[part] = true
		d.lacking--
	}
	return true
}

// infoOffered hears how long a peer says that the info dictionary is, under the engine's
// lock. The engine would throw away what others have sent of another length.
func (s *Swarm) infoOffered(c *torrent.PeerConn, h *pp.ExtendedHandshakeMessage) {
	t, ok := s.byEngine.Load(c.Torrent())
	if !ok || h.MetadataSize == 0 || h.MetadataSize == t.(*Torrent).infoLength {
		return
	}
	h.MetadataSize = 0
	s.blameInfo(c)
}

// infoCame takes a part of an info dictionary, under the engine's lock, and has the engine
// take it for a refusal.
func (s *Swarm) infoCame(e torrent.PeerConnReadExtensionMessageEvent) {
	v, ok := s.byEngine.Load(e.PeerConn.Torrent())
	name, _, _ := e.PeerConn.LocalLtepProtocolMap.LookupId(e.ExtensionNumber) // what is no extension of ours has no name
	if !ok || name != pp.ExtensionNameMetadata {
		return
	}
	t := v.(*Torrent)
	m, content, ok := partOf(e.Payload)
	if !ok {
		return // the engine's to punish, or to answer
	}
	x := s.exchange(&e.PeerConn.Peer)
	select {
	case <-t.gotInfo():
	default:
		if x != nil && !s.takeInfo(t, x, m, content) {
			s.blameInfo(e.PeerConn)
		}
	}
	copy(e.Payload, refusedPart)
}

// partOf takes a message apart that brings a part of an info dictionary; false for any other.
func partOf(payload []byte) (m pp.ExtendedMetadataRequestMsg, content []byte, ok bool) {
	var rest bencode.ErrUnusedTrailingBytes
	if err := bencode.Unmarshal(payload, &m); err != nil && !errors.As(err, &rest) || m.Type != pp.DataMetadataExtensionMsgType {
		return m, nil, false
	}
	return m, payload[len(payload)-rest.NumUnusedBytes:], true
}

// takeInfo adds a part to what a peer has sent; false when that is wrong.
func (s *Swarm) takeInfo(t *Torrent, x *exchange, m pp.ExtendedMetadataRequestMsg, content []byte) bool {
	if m.TotalSize != t.infoLength || !x.info.take(m.Piece, content, t.infoLength) {
		return false
	}
	if x.info.lacking > 0 {
		return true
	}
	bytes := x.info.bytes
	x.info = dictionary{}
	if manifest.InfoHash(sha1.Sum(bytes)) != t.fetch.InfoHash {
		return false
	}
	if engine := t.engine(); engine != nil && t.infoHere.CompareAndSwap(false, true) {
		s.alongside(func() {
			if err := engine.SetInfoBytes(bytes); err != nil {
				t.infoHere.Store(false) // another peer's, should the torrent come back
			}
		})
	}
	return true
}

// blameInfo holds it against a peer that it offers an info dictionary that cannot be the
// segment's.
func (s *Swarm) blameInfo(c *torrent.PeerConn) {
	if x := s.exchange(&c.Peer); x != nil && x.conn != nil {
		x.conn.Blame(peerwire.WrongInfo)
	}
}
