package swarm

import (
	"fmt"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/limits"
	"github.com/landfall-dist/landfall/internal/peerwire"
)

// What is asked for is bounded once it has taken too long to come, by what does come; and
// not before, nor for a link that is down, nor when all that was asked for has come.
func TestFlow(t *testing.T) {
	const behind, tick, rate = 15 * time.Second, time.Second, 1000
	for _, c := range []struct {
		name        string
		came, asked func(second int) int64
		narrowed    func(second int) bool
		most        int64
	}{
		{"nothing to do", func(int) int64 { return 0 }, func(int) int64 { return 0 }, func(int) bool { return false }, 0},
		{"it keeps up", func(int) int64 { return rate }, func(int) int64 { return 10 * rate }, func(int) bool { return false }, 0},
		{"too much is asked for", func(int) int64 { return rate }, func(int) int64 { return 20 * rate }, func(s int) bool { return s >= 15 }, 10 * rate},
		{"nothing comes", func(int) int64 { return 0 }, func(int) int64 { return 20 * rate }, func(int) bool { return false }, 0},
		{"the link goes down", func(s int) int64 {
			if s > 20 {
				return 0
			}
			return rate
		}, func(int) int64 { return 20 * rate }, func(s int) bool { return 15 <= s && s < 35 }, 0},
		{"all has come", func(int) int64 { return rate }, func(s int) int64 {
			if s >= 20 {
				return 0
			}
			return 20 * rate
		}, func(s int) bool { return 15 <= s && s < 35 }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var f flow
			begun := time.Now()
			for s := range 60 {
				most, narrowed := f.note(behind, begun.Add(time.Duration(s)*tick), c.came(s), c.asked(s))
				if narrowed != c.narrowed(s) {
					t.Fatalf("after %d s: narrowed is %v", s, narrowed)
				}
				if narrowed && c.most > 0 && most != c.most {
					t.Fatalf("after %d s: %d bytes at a time, expected %d", s, most, c.most)
				}
			}
			if n := len(f.marks); n > int(behind/tick)+1 {
				t.Errorf("%d marks are kept", n)
			}
		})
	}
}

// A member whose link is slow asks its many peers for little at a time, calls nobody bad
// and gets each byte once.
func TestLittleIsAskedForBySlowLinks(t *testing.T) {
	t.Parallel()
	const size, senders = 3 << 20, 6
	_, from, content, m := seed(t, size, nil)
	l := limits.New(true)
	rates(t, l, 0, 2*limits.MinRate)
	agent := start(t, "agent", t.TempDir(), func(c *Config) {
		within(l)(c)
		c.patience = defaultPatience()
		c.patience.tick, c.patience.behind = 50*time.Millisecond, 2*time.Second
	})
	agent.known(t, m)
	var peers []peerwire.Peer
	for i := range senders {
		n := start(t, fmt.Sprint("peer-", i), t.TempDir(), nil)
		n.pull(t, content, m)
		peers = append(peers, n.addr)
	}
	f := agent.fetch(t, from, size, nil)
	narrowed, grown := false, 0
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for before, was := 0, false; ; {
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
			now, is := agent.askedFor(), agent.narrowed.Load()
			if was && is && now > max(before, fewest) {
				grown = max(grown, now)
			}
			before, was, narrowed = now, is, narrowed || is
		}
	}()
	finish(t, f, content, peers...)
	close(stop)
	<-done
	if !narrowed {
		t.Fatal("it always asked for all")
	}
	if grown > 0 {
		t.Errorf("with more than %d chunks asked for, others were asked for as well: %d", fewest, grown)
	}
	if bad := agent.BadPeers(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
}

// askedFor is how many chunks the engine waits for.
func (s *Swarm) askedFor() (n int) {
	s.exchanges.Range(func(_, v any) bool {
		x := v.(*exchange)
		x.mu.Lock()
		defer x.mu.Unlock()
		n += len(x.asked)
		return true
	})
	return n
}
