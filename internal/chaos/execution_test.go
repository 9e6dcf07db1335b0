//go:build linux

package chaos

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// TestSameKeyAgain publishes X, Y and X again under one key, with Y's landing held
// up at every point until X is back everywhere: Y must not come out on top, even
// where its request was on the way already and nobody could take it back.
func TestSameKeyAgain(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name  string
		short bool
		when  func(Call) bool
		fault func(chan<- Call, <-chan struct{}) Fault
	}{
		{"Create held", true, creating, Hold},
		{"Create's answer held", false, creating, HoldAnswer},
		{"begun held", false, landingBegun, Hold},
		{"begun late", true, landingBegun, Late},
		{"a part held", false, aPart, Hold},
		{"a part late", true, aPart, Late},
		{"a part's answer held", false, aPart, HoldAnswer},
		{"Complete held", true, complete, Hold},
		{"Complete late", true, complete, Late},
		{"Complete's answer held", false, complete, HoldAnswer},
		{"record held", false, arriving, Hold},
		{"record late", true, arriving, Late},
		{"record's answer held", false, arriving, HoldAnswer},
	}
	const worlds = 3
	for n := range worlds {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			w := Start(t, Options{Agents: []int{1, 1}, Seed: uint64(10 + n)})
			for i := n; i < len(cases); i += worlds {
				c := cases[i]
				if !c.short && !*longFlag {
					continue
				}
				key := fmt.Sprintf("%d.zip", i)
				x := w.Put(key, 9<<20)
				w.Completed(x)
				calls, letGo := make(chan Call, 1), make(chan struct{})
				rule := w.Agents[0].Gate.Break(Rule{
					When: func(call Call) bool { return c.when(call) && (call.Key == key || !call.S3()) },
					Do:   c.fault(calls, letGo), Times: 1,
				})
				y := w.Put(key, 9<<20)
				held(t, calls)
				before := w.Record(key).ExecutionID
				w.PutAgain(x)
				w.Until(c.name+": X begins again", func() bool { return w.Record(key).ExecutionID != before })
				w.Completed(x)
				close(letGo)
				rule.Heal()
				w.Until(c.name+": Y is over at the agent", func() bool {
					b := w.Agents[0].Build(before)
					return b == nil || b.State == api.StateFailed || b.State == api.StateLanded
				})
				r := w.Completed(x)
				for _, bucket := range r.Destinations {
					if err := w.whole(context.Background(), bucket, key); err != nil {
						t.Errorf("%s: %s: %v", c.name, bucket, err)
					}
				}
				w.landed(key)
				if t.Failed() {
					t.Fatalf("%s: Y is %s", c.name, y.SHA256)
				}
			}
			w.Settle()
		})
	}
}

// TestObjectChanges replaces or deletes the object in the global bucket in
// mid-distribution.
func TestObjectChanges(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Link: link, Seed: 11})
	at := func(name string) stage {
		for _, s := range stages {
			if s.name == name {
				return s
			}
		}
		panic(name)
	}
	w.Sub(t, "replaced in the pull", func(t *testing.T) {
		_, heal := at("pulling").reach(t, w, "a.zip")
		next := w.Put("a.zip", several/2)
		heal()
		w.Completed(next)
	})
	w.Sub(t, "replaced in the distribution", func(t *testing.T) {
		w.NeedsNetwork()
		_, heal := at("50 %").reach(t, w, "b.zip")
		next := w.Put("b.zip", several/2)
		heal()
		w.Completed(next)
	})
	w.Sub(t, "deleted in the pull", func(t *testing.T) {
		calls := make(chan Call, 1)
		rule := w.Seeder.Gate.Break(Rule{When: op("GetObject"), Do: Hold(calls, nil)})
		v := w.Put("c.zip", several)
		held(t, calls)
		w.Delete("c.zip")
		rule.Heal()
		r := w.Ended(v, ledger.Failed)
		for _, b := range r.Failed {
			if got := r.Results[b].Error; !strings.Contains(got, "no such object") {
				t.Errorf("%s failed because of %q", b, got)
			}
		}
		// The same key again is a new beginning.
		w.mu.Lock()
		w.history("c.zip").loose = false
		w.mu.Unlock()
		w.Completed(w.Put("c.zip", 1000))
	})
	w.Sub(t, "deleted in the distribution", func(t *testing.T) {
		w.NeedsNetwork()
		v, heal := at("50 %").reach(t, w, "d.zip")
		w.Delete("d.zip")
		heal()
		w.Completed(v) // nobody needs the object any more
	})
	w.Settle()
}

