package fleetsim

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/landfall-dist/landfall/internal/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small is a simulation of a second or two.
func small() Config {
	c := Default()
	c.Hosts, c.Size, c.Pieces = 200, 1e9, 20
	return c
}

func quiet(time.Duration, int) {}

// Equal seeds give equal results; every host that lives comes to its end, and the agents
// send little more than one copy.
func TestSmall(t *testing.T) {
	first, err := Run(t.Context(), small(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Run(t.Context(), small(), quiet)
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("the same seed gives another result: %v", err)
	}
	var text bytes.Buffer
	if err := first.Print(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	hosts := len(first.Fast) + len(first.Slow) + len(first.Late)
	if first.Without > 0 || hosts != 198 || len(first.Late) < 15 || len(first.Slow) < 5 {
		t.Errorf("%d hosts have it, %d late and %d slow ones among them, %d are without", hosts, len(first.Late), len(first.Slow), first.Without)
	}
	if sent := float64(first.Agents) / 1e9; sent < 1 || sent > 1.5 {
		t.Errorf("agents sent %.2f F", sent)
	}
	if least := Percentile(first.Fast, 0); least < 0.9 {
		t.Errorf("a host needed %.2f of the bound", least)
	}
	other := small()
	other.Seed++
	if second, err := Run(t.Context(), other, quiet); err != nil || reflect.DeepEqual(first.Fast, second.Fast) {
		t.Errorf("another seed gives the same result: %v", err)
	}
}

// Progress is told from the beginning, and a simulation ends with its context.
func TestEndedEarly(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := 0
	_, err := Run(ctx, small(), func(_ time.Duration, lack int) {
		if told++; lack != 198 {
			t.Errorf("at the beginning %d hosts lack the build, expected 198", lack)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) || told != 1 {
		t.Errorf("progress was told %d times, then: %v", told, err)
	}
}

// A host alone, and a region that has the build, come to the bound.
func TestOneHost(t *testing.T) {
	c := Default()
	c.Hosts, c.Zones, c.Agents, c.AgentDies = 1, 1, 1, false
	c.Slow, c.Dying, c.Late, c.Inflow, c.Size, c.Pieces = 0, 0, 0, 0, 1e8, 1
	r, err := Run(t.Context(), c, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Fast) != 1 || r.Fast[0] > 1.1 || r.Agents != c.Size || r.Twice != 0 || r.AcrossZones != 0 {
		t.Errorf("%+v", r)
	}
}

func TestBound(t *testing.T) {
	c := Default()
	for _, test := range []struct {
		name   string
		change func(*Config)
		rate   float64 // Gbit/s
	}{
		{"hosts' mean upload", func(*Config) {}, 2.5 * 0.955},
		{"a host", func(c *Config) { c.Slow = 0 }, 2.5},
		{"agents", func(c *Config) { c.Slow, c.Agents, c.AgentDies = 0.9, 1, false }, 2.5 * 0.19},
		{"inflow", func(c *Config) { c.Inflow = 1e9 / 8 }, 1},
		{"no inflow", func(c *Config) { c.Inflow = 0 }, 2.5 * 0.955},
	} {
		c := c
		test.change(&c)
		if got, want := c.Bound(), seconds(float64(c.Size)*8/(test.rate*1e9)); (got - want).Abs() > time.Millisecond {
			t.Errorf("%s: %v, expected %v", test.name, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no hosts":     func(c *Config) { c.Hosts = 0 },
		"hosts":        func(c *Config) { c.Hosts = MaxHosts + 1 },
		"agents":       func(c *Config) { c.Agents = MaxAgents + 1 },
		"zones":        func(c *Config) { c.Zones = c.Hosts + 1 },
		"size":         func(c *Config) { c.Size = 0 },
		"a long build": func(c *Config) { c.Size = manifest.MaxSize + 1 },
		"pieces":       func(c *Config) { c.Pieces = 3 },
		"rate":         func(c *Config) { c.Rate = 0 },
		"inflow":       func(c *Config) { c.Inflow = -1 },
		"slow":         func(c *Config) { c.Slow = 1.1 },
		"dying":        func(c *Config) { c.Dying, c.Late = 0.6, 0.6 },
		"only agent":   func(c *Config) { c.Agents = 1 },
	} {
		c := small()
		if change(&c); c.check() == nil {
			t.Errorf("can be: %s", name)
		}
	}
}

func TestAgenda(t *testing.T) {
	var a agenda
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		a.add(event{at: time.Duration(rng.IntN(100))})
	}
	last, ok := a.next()
	for n := 0; n < 2000 && ok; n++ {
		if n < 500 {
			a.add(event{at: last.at + time.Duration(rng.IntN(100))})
		}
		e, more := a.next()
		if more && !before(&last, &e) {
			t.Fatalf("%+v after %+v", e, last)
		}
		last, ok = e, more
	}
	if ok || len(a.events) > 0 {
		t.Errorf("%d are left", len(a.events))
	}
}
