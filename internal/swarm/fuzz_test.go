package swarm

import (
	"testing"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"
)

// FuzzPart: whatever a peer sends as parts of an info dictionary, what is put together has
// the dictionary's length, and is whole when every part has come.
func FuzzPart(f *testing.F) {
	part := append(bencode.MustMarshal(pp.ExtendedMetadataRequestMsg{Piece: 1, TotalSize: infoPart + 7, Type: pp.DataMetadataExtensionMsgType}), "content"...)
	f.Add(part, infoPart+7)
	f.Add([]byte("d8:msg_typei1e5:piecei-1ee"), 1)
	f.Add([]byte("d8:msg_typei0e5:piecei0ee"), 5)
	f.Fuzz(func(t *testing.T, payload []byte, length int) {
		if length < 1 || length > 1<<20 {
			return
		}
		m, content, ok := partOf(payload)
		if !ok {
			return
		}
		var d dictionary
		if d.take(m.Piece, content, length) && m.Piece*infoPart+len(content) > length {
			t.Errorf("part %d of %d bytes is taken for one of %d bytes", m.Piece, len(content), length)
		}
		d.take(m.Piece, content, length) // again
		for i := range d.here {
			d.take(i, make([]byte, min(infoPart, length-i*infoPart)), length)
		}
		if len(d.bytes) != length || d.lacking != 0 {
			t.Errorf("%d of %d bytes, %d parts lacking", len(d.bytes), length, d.lacking)
		}
	})
}
