package clustertest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/notify"
)

// webhook receives the notices of a cluster that is started after it.
func webhook(t *testing.T) (url string, notices <-chan notify.Notice) {
	t.Helper()
	got := make(chan notify.Notice, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var n notify.Notice
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
			t.Errorf("%s: %v", r.URL, err)
		}
		got <- n
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

// next waits for a notice.
func next(t *testing.T, notices <-chan notify.Notice) notify.Notice {
	t.Helper()
	select {
	case n := <-notices:
		return n
	case <-time.After(Timeout):
		t.Fatalf("no notice in %s", Timeout)
		return notify.Notice{}
	}
}

func metricsOf(t *testing.T, c *Cluster) string {
	t.Helper()
	res, err := c.Seeder.HTTP.Get(c.Seeder.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFailedDestinationIsTold(t *testing.T) {
	url, notices := webhook(t)
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1, ArrivalTimeout: LandsWithin, Webhook: url})
	c.Put("build.bin", content(1, 500_000), nil)
	id := c.Deploy("build.bin").ExecutionID
	c.Await(id, "FAILED")
	n := next(t, notices)
	result := c.Record("build.bin").Results[c.Bucket(1)]
	if n.Event != "destination_failed" || n.ExecutionID != id || n.Key != "build.bin" || n.SourceBucket != c.Global ||
		n.Bucket != c.Bucket(1) || n.Error != result.Error || !strings.Contains(n.Error, "no living member") || !n.Time.Equal(result.Timestamp) {
		t.Errorf("notice %+v of %+v", n, result)
	}
	if !slices.Equal(n.Landed, []string{c.Bucket(0)}) || len(n.Pending) != 0 || !slices.Equal(n.Failed, []string{c.Bucket(1)}) {
		t.Errorf("landed %v, pending %v, failed %v", n.Landed, n.Pending, n.Failed)
	}
	c.Until("it is counted", func() bool {
		metrics := metricsOf(t, c)
		return strings.Contains(metrics, "\nlandfall_notices_total{result=\"sent\"} 1\n") &&
			strings.Contains(metrics, "\nlandfall_notices_total{result=\"dropped\"} 0\n")
	})

	// One that is sent again can fail again.
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if again := next(t, notices); again.ExecutionID != id || again.Bucket != n.Bucket || !again.Time.After(n.Time) {
		t.Errorf("first %+v, then %+v", n, again)
	}

	// That it has failed is not news to the next start, nor to an agent that
	// makes the seeder send the build again.
	c.opts.ArrivalTimeout = 2 * Timeout // it may take its time now
	c.Restart()
	c.AddAgent(1, "late")
	c.Await(id, "COMPLETED")
	c.Stop() // every notice is out then
	if len(notices) != 0 {
		t.Errorf("another notice: %+v", <-notices)
	}
}

func TestCancelIsNotTold(t *testing.T) {
	url, notices := webhook(t)
	c := Start(t, cloud, Options{Regions: 1, Unserved: 1, Webhook: url})
	c.Put("build.bin", content(1, 1000), nil)
	id := c.Deploy("build.bin").ExecutionID
	if _, err := c.Seeder.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "CANCELLED")
	c.Stop()
	if len(notices) != 0 {
		t.Errorf("a notice of what was asked for: %+v", <-notices)
	}
}

func TestVanishedBuildIsTold(t *testing.T) {
	url, notices := webhook(t)
	c := Start(t, cloud, Options{Regions: 2, Webhook: url, Before: func(c *Cluster) {
		// Accepted by a seeder that is gone, as is the object since.
		_, err := c.Ledger.Begin(t.Context(), ledger.Start{
			Key:        ledger.Key{FileKey: "gone.zip", SourceBucket: c.Global},
			SourceETag: `"etag"`, Size: 1000, Destinations: []string{c.Bucket(0), c.Bucket(1)}, Now: time.Now(),
		})
		if err != nil {
			t.Fatal(err)
		}
	}})
	for i, pending := range [][]string{{c.Bucket(1)}, {}} {
		n := next(t, notices)
		if n.Bucket != c.Bucket(i) || n.Error == "" || !slices.Equal(n.Pending, pending) || len(n.Failed) != i+1 || len(n.Landed) != 0 {
			t.Errorf("notice %d is %+v", i, n)
		}
	}
	c.Stop()
	if len(notices) != 0 {
		t.Errorf("another notice: %+v", <-notices)
	}
}
