package clustertest

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/fetch"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/hostwire"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
)

// sendGoal has the cluster hear of a goal, as from another seeder, until the test ends.
func (c *Cluster) sendGoal(t *testing.T, g *goal.Goal) {
	t.Helper()
	key := c.cluster.Key
	operator, err := gossip.New(gossip.Config{
		Meta: gossip.Meta{ID: "operator", Role: gossip.Seeder, Key: key.Public().ID(), PeerPort: 1, HTTPPort: 1}, Listen: "127.0.0.1:0",
		Join: []string{c.cluster.SeederGossip}, Book: announce.NewBook(c.cluster.Trust, nil), OnDocument: func(announce.Added) {},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- operator.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	wire, err := goal.Sign(t.Context(), key, g)
	if err == nil {
		err = operator.SendGoal(g.Service, wire)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fetchByStream is a host as far as bytes go: what an agent tells it by the stream is all
// that it knows.
func (c *Cluster) fetchByStream(t *testing.T, host, service string, of goal.Build) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := fetch.New(fetch.Config{Dir: t.TempDir(), Listener: l, Name: hostwire.NameOf(host, of.ExecutionID), Region: c.Regions[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stream, err := hostwire.Dial(t.Context(), hostwire.DialConfig{URL: c.cluster.FleetURLs[c.Regions[0]][0], Hello: &hostwire.Hello{
		Version: hostwire.Version, Host: host, Start: of.ExecutionID, PeerPort: l.Addr().(*net.TCPAddr).AddrPort().Port(),
		Services: []hostwire.ServiceState{{Service: service, State: goal.Waiting}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	whole := make(chan struct{})
	late := time.AfterFunc(Timeout, stream.Close)
	defer late.Stop()
	for begun := false; ; {
		m, err := stream.Receive()
		if err != nil {
			select {
			case <-whole:
				if b, ok := f.Known(of.ExecutionID); !ok || b.Verify(of.Size, of.SHA256) != nil {
					t.Error("what it has is not the build")
				}
				return
			default:
				t.Fatalf("the stream has ended: %v", err)
			}
		}
		switch m := m.(type) {
		case *hostwire.Neighbours:
			var sources []fetch.Peer
			for _, p := range m.Sources {
				sources = append(sources, fetch.Peer{Name: p.Name, ID: p.ID, Agent: true, Addr: p.Addr})
			}
			f.Peers(nil, sources)
		case *hostwire.Recipe:
			b, err := f.Build(fetch.Recipe{ExecutionID: m.ExecutionID, Key: m.Key, Size: m.Size, Scheme: m.Scheme, InfoHashes: m.InfoHashes, Sealed: m.Sealed})
			if err != nil {
				t.Fatal(err)
			}
			if !begun {
				begun = true
				go func() {
					<-b.Whole()
					close(whole)
					stream.Close()
				}()
			}
		}
	}
}

// A host gets a build that a goal names from its region's agent: when its execution has
// ended, after all have been restarted, and where the agent has lost its data, which it reads
// back from its bucket.
func TestBuildsReachHosts(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1, Fleet: true})
	body := content(1, 11<<20)
	e := c.Publish("hello.zip", body)
	known := manifesttest.Build(t, body)
	of := goal.Build{SourceBucket: c.Global, Key: "hello.zip", ExecutionID: e.ExecutionID, Size: known.Size, SHA256: known.Composite()}
	g := &goal.Goal{
		Service: "web", Version: time.Now().Unix(), Deployment: e.ExecutionID, MaxUnavailable: "1", Issued: time.Now(), Target: of,
		Regions: map[string]goal.Region{c.Regions[0]: {Open: true, Cut: goal.Circle}},
	}
	c.sendGoal(t, g)
	c.fetchByStream(t, "host-1", "web", of)
	c.Restart()
	c.sendGoal(t, g)
	c.fetchByStream(t, "host-2", "web", of)
	c.Stop()
	lost, err := filepath.Glob(filepath.Join(c.cfg.Dir, "*", "recipes"))
	if err != nil || len(lost) != 1 {
		t.Fatalf("%v, %v", lost, err)
	}
	for _, dir := range []string{lost[0], filepath.Join(filepath.Dir(lost[0]), "cache")} {
		if _, err := os.Stat(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	c.start()
	c.sendGoal(t, g)
	c.fetchByStream(t, "host-3", "web", of)
	if out, _ := c.Object(c.Bucket(0), "hello.zip"); !bytes.Equal(out, body) {
		t.Error("the region's object is another one")
	}
}
