package clustertest

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/manifest"
)

// dam is a source that gives an object's bytes as far as it was opened.
type dam struct {
	http.RoundTripper
	suffix string
	mu     sync.Mutex
	open   int64 // bytes
	opened chan struct{}
}

func newDam(suffix string) *dam {
	return &dam{RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport, suffix: suffix, open: 1 << 40, opened: make(chan struct{})}
}

// set gives so many bytes from now on.
func (d *dam) set(open int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = open
	close(d.opened)
	d.opened = make(chan struct{})
}

func (d *dam) RoundTrip(r *http.Request) (*http.Response, error) {
	var first int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); r.Method != http.MethodGet || n != 1 || !strings.HasSuffix(r.URL.Path, d.suffix) {
		return d.RoundTripper.RoundTrip(r)
	}
	for {
		d.mu.Lock()
		flows, opened := first < d.open, d.opened
		d.mu.Unlock()
		if flows {
			return d.RoundTripper.RoundTrip(r)
		}
		select {
		case <-opened:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

// dammed is a cluster of one region whose source has a dam for build.bin.
func dammed(t *testing.T, o Options) (*Cluster, *dam) {
	d := newDam("/build.bin")
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: d}
	o.Regions, o.AWS = 1, &cfg
	return Start(t, cloud, o), d
}

// What the seeder has read is on its way into the region's bucket while it reads on; the
// object is there when all of it is, and not before.
func TestLandsWhileTheSourceIsRead(t *testing.T) {
	c, source := dammed(t, Options{})
	b := content(1, 3*manifest.MinPartLength+1)
	c.Put("build.bin", b, nil)
	source.set(manifest.MinPartLength)
	id := c.Deploy("build.bin").ExecutionID
	at := func() *api.Build { return c.build(c.Agents[0], "build.bin") }
	c.Until("the first part is in the upload, and the source is waited for", func() bool {
		build := at()
		return build != nil && build.LandedBytes == manifest.MinPartLength && build.Waiting
	})
	if n := c.uploads(c.Bucket(0)); n != 1 {
		t.Errorf("%d uploads", n)
	}
	if e, err := c.Seeder.Execution(t.Context(), id); err != nil || e.Status != "IN_PROGRESS" {
		t.Errorf("%+v, %v", e, err)
	}
	source.set(2 * manifest.MinPartLength)
	c.Until("so is the second", func() bool { return at().LandedBytes == 2*manifest.MinPartLength })
	source.set(1 << 40)
	c.Await(id, "COMPLETED")
	c.Holds("build.bin", b)
}

// What the bucket holds may be the build that the seeder is still reading: nothing is
// fetched of it, and it is recorded when all is known.
func TestWhatMayBeThereIsNotFetched(t *testing.T) {
	var log lines
	c, source := dammed(t, Options{Log: &log})
	b := content(1, 3*manifest.MinPartLength)
	c.Put("build.bin", b, nil)
	c.Await(c.Deploy("build.bin").ExecutionID, "COMPLETED")
	source.set(manifest.MinPartLength)
	id := c.Deploy("build.bin").ExecutionID
	log.await(c, "bucket holds what may be this build; it is known when the seeder has read all of it")
	source.set(2 * manifest.MinPartLength)
	if e, err := c.Seeder.Execution(t.Context(), id); err != nil || e.Status != "IN_PROGRESS" {
		t.Errorf("%+v, %v", e, err)
	}
	source.set(1 << 40)
	c.Await(id, "COMPLETED")
	for _, line := range log.of("downloading") {
		if line["executionId"] == id {
			t.Errorf("fetched: %v", line)
		}
	}
	if r := c.Record("build.bin"); r.ExecutionID != id || r.SHA256 == "" || r.Results[c.Bucket(0)].SHA256 != r.SHA256 {
		t.Errorf("%+v", r)
	}
}
