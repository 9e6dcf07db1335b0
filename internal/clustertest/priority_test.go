package clustertest

import (
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
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
