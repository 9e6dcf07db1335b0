package swarm

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"
)

// clock is moved by hand.
type clock struct{ time.Time }

func (c *clock) now() time.Time        { return c.Time }
func (c *clock) later(d time.Duration) { c.Time = c.Add(d) }
func judged() (*conduct, *clock)       { c := &clock{time.Unix(1e9, 0)}; return newConduct(c.now), c }
func named(s string) who               { return who{id: PeerID(s)} }
func stalledOnce() (offence, *conduct, *clock) {
	c, at := judged()
	o := defaultPatience().stall()
	c.strike(named("a"), o)
	return o, c, at
}

func TestBansDoubleAndAreForgotten(t *testing.T) {
	c, at := judged()
	a := named("a")
	for n, want := range []time.Duration{firstBan, 2 * firstBan, 4 * firstBan, 8 * firstBan, 16 * firstBan, 32 * firstBan, maxBan, maxBan} {
		c.strike(a, corruptPiece)
		c.strike(a, corruptPiece) // what else it did before it was hung up on
		bad := c.bad()
		if len(bad) != 1 || bad[0].ID != a.id || bad[0].Reason != Corrupt || bad[0].Times != n+1 || bad[0].Until.Sub(bad[0].Since) != want {
			t.Fatalf("time %d: %+v", n+1, bad)
		}
		at.later(want - 1)
		if !c.refused(a.id) {
			t.Fatalf("time %d: not refused until the end", n+1)
		}
		at.later(1)
		if c.refused(a.id) || len(c.bad()) != 0 {
			t.Fatalf("time %d: refused after the end", n+1)
		}
	}
	at.later(forgiveAfter + 1)
	c.strike(a, corruptPiece)
	if bad := c.bad(); bad[0].Times != 1 {
		t.Errorf("not forgotten: %+v", bad)
	}
	if n := c.total(Corrupt); n != 9 {
		t.Errorf("%d bans counted", n)
	}
}

func TestOneStallIsNoBan(t *testing.T) {
	t.Run("left alone for a moment", func(t *testing.T) {
		_, c, at := stalledOnce()
		if !c.refused(named("a").id) || len(c.bad()) != 0 {
			t.Error("it goes on, or is called bad")
		}
		at.later(defaultPatience().pause)
		if c.refused(named("a").id) {
			t.Error("it may not come back")
		}
	})
	t.Run("twice is", func(t *testing.T) {
		o, c, at := stalledOnce()
		at.later(defaultPatience().pause)
		c.strike(named("a"), o)
		if bad := c.bad(); len(bad) != 1 || bad[0].Reason != Stalled {
			t.Errorf("%+v", bad)
		}
	})
	t.Run("unless it sent something", func(t *testing.T) {
		o, c, at := stalledOnce()
		at.later(defaultPatience().pause)
		c.delivered(named("a").id)
		c.strike(named("a"), o)
		if bad := c.bad(); len(bad) != 0 {
			t.Errorf("%+v", bad)
		}
	})
	t.Run("or long after", func(t *testing.T) {
		o, c, at := stalledOnce()
		at.later(strikeWindow + 1)
		c.strike(named("a"), o)
		if bad := c.bad(); len(bad) != 0 {
			t.Errorf("%+v", bad)
		}
	})
}

func TestAnAddressIsNamedAndNotRefused(t *testing.T) {
	c, _ := judged()
	ip := netip.MustParseAddr("192.0.2.7")
	for range babble.limit {
		c.strike(who{ip: ip}, babble)
		c.strike(who{}, babble) // no IP at all
	}
	bad := c.bad()
	if len(bad) != 1 || bad[0].Addr != "192.0.2.7" || !bad[0].Until.IsZero() || bad[0].Reason != Garbage {
		t.Errorf("%+v", bad)
	}
	if c.refused([20]byte{}) {
		t.Error("everybody without an id is refused")
	}
}

