package clustertest

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/devcluster"
	"github.com/landfall-dist/landfall/internal/identity"
	"github.com/landfall-dist/landfall/internal/ledger"
)

// records are those of an agent of a region that a test plays.
func (c *Cluster) records(i int) *arrivals.Records {
	return arrivals.NewRecords(c.Ledger, devcluster.Arrivals(c.cfg), c.Bucket(i), "played", "by a test", nil, nil)
}

// Agents write rows of their own buckets, and the items of nobody.
func TestAgentsWriteTheirOwnRowsAlone(t *testing.T) {
	writes := &itemWrites{}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: writes}
	c := Start(t, cloud, Options{Regions: 2, AWS: &cfg})
	for _, key := range []string{"one.bin", "two.bin"} {
		c.Publish(key, content(1, 12_000_000))
	}
	r := c.Record("one.bin")
	for i := range c.Regions {
		a, err := c.records(i).Get(t.Context(), r.Key)
		if err != nil || a.Results[c.Bucket(i)].Agent != "agent-"+c.Regions[i] || r.Results[c.Bucket(i)].Agent != a.Results[c.Bucket(i)].Agent {
			t.Errorf("the row says %+v, the item %+v, %v", a.Results, r.Results, err)
		}
	}
	// The second one's bytes are there: its copy moves nothing.
	if n := writes.rows.Load(); n > 2*2*2 {
		t.Errorf("%d writes of rows for 4 landings", n)
	}
}

// itemWrites counts the writes of rows.
type itemWrites struct{ rows atomic.Int64 }

func (w *itemWrites) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".PutItem") && r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		defer body.Close()
		buf := make([]byte, 64<<10)
		n, _ := body.Read(buf)
		if text := string(buf[:n]); strings.Contains(text, `"destinationBucket"`) && !strings.Contains(text, `"beat"`) {
			w.rows.Add(1)
		}
	}
	return http.DefaultTransport.RoundTrip(r)
}

// An arrival that is not so does not count, and says why; the region gets the build all the
// same, in one part or several, and its agent does not believe its row either. With TLS it
// is not even signed.
func TestArrivalThatIsNotSo(t *testing.T) {
	for _, size := range []int{100_000, 12 << 20} {
		for _, mode := range []identity.Mode{identity.Off, identity.Require} {
			t.Run(fmt.Sprintf("%d bytes, TLS %s", size, mode), func(t *testing.T) {
				log := &lines{}
				c := Start(t, cloud, Options{Regions: 2, Unserved: 1, Log: log, TLS: mode})
				b := content(1, size)
				c.Put("build.bin", b, nil)
				id := c.Deploy("build.bin").ExecutionID
				c.Until("the first region has it", func() bool { return slices.Contains(c.Record("build.bin").Successful, c.Bucket(0)) })
				r := c.Record("build.bin")
				lie := ledger.Result{Timestamp: time.Now(), Bytes: r.Size, SHA256: r.SHA256, Region: c.Regions[1], Agent: "played"}
				if _, err := c.records(1).Arrive(t.Context(), r, c.Bucket(1), lie); err != nil {
					t.Fatal(err)
				}
				c.Until("it is said that it does not count", func() bool { return len(log.of("an arrival does not count")) > 0 })
				if r := c.Record("build.bin"); slices.Contains(r.Successful, c.Bucket(1)) {
					t.Error("it counts")
				}
				honest := devcluster.AgentOf(c.Regions[1])
				c.AddAgent(1, honest)
				c.Await(id, "COMPLETED")
				c.Holds("build.bin", b)
				if by := c.Record("build.bin").Results[c.Bucket(1)].Agent; by != honest {
					t.Errorf("the arrival is recorded by %q", by)
				}
				looked := len(log.of("the table says that the build has arrived, and the bucket does not have it")) > 0
				if looked != (mode == identity.Off) {
					t.Errorf("the agent has looked: %v", looked)
				}
			})
		}
	}
}

// With no seeder alive arrivals are recorded all the same, agents know by them when to stop,
// and the items follow when a seeder is back.
func TestArrivalsWithoutASeeder(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1, FallbackAfter: 100 * time.Millisecond})
	b := content(1, 100_000)
	c.Put("build.bin", b, nil)
	id := c.Deploy("build.bin").ExecutionID
	c.Until("the first region has it", func() bool { return slices.Contains(c.Record("build.bin").Successful, c.Bucket(0)) })
	c.StopSeeder()
	// It has seen one before.
	if err := errors.Join(os.MkdirAll(c.Dir("late"), 0o700), os.WriteFile(filepath.Join(c.Dir("late"), "arrivals"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	late, _ := c.AddAgent(1, "late")
	landed := func() bool {
		s, err := late.AgentStatus(t.Context())
		return err == nil && slices.ContainsFunc(s.Builds, func(b api.Build) bool { return b.ExecutionID == id && b.State == api.StateLanded })
	}
	c.Until("the second region has it, and no seeder is there", landed)
	r := c.Record("build.bin")
	if r.Status != ledger.InProgress {
		t.Errorf("the item is %s, and nobody was there to write it", r.Status)
	}
	if r, err := c.records(0).Everywhere(t.Context(), r); err != nil || r.Status != ledger.Completed {
		t.Errorf("the rows say %+v, %v", r, err)
	}
	c.Restart()
	c.Await(id, "COMPLETED")
	c.Holds("build.bin", b)
}

// noLook forbids HEADs of one bucket.
type noLook struct{ bucket atomic.Pointer[string] }

func (n *noLook) RoundTrip(r *http.Request) (*http.Response, error) {
	if b := n.bucket.Load(); b != nil && r.Method == http.MethodHead && strings.HasPrefix(r.URL.Path, "/"+*b) && r.Header.Get("User-Agent") != "" {
		return &http.Response{StatusCode: http.StatusForbidden, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	}
	return http.DefaultTransport.RoundTrip(r)
}

// A seeder that may not look into a bucket counts arrivals there by their rows, and says so
// once.
func TestArrivalsInABucketOfOthers(t *testing.T) {
	forbid := &noLook{}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: forbid}
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, Unserved: 1, AWS: &cfg, Log: log})
	forbid.bucket.Store(aws.String(c.Bucket(0)))
	for _, key := range []string{"one.bin", "two.bin"} {
		c.Put(key, content(1, 100), nil)
		id := c.Deploy(key).ExecutionID
		c.Until("it is pulled", func() bool { return c.Record(key).SHA256 != "" })
		r := c.Record(key)
		if _, err := c.records(0).Arrive(t.Context(), r, c.Bucket(0), ledger.Result{Timestamp: time.Now(), Bytes: r.Size, SHA256: r.SHA256}); err != nil {
			t.Fatal(err)
		}
		c.Await(id, "COMPLETED")
	}
	if n := len(log.of("arrivals in a bucket count without a look at it, which its owner does not allow: with s3:GetObject and s3:ListBucket there the seeder looks")); n != 1 {
		t.Errorf("said %d times", n)
	}
}