// TestCancel stops an execution by the command, at several stages: nothing of it
// becomes visible or is left lying about, not even where an agent is away.
func TestCancel(t *testing.T) {
	t.Parallel()
	w := Start(t, Options{Agents: []int{1, 1}, Link: link, Seed: 12})
	cancel := func(t *testing.T, key string) {
		t.Helper()
		w.Loosen(key)
		out, err := exec.Command(host.bin("seeder"), "cancel", "--seeder", w.Seeder.URL, key).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for i, s := range stages {
		if s.name != "pulling" && s.name != "50 %" && s.name != "before Complete" {
			continue
		}
		w.Sub(t, s.name, func(t *testing.T) {
			v, heal := s.reach(t, w, fmt.Sprintf("%d.zip", i))
			cancel(t, v.Key)
			r := w.Ended(v, ledger.Cancelled)
			for _, b := range r.Failed {
				if got := r.Results[b].Error; got != "cancelled by request" {
					t.Errorf("%s: %q", b, got)
				}
			}
			w.Until("the agents stop", func() bool {
				for _, a := range w.Agents {
					if b := a.Build(r.ExecutionID); b != nil && b.State != api.StateFailed && b.State != api.StateLanded {
						return false
					}
				}
				return true
			})
			heal()
		})
	}
	w.Sub(t, "an agent away", func(t *testing.T) {
		v := w.Put("away.zip", several)
		w.Begun(v)
		a := w.Agents[0]
		w.Until("its landing has begun", func() bool { return w.Landings(v.Key).Landings[a.Bucket].UploadID != "" })
		a.Kill()
		cancel(t, v.Key)
		a.Run()
	})
	w.Settle()
}

// TestManyBuilds has more executions at once than an agent works on.
func TestManyBuilds(t *testing.T) {
	t.Parallel()
	builds, agents := 20, 4
	if *longFlag {
		builds, agents = 50, 8
	}
	var regions []int
	for range agents {
		regions = append(regions, 1)
	}
	w := Start(t, Options{Agents: regions, Seed: 13})
	var versions []*Version
	for i := range builds {
		versions = append(versions, w.Put(fmt.Sprintf("%d.zip", i), 1+i*5000))
	}
	w.Seeder.Kill()
	w.Seeder.Run()
	for _, v := range versions {
		w.Completed(v)
	}
	w.Settle()
}

// TestManyAgents has several agents serve one bucket: one of them lands, and when
// it goes in the middle another one continues.
func TestManyAgents(t *testing.T) {
	t.Parallel()
	for n := 2; n <= 3; n++ {
		if n > 2 && !*longFlag {
			continue
		}
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			w := Start(t, Options{Agents: []int{n, 1}, Link: link, Seed: uint64(n)})
			w.Sub(t, "one lands", func(t *testing.T) {
				v := w.Put("a.zip", several)
				w.Completed(v)
				w.OnceUp(v)
				if got := w.Ops("CompleteMultipartUpload"); got != len(w.Buckets) {
					t.Errorf("%d uploads were completed for %d buckets", got, len(w.Buckets))
				}
			})
			w.Sub(t, "the leader dies", func(t *testing.T) {
				w.NeedsNetwork()
				v := w.Put("b.zip", several)
				leader := w.Leader(v, w.Buckets[0])
				w.Until("a part has landed", func() bool { return len(w.Taken(v.Key)) > 0 })
				leader.Kill()
				w.Completed(v)
				w.OnceUp(v)
				leader.Run()
			})
			w.Settle()
		})
	}
}

// TestStandbyIsSlow has the second agent of a bucket hang in its download until the
// first has landed the build: it is landed there too, whole for the others' sake, and
// what it tells goes on.
func TestStandbyIsSlow(t *testing.T) {
	t.Parallel()
	// Without the third agent nobody is told of the end.
	w := Start(t, Options{Agents: []int{2, 1}, Link: link, Seed: 15, Down: []int{2}})
	v := w.Put("build.zip", several)
	id := w.Begun(v).ExecutionID
	leader := w.Leader(v, w.Buckets[0])
	standby := w.Agents[0]
	if standby == leader {
		standby = w.Agents[1]
	}
	verified := func(percent int64) func() bool {
		return func() bool {
			b := standby.Build(id)
			return b != nil && b.VerifiedBytes*100 >= percent*several
		}
	}
	w.Until("the standby has some of it", verified(20))
	standby.Stop()
	landed := func(m *Member) func() bool {
		return func() bool {
			b := m.Build(id)
			return b != nil && b.State == api.StateLanded
		}
	}
	w.Until("the leader has landed it", landed(leader))
	standby.Continue()
	w.Until("the standby has all of it", verified(100))
	w.Until("it is landed for the standby as well", landed(standby))
	w.Until("the seeder hears of the time that the leader took", func() bool {
		d := w.Execution(id).Destinations[0]
		return d.State == api.StateLanded && d.Took != nil
	})
	w.Agents[2].Run()
	w.Completed(v)
	w.Settle()
}
