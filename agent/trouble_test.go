package agent

import (
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/signing"
)

// Why an agent is not ready: each cause has its own words.
func TestNotReady(t *testing.T) {
	newKey := func() signing.PublicKey {
		key, _, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		return signing.Ed25519Key(key)
	}
	right, wrong := newKey(), newKey()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	l.Close()
	for name, k := range map[string]struct {
		join    string
		seeders []string // the keys of those in sight, as they tell them
		want    string   // empty: ready
	}{
		"no --join":              {want: "there is no --join"},
		"a dead --join":          {join: dead, want: "--join " + dead + ": dial tcp " + dead},
		"its seeder":             {seeders: []string{right.ID()}},
		"a seeder of before":     {seeders: []string{""}},
		"another seeder":         {seeders: []string{wrong.ID()}, want: wrong.ID()},
		"its seeder and another": {seeders: []string{wrong.ID(), right.ID()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &Agent{store: newStore(), cfg: Config{Ledger: ledger.New(nil, "T"), Trust: signing.TrustIn(right),
				Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}}
			close(a.store.known) // why a store keeps an agent from being ready is tested with it
			member := func(meta gossip.Meta, join []string) *gossip.Gossip {
				g, err := gossip.New(gossip.Config{Meta: meta, Listen: "127.0.0.1:0", Join: join,
					Book: announce.NewBook(a.cfg.Trust, nil), Logger: a.cfg.Logger})
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- g.Run(t.Context()) }() // ends before the test's cleanup
				t.Cleanup(func() {
					if err := <-done; err != nil {
						t.Error(err)
					}
				})
				return g
			}
			var join []string
			for i, key := range k.seeders {
				join = append(join, member(gossip.Meta{ID: string(rune('s' + i)), Role: gossip.Seeder, Key: key}, nil).Addr())
			}
			if k.join != "" {
				join = append(join, k.join)
			}
			a.cfg.Gossip.Join = join
			a.gossip = member(gossip.Meta{ID: "a", Role: gossip.Agent, Region: "a", Bucket: "a-builds"}, join)
			deadline := time.After(60 * time.Second)
			ticker := time.NewTicker(10 * time.Millisecond)
			defer ticker.Stop()
			var err error
			for {
				err = a.ready()
				if len(a.gossip.Members()) == 1+len(k.seeders) && (err == nil) == (k.want == "") && !errors.Is(err, errAlone) {
					break
				}
				select {
				case <-ticker.C:
				case <-deadline:
					t.Fatalf("%v, want %q", err, k.want)
				}
			}
			if err != nil && !strings.Contains(err.Error(), k.want) {
				t.Errorf("%v, want %q", err, k.want)
			}
		})
	}
}
