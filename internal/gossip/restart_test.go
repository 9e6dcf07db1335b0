package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
)

// kill ends a node as kill -9 does: nobody is told.
func (n *node) kill() {
	n.closing.Do(func() {
		n.cancel()
		n.meetings.close(n.cancel)
		n.outbox.close()
		_ = n.list.Shutdown()
	})
	n.stop()
}

// awaitSeeder waits until the node sees this seeder and no other.
func (n *node) awaitSeeder(t *testing.T, name string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		var seeders []string
		for _, m := range n.Members() {
			if m.Role == Seeder {
				seeders = append(seeders, m.Name)
			}
		}
		if slices.Equal(seeders, []string{name}) {
			return
		}
		select {
		case <-n.members:
		case <-deadline:
			t.Fatalf("%s sees the seeders %v, want %s alone", n.Name(), seeders, name)
		}
	}
}

// With the timing of a wide network memberlist takes a seeder that was killed for
// alive for half a minute and more, and exchanges states once a minute. Nobody waits
// for either.
func TestSeederThatStartsAgainReachesEveryAgent(t *testing.T) {
	const agents = 8
	for _, c := range []struct {
		name            string
		sameAddress     bool
		keepsDirectory  bool
		joinsFirstAgent bool
	}{
		{"same address", true, true, false},
		{"new address", false, true, false},
		{"same address, directory lost", true, false, false},
		{"new address, directory lost, joins one agent", false, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			wide := func(to *node, id string) func(*Config) {
				return func(cfg *Config) {
					cfg.wide, cfg.Remember = true, filepath.Join(dir, id)
					if to != nil {
						cfg.Join = []string{to.Addr()}
					}
				}
			}
			first := start(t, seeder("s"), wide(nil, "s"))
			var all []*node
			for i := range agents {
				to := first
				if i > 0 {
					to = all[0] // learns of the seeder by hearsay
				}
				id := fmt.Sprint("a", i)
				all = append(all, start(t, agent(id, id), wide(to, id)))
			}
			for _, n := range append([]*node{first}, all...) {
				n.await(t, 1+agents)
			}
			kept := filepath.Join(dir, "s")
			awaitFile(t, kept, agents)
			first.kill()
			again := start(t, seeder("s"), func(cfg *Config) {
				cfg.wide = true
				if c.sameAddress {
					cfg.Listen = first.Addr()
				}
				if c.keepsDirectory {
					cfg.Remember = kept
				} else {
					cfg.ID = "s-of-another-directory"
				}
				if c.joinsFirstAgent {
					cfg.Join = []string{all[0].Addr()}
				}
			})
			if err := again.Broadcast(announcement(t), nil); err != nil {
				t.Fatal(err)
			}
			for _, n := range all {
				if d := receive(t, n.documents); d.Announcement == nil {
					t.Errorf("%s got %+v", n.Name(), d)
				}
				if c.keepsDirectory || c.sameAddress {
					n.awaitSeeder(t, again.Name())
				}
			}
		})
	}
}

