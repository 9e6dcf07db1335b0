package fleet

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/hostwire"
)

// Trial is what an agent knows of its hosts and tells them, without their streams and
// without a clock, for simulations: equal calls come to equal neighbours. What Fleet does,
// it does by the same code. It is not safe for concurrent use.
type Trial struct{ m *machine }

// NewTrial returns an agent without hosts, whose random choices follow from the seed.
func NewTrial(region string, maxHosts int, seed uint64) *Trial {
	return &Trial{newMachine(region, maxHosts, rand.New(rand.NewPCG(seed, seed)), func(string, ...any) {})}
}

// TrialHost is a host's stream to a Trial.
type TrialHost struct {
	trial *Trial
	host  *host
	said  func(name string, message hostwire.Encoded)
}

func (h *TrialHost) put(name string, message hostwire.Encoded) bool {
	h.said(name, message)
	return true
}

func (h *TrialHost) close(error) {}

// Join opens a host's stream. What is said to the host goes to said: a message takes the
// place of an earlier one of its name; said must not call the Trial.
func (t *Trial) Join(now time.Time, hello *hostwire.Hello, from netip.Addr, said func(name string, message hostwire.Encoded)) *TrialHost {
	t.m.now = now
	h := &TrialHost{trial: t, said: said}
	t.m.join(hello, from, h)
	h.host = t.m.hosts[hello.Host]
	return h
}

// Lose breaks the stream: the host may be back.
func (h *TrialHost) Lose(now time.Time) {
	h.trial.m.now = now
	h.trial.m.ended(h.host, h, false)
}

// Holds notes what the host has of a build.
func (h *TrialHost) Holds(now time.Time, holds *hostwire.Holds) {
	h.trial.m.now = now
	h.trial.m.holds(h.host, holds)
}

// Follow takes a goal, which is passed down at once.
func (t *Trial) Follow(now time.Time, g *goal.Goal, wire []byte, recipe func(executionID string) (hostwire.Recipe, bool)) {
	t.m.now = now
	t.m.follow(g, wire)
	t.m.cook(recipe)
}

// Tick does what Fleet does each second: agents, recipe and near are as Config has them.
func (t *Trial) Tick(now time.Time, urls []string, sources []hostwire.Peer, others []string, recipe func(executionID string) (hostwire.Recipe, bool), near func(list int, hosts []byte)) {
	t.m.now = now
	t.m.agents(urls, sources)
	t.m.forgetNear(others)
	t.m.cook(recipe)
	for list, text := range t.m.nearLists() {
		near(list, text)
	}
	t.m.tick()
}

// HearNear takes what another agent says of its hosts.
func (t *Trial) HearNear(agent string, hosts []byte) error {
	b, err := decodeBucket(hosts)
	if err == nil {
		t.m.hearsNear(agent, b)
	}
	return err
}
