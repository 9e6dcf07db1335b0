package seeder

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
)

// listedAgent is an agent that is asked for its hosts, some at a time. An old one always
// names its first ones; one that invents names others at each question, and is never done.
type listedAgent struct {
	from  gossip.Member
	hosts []api.HostView // in order
	fits  int
	old   bool

	invents, invented int
}

func (a *listedAgent) answer(after gossip.HostPlace) gossip.HostsAnswer {
	out := gossip.HostsAnswer{From: a.from, All: len(a.hosts)}
	for range a.invents {
		a.invented++
		out.Hosts, out.Rest = append(out.Hosts, api.HostView{Region: a.from.Region, Host: fmt.Sprintf("i%06d", a.invented)}), 1
	}
	for i := range a.hosts {
		h := &a.hosts[i]
		switch {
		case !a.old && gossip.PlaceOf(h).Compare(after) <= 0:
		case len(out.Hosts) == a.fits:
			out.Rest++
		default:
			out.Hosts = append(out.Hosts, *h)
		}
	}
	return out
}

// pagedThrough pages through the hosts of agents.
func pagedThrough(t *testing.T, agents []*listedAgent, limit int) (hosts []api.HostView, unanswered []string) {
	t.Helper()
	var after gossip.HostPlace
	for range 10_000 {
		var answers []gossip.HostsAnswer
		for _, a := range agents {
			answers = append(answers, a.answer(after))
		}
		page := mergeHosts(answers, nil, after, limit)
		if len(page.Hosts) > limit || page.All < len(page.Hosts) {
			t.Fatalf("%d of %d hosts, at most %d are wanted", len(page.Hosts), page.All, limit)
		}
		hosts, unanswered = append(hosts, page.Hosts...), append(unanswered, page.Unanswered...)
		if page.Next == "" {
			slices.Sort(unanswered)
			return hosts, slices.Compact(unanswered)
		}
		next, err := gossip.ParseHostPlace(page.Next)
		if err != nil || next.Compare(after) <= 0 {
			t.Fatalf("after %s comes %s, %v", after, page.Next, err)
		}
		after = next
	}
	t.Fatal("the list does not end")
	return nil, nil
}

// TestListOfAllHosts: however many fit the answers of the agents, each host is listed once, in
// order, and as the agent knows it that has seen it last.
func TestListOfAllHosts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	earlier, later := time.Unix(100, 0), time.Unix(200, 0)
	for range 200 {
		var agents []*listedAgent
		var want []string
		for _, region := range []string{"a", "a/b", "b", "c"} {
			at := make([]*listedAgent, 1+rng.IntN(3))
			for i := range at {
				at[i] = &listedAgent{from: gossip.Member{Meta: gossip.Meta{Region: region}}, fits: gossip.LeastHosts + rng.IntN(9)}
			}
			for i := range rng.IntN(60) {
				name := fmt.Sprintf("h%03d", i)
				want = append(want, region+"/"+name)
				has := rng.IntN(len(at))
				at[has].hosts = append(at[has].hosts, api.HostView{Region: region, Host: name, State: api.HostHealthy, SeenAt: &later})
				if had := rng.IntN(len(at)); had != has {
					at[had].hosts = append(at[had].hosts, api.HostView{Region: region, Host: name, State: api.HostAbsent, SeenAt: &earlier})
				}
			}
			agents = append(agents, at...)
		}
		slices.SortFunc(want, func(x, y string) int {
			p, err := gossip.ParseHostPlace(x)
			q, err2 := gossip.ParseHostPlace(y)
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			return p.Compare(q)
		})
		hosts, unanswered := pagedThrough(t, agents, 1+rng.IntN(12))
		var got []string
		for i := range hosts {
			if got = append(got, gossip.PlaceOf(&hosts[i]).String()); hosts[i].State != api.HostHealthy {
				t.Errorf("%+v is not as it was seen last", hosts[i])
			}
		}
		if !slices.Equal(got, want) || unanswered != nil {
			t.Fatalf("listed:\n%s\nwant\n%s\nunanswered: %v", strings.Join(got, " "), strings.Join(want, " "), unanswered)
		}
	}
}