// awaitFile waits until the file has so many members.
func awaitFile(t *testing.T, file string, members int) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		var kept rememberedFile
		if err := readRemembered(file, &kept); err == nil && len(kept.Members) == members {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d members, want %d", file, len(readAll(t, file)), members)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func readAll(t *testing.T, file string) []acquaintance {
	t.Helper()
	r, err := remember(file, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r.list()
}

// A member that a seeder learns of by gossip alone has the open documents without
// waiting for the periodic exchange.
func TestMemberLearntOfByGossipGetsOpenDocuments(t *testing.T) {
	wide := func(to *node) func(*Config) {
		return func(cfg *Config) {
			cfg.wide = true
			if to != nil {
				cfg.Join = []string{to.Addr()}
			}
		}
	}
	a := start(t, agent("a", "a"), wide(nil))
	s := start(t, seeder("s"), wide(a))
	a.await(t, 2)
	// Known to the seeder alone: nobody else could bring it.
	if _, err := s.cfg.Book.Add(announcement(t)); err != nil {
		t.Fatal(err)
	}
	b := start(t, agent("b", "b"), wide(a))
	if d := receive(t, b.documents); d.Announcement == nil {
		t.Errorf("got %+v", d)
	}
}

// Two processes under one name are a mistake, and both are members all the same.
func TestTwinsAreBothMembers(t *testing.T) {
	s := start(t, seeder("s"), nil)
	start(t, agent("a", "a"), join(s))
	start(t, agent("a", "b"), join(s))
	s.await(t, 3)
}

func TestOfTwoStartsTheNewerIsTheMember(t *testing.T) {
	r := newRoster("self")
	now := time.Now()
	name := func(id string, at time.Time) string { return id + "-" + newStart(at, "") }
	older, newer := name("s", now), name("s", now.Add(time.Millisecond))
	elsewhere := name("t", now.Add(time.Second))
	r.come(nodeOf(t, older, seeder("s"), "10.0.0.1:7946"))
	r.come(nodeOf(t, newer, seeder("s"), "10.0.0.2:7946"))
	if got := names(r.now().members); !slices.Equal(got, []string{newer}) {
		t.Errorf("members are %v", got)
	}
	// Another id at the address of one that is there: its directory was lost.
	r.come(nodeOf(t, elsewhere, seeder("t"), "10.0.0.2:7946"))
	if got := names(r.now().members); !slices.Equal(got, []string{elsewhere}) {
		t.Errorf("members are %v", got)
	}
	if !r.twin(older) || r.twin(older) || r.twin("nobody") {
		t.Error("what is news of twins is wrong")
	}
	if got := names(r.now().members); !slices.Equal(got, []string{older, elsewhere}) {
		t.Errorf("members are %v", got)
	}
}

func names(members []Member) (out []string) {
	for _, m := range members {
		out = append(out, m.Name)
	}
	return out
}

func TestStartsGrowWhenTheClockIsSetBack(t *testing.T) {
	now := time.Now()
	first := newStart(now, "")
	second := newStart(now.Add(-time.Hour), first)
	if second <= first {
		t.Errorf("%s after %s", second, first)
	}
	// One that cannot be true is not followed: nothing is greater than the last.
	const last = "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
	if id := newStart(now, last); id >= last || ulid.MustParse(id).Time() > ulid.Timestamp(now) {
		t.Errorf("%s after %s", id, last)
	}
}

func TestRememberedMembersHaveBounds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "members.json")
	now := time.Now()
	r, err := remember(file, now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxRemembered + 10 {
		id := fmt.Sprint("a", i)
		r.members[id] = acquaintance{id, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 7946), now.Add(time.Duration(i) * time.Second)}
	}
	r.members["old"] = acquaintance{"old", netip.MustParseAddrPort("10.9.9.9:7946"), now.Add(-rememberedFor - time.Hour)}
	if err := r.save(&snapshot{}, "self"); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, file)
	if len(got) != maxRemembered || got[0].ID != fmt.Sprint("a", maxRemembered+9) {
		t.Errorf("%d members, the first is %+v", len(got), got[0])
	}
	for name, text := range map[string]string{
		"garbage":  "{",
		"too long": `{"start":"` + strings.Repeat("x", maxRememberedFile) + `"}`,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := remember(file, now); err == nil || len(r.members) != 0 || r.start == "" {
			t.Errorf("%s: %v, %d members, start %q", name, err, len(r.members), r.start)
		}
	}
}

// Members of a predecessor at the same address are heard as soon as the port is open,
// before there is a list to meet them with.
func TestMembersHeardBeforeTheListIsThereAreMetLater(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := &Gossip{
		cfg: Config{Meta: seeder("s"), Logger: slog.New(slog.DiscardHandler)}, name: "s", ctx: ctx, cancel: cancel,
		listed: make(chan struct{}), meetings: newMeetings(), roster: newRoster("s"), news: make(chan news, maxNews),
		changed: make(chan struct{}, 1), toKeep: make(chan struct{}, 1), lost: make(chan struct{}, 1),
	}
	events{g}.NotifyJoin(nodeOf(t, "a", agent("a", "a"), "127.0.0.1:9"))
	g.meetings.mu.Lock()
	waiting := g.meetings.pending["127.0.0.1:9"] != nil
	g.meetings.mu.Unlock()
	if !waiting {
		t.Error("the member is not to be met")
	}
	cancel()
	g.meetings.close(cancel)
}

// One agent that has met its seeder meets the next one at that address too, though that
// one knows nobody: the first has said good-bye, so that nobody greets it any more.
func TestSeederWithoutADirectoryIsFoundAfterAGoodBye(t *testing.T) {
	first := start(t, seeder("s"), nil)
	a := start(t, agent("a", "a"), join(first))
	a.await(t, 2)
	first.await(t, 2)
	first.stop()
	a.await(t, 1)
	again := start(t, seeder("s-of-another-directory"), func(cfg *Config) { cfg.Listen = first.Addr() })
	a.await(t, 2)
	again.await(t, 2)
}