func TestConductIsBounded(t *testing.T) {
	c, at := judged()
	for i := range 2 * maxRemembered {
		c.strike(named(fmt.Sprint(i)), corruptPiece)
		at.later(time.Millisecond)
	}
	if len(c.records) != maxRemembered {
		t.Errorf("%d peers remembered", len(c.records))
	}
	if !c.refused(named(fmt.Sprint(2*maxRemembered - 1)).id) {
		t.Error("the newest is forgotten")
	}
	for i := range 3 * maxAddrs {
		c.named([]PeerAddr{{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)}})
	}
	if len(c.addrs) > maxAddrs+1 {
		t.Errorf("%d addresses remembered", len(c.addrs))
	}
}

func TestIsBabble(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("main read loop: %w", io.EOF):           false,
		fmt.Errorf("decoding: %w", io.ErrUnexpectedEOF):    false,
		fmt.Errorf("decoding: %w", errors.New("too long")): true,
	} {
		if got := isBabble(err); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
}

// A link is a stream of what comes in each tick, in bytes; a chunk is complete when
// so many have come.
func TestPatience(t *testing.T) {
	p := defaultPatience()
	const second = 2 // ticks
	for name, c := range map[string]struct {
		rate     func(tick int) int64 // bytes in a tick
		chunk    int64
		stalled  time.Duration // 0: never
		late     time.Duration
		sharing  float64
		duration time.Duration
	}{
		"silent":                   {func(int) int64 { return 0 }, maxChunk, 5 * time.Second, 2 * time.Second, 1, time.Minute},
		"silent after a hello":     {func(i int) int64 { return max(0, int64(1-i)) * 78 }, maxChunk, 5500 * time.Millisecond, 2 * time.Second, 1, time.Minute},
		"announces, sends nothing": {func(int) int64 { return 50 }, maxChunk, 20 * time.Second, 2 * time.Second, 1, time.Minute},
		"dribble":                  {func(int) int64 { return 500 }, maxChunk, 20 * time.Second, 2 * time.Second, 1, time.Minute},
		"a sixteenth of 1 Mbit/s":  {func(int) int64 { return 7800 / second }, maxChunk, 0, 0, 1, 10 * time.Minute},
		"the same, in bursts of 10 s": {func(i int) int64 {
			if i%(10*second) == 3 {
				return 78000
			}
			return 0
		}, maxChunk, 0, 34 * time.Second, 1, 10 * time.Minute},
		"a sixteenth of 20 Mbit/s":  {func(int) int64 { return 156000 / second }, maxChunk, 0, 0, 1, time.Minute},
		"a 64th of 1 Mbit/s":        {func(int) int64 { return 1950 / second }, maxChunk, 0, 0, 16. / 64, 10 * time.Minute},
		"an answer after 4 seconds": {func(i int) int64 { return int64(min(1, i/(4*second))) * 50000 }, maxChunk, 0, 2 * time.Second, 1, time.Minute},
		"stops in the middle":       {func(i int) int64 { return max(0, int64(8-i)) * 10000 }, maxChunk, 19 * time.Second, 0, 1, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			var w wait
			var got int64
			var late, stalled time.Duration
			for i := 0; time.Duration(i)*p.tick < c.duration && stalled == 0; i++ {
				bytes := c.rate(i)
				chunks := 0
				for got += bytes; got >= c.chunk; got -= c.chunk {
					chunks++
				}
				isLate, isStalled := w.judge(p, p.tick, bytes, chunks, p.leastRate*c.sharing)
				now := time.Duration(i+1) * p.tick
				if isLate && late == 0 {
					late = now
				}
				if isStalled {
					stalled = now
				}
			}
			if stalled != c.stalled {
				t.Errorf("stalled after %s, not %s", stalled, c.stalled)
			}
			if c.late != 0 && late != c.late || c.late == 0 && c.stalled == 0 && late != 0 {
				t.Errorf("late after %s, not %s", late, c.late)
			}
		})
	}
}
