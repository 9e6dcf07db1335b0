//go:build linux

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/command"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
)

// badNames are what --bad may be.
func badNames() string {
	var names []string
	for _, b := range badpeer.Behaviours {
		names = append(names, string(b))
	}
	return strings.Join(names, ", ")
}

// badPeerCommand is one more member of the cluster, whose peer misbehaves. It says
// to everyone that it has everything; of the seeder it takes every piece that is
// handed out, and says at once that it has it.
func badPeerCommand() *cli.Command {
	return &cli.Command{
		Name:   "bad-peer",
		Usage:  "be a member that misbehaves (used by wan)",
		Hidden: true,
		Flags: []cli.Flag{
			command.Required("behaviour", "one of "+badNames()),
			command.Required("bucket", "`BUCKET` that it says it serves"),
			command.Required("peer-listen", "`ADDR` for peers"),
			command.Required("gossip-listen", "`ADDR` for gossip"),
			command.Required("gossip-key", "`FILE`"),
			command.Required("join", "`ADDR` of a member"),
			command.Required("seeder", "`ADDR` of the seeder's peer port"),
		},
		Action: badPeer,
	}
}

func badPeer(c *cli.Context) error {
	l, err := net.Listen("tcp", c.String("peer-listen"))
	if err != nil {
		return err
	}
	keys, err := gossip.ReadKeys(c.String("gossip-key"))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	g, err := gossip.New(gossip.Config{
		Meta: gossip.Meta{
			ID: "bad", Role: gossip.Agent, Region: "bad", Bucket: c.String("bucket"),
			PeerPort: uint16(l.Addr().(*net.TCPAddr).Port),
		},
		Listen:     c.String("gossip-listen"),
		Join:       []string{c.String("join")},
		Keys:       keys,
		Book:       announce.NewBook(nil, nil),
		OnDocument: func(announce.Added) {},
		OnMembers:  func() {},
		Logger:     slog.Default(),
	})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(c.Context)
	var parts sync.WaitGroup
	var claim sync.Once
	peer := &badpeer.Peer{Behaviour: badpeer.Behaviour(c.String("behaviour")), ID: peerwire.PeerID(g.Name())}
	peer.OnTorrent = func(infohash [20]byte) {
		claim.Do(func() {
			liar := &badpeer.Peer{Behaviour: peer.Behaviour, ID: peer.ID, Claims: true}
			parts.Go(func() {
				err := liar.Dial(ctx, c.String("seeder"), infohash)
				slog.Info("done with the seeder", "claimed", liar.Claimed(), "error", err)
			})
		})
	}
	parts.Go(func() { err = peer.Serve(ctx, l) })
	gossipErr := g.Run(ctx)
	cancel()
	parts.Wait()
	return errors.Join(err, gossipErr)
}
