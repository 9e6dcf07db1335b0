// Package badpeer is a peer that misbehaves in one chosen way, for tests and
// measurements: it speaks the wire protocol (BEP 3, BEP 6) by hand, takes any
// infohash, says that it has everything, and then does not keep to it. It can have a
// member's peer id, and so stand in for one.
package badpeer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
)

// Behaviour is what a peer does wrong.
type Behaviour string

// The behaviours.
const (
	Corrupt Behaviour = "corrupt" // answers every request with noise
	Silent  Behaviour = "silent"  // answers none
	Dribble Behaviour = "dribble" // answers with DribbleRate bytes/s
	Garbage Behaviour = "garbage" // answers the handshake with noise
	Babble  Behaviour = "babble"  // sends noise after a right handshake
	Length  Behaviour = "length"  // says that the info dictionary has another length
	Info    Behaviour = "info"    // answers requests for the info dictionary with noise
)

// Behaviours are all of them.
var Behaviours = []Behaviour{Corrupt, Silent, Dribble, Garbage, Babble, Length, Info}

const (
	// DribbleRate is in bytes/s.
	DribbleRate = 1000
	// dribble is how often a part of it is sent.
	dribble = 100 * time.Millisecond
	// maxMessage bounds what it reads at a time, in bytes.
	maxMessage = 1 << 20
	// metadata is the extension (BEP 10) by which it is asked for the info dictionary.
	metadata = 1
)

// Peer is one that misbehaves.
type Peer struct {
	Behaviour Behaviour
	ID        [20]byte
	// Claims also takes the pieces that a seeder hands out, and says at once that
	// it has them. For Dial.
	Claims bool
	// InfoLength is that of the segment's info dictionary, in bytes; for Length and Info.
	InfoLength int
	// OnTorrent is called with the infohash of each connection's handshake; nil
	// for none.
	OnTorrent func(infohash [20]byte)

	accepted, taken, claimed atomic.Int64
}

// Accepted is how many connections came.
func (p *Peer) Accepted() int64 { return p.accepted.Load() }

// Taken is how many requests came.
func (p *Peer) Taken() int64 { return p.taken.Load() }

// Claimed is how many pieces a seeder handed out to it.
func (p *Peer) Claimed() int64 { return p.claimed.Load() }

// Serve takes connections until ctx ends; it closes the listener.
func (p *Peer) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting peers: %w", err)
		}
		p.accepted.Add(1)
		conns.Go(func() { _ = p.meet(ctx, c, nil) }) // they hang up, that is the point
	}
}

// Dial connects to a peer and misbehaves until it hangs up or ctx ends.
func (p *Peer) Dial(ctx context.Context, addr string, infohash [20]byte) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return p.Over(ctx, c, infohash)
}

// Over misbehaves on a connection until the other side hangs up or ctx ends.
func (p *Peer) Over(ctx context.Context, c net.Conn, infohash [20]byte) error {
	return p.meet(ctx, c, &infohash)
}

// meet talks to one peer.
func (p *Peer) meet(ctx context.Context, c net.Conn, infohash *[20]byte) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if p.Behaviour == Garbage {
		if _, err := c.Write(noise(64)); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c)
		return err
	}
	bits := []pp.ExtensionBit{pp.ExtensionBitFast}
	if p.Behaviour == Length || p.Behaviour == Info {
		bits = append(bits, pp.ExtensionBitLtep)
	}
	theirs, err := pp.Handshake(ctx, c, (*metainfo.Hash)(infohash), p.ID, pp.NewPeerExtensionBytes(bits...))
	if err != nil {
		return err
	}
	if p.OnTorrent != nil {
		p.OnTorrent(theirs.Hash)
	}
	if p.Behaviour == Babble {
		if _, err := c.Write(noise(1 << 10)); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c)
		return err
	}
	first := []pp.Message{{Type: pp.HaveAll}, {Type: pp.Unchoke}}
	if p.Claims {
		first = []pp.Message{{Type: pp.HaveNone}, {Type: pp.Interested}}
	}
	switch p.Behaviour {
	case Length:
		first = append(first, extended(pp.HandshakeExtendedID, offer(p.InfoLength+1), nil))
	case Info:
		first = append(first, extended(pp.HandshakeExtendedID, offer(p.InfoLength), nil))
	}
	for _, m := range first {
		if _, err := c.Write(m.MustMarshalBinary()); err != nil {
			return err
		}
	}
	return p.talk(ctx, c)
}

func (p *Peer) talk(ctx context.Context, c net.Conn) error {
	d := pp.Decoder{R: bufio.NewReader(c), MaxLength: maxMessage}
	var h pp.ExtendedHandshakeMessage // theirs
	for {
		var m pp.Message
		if err := d.Decode(&m); err != nil {
			return err
		}
		switch {
		case m.Keepalive:
		case m.Type == pp.Have && p.Claims:
			p.claimed.Add(1)
			if _, err := c.Write(m.MustMarshalBinary()); err != nil {
				return err
			}
		case m.Type == pp.Extended && m.ExtendedID == pp.HandshakeExtendedID:
			_ = bencode.Unmarshal(m.ExtendedPayload, &h) // what it has not learnt it cannot use
		case m.Type == pp.Extended && m.ExtendedID == metadata && p.Behaviour == Info:
			var asked pp.ExtendedMetadataRequestMsg
			if bencode.Unmarshal(m.ExtendedPayload, &asked) != nil || asked.Type != pp.RequestMetadataExtensionMsgType {
				continue
			}
			p.taken.Add(1)
			asked.Type, asked.TotalSize = pp.DataMetadataExtensionMsgType, p.InfoLength
			answer := extended(h.M[pp.ExtensionNameMetadata], asked, noise(max(0, asked.PieceSize())))
			if _, err := c.Write(answer.MustMarshalBinary()); err != nil {
				return err
			}
		case m.Type == pp.Request:
			p.taken.Add(1)
			answer := pp.Message{Type: pp.Piece, Index: m.Index, Begin: m.Begin, Piece: noise(int(m.Length))}.MustMarshalBinary()
			switch p.Behaviour {
			case Corrupt:
				if _, err := c.Write(answer); err != nil {
					return err
				}
			case Dribble:
				if err := slowly(ctx, c, answer); err != nil {
					return err
				}
			}
		}
	}
}

// offer is an extended handshake that offers an info dictionary.
func offer(length int) pp.ExtendedHandshakeMessage {
	return pp.ExtendedHandshakeMessage{
		M:            map[pp.ExtensionName]pp.ExtensionNumber{pp.ExtensionNameMetadata: metadata},
		MetadataSize: length,
	}
}

func extended(id pp.ExtensionNumber, dict any, content []byte) pp.Message {
	return pp.Message{Type: pp.Extended, ExtendedID: id, ExtendedPayload: append(bencode.MustMarshal(dict), content...)}
}

// slowly writes at DribbleRate.
func slowly(ctx context.Context, c net.Conn, b []byte) error {
	ticker := time.NewTicker(dribble)
	defer ticker.Stop()
	const part = int(DribbleRate * dribble / time.Second)
	for len(b) > 0 {
		n, err := c.Write(b[:min(part, len(b))])
		if err != nil {
			return err
		}
		b = b[n:]
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return errors.New("ended")
		}
	}
	return nil
}

// noise is n bytes that nobody takes for anything.
func noise(n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rand.Uint64())
	}
	if n > 0 {
		b[0] |= 0x80 // as a length, more than any message has
	}
	return b[:n]
}
