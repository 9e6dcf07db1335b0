package clustertest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/seeder/client"
)

// A build of high priority that is published in mid-way of a large one lands while that one
// is under way, which then goes on. One that is published again with high priority becomes
// a high one, here and at the agents.
func TestHighPriorityOvertakes(t *testing.T) {
	const size, perSecond = 12 * manifest.MinPartLength, 4 << 20
	c := Start(t, cloud, Options{Regions: 1, Limits: api.LimitsChange{SourceRate: rate(perSecond)}})
	large, urgent := content(1, size), content(2, 1<<20)
	c.Put("large.bin", large, nil)
	c.Put("urgent.bin", urgent, nil)
	deploy := func(key, priority string) *api.DeployAnswer {
		t.Helper()
		answer, err := c.Seeder.Deploy(t.Context(), api.DeployRequest{SourceBucket: c.Global, SourceKey: key, Priority: priority})
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	now := func(id string) *api.Execution {
		t.Helper()
		e, err := c.Seeder.Execution(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	first := deploy("large.bin", api.PriorityNormal)
	if first.Priority != "" {
		t.Errorf("a normal one has priority %q", first.Priority)
	}
	c.Until("the large one is under way", func() bool { return now(first.ExecutionID).PulledBytes >= manifest.MinPartLength })
	answer := deploy("urgent.bin", api.PriorityHigh)
	if e := c.Await(answer.ExecutionID, "COMPLETED"); e.Priority != api.PriorityHigh || !c.Record("urgent.bin").High {
		t.Errorf("it has landed with priority %q", e.Priority)
	}
	if e := now(first.ExecutionID); e.Ended() || e.PulledBytes > size-3*manifest.MinPartLength {
		t.Errorf("the large one is %s, and %d of its %d bytes were pulled, when the urgent one has landed", e.Status, e.PulledBytes, size)
	}
	c.Holds("urgent.bin", urgent)
	if b := c.build(c.Agents[0], "urgent.bin"); b == nil || b.Priority != api.PriorityHigh {
		t.Errorf("the agent shows %+v", b)
	}

	again := deploy("large.bin", api.PriorityHigh)
	if !again.Joined || again.ExecutionID != first.ExecutionID || again.Priority != api.PriorityHigh {
		t.Errorf("published again: %+v", again)
	}
	c.Until("the agent knows that it goes first", func() bool {
		b := c.build(c.Agents[0], "large.bin")
		return b != nil && b.Priority == api.PriorityHigh
	})
	if _, err := c.Seeder.SetLimits(t.Context(), api.LimitsChange{SourceRate: rate(0)}); err != nil {
		t.Fatal(err)
	}
	if e := c.Await(first.ExecutionID, "COMPLETED"); e.Priority != api.PriorityHigh {
		t.Errorf("it has landed with priority %q", e.Priority)
	}
	c.Holds("large.bin", large)
}

// A build has the priority that it was sent with, whichever way it comes in: in the table, in
// what the seeder says, and at the agents.
func TestPriorityOnItsWaysIn(t *testing.T) {
	want := content(3, 2*part+1)
	goesOn := make(chan struct{})
	builds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(want)))
		w.Write(want[:2*part])                //nolint:errcheck // the seeder says
		http.NewResponseController(w).Flush() //nolint:errcheck // the same
		select {
		case <-goesOn:
		case <-r.Context().Done():
		}
		w.Write(want[2*part:]) //nolint:errcheck // the same
	}))
	t.Cleanup(builds.Close)
	c := Start(t, cloud, Options{Regions: 1, BuildSource: builds.URL})
	for _, priority := range []string{api.PriorityHigh, api.PriorityNormal} {
		high := priority == api.PriorityHigh
		arrives := func(t *testing.T, id, key string) {
			t.Helper()
			e := c.Await(id, "COMPLETED")
			if e.Key != key || e.Priority != api.Priority(high) || c.Record(key).High != high {
				t.Errorf("%s has landed with priority %q, in the table high: %v", e.Key, e.Priority, c.Record(key).High)
			}
			if b := c.build(c.Agents[0], key); b == nil || b.Priority != api.Priority(high) {
				t.Errorf("the agent shows %+v", b)
			}
			c.Holds(key, want)
		}
		goesUp := func(t *testing.T, g *going) {
			t.Helper()
			e := g.landed(part)
			if r := c.Record(g.key); e.Phase != api.PhaseUploading || e.Priority != api.Priority(high) || r.Upload == nil || r.Upload.High != high {
				t.Errorf("while it goes up: %+v, in the table %+v", e, r.Upload)
			}
		}
		for way, size := range map[string]int{"in step": len(want), "stored first": -1} {
			t.Run(fmt.Sprintf("PUT /uploads, %s, %s", way, priority), func(t *testing.T) {
				key := fmt.Sprintf("%s %s.bin", way, priority)
				g := c.uploadFor(client.DeployRequest{SourceKey: key, Priority: priority}, size)
				g.send(want[:2*part])
				if size > 0 {
					goesUp(t, g)
				}
				g.send(want[2*part:])
				g.body.Close()
				if err := g.ends(); err != nil {
					t.Fatal(err)
				}
				arrives(t, g.answer.ExecutionID, key)
			})
		}
		t.Run("POST /builds, "+priority, func(t *testing.T) {
			var answer *api.BuildAnswer
			answered := make(chan error, 1)
			go func() {
				var err error
				answer, err = c.Seeder.BuildFor(t.Context(), api.BuildRequest{Commit: priority, Priority: priority})
				answered <- err
			}()
			goesUp(t, &going{c: c, key: priority + ".zip"})
			goesOn <- struct{}{}
			if err := <-answered; err != nil {
				t.Fatal(err)
			}
			arrives(t, answer.ExecutionID, priority+".zip")
		})
	}
}
