package clustertest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/peerwire"
	"github.com/landfall-dist/landfall/internal/swarm/badpeer"
	"github.com/landfall-dist/landfall/internal/terminal"
)

// addBad makes a peer that misbehaves a member, as the agent of the i-th region.
func (c *Cluster) addBad(i int, b badpeer.Behaviour) (name string) {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	g, err := gossip.New(gossip.Config{
		Meta: gossip.Meta{
			ID: "cuckoo", Role: gossip.Agent, Region: c.Regions[i], Bucket: c.Bucket(i),
			PeerPort: uint16(l.Addr().(*net.TCPAddr).Port),
		},
		Listen:     "127.0.0.1:0",
		Join:       []string{c.cluster.SeederGossip},
		Book:       announce.NewBook(c.cluster.Trust, nil),
		OnDocument: func(announce.Added) {},
		OnMembers:  func() {},
		Logger:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		l.Close()
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	peer := &badpeer.Peer{Behaviour: b, ID: peerwire.PeerID(g.Name())}
	ended := make(chan error, 2)
	go func() { ended <- g.Run(ctx) }()
	go func() { ended <- peer.Serve(ctx, l) }()
	c.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			c.t.Error(err)
		}
	})
	return g.Name()
}

func TestBadMemberIsNamed(t *testing.T) {
	for behaviour, reason := range map[badpeer.Behaviour]peerwire.Reason{
		badpeer.Corrupt: peerwire.Corrupt, badpeer.Garbage: peerwire.Garbage,
	} {
		t.Run(string(behaviour), func(t *testing.T) {
			c := Start(t, cloud, Options{Regions: 3, Unserved: 1})
			if s := c.status(0); s.BadPeers == nil || len(s.BadPeers) > 0 {
				t.Errorf("%+v", s.BadPeers)
			}
			name := c.addBad(2, behaviour)
			for _, a := range c.Agents {
				c.Until("the member is known", func() bool {
					s, err := a.AgentStatus(t.Context())
					return err == nil && slices.ContainsFunc(s.Members, func(m api.Member) bool { return m.Name == name })
				})
			}
			b := content(1, 8<<20)
			c.Put("build.zip", b, nil)
			e := c.Deploy("build.zip")
			c.Until("the others have it", func() bool { return len(c.Record("build.zip").Successful) == 2 })
			for i := range c.Agents {
				if got, _ := c.Object(c.Bucket(i), "build.zip"); string(got) != string(b) {
					t.Errorf("%s has other bytes", c.Bucket(i))
				}
			}
			// Of two agents one may have had everything before it asked the bad one.
			bad := slices.Concat(c.status(0).BadPeers, c.status(1).BadPeers)
			if behaviour == badpeer.Corrupt && len(bad) == 0 {
				t.Error("nobody is named")
			}
			for i, s := range []*api.AgentStatus{c.status(0), c.status(1)} {
				for _, p := range s.BadPeers {
					if p.Name != name || p.Region != c.Regions[2] || p.Reason != string(reason) || p.Until == nil || p.Times != 1 || p.Addr == "" {
						t.Errorf("%+v", p)
					}
					c.shows(i, s, name, reason)
				}
			}
			if _, err := c.Seeder.Cancel(t.Context(), e.ExecutionID); err != nil {
				t.Error(err)
			}
		})
	}
}

func (c *Cluster) status(i int) *api.AgentStatus {
	c.t.Helper()
	s, err := c.Agents[i].AgentStatus(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// shows looks for a bad peer in what people and Prometheus see.
func (c *Cluster) shows(i int, s *api.AgentStatus, name string, reason peerwire.Reason) {
	c.t.Helper()
	var text strings.Builder
	if err := terminal.AgentStatus(&text, s); err != nil || !strings.Contains(text.String(), "BAD PEER") || !strings.Contains(text.String(), name) {
		c.t.Errorf("%v: %s", err, &text)
	}
	resp, err := c.Agents[i].HTTP.Get(c.Agents[i].URL + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, line := range []string{"landfall_bad_peers 1\n", `landfall_peer_bans_total{reason="` + string(reason) + `"} 1` + "\n"} {
		if !strings.Contains(string(metrics), line) {
			c.t.Errorf("no metric says %q", line)
		}
	}
}
