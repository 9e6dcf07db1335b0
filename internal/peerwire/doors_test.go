package peerwire

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func newGreeting(from string, allowed bool) *Conn {
	return &Conn{link: new(link), from: netip.MustParseAddr(from), allowed: allowed, inbound: true}
}

// Of connections that do not say who they are, those of unknown addresses have a bound
// of their own, and the address that has most gives way.
func TestGreetingsAreBounded(t *testing.T) {
	var d doors
	honest := newGreeting("10.0.0.1", true)
	if out := d.enter(honest); out != nil {
		t.Fatal("the first has to go")
	}
	for i := range 10 * maxUnknownGreeting {
		d.enter(newGreeting(fmt.Sprintf("10.1.%d.%d", i/256, i%256), false))
	}
	nat := newGreeting("10.2.0.1", false)
	d.enter(nat)
	for range maxUnknownGreeting / 2 { // one address that has many loses its own
		d.enter(newGreeting("10.3.0.1", false))
	}
	if unknown := len(d.greeting) - 1; unknown != maxUnknownGreeting {
		t.Errorf("%d of unknown addresses", unknown)
	}
	for range 2 * MaxGreeting {
		d.enter(newGreeting("10.4.0.1", true))
	}
	if len(d.greeting) != MaxGreeting {
		t.Errorf("%d in all", len(d.greeting))
	}
	still := func(w *Conn) bool {
		for _, g := range d.greeting {
			if g == w {
				return true
			}
		}
		return false
	}
	if !still(honest) || !still(nat) {
		t.Error("others were closed for an address that has many")
	}
	for _, w := range append([]*Conn(nil), d.greeting...) {
		d.leave(w)
	}
	if len(d.greeting) != 0 {
		t.Errorf("%d remain", len(d.greeting))
	}
}

// Of strangers the idlest goes, those of one address first, and whoever has become a
// member does not count.
func TestStrangersAreBounded(t *testing.T) {
	var d doors
	now := time.Unix(1, 0)
	turnedMember := make(map[[20]byte]bool)
	isMember := func(id [20]byte) bool { return turnedMember[id] }
	enter := func(i int, from string) (w, out *Conn) {
		w = newGreeting(from, true)
		w.id = PeerID(fmt.Sprint(i))
		now = now.Add(time.Minute)
		out, err := d.stranger(w, isMember, now)
		if err != nil {
			t.Fatal(err)
		}
		return w, out
	}
	busy, _ := enter(0, "10.0.0.1")
	busy.useful.Store(1)
	second, _ := enter(1, "10.0.0.1")
	for i := 2; i < MaxStrangersPerAddr; i++ {
		if _, out := enter(i, "10.0.0.1"); out != nil {
			t.Fatalf("the %d. of an address is one too many", i)
		}
	}
	if _, out := enter(100, "10.0.0.1"); out != second {
		t.Errorf("not the oldest idler had to go: %+v", out)
	}
	gone := 0
	for i := range 2 * maxStrangers {
		_, out := enter(200+i, fmt.Sprintf("10.0.1.%d", i))
		if out == busy {
			t.Fatal("the busy one had to go")
		}
		if out != nil {
			gone++
		}
	}
	if len(d.strangers) != maxStrangers || gone != maxStrangers+MaxStrangersPerAddr {
		t.Errorf("%d remain, %d went", len(d.strangers), gone)
	}
	for _, w := range d.strangers {
		turnedMember[w.id] = true
	}
	if _, out := enter(500, "10.0.0.1"); out != nil || len(d.strangers) != 1 {
		t.Errorf("members are counted: %d", len(d.strangers))
	}
}

// Who is no member connects so often and no more, and addresses remembered are bounded.
func TestStrangersHaveARate(t *testing.T) {
	var d doors
	now := time.Unix(1, 0)
	try := func(from string) error {
		w := newGreeting(from, true)
		_, err := d.stranger(w, func([20]byte) bool { return false }, now)
		d.leave(w)
		return err
	}
	for i := range strangersBurst {
		if err := try("10.0.0.1"); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if err := try("10.0.0.1"); !errors.Is(err, errCrowded) {
		t.Errorf("beyond the burst: %v", err)
	}
	if err := try("10.0.0.2"); err != nil {
		t.Errorf("another address: %v", err)
	}
	now = now.Add(2 * time.Second / strangersPerSecond)
	if err := try("10.0.0.1"); err != nil {
		t.Errorf("later: %v", err)
	}
	for i := range 2 * maxStrangerAddrs {
		_ = try(fmt.Sprintf("10.%d.%d.1", i/256, i%256))
	}
	if len(d.rates) > maxStrangerAddrs+1 {
		t.Errorf("%d addresses are remembered", len(d.rates))
	}
}

// Who fails to prove who it is does so so often; later some of it goes on, and the addresses
// remembered are bounded.
func TestFailuresHaveARate(t *testing.T) {
	var d doors
	now := time.Unix(1, 0)
	try := func(from string) bool {
		w := newGreeting(from, false)
		if !d.mayProve(w, now) {
			return false
		}
		d.failed(w, now)
		return true
	}
	for i := range provingBurst {
		if !try("10.0.0.1") {
			t.Fatalf("turned away after %d", i)
		}
	}
	if try("10.0.0.1") {
		t.Error("heard beyond the burst")
	}
	if !d.mayProve(newGreeting("10.0.0.2", false), now) {
		t.Error("another address is not heard")
	}
	now = now.Add(time.Second)
	for i := range provingPerSecond {
		if !try("10.0.0.1") {
			t.Errorf("turned away after %d a second later", i)
		}
	}
	if try("10.0.0.1") {
		t.Error("heard beyond the rate")
	}
	for i := range 2 * maxStrangerAddrs {
		try(fmt.Sprintf("10.%d.%d.1", i/256, i%256))
	}
	if len(d.failures) > maxStrangerAddrs+1 {
		t.Errorf("%d addresses are remembered", len(d.failures))
	}
}

// A dial that fails for long is said, of members, once.
func TestUnreachedPeerIsSaid(t *testing.T) {
	log := new(strings.Builder)
	n := start(t, func(c *Config) {
		c.Member = func(id [20]byte) (m Member) {
			if id == PeerID("seeder") {
				m.Name = "seeder"
			}
			return m
		}
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
	})
	now := time.Now()
	fail := func(name string, at time.Duration) {
		n.dialFailed(PeerID(name), "10.0.0.1:6881", errors.New("connection refused"), now.Add(at))
	}
	for _, name := range []string{"seeder", "nobody"} {
		fail(name, 0)
		fail(name, unreachedFor-1)
	}
	n.dialReached(PeerID("seeder"))
	fail("seeder", unreachedFor)
	if log.String() != "" {
		t.Errorf("too early: %s", log)
	}
	for range 5 {
		fail("seeder", 2*unreachedFor)
		fail("nobody", 2*unreachedFor)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "member=seeder") || !strings.Contains(log.String(), "connection refused") {
		t.Error(log)
	}
	for i := range 2 * maxUnreached {
		fail(fmt.Sprint(i), 0)
	}
	if len(n.notices.unreached) > maxUnreached {
		t.Errorf("%d are remembered", len(n.notices.unreached))
	}
}
