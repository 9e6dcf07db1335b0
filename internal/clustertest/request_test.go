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

// heldTable holds the answer to the write that ends an execution, once.
type heldTable struct {
	http.RoundTripper
	once           sync.Once
	written, goOn  chan struct{}
	failedIsItsEnd []byte
}

func newHeldTable() *heldTable {
	return &heldTable{
		RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport,
		written:      make(chan struct{}), goOn: make(chan struct{}),
		failedIsItsEnd: []byte(`"status":{"S":"FAILED"}`),
	}
}

func (h *heldTable) RoundTrip(r *http.Request) (*http.Response, error) {
	ends := false
	if target := r.Header.Get("X-Amz-Target"); strings.HasSuffix(target, ".PutItem") || strings.HasSuffix(target, ".UpdateItem") {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		ends = bytes.Contains(body, h.failedIsItsEnd)
	}
	answer, err := h.RoundTripper.RoundTrip(r)
	if ends {
		h.once.Do(func() {
			close(h.written)
			<-h.goOn
		})
	}
	return answer, err
}

// held is a cluster whose only destination has no agent, and an execution of it that
// comes to its end: the table calls it failed, the seeder does not know yet.
func held(t *testing.T) (c *Cluster, h *heldTable, id string) {
	t.Helper()
	h = newHeldTable()
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: h}
	c = Start(t, cloud, Options{Regions: 1, Unserved: 1, AWS: &cfg, ArrivalTimeout: 300 * time.Millisecond})
	c.Put("build.bin", content(1, 1000), nil)
	id = c.Deploy("build.bin").ExecutionID
	<-h.written
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
	c, h, id := held(t)
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	close(h.goOn)
	c.Await(id, "FAILED") // again, since its only destination still has no agent
	if e := c.ended(id); e.Status != "FAILED" {
		t.Errorf("status %s when it has ended", e.Status)
	}
}

// A region that comes back while an execution ends gets the build.
func TestRegionReturnsWhileItEnds(t *testing.T) {
	c, h, id := held(t)
	c.AddAgent(0, "late")
	c.Until("the seeder knows the agent", func() bool {
		return strings.Contains(metricsOf(t, c), `landfall_destination_agents{bucket="`+c.Bucket(0)+`"} 1`)
	})
	close(h.goOn)
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
