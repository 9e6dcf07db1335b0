package clustertest

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
)

// heldTable holds a write that has this in its body, once: what before says, before it is
// carried out or after.
type heldTable struct {
	http.RoundTripper
	holds         []byte
	before        bool
	once          sync.Once
	reached, goOn chan struct{}
	release       func() // once the test is over, too
}

func newHeldTable(holds string, before bool) *heldTable {
	h := &heldTable{
		RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport,
		holds:        []byte(holds), before: before,
		reached: make(chan struct{}), goOn: make(chan struct{}),
	}
	h.release = sync.OnceFunc(func() { close(h.goOn) })
	return h
}

func (h *heldTable) RoundTrip(r *http.Request) (*http.Response, error) {
	hold := func() {}
	if target := r.Header.Get("X-Amz-Target"); strings.HasSuffix(target, ".PutItem") || strings.HasSuffix(target, ".UpdateItem") {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if bytes.Contains(body, h.holds) {
			hold = func() {
				h.once.Do(func() {
					close(h.reached)
					<-h.goOn
				})
			}
		}
	}
	if h.before {
		hold()
		return h.RoundTripper.RoundTrip(r)
	}
	answer, err := h.RoundTripper.RoundTrip(r)
	hold()
	return answer, err
}

// held is a cluster whose only destination has no agent, and an execution of it that
// comes to its end: the table calls it failed, the seeder does not know yet.
func held(t *testing.T, timeout time.Duration) (c *Cluster, h *heldTable, id string) {
	t.Helper()
	h = newHeldTable(`"status":{"S":"FAILED"}`, false)
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: h}
	c = Start(t, cloud, Options{Regions: 1, Unserved: 1, AWS: &cfg, ArrivalTimeout: timeout})
	t.Cleanup(h.release)
	c.Put("build.bin", content(1, 1000), nil)
	id = c.Deploy("build.bin").ExecutionID
	<-h.reached
	return c, h, id
}

// ended waits until nobody carries the execution any more.
func (c *Cluster) ended(id string) *api.Execution {
	c.t.Helper()
	var e *api.Execution
	c.Until("the execution has ended", func() (over bool) {
		var err error
		if e, err = c.Seeder.Execution(c.t.Context(), id); err != nil {
			c.t.Fatal(err)
		}
		return e.Phase == api.PhaseEnded
	})
	return e
}

// A retry that comes while an execution ends is carried out.
func TestRetryWhileItEnds(t *testing.T) {
	c, h, id := held(t, 300*time.Millisecond)
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	h.release()
	c.Await(id, "FAILED") // again, since its only destination still has no agent
	if e := c.ended(id); e.Status != "FAILED" {
		t.Errorf("status %s when it has ended", e.Status)
	}
}

// A region that comes back while an execution ends gets the build.
func TestRegionReturnsWhileItEnds(t *testing.T) {
	c, h, id := held(t, LandsWithin)
	c.AddAgent(0, "late")
	c.Until("the seeder knows the agent", func() bool {
		return strings.Contains(metricsOf(t, c), `landfall_destination_agents{bucket="`+c.Bucket(0)+`"} 1`)
	})
	h.release()
	c.Await(id, "COMPLETED")
}

// A retry at the first of several failures, as a webhook would ask for it, is carried
// out.
func TestRetryAtTheFirstFailure(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 13, Unserved: 12, ArrivalTimeout: 300 * time.Millisecond})
	c.Put("build.bin", content(1, 1000), nil)
	id := c.Deploy("build.bin").ExecutionID
	c.Until("a destination has failed", func() bool {
		e, err := c.Seeder.Execution(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range e.Destinations {
			if d.State == api.StateFailed {
				return true
			}
		}
		return false
	})
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "FAILED")
	if e := c.ended(id); e.Status != "FAILED" {
		t.Errorf("status %s when it has ended", e.Status)
	}
}

// A build that is in its bucket when its execution has failed for want of progress is
// recorded all the same, and the seeder that has ended it says so.
func TestArrivalAfterTheEnd(t *testing.T) {
	h := newHeldTable(`"success":{"BOOL":true}`, true)
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: h}
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, AWS: &cfg, ArrivalTimeout: 300 * time.Millisecond, Log: log})
	t.Cleanup(h.release)
	c.Put("build.bin", content(1, 1000), nil)
	id := c.Deploy("build.bin").ExecutionID
	<-h.reached
	c.Await(id, "FAILED")
	c.ended(id)
	c.Until("the agent was told", func() bool {
		return len(log.of("execution was ended, and the build is here: its arrival is recorded all the same")) == 1
	})
	h.release()
	c.Await(id, "COMPLETED")
	c.Holds("build.bin", content(1, 1000))
}
