//go:build linux

package chaos

import (
	"bytes"
	"context"
	"flag"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
)

var stoppedFlag = flag.Duration("chaos.stopped", 0, "how long TestStopped has an agent stand still at least; 0 for as long as the others need")

// landingTaken is the call by which an agent takes a landing, before there is an upload.
func landingTaken(c Call) bool {
	return c.Op == "PutItem" && bytes.Contains(c.Body, []byte(`"landings":{"M":{"`)) && !c.Arrival()
}

// landingNoted is the one by which it names its upload.
func landingNoted(c Call) bool {
	return landingTaken(c) && bytes.Contains(c.Body, []byte(`"uploadId":{"S":"`)) && !bytes.Contains(c.Body, []byte(`"uploadId":{"S":""`))
}

// TestStopped has an agent stand still (SIGSTOP, as a machine that is moved does) at each step
// of a landing: when its call is on its way, which arrives late, and when the answer is. It
// wakes when another agent of its region has landed the build, and a newer execution of the
// key has arrived: its object, row and item are as they were, and no upload is left.
func TestStopped(t *testing.T) {
	t.Parallel()
	for _, step := range []struct {
		name string
		at   func(Call) bool
		// late and answered are in the short run.
		late, answered bool
	}{
		{"the landing is taken", landingTaken, false, true},
		{"the upload is created", creating, false, false},
		{"the upload is noted", landingNoted, false, false},
		{"a part goes up", aPart, true, false},
		{"the upload is completed", complete, true, false},
		{"the arrival is recorded", arriving, false, false},
	} {
		for name, of := range map[string]struct {
			fault func(chan<- Call, <-chan struct{}) Fault
			short bool
		}{"the call": {Late, step.late}, "the answer": {HoldAnswer, step.answered}} {
			if !of.short && !*longFlag {
				continue
			}
			t.Run(step.name+" and "+name+" is on its way", func(t *testing.T) {
				t.Parallel()
				stopped(t, step.at, of.fault)
			})
		}
	}
}

func stopped(t *testing.T, at func(Call) bool, fault func(chan<- Call, <-chan struct{}) Fault) {
	w := Start(t, Options{Agents: []int{2, 1}, Seed: 19})
	pair, letGo := w.Agents[:2], make(chan struct{})
	var calls [2]chan Call
	var rules [2]*Rule
	for i, a := range pair {
		calls[i] = make(chan Call, 1)
		rules[i] = a.Gate.Break(Rule{When: at, Times: 1, Do: fault(calls[i], letGo)})
	}
	old := w.Put("build.zip", several)
	i := 0
	select {
	case <-calls[0]:
	case <-calls[1]:
		i = 1
	case <-time.After(Timeout):
		t.Fatalf("no call met the fault within %s", Timeout)
	}
	sleeper := pair[i]
	sleeper.Stop()
	begun := time.Now()
	rules[1-i].Heal()
	first := w.Completed(old)
	second := w.Completed(w.Put("build.zip", several))
	if by := second.Results[w.Buckets[0]].Agent; by != pair[1-i].Identity() {
		t.Errorf("the newer execution was landed by %s", by)
	}
	if wait := time.Until(begun.Add(*stoppedFlag)); wait > 0 {
		time.Sleep(wait)
	}
	t.Logf("it stood still for %s", time.Since(begun).Round(time.Second))
	before := w.standing(second)
	close(letGo)
	sleeper.Continue()
	w.Until("who stood still has ended what it had begun", func() bool {
		if sleeper.Ready(context.Background()) != nil {
			return false
		}
		b := sleeper.Build(first.ExecutionID)
		return b == nil || b.State == api.StateLanded || b.State == api.StateFailed
	})
	w.Settle()
	if after := w.standing(second); after != before {
		t.Errorf("it was %+v, and is %+v", before, after)
	}
}

// standing is what has become of an execution in the first bucket.
type standing struct {
	etag, execution, sha256 string
	by, sum, of             string
	status                  ledger.Status
}

func (w *World) standing(r *ledger.Record) (s standing) {
	w.t().Helper()
	head, err := w.S3.HeadObject(context.Background(), &s3.HeadObjectInput{Bucket: &w.Buckets[0], Key: &r.FileKey})
	if err != nil {
		w.t().Fatal(err)
	}
	now := w.Landings(r.FileKey)
	result := now.Results[w.Buckets[0]]
	s = standing{*head.ETag, head.Metadata["landfall-execution"], head.Metadata["landfall-sha256"], result.Agent, result.SHA256, now.ExecutionID, now.Status}
	if s.execution != r.ExecutionID || s.of != r.ExecutionID || s.status != ledger.Completed {
		w.t().Errorf("%s has %+v", r.FileKey, s)
	}
	return s
}
