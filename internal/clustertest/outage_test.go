package clustertest

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/seeder/client"
)

// patience is short, for a test that waits for it.
const patience = 300 * time.Millisecond

// build is how an agent sees a build of the key; nil when it does not know it.
func (c *Cluster) build(agent *client.Client, key string) *api.Build {
	s, err := agent.AgentStatus(c.t.Context())
	if err != nil {
		return nil
	}
	for _, b := range s.Builds {
		if b.Key == key {
			return &b
		}
	}
	return nil
}

// completed waits for the end of the execution of a key by the tables alone, since the
// seeder is gone: the rows say that all has arrived, the item follows when one is back.
func (c *Cluster) completed(key string) *ledger.Record {
	c.t.Helper()
	var r *ledger.Record
	c.Until(key+" has arrived everywhere", func() bool {
		var err error
		if r, err = c.records(0).Everywhere(c.t.Context(), c.Record(key)); err != nil {
			c.t.Fatal(err)
		}
		return len(r.Unfinished()) == 0
	})
	return r
}

// orphan publishes a build to two regions that nobody serves, so that only the
// agent of a third hears of it, and ends the seeder for good.
func orphan(t *testing.T, b []byte, patience time.Duration) *Cluster {
	t.Helper()
	c := Start(t, cloud, Options{Regions: 3, Unserved: 2, FallbackAfter: patience})
	c.Put("build.bin", b, nil)
	id := c.Deploy("build.bin", c.Bucket(1), c.Bucket(2)).ExecutionID
	c.Until("it is announced", func() bool {
		e, err := c.Seeder.Execution(t.Context(), id)
		return err == nil && e.Phase == api.PhaseDistributing
	})
	c.StopSeeder()
	return c
}

func TestSeederGoneAndNobodyHasAnything(t *testing.T) {
	b := content(1, 2*manifest.MinPartLength+1234)
	c := orphan(t, b, patience)
	agents := make([]*client.Client, 2)
	for i := range agents {
		agents[i], _ = c.AddAgent(1+i, c.Regions[1+i])
	}
	c.completed("build.bin")
	var read int64
	for i, a := range agents {
		if got, _ := c.Object(c.Bucket(1+i), "build.bin"); string(got) != string(b) {
			t.Errorf("%s does not hold the build", c.Bucket(1+i))
		}
		read += c.build(a, "build.bin").SourceBytes
	}
	// Once, but for a machine so busy that the second loses patience.
	if read < int64(len(b)) || read > 2*int64(len(b)) {
		t.Errorf("%d bytes were read from the source, the build has %d", read, len(b))
	}
	t.Logf("read %d from the source, the build has %d", read, len(b))
}

