// Package utp takes the place of github.com/anacrolix/go-utp, which
// anacrolix/torrent imports and module proxies may refuse to serve.
//
// Landfall never speaks uTP: it is slower and sends twice the bytes. Every
// constructor here returns an error, and the swarm package switches uTP off, so
// none of them is ever called. See docs/decisions/0002-no-utp.md.
package utp

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

// Default names the transport in the errors of anacrolix/torrent.
const Default = "uTP (not built in)"

var errNotBuiltIn = errors.New("uTP is not built into this binary")

// FirewallCallback decides whether a packet from an address is dropped.
type FirewallCallback func(net.Addr) (block bool)

// Option configures a socket. There are none to configure.
type Option struct{}

// Socket is what anacrolix/torrent expects of a uTP socket.
type Socket interface {
	net.PacketConn
	Accept() (net.Conn, error)
	Addr() net.Addr
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	SetFirewallCallback(FirewallCallback)
}

// WithLogger is accepted and ignored.
func WithLogger(*slog.Logger) Option { return Option{} }

// NewSocket always fails.
func NewSocket(network, addr string, opts ...Option) (Socket, error) {
	return nil, errNotBuiltIn
}

// NewSocketFromPacketConn always fails.
func NewSocketFromPacketConn(pc net.PacketConn, opts ...Option) (Socket, error) {
	return nil, errNotBuiltIn
}
