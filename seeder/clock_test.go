package seeder

import (
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/owner"
)

// TestAnAgentDoesNotStopTheClockForEver: not by waiting for its turn, and not by saying
// less and more of what it has in turn; one that has lost its disk gets its time.
func TestAnAgentDoesNotStopTheClockForEver(t *testing.T) {
	x := newIndex()
	x.put(record(1, "k", 1))
	o := owner.New[event](nil)
	x.ask(id(1), asked{}, func(*ledger.Record, live) *owner.Owner[event] { return o })
	listen(t, o)
	now := time.Now()
	moved := func(node string, b gossip.BuildProgress) bool {
		b.ExecutionID = id(1)
		x.heard(gossip.Progress{Node: node, Region: "a", Bucket: "a-builds"}, b, now)
		return slices.ContainsFunc(listen(t, o), func(e event) bool { r, ok := e.(reported); return ok && r.moved })
	}
	queued := gossip.BuildProgress{State: api.StateQueued}
	for range 2 {
		if !moved("one", queued) {
			t.Error("a queued build has no time")
		}
	}
	now = now.Add(maxQueued - time.Minute)
	if !moved("one", queued) {
		t.Error("the time to be queued is over early")
	}
	now = now.Add(2 * time.Minute)
	if moved("one", queued) || moved("one", gossip.BuildProgress{State: api.StateDownloading}) || moved("one", queued) {
		t.Error("queued for ever")
	}
	at := func(verified int64) gossip.BuildProgress {
		return gossip.BuildProgress{State: api.StateDownloading, Verified: verified}
	}
	for i := range maxSetbacks {
		if !moved("one", at(50)) || moved("one", at(10)) {
			t.Fatalf("beginning anew %d", i)
		}
	}
	if !moved("one", at(20)) {
		t.Error("the last time that it begins anew has no time")
	}
	for range 2 {
		if moved("one", at(10)) || moved("one", at(50)) {
			t.Error("less and more in turn, for ever")
		}
	}
	if !moved("one", at(51)) {
		t.Error("what is more than ever is progress")
	}
}