// Between them two agents hold three quarters; each piece of the rest is read from
// the source about once.
func TestSeederGoneWithPiecesMissing(t *testing.T) {
	b := content(2, 4*manifest.MinPartLength)
	c := orphan(t, b, 3*time.Second) // both have met by then
	build := manifesttest.Build(t, b)
	pieces := build.NumPieces()
	quarter := pieces / 4
	for i := range 2 {
		store, err := cache.Open(filepath.Join(c.Dir(c.Regions[1+i]), "cache"), 1<<40, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for segment := range build.NumSegments() {
			e, err := store.Create("made", build.Segment(segment), nil)
			if err != nil {
				t.Fatal(err)
			}
			first, end := build.SegmentPieces(segment)
			for piece := max(first, i*quarter); piece < min(end, (i+2)*quarter); piece++ {
				offset, length := build.PieceRange(piece)
				at, _ := build.SegmentRange(segment)
				if _, err := e.WriteAt(b[offset:offset+length], offset-at); err != nil {
					t.Fatal(err)
				}
				if err := e.SetComplete(piece-first, true); err != nil {
					t.Fatal(err)
				}
			}
			e.Unpin()
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	agents := make([]*client.Client, 2)
	for i := range agents {
		agents[i], _ = c.AddAgent(1+i, c.Regions[1+i])
	}
	c.completed("build.bin")
	var read, traded int64
	for i, a := range agents {
		if got, _ := c.Object(c.Bucket(1+i), "build.bin"); string(got) != string(b) {
			t.Errorf("%s does not hold the build", c.Bucket(1+i))
		}
		read += c.build(a, "build.bin").SourceBytes
		traded += c.build(a, "build.bin").DownloadedBytes
	}
	missing := int64(pieces-3*quarter) * build.PieceLength
	if read < missing || read > missing*3/2 {
		t.Errorf("%d bytes were read from the source, %d were missing", read, missing)
	}
	t.Logf("read %d from the source for %d that were missing, traded %d", read, missing, traded)
}

// All agents are restarted when the seeder is gone: they know by themselves what
// was under way.
func TestAnnouncementsOutliveEveryMember(t *testing.T) {
	b := content(3, manifest.MinPartLength+99)
	c := Start(t, cloud, Options{Regions: 2, Unserved: 2, FallbackAfter: time.Hour})
	c.Put("build.bin", b, nil)
	id := c.Deploy("build.bin").ExecutionID
	first, stopFirst := c.AddAgent(0, "first")
	c.Until("the first region has it", func() bool {
		b := c.build(first, "build.bin")
		return b != nil && b.State == api.StateLanded
	})
	c.StopSeeder()
	stopFirst()
	if r := c.Record("build.bin"); r.Status != ledger.InProgress || r.ExecutionID != id {
		t.Fatalf("record %+v", r)
	}
	c.AddAgent(0, "first")
	c.AddAgent(1, "second")
	c.completed("build.bin")
	c.Holds("build.bin", b)
	kept, err := os.ReadDir(filepath.Join(c.Dir("first"), "announced"))
	if err != nil || len(kept) > 1 {
		t.Errorf("%d announcements are kept, %v", len(kept), err)
	}
}

// A bit flips on the seeder's disk before anybody has the build: the piece comes
// from the global bucket again.
func TestDamageOnTheSeedersDisk(t *testing.T) {
	b := content(4, manifest.MinPartLength+99)
	c := Start(t, cloud, Options{Regions: 2, Unserved: 2, FallbackAfter: time.Hour})
	c.Put("build.bin", b, nil)
	id := c.Deploy("build.bin").ExecutionID
	c.Until("it is announced", func() bool {
		e, err := c.Seeder.Execution(t.Context(), id)
		return err == nil && e.Phase == api.PhaseDistributing
	})
	flip(t, filepath.Join(c.Dir("seeder"), "cache", c.Record("build.bin").InfoHash, "data"), 3*manifest.MinPieceLength+5)
	c.AddAgent(0, "first")
	c.AddAgent(1, "second")
	c.Await(id, "COMPLETED")
	c.Holds("build.bin", b)
}

// flip changes one bit of a file.
func flip(t *testing.T, file string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

// A source that cannot be read fails the execution in the end, and says why.
func TestSourceStaysAway(t *testing.T) {
	broken := &brokenSource{RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: broken}
	c := Start(t, cloud, Options{Regions: 1, ArrivalTimeout: LandsWithin, AWS: &cfg})
	c.Put("build.bin", content(1, 100_000), nil)
	broken.Store(true)
	id := c.Deploy("build.bin").ExecutionID
	c.Await(id, "FAILED")
	if reason := c.Record("build.bin").Results[c.Bucket(0)].Error; !strings.Contains(reason, "no progress for "+LandsWithin.String()) || !strings.Contains(reason, "AccessDenied") {
		t.Errorf("the reason is %q", reason)
	}
	broken.Store(false)
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "COMPLETED")
	c.Holds("build.bin", content(1, 100_000))
}

// brokenSource refuses reads of objects, as S3 does without s3:GetObject.
type brokenSource struct {
	http.RoundTripper
	atomic.Bool
}

func (b *brokenSource) RoundTrip(r *http.Request) (*http.Response, error) {
	if !b.Load() || r.Method != http.MethodGet || r.Header.Get("Range") == "" {
		return b.RoundTripper.RoundTrip(r)
	}
	return &http.Response{
		StatusCode: http.StatusForbidden,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:  http.Header{"Content-Type": {"application/xml"}},
		Body:    io.NopCloser(strings.NewReader("<Error><Code>AccessDenied</Code><Message>no</Message></Error>")),
		Request: r,
	}, nil
}

// An execution whose object is gone is looked at once, not again for each region
// that appears; a retry looks again.
func TestSourceObjectIsGone(t *testing.T) {
	looks := &counted{RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport, suffix: "/gone.bin"}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: looks}
	var id string
	c := Start(t, cloud, Options{Regions: 2, Unserved: 2, AWS: &cfg, Before: func(c *Cluster) {
		begun, err := c.Ledger.Begin(t.Context(), ledger.Start{
			Key: ledger.Key{FileKey: "gone.bin", SourceBucket: c.Global}, SourceETag: "etag", Size: 5,
			Destinations: []string{c.Bucket(0), c.Bucket(1)}, Now: time.Now(),
		})
		if err != nil {
			t.Fatal(err)
		}
		id = begun.Record.ExecutionID
	}})
	c.Await(id, "FAILED")
	if n := looks.Load(); n != 1 {
		t.Fatalf("%d looks at the object, want 1", n)
	}
	for i, region := range c.Regions {
		c.AddAgent(i, region)
	}
	c.Publish("build.bin", content(1, 100_000)) // by now the seeder has seen both
	if n := looks.Load(); n != 1 {
		t.Errorf("%d looks after two regions have appeared, want 1", n)
	}
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.Until("it is looked at again", func() bool { return looks.Load() == 2 })
	c.Await(id, "FAILED")
}

// counted counts the HEADs of one object.
type counted struct {
	http.RoundTripper
	suffix string
	atomic.Int64
}

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, c.suffix) {
		c.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// The table goes away when an execution was accepted, and is back when the build has
// been everywhere for a while: everybody has downloaded meanwhile, and what could not
// be recorded is.
func TestTableIsAwayForTheWholeDistribution(t *testing.T) {
	broken := &brokenTable{RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: broken}
	c := Start(t, cloud, Options{Regions: 2, AWS: &cfg})
	b := content(1, 2*manifest.MinPartLength)
	c.Put("build.bin", b, nil)
	id := c.Deploy("build.bin").ExecutionID
	broken.Store(true)
	for i, a := range c.Agents {
		c.Until("region "+c.Regions[i]+" has all pieces", func() bool {
			got := c.build(a, "build.bin")
			return got != nil && got.VerifiedBytes == int64(len(b)) && (got.Error != "" || got.State == api.StateLanded)
		})
	}
	broken.Store(false)
	c.Await(id, "COMPLETED")
	c.Holds("build.bin", b)
	c.Until("the record has the digest", func() bool { return c.Record("build.bin").SHA256 != "" })
	if downloaded := c.build(c.Agents[0], "build.bin").DownloadedBytes; downloaded > int64(len(b))*3/2 {
		t.Errorf("%d bytes were downloaded of %d", downloaded, len(b))
	}
}

// brokenTable refuses calls of DynamoDB.
type brokenTable struct {
	http.RoundTripper
	atomic.Bool
}

func (b *brokenTable) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.Load() && r.Header.Get("X-Amz-Target") != "" {
		return nil, errors.New("no route to the table")
	}
	return b.RoundTripper.RoundTrip(r)
}

// An execution is cancelled while its agent is down, and nobody is left to say so:
// the table does, and the agent neither lands the build nor keeps its announcement.
func TestCancelledWhileEverybodyIsDown(t *testing.T) {
	broken := &brokenUploads{RoundTripper: cloud.AWS.HTTPClient.(*http.Client).Transport}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: broken}
	c := Start(t, cloud, Options{Regions: 1, Unserved: 1, AWS: &cfg})
	b := content(5, manifest.MinPartLength+99)
	c.Put("build.bin", b, nil)
	broken.Store(true)
	id := c.Deploy("build.bin").ExecutionID
	agent, stop := c.AddAgent(0, "first")
	c.Until("the agent has all of it and cannot land it", func() bool {
		got := c.build(agent, "build.bin")
		return got != nil && got.VerifiedBytes == int64(len(b)) && got.Error != ""
	})
	c.StopSeeder()
	stop()
	_, err := c.Ledger.Fail(t.Context(), ledger.Key{FileKey: "build.bin", SourceBucket: c.Global}, id, c.Bucket(0), ledger.Result{Error: ledger.CancelledError})
	if err != nil {
		t.Fatal(err)
	}
	broken.Store(false)
	kept := func() int {
		files, err := os.ReadDir(filepath.Join(c.Dir("first"), "announced"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if kept() != 1 {
		t.Fatal("the agent has not kept the announcement")
	}
	c.AddAgent(0, "first")
	c.Until("the announcement is forgotten", func() bool { return kept() == 0 })
	if got, _ := c.Object(c.Bucket(0), "build.bin"); got != nil {
		t.Error("what was cancelled has landed")
	}
	// What the agent asks its store at the start is an upload, too, for a moment.
	c.Until("no upload is left", func() bool { return c.uploads(c.Bucket(0)) == 0 })
}

// brokenUploads refuses to begin multipart uploads.
type brokenUploads struct {
	http.RoundTripper
	atomic.Bool
}

func (b *brokenUploads) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.Load() && r.Method == http.MethodPost && r.URL.Query().Has("uploads") {
		return nil, errors.New("no route to the bucket")
	}
	return b.RoundTripper.RoundTrip(r)
}
