package attack

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/identity"
)

// abroad runs an attack with the certificate of an agent of a region that no build goes to,
// inside with one of an agent of a region that is waited for.
func abroad(run func(context.Context, Target) error) func(context.Context, Target) error {
	return as(func(t Target) string { return t.Foreign }, run)
}

func inside(run func(context.Context, Target) error) func(context.Context, Target) error {
	return as(func(t Target) string { return t.Inside }, run)
}

func as(dir func(Target) string, run func(context.Context, Target) error) func(context.Context, Target) error {
	return func(ctx context.Context, t Target) (err error) {
		if t.source, err = identity.Open(identity.FilesIn(dir(t)), nil); err != nil {
			return err
		}
		return run(ctx, t)
	}
}

// dialTLS connects with the certificate that the attacker has, for a protocol.
func (t Target) dialTLS(ctx context.Context, addr, proto string) (*tls.Conn, func(), error) {
	raw, end, err := dial(ctx, addr)
	if err != nil {
		return nil, nil, err
	}
	within, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c := tls.Client(raw, t.source.Client(proto, nil))
	if err := c.HandshakeContext(within); err != nil {
		end()
		return nil, nil, err
	}
	return c, end, nil
}

// node is a real member of memberlist, under the attacker's control; where it has a
// certificate, it says who it is by it. heard gets the documents that come; nil for none.
func (t Target) node(name string, state []byte, heard func(wire []byte)) (*memberlist.Memberlist, error) {
	mc := memberlist.DefaultLocalConfig()
	mc.BindAddr, mc.BindPort, mc.AdvertisePort = t.Listen, 0, 0
	mc.LogOutput = io.Discard
	mc.PushPullInterval = time.Second
	if len(t.Keys) > 0 {
		var err error
		if mc.Keyring, err = memberlist.NewKeyring(t.Keys, t.Keys[0]); err != nil {
			return nil, err
		}
	}
	var meta []byte
	if mc.Name = name; t.source != nil {
		mc.Name = t.source.ID().Name + "-" + ulid.Make().String()
		ports, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{t.Listen}, Logger: nil})
		if err != nil {
			return nil, err
		}
		mc.Transport = overTLS{ports, t.source}
		mc.BindPort = ports.GetAutoBindPort()
		mc.AdvertisePort = mc.BindPort
		if meta, err = t.meta(mc.Name, fmt.Sprint(t.Listen, ":", mc.BindPort)); err != nil {
			return nil, err
		}
	}
	mc.Delegate = delegate{meta, state, heard}
	list, err := memberlist.Create(mc)
	if err != nil {
		return nil, err
	}
	if _, err := list.Join(t.Gossip); err != nil {
		return nil, fmt.Errorf("%w; %w", err, list.Shutdown())
	}
	return list, nil
}

// meta is what a member says of itself, signed as one of the product is.
func (t Target) meta(name, addr string) ([]byte, error) {
	id := t.source.ID()
	m, err := json.Marshal(gossip.Meta{ID: id.Name, Role: gossip.Role(id.Kind), Region: id.Region, Bucket: t.ForeignBucket, PeerPort: 9, HTTPPort: 9, Cert: t.source.Fingerprint().String()})
	if err != nil {
		return nil, err
	}
	m = bytes.TrimSuffix(m, []byte("}"))
	signature, err := t.source.Sign("member", append([]byte(name+"\x00"+addr+"\x00"), m...))
	if err != nil {
		return nil, err
	}
	m = append(m, `,"sig":"`...)
	return append(base64.RawURLEncoding.AppendEncode(m, signature), `"}`...), nil
}

// overTLS is memberlist's transport, which dials as members with certificates do.
type overTLS struct {
	*memberlist.NetTransport
	source *identity.Source
}

func (o overTLS) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", addr, o.source.Client(identity.GossipProto, nil))
}

func (o overTLS) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return o.DialTimeout(a.Addr, timeout)
}

type delegate struct {
	meta, state []byte
	heard       func(wire []byte)
}

func (d delegate) NodeMeta(int) []byte                        { return d.meta }
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte { return nil }
func (d delegate) LocalState(bool) []byte                     { return d.state }

func (d delegate) NotifyMsg(b []byte) {
	if d.heard != nil && len(b) > 0 && b[0] == 'D' {
		d.heard(b[1:])
	}
}

func (d delegate) MergeRemoteState(state []byte, _ bool) {
	if d.heard != nil {
		announce.EachInState(state, func(wire []byte) bool { d.heard(wire); return true })
	}
}

// deaths says of every member that it is dead, or suspected, to every other one: with a
// number that nothing the member says of itself can exceed, and with smaller ones.
func deaths(ctx context.Context, t Target) error {
	conn, err := net.ListenPacket("udp", net.JoinHostPort(t.Listen, "0"))
	if err != nil {
		return err
	}
	defer conn.Close()
	var to []*net.UDPAddr
	for _, addr := range t.Gossip {
		a, err := net.ResolveUDPAddr("udp", addr)
		if err != nil {
			return err
		}
		to = append(to, a)
	}
	const suspect, dead = 3, 5 // memberlist's kinds of messages
	n := 0
	tick(ctx, 50*time.Millisecond, func() {
		n++
		incarnation := []uint32{math.MaxUint32, uint32(n), math.MaxUint32 - 1}[n%3]
		kind := []byte{dead, suspect}[n/3%2]
		for i, name := range t.Now().Names {
			packet, err := t.packet(accusation(kind, incarnation, name, fmt.Sprint("accuser-", n%50)))
			if err != nil {
				return
			}
			for _, a := range to {
				if (n+i)%2 == 0 {
					_, _ = conn.WriteTo(packet, a)
				}
			}
		}
	})
	return nil
}

// accusation is one of memberlist's messages: its kind, and a map in MessagePack.
func accusation(kind byte, incarnation uint32, node, from string) []byte {
	text := func(b []byte, s string) []byte {
		b = append(b, 0xda) // a string of 16 bits' length
		return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	b := text([]byte{kind, 0x83}, "Incarnation")
	b = binary.BigEndian.AppendUint32(append(b, 0xce), incarnation)
	b = text(text(b, "Node"), node)
	return text(text(b, "From"), from)
}

// packet is a message as memberlist sends it, encrypted where there are keys.
func (t Target) packet(message []byte) ([]byte, error) {
	if len(t.Keys) == 0 {
		return message, nil
	}
	block, err := aes.NewCipher(t.Keys[0])
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	const version = 1
	out := make([]byte, 1+gcm.NonceSize())
	out[0] = version
	_, _ = rand.Read(out[1:]) // never fails
	return gcm.Seal(out, out[1:], message, nil), nil
}
