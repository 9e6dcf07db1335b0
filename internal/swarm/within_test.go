package swarm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// rates are limits of peers' traffic; 0 is none.
func rates(t *testing.T, l *limits.Limits, up, down int64) {
	t.Helper()
	u, d := api.Rate(up), api.Rate(down)
	if err := l.Change(api.LimitsChange{UploadRate: &u, DownloadRate: &d}); err != nil {
		t.Fatal(err)
	}
}

func within(l *limits.Limits) func(*Config) {
	return func(c *Config) { c.Upload, c.Download = l.Upload, l.Download }
}

// another is one more build that a node seeds.
func (n *node) another(t *testing.T, of byte, size int) (*Torrent, []byte) {
	t.Helper()
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{of}).Read(content)
	m := manifesttest.Segment(content)
	return n.pull(t, content, m), content
}

// passed is what a node's present connections have read and written.
func (n *node) passed() (in, out int64) {
	for _, c := range n.wire.Conns() {
		in += c.Received()
		out += c.Sent()
	}
	return in, out
}

// A limit holds for all builds together, at who sends as at who receives, and the builds
// share it; without it they go on as fast as they can.
func TestLimitIsShared(t *testing.T) {
	const size, limit, measured = 12 << 20, 2_000_000, 4_000_000
	for _, direction := range []string{"upload", "download"} {
		t.Run(direction, func(t *testing.T) {
			ofSeeder, ofAgent := limits.New(false), limits.New(true)
			s, first, content, _ := seed(t, size, within(ofSeeder))
			second, other := s.another(t, 2, size)
			agent := start(t, "agent", t.TempDir(), within(ofAgent))
			held := ofAgent
			if direction == "upload" {
				held = ofSeeder
				rates(t, held, limit, 0)
			} else {
				rates(t, held, 0, limit)
			}
			ctx, cancel := context.WithCancel(t.Context())
			named := make(chan struct{}, 2)
			var fetched []*Torrent
			for _, from := range []*Torrent{first, second} {
				f := agent.fetch(t, from, size, nil)
				fetched = append(fetched, f)
				go func() { f.nameUntil(ctx, s.addr); named <- struct{}{} }()
				if e, err := f.Entry(ctx, nil); err != nil {
					t.Fatal(err)
				} else {
					e.Unpin()
				}
			}
			bytes := func() int64 {
				if direction == "upload" {
					_, out := s.passed()
					return out
				}
				in, _ := agent.passed()
				return in
			}
			var at time.Time
			var begun int64
			eventually(t, func() bool { at, begun = time.Now(), bytes(); return begun > limit/4 })
			var end int64
			eventually(t, func() bool { end = bytes(); return end-begun >= measured })
			took := time.Since(at)
			cancel()
			<-named
			<-named
			rate := float64(end-begun) / took.Seconds()
			t.Logf("%.3f of the limit, over %s", rate/limit, took)
			// A write or a read that is under way counts before its time, a burst after it.
			if slack := float64(limit/4 + 4*(64<<10)); float64(end-begun) > 1.05*limit*took.Seconds()+slack {
				t.Errorf("%d bytes in %s with a limit of %d bytes/s", end-begun, took, limit)
			}
			for i, f := range fetched {
				if got := f.Stats().WireBytes; got < (begun+measured)/4 {
					t.Errorf("build %d got %d bytes of %d", i, got, end)
				}
			}
			if held.Upload.Waited()+held.Download.Waited() == 0 {
				t.Error("nobody is said to have waited")
			}
			rates(t, held, 0, 0)
			finish(t, fetched[0], content, s.addr)
			finish(t, fetched[1], other, s.addr)
		})
	}
}

// Who sends to a member that reads no faster than its limit allows is no bad peer, however
// little the member takes from each, and the download is not stuck: here with a least rate
// that is as much as the limit, and less patience than a slice takes.
func TestOwnLimitIsHeldAgainstNobody(t *testing.T) {
	t.Parallel()
	const size, slow = 768 << 10, 4
	_, from, content, m := seed(t, size, nil)
	l := limits.New(true)
	rates(t, l, 0, limits.MinRate)
	agent := start(t, "agent", t.TempDir(), func(c *Config) {
		within(l)(c)
		hasty(c)
		c.patience.silent, c.patience.faded = 4*c.patience.silent, 4*c.patience.faded // the machine may stop for a moment
		c.patience.leastRate = limits.MinRate
	})
	agent.known(t, m)
	var peers []peerwire.Peer
	for i := range slow {
		n := start(t, fmt.Sprint("peer-", i), t.TempDir(), nil)
		n.pull(t, content, m)
		peers = append(peers, n.addr)
	}
	f := agent.fetch(t, from, size, nil)
	ctx, cancel := context.WithCancel(t.Context())
	arrived := make(chan int)
	go func() { // it arrives all the time, but for its beginning and its end
		n, ticker := 0, time.NewTicker(time.Second)
		defer ticker.Stop()
		for last := time.Now(); ; {
			select {
			case now := <-ticker.C:
				if f.Arriving(last) {
					n++
				}
				last = now
			case <-ctx.Done():
				arrived <- n
				return
			}
		}
	}()
	begun := time.Now()
	finish(t, f, content, peers...)
	took := time.Since(begun)
	cancel()
	if n, all := <-arrived, int(took/time.Second); n < all-3 {
		t.Errorf("it arrived in %d of %d seconds", n, all)
	}
	if f.Arriving(begun) {
		t.Error("a whole build arrives")
	}
	if bad := agent.BadPeers(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
	for _, p := range peers {
		if agent.wire.Refused(p.ID) {
			t.Errorf("%x is left alone", p.ID)
		}
	}
	stats := f.Stats()
	t.Logf("%.2f of the build was received", float64(stats.DownloadedBytes)/size)
}

// A limit holds no connection back from its end.
func TestCloseWhileLimited(t *testing.T) {
	const size = 4 << 20
	l := limits.New(true)
	rates(t, l, limits.MinRate, limits.MinRate)
	s, from, _, _ := seed(t, size, within(l))
	agent := start(t, "agent", t.TempDir(), within(l))
	f := agent.fetch(t, from, size, nil)
	ctx, cancel := context.WithCancel(t.Context())
	named := make(chan struct{})
	go func() { f.nameUntil(ctx, s.addr); close(named) }()
	if e, err := f.Entry(ctx, nil); err != nil {
		t.Error(err)
	} else {
		e.Unpin()
	}
	eventually(t, func() bool { return l.Upload.Waited() > 0 })
	cancel()
	<-named
	f.Drop()
	// Both nodes end with the test, and no goroutine is left.
}
