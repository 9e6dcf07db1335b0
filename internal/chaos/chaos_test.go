//go:build linux

package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("chaos.seed", 1, "seed of the schedules, by default the same ones each time; 0 for one made of the time")
	roundsFlag = flag.Int("chaos.rounds", 3, "rounds of TestChaos")
	longFlag   = flag.Bool("chaos.long", false, "every case of every test, not only those that have most to tell")
)

// roundsPerWorld is how many rounds one world lives through: what is lost bit by
// bit shows, and other shapes get their turn.
const roundsPerWorld = 10

// TestChaos goes through random schedules of faults.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; again with: make chaos ROUNDS=%d SEED=%d", seed, *roundsFlag, seed)
	for first := 0; first < *roundsFlag; first += roundsPerWorld {
		world := seed + uint64(first)
		rng := rand.New(rand.NewPCG(world, 2))
		agents := make([]int, 2+rng.IntN(3))
		for i := range agents {
			agents[i] = 1
		}
		if rng.IntN(2) == 0 {
			agents[rng.IntN(len(agents))] = 2
		}
		ok := t.Run(fmt.Sprintf("agents=%v", agents), func(t *testing.T) {
			w := Start(t, Options{Agents: agents, Seed: world, Link: 8 << 20, CacheSize: "128MiB", Unjoined: rng.IntN(2) == 0})
			for n := first; n < min(first+roundsPerWorld, *roundsFlag) && !t.Failed(); n++ {
				round := NewRound(w, seed, n)
				t.Logf("round %d of seed %d\n%s", n, seed, round)
				round.Run()
			}
		})
		if !ok {
			t.Fatalf("failed with seed %d", seed)
		}
	}
}

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestNoFault: without a fault there is nothing to be found.
func TestNoFault(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 2}, Seed: 1})
	for _, size := range []int{0, 1, 8 << 20, 20 << 20} {
		w.Completed(w.Put("build.zip", size))
	}
	w.Settle()
}
