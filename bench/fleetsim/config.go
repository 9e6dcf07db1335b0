package fleetsim

import (
	"errors"
	"fmt"
	"time"

	"github.com/landfall-dist/landfall/internal/manifest"
)

const (
	// MaxHosts and MaxAgents bound a simulation.
	MaxHosts, MaxAgents = 100_000, 16
	// maxItems bounds what a build is cut into: each host has a bit for each.
	maxItems = manifest.MaxPieces
)

// Config is what is simulated.
type Config struct {
	Hosts, Agents, Zones int
	// Size is the build's, in bytes.
	Size int64
	// Pieces is how many pieces move as one: 1 is what the engine does, more is faster to
	// simulate. It must divide the pieces of a part; Grain chooses one.
	Pieces int
	// Rate is a host's and an agent's, in bytes/s, each way; Inflow at what rate the region
	// gets the build meanwhile, 0 for one that it has.
	Rate, Inflow float64
	// Slow hosts have a tenth of the rate, Dying ones vanish at some moment, Late ones start
	// at one: as shares of all, within the time of the bound.
	Slow, Dying, Late float64
	// AgentDies has one agent end at two fifths of the bound.
	AgentDies bool
	Seed      uint64
}

// Default is what docs/fleet.md has.
func Default() Config {
	return Config{
		Hosts: 1000, Agents: 3, Zones: 3, Size: 10e9, Pieces: 4, Rate: 2.5e9 / 8, Inflow: 2.5e9 / 8,
		Slow: 0.05, Dying: 0.01, Late: 0.10, AgentDies: true, Seed: 1,
	}
}

const slowShare = 0.1

// transfers is how many a simulation has that Grain chooses: some minutes of one core.
const transfers = 6e7

// Grain is the least Pieces with which a simulation takes minutes.
func Grain(hosts int, size int64) int {
	shape := manifest.ShapeOf(size)
	most := shape.PiecesPerPart()
	for n := 1; n < most; n++ {
		if most%n == 0 && float64(hosts)*float64(shape.NumPieces())/float64(n) <= transfers {
			return n
		}
	}
	return most
}

func (c Config) check() error {
	share := func(s float64) bool { return s >= 0 && s <= 1 }
	layout, err := manifest.NewLayout(manifest.Ramp, c.Size)
	switch {
	case err != nil:
		return err
	case c.Hosts < 1 || c.Hosts > MaxHosts || c.Agents < 1 || c.Agents > MaxAgents || c.Zones < 1 || c.Zones > c.Hosts:
		return fmt.Errorf("%d hosts in %d zones and %d agents cannot be simulated: at most %d hosts and %d agents", c.Hosts, c.Zones, c.Agents, MaxHosts, MaxAgents)
	case c.Size == 0 || c.Pieces < 1 || layout.PiecesPerPart()%c.Pieces != 0 || layout.NumPieces()/c.Pieces > maxItems:
		return fmt.Errorf("%d bytes cannot be simulated %d pieces at a time: that must divide %d", c.Size, c.Pieces, layout.PiecesPerPart())
	case !(c.Rate >= 1e3 && c.Rate <= 1e12) || c.Inflow != 0 && !(c.Inflow >= 1e3 && c.Inflow <= 1e12):
		return errors.New("a rate is from 1 kB/s to 1 TB/s")
	case !share(c.Slow) || !share(c.Dying) || !share(c.Late) || c.Dying+c.Late > 1:
		return errors.New("shares of hosts are from 0 to 1")
	case c.AgentDies && c.Agents < 2:
		return errors.New("the only agent cannot die")
	}
	return nil
}

// Bound is how long the build takes at the least: its length over the least of what a host
// receives, what hosts send on average, what the agents send together, and what the region
// gets.
func (c Config) Bound() time.Duration {
	least := min(c.Rate, c.Rate*(1-c.Slow+c.Slow*slowShare), c.Rate*float64(c.Agents))
	if c.AgentDies {
		least = min(least, c.Rate*float64(c.Agents-1))
	}
	if c.Inflow > 0 {
		least = min(least, c.Inflow)
	}
	return seconds(float64(c.Size) / least)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
