//go:build linux

package chaos

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// TestStoreFaults has every call of every member meet each fault of the stores for
// a while, and then some of them.
func TestStoreFaults(t *testing.T) {
	t.Parallel()
	// enough calls met the fault: two of each member.
	const worlds, enough = 3, 6
	for n := range worlds {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			w := Start(t, Options{Agents: []int{1, 1}, Seed: uint64(20 + n)})
			for i := n; i < len(storeFaults); i += worlds {
				f := storeFaults[i]
				if !f.short && !*longFlag {
					continue
				}
				var rules []*Rule
				for _, m := range w.Members() {
					rules = append(rules,
						m.Gate.Break(Rule{When: f.when, Do: f.do, Times: 2}),
						m.Gate.Break(Rule{When: f.when, Do: f.do, Chance: 0.3}))
				}
				met := func() (n int) {
					for _, r := range rules {
						n += r.Met()
					}
					return n
				}
				v := w.Put(fmt.Sprintf("%d.zip", i), several)
				w.Until("a call meets "+f.name, func() bool { return met() > 0 })
				w.within(3*time.Second, func() bool { return met() >= enough })
				n := met()
				w.heal()
				began := time.Now()
				w.Completed(v)
				t.Logf("%s: %d calls met it, completed %.1f s later", f.name, n, seconds(began))
			}
			w.Settle()
		})
	}
}

// TestWires harms the connections themselves.
func TestWires(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Seed: 30})
	for i, toxic := range []Toxic{Latency(100), Bandwidth(4 << 10), Blackhole, ResetPeer} {
		each(w.Members(), func(m *Member) { m.Harm(toxic) })
		v := w.Put(fmt.Sprintf("%d.zip", i), several)
		if toxic.Type == Latency(0).Type || toxic.Type == Bandwidth(0).Type {
			w.Completed(v) // slow, but nothing is lost
			w.heal()
			continue
		}
		select {
		case <-time.After(2 * time.Second): // as long as the fault lasts
		case <-t.Context().Done():
		}
		w.heal()
		w.Completed(v)
	}
	w.Settle()
}

// TestDenied has one bucket refuse to be written: its destination fails with the
// reason, the others have nothing of it; once it is allowed, a retry is enough.
func TestDenied(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, ArrivalTimeout: "10s", Seed: 31})
	denied := w.Buckets[0]
	rule := w.Agents[0].Gate.Break(Rule{When: func(c Call) bool { return c.S3() && c.Writes() }, Do: AccessDenied})
	v := w.Put("build.zip", several)
	began := time.Now()
	w.Until("the other one has it", func() bool {
		r := w.Record(v.Key)
		return r != nil && len(r.Successful) == 1 && r.Successful[0] == w.Buckets[1]
	})
	t.Logf("the other one has it after %.1f s", seconds(began))
	r := w.Ended(v, ledger.Failed)
	if got := r.Results[denied].Error; !strings.Contains(got, "no progress for 10s") || !strings.Contains(got, "AccessDenied") {
		t.Errorf("failed because of %q", got)
	}
	rule.Heal()
	w.Until("a retry", func() bool {
		_, err := w.Seeder.Retry(t.Context(), r.ExecutionID)
		return err == nil
	})
	w.Completed(v)
	w.Settle()
}

// TestNoTable takes DynamoDB away for a whole distribution: the download goes on,
// and the upload that had begun is not thrown away.
func TestNoTable(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Link: link, Seed: 32})
	w.NeedsNetwork()
	v := w.Put("build.zip", several)
	r := w.Begun(v)
	w.Until("the landings have begun", func() bool { return len(w.Landings(v.Key).Landings) == len(w.Buckets) })
	for _, m := range w.Members() {
		m.Gate.Break(Rule{When: Call.dynamo, Do: Reset})
	}
	w.Until("all is downloaded", func() bool {
		for _, a := range w.Agents {
			if b := a.Build(r.ExecutionID); b == nil || b.VerifiedBytes < several {
				return false
			}
		}
		return true
	})
	w.Until("all parts are up", func() bool { return len(w.Taken(v.Key)) == severalParts*len(w.Buckets) })
	select {
	case <-time.After(5 * time.Second): // as long as the fault lasts
	case <-t.Context().Done():
	}
	w.heal()
	w.Completed(v)
	w.OnceUp(v)
	w.Settle()
}

// TestNoTableAtAll takes DynamoDB away before the agents have asked it anything.
func TestNoTableAtAll(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Seed: 33})
	for _, a := range w.Agents {
		a.Gate.Break(Rule{When: Call.dynamo, Do: InternalError})
	}
	v := w.Put("build.zip", several)
	r := w.Begun(v)
	w.Until("all is downloaded without it", func() bool {
		for _, a := range w.Agents {
			if b := a.Build(r.ExecutionID); b == nil || b.VerifiedBytes < several {
				return false
			}
		}
		return true
	})
	w.heal()
	w.Completed(v)
	w.Settle()
}
