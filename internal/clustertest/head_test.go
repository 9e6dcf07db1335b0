package clustertest

import (
	"encoding/base64"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/deployment"
	"github.com/landfall-dist/landfall/internal/devcluster"
	"github.com/landfall-dist/landfall/internal/goal"
	"github.com/landfall-dist/landfall/internal/services"
)

// A goal that no member sends reaches an agent by the table, within ten seconds and what
// that takes, whatever else stands there; one that nobody who is trusted has signed does not.
func TestGoalsComeByTheTable(t *testing.T) {
	t.Parallel()
	c := Start(t, cloud, Options{Regions: 1, Fleet: true})
	tables := devcluster.Services(c.cfg)
	id := ulid.Make().String()
	write := func(service string) {
		t.Helper()
		g := &goal.Goal{
			Service: service, Version: time.Now().Unix(), Deployment: id, MaxUnavailable: "1", Issued: time.Now(),
			Target: goal.Build{SourceBucket: c.Global, Key: "build.zip", ExecutionID: id, Size: 7, SHA256: base64.StdEncoding.EncodeToString(make([]byte, 32)) + "-1"},
		}
		wire, err := goal.Sign(t.Context(), c.cluster.Key, g)
		if err != nil {
			t.Fatal(err)
		}
		if service == "forged" {
			wire[len(wire)-1] ^= 1
		}
		d := &deployment.Deployment{ID: id, Target: g.Target, State: deployment.Gate}
		if err := tables.Write(t.Context(), deployment.Service{Name: service, Version: g.Version, Current: d}, wire, 0); err != nil {
			t.Fatal(err)
		}
	}
	list := &goal.Recall{Version: time.Now().Unix(), SourceBucket: c.Global, SHA256: []string{}, Issued: time.Now()}
	recallBeat := func() []byte {
		t.Helper()
		wire, err := goal.Sign(t.Context(), c.cluster.Key, &goal.RecallBeat{Time: time.Now(), Version: list.Version})
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	write("forged")
	write("web")
	began := time.Now()
	c.Until("the goal is here", func() bool {
		// As long as the seeder does not write its own, which does not know of these.
		beat, err := goal.Sign(t.Context(), c.cluster.Key, &goal.Beat{Time: time.Now(), Versions: map[string]int64{"web": began.Unix(), "forged": began.Unix()}})
		if err == nil {
			err = tables.WriteHead(t.Context(), beat, []byte("no beat of recalls"))
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Agents[0].AgentStatus(t.Context())
		if err != nil || s.Fleet == nil {
			return false
		}
		for _, of := range s.Fleet.Services {
			if of.Service == "forged" {
				t.Fatal("a goal that nobody has signed is believed")
			}
		}
		return len(s.Fleet.Services) == 1 && s.Fleet.Services[0].Service == "web"
	})
	t.Logf("after %s", time.Since(began).Round(time.Millisecond))

	// The list of recalls that its beat names is not in the table yet, then it is.
	lacks := func(want bool) func() bool {
		return func() bool {
			beat, err := goal.Sign(t.Context(), c.cluster.Key, &goal.Beat{Time: time.Now()})
			if err == nil {
				err = tables.WriteHead(t.Context(), beat, recallBeat())
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := c.Agents[0].AgentStatus(t.Context())
			return err == nil && s.Fleet != nil && slices.Contains(s.Fleet.Behind, goal.Recalls) == want
		}
	}
	c.Until("the list of recalls is known to lack", lacks(true))
	wire, err := goal.Sign(t.Context(), c.cluster.Key, list)
	if err == nil {
		err = tables.WriteRecalls(t.Context(), &services.Recalls{Version: list.Version, Wire: wire}, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Until("it is here", lacks(false))
}
