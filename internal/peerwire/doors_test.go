package peerwire

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/admission"
)

func newGreeting(from string, allowed bool) *Conn {
	return &Conn{link: new(link), from: admission.Network(netip.MustParseAddr(from)), allowed: allowed, inbound: true}
}

// Of connections that do not say who they are, those of unknown addresses have a bound
// of their own, and the address that has most gives way.
func TestGreetingsAreBounded(t *testing.T) {
	d := newDoors()
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
	if unknown := d.greeting.Len() - 1; unknown != maxUnknownGreeting {
		t.Errorf("%d of unknown addresses", unknown)
	}
	var many []*Conn
	for range 2 * MaxGreeting {
		many = append(many, newGreeting("10.4.0.1", true))
		d.enter(many[len(many)-1])
	}
	if d.greeting.Len() != MaxGreeting {
		t.Errorf("%d in all", d.greeting.Len())
	}
	if !d.greeting.Has(honest) || !d.greeting.Has(nat) {
		t.Error("others were closed for an address that has many")
	}
	for _, w := range many {
		d.leave(w)
	}
	if d.greeting.Len() != 1+maxUnknownGreeting {
		t.Errorf("%d remain", d.greeting.Len())
	}
}

// Of strangers the idlest goes, those of one address first, and whoever has become a
// member does not count.
func TestStrangersAreBounded(t *testing.T) {
	d := newDoors()
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
	d := newDoors()
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
	if d.rates.Len() > maxStrangerAddrs {
		t.Errorf("%d addresses are remembered", d.rates.Len())
	}
}

// Who fails to prove who it is does so so often, those of a network together; later some of
// it goes on. However many others fail, who comes from where a member is is heard.
func TestFailuresHaveARate(t *testing.T) {
	members := map[netip.Addr]bool{netip.MustParseAddr("2001:db8:ffff::1"): true, netip.MustParseAddr("10.99.0.1"): true}
	wire := &Wire{cfg: Config{MemberAt: func(a netip.Addr) bool { return members[a] }}}
	d := newDoors()
	now := time.Unix(1, 0)
	try := func(from string) bool {
		w := wire.watch(new(link), [20]byte{}, netip.AddrPortFrom(netip.MustParseAddr(from), 1).String())
		if !d.mayProve(w, now) {
			return false
		}
		d.failed(w, now)
		return true
	}
	for i := range admission.FailureBurst {
		if !try(fmt.Sprintf("2001:db8::%d", i+1)) {
			t.Fatalf("turned away after %d", i)
		}
	}
	if try("2001:db8::ffff") {
		t.Error("those of one network are heard beyond the burst")
	}
	if !try("10.0.0.2") || !try("2001:db8:0:1::1") {
		t.Error("another network is not heard")
	}
	now = now.Add(time.Second)
	for i := range admission.FailuresPerSecond {
		if !try("2001:db8::1") {
			t.Errorf("turned away after %d a second later", i)
		}
	}
	if try("2001:db8::1") {
		t.Error("heard beyond the rate")
	}
	for i := range 4 * maxStrangerAddrs {
		try(fmt.Sprintf("10.%d.%d.1", i/256, i%256))
	}
	if d.failures.Len() > maxStrangerAddrs {
		t.Errorf("%d addresses are remembered", d.failures.Len())
	}
	if try("10.98.0.1") {
		t.Error("there is something left for further networks")
	}
	for from := range members {
		if !try(from.String()) {
			t.Errorf("who comes from %s, where a member is, is not heard", from)
		}
	}
}

// An IPv6 network of 64 bits is one place: who has it has no more connections than who has one
// address, and a member in it has places of its own.
func TestPlacesAreOfNetworks(t *testing.T) {
	member := netip.MustParseAddr("2001:db8::1")
	wire := &Wire{cfg: Config{MemberAt: func(a netip.Addr) bool { return a == member }}}
	d := newDoors()
	come := func(from netip.Addr) *Conn {
		c := wire.watch(new(link), [20]byte{}, netip.AddrPortFrom(from, 1).String())
		c.inbound, c.allowed = true, true
		return c
	}
	honest := come(member)
	d.wait(honest)
	addr := member
	for range 4 * MaxSilentPerAddr {
		addr = addr.Next()
		d.wait(come(addr))
	}
	if d.silent.Len() != 1+MaxSilentPerAddr || !d.silent.Has(honest) {
		t.Errorf("%d connections of one network say nothing; the member is there: %t", d.silent.Len(), d.silent.Has(honest))
	}
	gone := 0
	for range MaxStrangersPerAddr + 1 {
		addr = addr.Next()
		out, err := d.stranger(come(addr), func([20]byte) bool { return false }, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		if out != nil {
			gone++
		}
	}
	if gone != 1 {
		t.Errorf("%d of the strangers of a network had to go, %d may stay", gone, MaxStrangersPerAddr)
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
