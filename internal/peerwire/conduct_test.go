package peerwire

import (
	"fmt"
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

// stall is an offence that takes two strikes.
var stall = Offence{Stalled, 2, 5 * time.Second}

func stalledOnce() (Offence, *conduct, *clock) {
	c, at := judged()
	o := stall
	c.strike(named("a"), o, "")
	return o, c, at
}

func TestBansDoubleAndAreForgotten(t *testing.T) {
	c, at := judged()
	a := named("a")
	for n, want := range []time.Duration{FirstBan, 2 * FirstBan, 4 * FirstBan, 8 * FirstBan, 16 * FirstBan, 32 * FirstBan, maxBan, maxBan} {
		c.strike(a, CorruptPiece, "")
		c.strike(a, CorruptPiece, "") // what else it did before it was hung up on
		bad := c.bad()
		if len(bad) != 1 || bad[0].ID != a.id || bad[0].Reason != Corrupt || bad[0].Times != n+1 || bad[0].Until.Sub(bad[0].Since) != want {
			t.Fatalf("time %d: %+v", n+1, bad)
		}
		at.later(want - 1)
		if !c.refused(a) {
			t.Fatalf("time %d: not refused until the end", n+1)
		}
		at.later(1)
		if c.refused(a) || len(c.bad()) != 0 {
			t.Fatalf("time %d: refused after the end", n+1)
		}
	}
	at.later(forgiveAfter + 1)
	c.strike(a, CorruptPiece, "")
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
		if !c.refused(named("a")) || len(c.bad()) != 0 {
			t.Error("it goes on, or is called bad")
		}
		at.later(stall.Pause)
		if c.refused(named("a")) {
			t.Error("it may not come back")
		}
	})
	t.Run("twice is", func(t *testing.T) {
		o, c, at := stalledOnce()
		at.later(stall.Pause)
		c.strike(named("a"), o, "")
		if bad := c.bad(); len(bad) != 1 || bad[0].Reason != Stalled {
			t.Errorf("%+v", bad)
		}
	})
	t.Run("unless it sent something", func(t *testing.T) {
		o, c, at := stalledOnce()
		at.later(stall.Pause)
		c.delivered(named("a"))
		c.strike(named("a"), o, "")
		if bad := c.bad(); len(bad) != 0 {
			t.Errorf("%+v", bad)
		}
	})
	t.Run("or long after", func(t *testing.T) {
		o, c, at := stalledOnce()
		at.later(strikeWindow + 1)
		c.strike(named("a"), o, "")
		if bad := c.bad(); len(bad) != 0 {
			t.Errorf("%+v", bad)
		}
	})
}

func TestAnAddressIsNamedAndNotRefused(t *testing.T) {
	c, _ := judged()
	ip := netip.MustParseAddr("192.0.2.7")
	for range Babble.Limit {
		c.strike(who{ip: ip}, Babble, "")
		c.strike(who{}, Babble, "") // no IP at all
	}
	bad := c.bad()
	if len(bad) != 1 || bad[0].Addr != "192.0.2.7" || !bad[0].Until.IsZero() || bad[0].Reason != Garbage {
		t.Errorf("%+v", bad)
	}
	if c.refused(who{}) {
		t.Error("everybody without an id is refused")
	}
}

func TestConductIsBounded(t *testing.T) {
	c, at := judged()
	for i := range 2 * maxRemembered {
		c.strike(named(fmt.Sprint(i)), CorruptPiece, "")
		at.later(time.Millisecond)
	}
	if len(c.records) != maxRemembered {
		t.Errorf("%d peers remembered", len(c.records))
	}
	if !c.refused(named(fmt.Sprint(2*maxRemembered - 1))) {
		t.Error("the newest is forgotten")
	}
	for i := range 3 * maxAddrs {
		c.named([]Peer{{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)}})
	}
	if len(c.addrs) > maxAddrs+1 {
		t.Errorf("%d addresses remembered", len(c.addrs))
	}
}

// Who others cannot stand in for is left alone for a moment alone, however often it is bad.
func TestWhoIsNeededIsNotBannedForLong(t *testing.T) {
	c, at := judged()
	c.vital = func(of who) bool { return of == named("a") }
	for range 20 {
		c.strike(named("a"), CorruptPiece, "")
		if !c.refused(named("a")) {
			t.Fatal("a bad peer is not left alone at all")
		}
		if at.later(vitalBan); c.refused(named("a")) {
			t.Fatal("the only source is banned for long")
		}
	}
	c.strike(named("b"), CorruptPiece, "")
	if at.later(vitalBan); !c.refused(named("b")) {
		t.Error("any other is not banned")
	}
}
