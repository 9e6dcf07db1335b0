package gossip

import (
	"errors"
	"testing"

	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/identity/identitytest"
)

// Lists of hosts reach the agents of the region that serve hosts, the newest of each, and
// nobody else: with TLS and without.
func TestNearReachesTheRegion(t *testing.T) {
	for name, secure := range map[string]func(*testing.T) func(...func(*Config)) func(*Config){
		"without TLS": func(*testing.T) func(...func(*Config)) func(*Config) { return sequence },
		"with TLS": func(t *testing.T) func(...func(*Config)) func(*Config) {
			prod := identitytest.New(t, "prod", nil)
			return func(changes ...func(*Config)) func(*Config) { return withTLS(t, prod, identity.Require, changes...) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			with := secure(t)
			heard := make(chan string, 100)
			near := func(to string) func(*Config) {
				return func(c *Config) {
					c.Fleet = 7
					c.OnNear = func(from Member, hosts []byte) error {
						heard <- to + " of " + from.ID + ": " + string(hosts)
						if string(hosts) == `"bad"` {
							return errors.New("no hosts")
						}
						return nil
					}
					c.OnTally = func(from Member, tally []byte) error {
						return c.OnNear(Member{Meta: Meta{ID: from.ID + ", hosts that switch"}}, tally)
					}
				}
			}
			s := start(t, seeder("s1"), with(near("s1")))
			one := start(t, agent("a1", "region-a"), with(join(s), near("a1")))
			two := start(t, agent("a2", "region-a"), with(join(s), near("a2")))
			three := start(t, agent("b1", "region-b"), with(join(s), near("b1")))
			for _, n := range []*node{s, one, two, three} {
				n.await(t, 4)
			}
			for list, hosts := range map[int]string{1: `{"b":1}`, 2: `{"b":2}`} {
				if err := one.SendNear(list, []byte(hosts)); err != nil {
					t.Fatal(err)
				}
			}
			want := map[string]bool{`a2 of a1: {"b":1}`: true, `a2 of a1: {"b":2}`: true}
			for len(want) > 0 {
				got := receive(t, heard)
				if !want[got] {
					t.Errorf("%s", got)
				}
				delete(want, got)
			}
			// Another region's agent has nobody to tell, nor has a seeder.
			if err := errors.Join(three.SendNear(1, []byte(`"b1"`)), s.SendNear(1, []byte(`"s1"`)), one.SendNear(3, []byte(`"bad"`))); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, heard); got != `a2 of a1: "bad"` {
				t.Errorf("%s", got)
			}
			if one.SendNear(1, make([]byte, maxFleet)) == nil || one.SendTally("web", make([]byte, maxFleet)) == nil {
				t.Error("a list longer than a message is taken")
			}
			// So do tallies, of each service.
			if err := errors.Join(three.SendTally("web", []byte(`"b1"`)), s.SendTally("web", []byte(`"s1"`)), one.SendTally("web", []byte(`"bad"`))); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, heard); got != `a2 of a1, hosts that switch: "bad"` {
				t.Errorf("%s", got)
			}
		})
	}
}
