package handout

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// trouble is a peer that does what no honest one does. It acts once a tick.
type trouble func(b *bench, r *rand.Rand, c *client) *client

var troubles = map[string]trouble{
	"frozen": func(_ *bench, _ *rand.Rand, c *client) *client { return c },
	"claims all at once": func(b *bench, _ *rand.Rand, c *client) *client {
		for i := range b.pieces {
			b.have(c.peer, i)
		}
		return c
	},
	"claims all, leaves and comes back": func(b *bench, _ *rand.Rand, c *client) *client {
		b.leave(c.peer)
		return b.full()
	},
	"announces what it never had": func(b *bench, r *rand.Rand, c *client) *client {
		c.offered = nil
		b.have(c.peer, r.IntN(b.pieces))
		return c
	},
	"takes every offer and never gives": func(_ *bench, _ *rand.Rand, c *client) *client {
		c.take(-1)
		return c
	},
	"announces just often enough not to stall": func(b *bench, r *rand.Rand, c *client) *client {
		if r.IntN(int(stallAfter/TickInterval)) == 0 {
			c.take(1)
		}
		return c
	},
	"comes back for new offers": func(b *bench, r *rand.Rand, c *client) *client {
		if r.IntN(4) > 0 {
			return c
		}
		b.leave(c.peer)
		return b.client()
	},
	"comes back when it has expired": func(b *bench, _ *rand.Rand, c *client) *client {
		if !c.stalled {
			return c
		}
		b.leave(c.peer)
		return b.client()
	},
}

// swarm is peers that are alive among some that are not.
type swarm struct {
	*bench
	r     *rand.Rand
	live  []*client
	trade bool // whether the live ones give each other anything
}

// step is one tick; done when every live peer has everything.
func (s *swarm) step() (done bool) {
	done = true
	for _, c := range s.live {
		if c.count == s.pieces {
			continue
		}
		done = false
		if s.r.IntN(2) == 0 {
			c.take(1 + s.r.IntN(4))
		}
		if from := s.live[s.r.IntN(len(s.live))]; s.trade {
			from.has.each(func(i int) {
				if s.r.IntN(8) == 0 {
					s.have(c.peer, i)
				}
			})
		}
	}
	s.later(TickInterval)
	s.check()
	return done
}

// check compares what the queue counts as it goes with the count.
func (s *swarm) check() {
	s.t.Helper()
	var working, missing, outstanding, unowned int
	owners, assigned := make([]uint16, s.pieces), make([]uint16, s.pieces)
	for p := range s.peers {
		p.has.each(func(i int) { owners[i]++ })
		for i, o := range p.outstanding {
			if !o.expired {
				assigned[i]++
				outstanding++
			}
		}
		if p.count < s.pieces {
			working++
			missing += s.pieces - p.count
		}
		if len(p.outstanding) > maxWindow {
			s.t.Fatalf("%d outstanding at one peer", len(p.outstanding))
		}
	}
	for i := range s.pieces {
		if owners[i] == 0 {
			unowned++
		}
		if owners[i] != s.owners[i] || assigned[i] != s.assigned[i] || s.open.get(i) != (owners[i]+assigned[i] == 0) {
			s.t.Fatalf("piece %d: owners %d, counted %d; assigned %d, counted %d; open %t",
				i, s.owners[i], owners[i], s.assigned[i], assigned[i], s.open.get(i))
		}
	}
	if working != s.working || missing != s.missing || outstanding != s.outstanding || unowned != s.unowned {
		s.t.Fatalf("working %d, counted %d; missing %d, %d; outstanding %d, %d; unowned %d, %d",
			s.working, working, s.missing, missing, s.outstanding, outstanding, s.unowned, unowned)
	}
}

// TestOneLivePeerFinishesBesideAnyTrouble: from the seeder alone.
func TestOneLivePeerFinishesBesideAnyTrouble(t *testing.T) {
	const pieces, bad = 60, 20
	for name, act := range troubles {
		t.Run(name, func(t *testing.T) {
			s := &swarm{bench: newBench(t, pieces), r: rand.New(rand.NewPCG(1, 1))}
			others := make([]*client, bad)
			for i := range others {
				others[i] = s.client()
			}
			s.live = []*client{s.client()}
			for steps := 0; !s.step(); steps++ {
				for i, c := range others {
					others[i] = act(s.bench, s.r, c)
				}
				if at := time.Duration(steps) * TickInterval; at > 10*time.Minute {
					t.Fatalf("%d of %d pieces after %v: %+v", s.live[0].count, pieces, at, s.stats())
				}
			}
		})
	}
}

// TestEveryLivePeerFinishes runs random swarms of peers that come, go, trade or
// not, among all kinds of trouble. Who is alive to the end finishes.
func TestEveryLivePeerFinishes(t *testing.T) {
	names := []string{"frozen", "claims all at once", "claims all, leaves and comes back",
		"announces what it never had", "takes every offer and never gives",
		"announces just often enough not to stall", "comes back for new offers", "comes back when it has expired"}
	for seed := range uint64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := &swarm{bench: newBench(t, 1+r.IntN(150)), r: r, trade: r.IntN(2) == 0}
			for range 1 + r.IntN(6) {
				s.live = append(s.live, s.client())
			}
			type bad struct {
				*client
				act trouble
			}
			var others []bad
			for range r.IntN(8) {
				others = append(others, bad{s.client(), troubles[names[r.IntN(len(names))]]})
			}
			var leaving []*client
			for range r.IntN(4) {
				leaving = append(leaving, s.client())
			}
			for steps := 0; !s.step(); steps++ {
				for i := range others {
					others[i].client = others[i].act(s.bench, r, others[i].client)
				}
				for _, c := range leaving {
					c.take(r.IntN(3))
				}
				if len(leaving) > 0 && r.IntN(10) == 0 {
					s.leave(leaving[0].peer)
					leaving = leaving[1:]
				}
				if len(s.live) < 10 && r.IntN(50) == 0 {
					s.live = append(s.live, s.client())
				}
				if at := time.Duration(steps) * TickInterval; at > 30*time.Minute {
					t.Fatalf("not all have finished after %v: %+v", at, s.stats())
				}
			}
		})
	}
}

// TestHonestSwarmIsFedOnce: without trouble the seeder gives away little more
// than one copy, though these peers trade at random and leave long tails.
func TestHonestSwarmIsFedOnce(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := &swarm{bench: newBench(t, 2000), r: rand.New(rand.NewPCG(seed, 2)), trade: true}
			for range 8 {
				s.live = append(s.live, s.client())
			}
			for steps := 0; !s.step(); steps++ {
				if steps > 10_000 {
					t.Fatalf("%+v", s.stats())
				}
			}
			if st := s.stats(); st.Handed != 2000 || st.Requeued != 0 || st.Second > 2000*15/100 {
				t.Errorf("%+v", st)
			}
		})
	}
}