// TestAgentsThatDoNotGetOn: one that always names its first hosts, as those of before there were
// pages, does not keep the others' from being listed, and its region is said to be incomplete.
func TestAgentsThatDoNotGetOn(t *testing.T) {
	agent := func(region, prefix string, n, fits int) *listedAgent {
		a := &listedAgent{from: gossip.Member{Meta: gossip.Meta{Region: region}}, fits: fits}
		for i := range n {
			a.hosts = append(a.hosts, api.HostView{Region: region, Host: fmt.Sprintf("%s%02d", prefix, i), State: api.HostReady})
		}
		return a
	}
	for name, c := range map[string]struct {
		old        *listedAgent
		want       int // of its hosts
		unanswered string
	}{
		"all fit":             {agent("region-b", "old", 7, 10), 7, "[]"},
		"it has more":         {agent("region-b", "old", 20, 10), 10, "[region-b]"},
		"before the others'":  {agent("region-b", "a", 20, 10), 10, "[region-b]"},
		"in an early region":  {agent("region-a", "old", 20, 10), 10, "[region-a]"},
		"in the last region":  {agent("region-c", "old", 20, 10), 10, "[region-c]"},
		"it names none of 20": {agent("region-b", "old", 20, 0), 0, "[region-b]"},
	} {
		c.old.old = true
		hosts, unanswered := pagedThrough(t, []*listedAgent{agent("region-b", "h", 25, 5), c.old, agent("region-c", "x", 5, 4)}, 6)
		old := 0
		for _, h := range hosts {
			if h.Host[:1] == c.old.hosts[0].Host[:1] {
				old++
			}
		}
		if len(hosts) != 30+c.want || old != c.want || fmt.Sprint(unanswered) != c.unanswered {
			t.Errorf("%s: %d hosts, %d of the old agent's; unanswered %v", name, len(hosts), old, unanswered)
		}
	}
	// One that names fewer hosts than fit, and says that it has more, holds nobody up.
	for _, region := range []string{"region-a", "region-b", "region-c"} {
		liar := &listedAgent{from: gossip.Member{Meta: gossip.Meta{Region: region}}, invents: gossip.LeastHosts - 1}
		hosts, unanswered := pagedThrough(t, []*listedAgent{agent("region-b", "h", 25, 5), liar, agent("region-c", "x", 5, 4)}, 6)
		if n := len(hosts); n < 30 || n > 30+liar.invented || fmt.Sprint(unanswered) != fmt.Sprint([]string{region}) {
			t.Errorf("%s: %d hosts, of which %d may be invented; unanswered %v", region, n, liar.invented, unanswered)
		}
	}
	// What an agent says in no order, or of places before, takes nobody's place.
	odd := gossip.HostsAnswer{From: gossip.Member{Meta: gossip.Meta{Region: "region-a"}}, All: 9, Rest: 5, Hosts: []api.HostView{
		{Region: "region-a", Host: "h7"}, {Region: "region-a", Host: "h3"}, {Region: "region-a", Host: "h1"}, {Region: "region-a", Host: "h7"},
	}}
	got := mergeHosts([]gossip.HostsAnswer{odd}, nil, gossip.HostPlace{Region: "region-a", Host: "h2"}, 10)
	if len(got.Hosts) != 2 || got.Hosts[0].Host != "h3" || got.Next != "" || fmt.Sprint(got.Unanswered) != "[region-a]" {
		t.Errorf("%+v", got)
	}
	odd.All, odd.Rest = 0, 0
	if got := mergeHosts([]gossip.HostsAnswer{odd}, nil, gossip.HostPlace{}, 10); got.All != 3 || got.Next != "" {
		t.Errorf("%+v", got)
	}
}
