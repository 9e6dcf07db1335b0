package admission

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func at(addr string) netip.Addr { return netip.MustParseAddr(addr) }

func TestNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.0.1":            "10.0.0.1",
		"::ffff:10.0.0.1":     "10.0.0.1",
		"2001:db8:1:2:3::4":   "2001:db8:1:2::",
		"2001:db8:1:2:ffff::": "2001:db8:1:2::",
		"fe80::1%eth0":        "fe80::",
	} {
		if got := Network(at(addr)); got != at(want) {
			t.Errorf("%s is of %s, want %s", addr, got, want)
		}
	}
	if Network(netip.Addr{}).IsValid() {
		t.Error("no address has a network")
	}
	if From(at("2001:db8::1"), true) == From(at("2001:db8::2"), true) {
		t.Error("members of one network are one origin")
	}
}

// Whoever has most has to give way, and who comes from elsewhere finds a place.
func TestRoom(t *testing.T) {
	r := Room[int]{Most: 20, PerOrigin: 8, Unknown: 10}
	guest := 0
	enter := func(from Origin) (came, out int, full bool) {
		guest++
		out, full = r.Enter(guest, from)
		return guest, out, full
	}
	member, _, _ := enter(From(at("10.0.0.1"), true))
	other, _, _ := enter(From(at("10.0.0.2"), false))
	var first int
	for i := range 8 {
		came, _, full := enter(From(at(fmt.Sprintf("2001:db8::%d", i)), false)) // of one network
		if full {
			t.Fatalf("the %d. has no place", i)
		}
		if i == 0 {
			first = came
		}
	}
	if _, out, full := enter(From(at("2001:db8::ffff"), false)); !full || out != first {
		t.Errorf("the ninth of a network: %d goes (%t), want the oldest, %d", out, full, first)
	}
	for i := range 100 { // each from a network of its own
		enter(From(at(fmt.Sprintf("2001:db8:%d::1", i+1)), false))
	}
	if r.unknown != r.Unknown || r.Len() != r.Unknown+1 {
		t.Errorf("%d of unknown origins, %d in all", r.unknown, r.Len())
	}
	if !r.Has(member) {
		t.Error("unknown ones took the place of a member")
	}
	for i := range 100 {
		enter(Of(identity.ID{Cluster: "prod", Kind: identity.Agent, Name: fmt.Sprint(i % 3)}))
	}
	if r.Len() != r.Most || !r.Has(member) {
		t.Errorf("%d in all; the member is there: %t", r.Len(), r.Has(member))
	}
	r.Leave(other)
	for g := range guest + 1 {
		r.Leave(g)
		r.Leave(g)
	}
	if r.Len() != 0 || len(r.origins) != 0 || r.unknown != 0 {
		t.Errorf("%d remain, of %d origins, %d unknown", r.Len(), len(r.origins), r.unknown)
	}
}

// Who comes from elsewhere is there until everybody has as little.
func TestRoomKeepsThoseOfFew(t *testing.T) {
	r := Room[int]{Most: 100, Unknown: 50}
	r.Enter(-1, From(at("10.0.0.9"), false))
	for i := range 1000 {
		r.Enter(i, From(at(fmt.Sprintf("10.0.1.%d", i%20)), false))
	}
	if !r.Has(-1) {
		t.Error("who has one place lost it to those that have several")
	}
	// Again is no second place.
	r.Enter(-1, From(at("10.0.0.9"), true))
	r.Enter(-1, Of(identity.ID{Name: "a"}))
	if r.Len() != 50 || r.unknown != 49 {
		t.Errorf("%d in all, %d unknown", r.Len(), r.unknown)
	}
}

// Each has its own, further ones share one, and those that are sure of theirs have it all the
// same.
func TestRates(t *testing.T) {
	now := time.Unix(1, 0)
	r := NewFailures()
	take := func(addr string, sure bool) bool {
		from := From(at(addr), sure)
		return r.Left(from.Addr, sure, now) && r.Take(from.Addr, sure, now)
	}
	for i := range FailureBurst {
		if !take(fmt.Sprintf("2001:db8::%d", i), false) {
			t.Fatalf("turned away after %d", i)
		}
	}
	if take("2001:db8::ffff", false) {
		t.Error("another address of the network has an allowance of its own")
	}
	if !take("2001:db8:0:1::1", false) {
		t.Error("another network has none")
	}
	now = now.Add(time.Second)
	for i := range FailuresPerSecond {
		if !take("2001:db8::1", false) {
			t.Errorf("turned away after %d a second later", i)
		}
	}
	if take("2001:db8::1", false) {
		t.Error("heard beyond the rate")
	}
	for i := range 4 * maxNetworks { // until nothing of what is shared is left
		take(fmt.Sprintf("10.%d.%d.1", i/256, i%256), false)
	}
	if r.Len() > maxNetworks {
		t.Errorf("%d are told apart", r.Len())
	}
	if take("10.200.0.1", false) {
		t.Error("there is something left to share")
	}
	for i := range 2 * maxNetworks {
		if heard := take(fmt.Sprintf("10.201.%d.%d", i/256, i%256), true); !heard && i < maxNetworks {
			t.Fatalf("the %d. that is sure of its own is not heard", i)
		}
	}
	if r.Len() > 2*maxNetworks {
		t.Errorf("%d are told apart", r.Len())
	}
	now = now.Add(time.Hour) // nobody has spent anything
	if !take("10.200.0.1", false) || r.Len() > maxNetworks+1 {
		t.Errorf("%d are told apart an hour later", r.Len())
	}
}
