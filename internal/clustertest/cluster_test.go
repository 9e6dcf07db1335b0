package clustertest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
)

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

// content returns size bytes that are the same in every run, and differ between
// seeds.
func content(seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func TestAnySizeLandsEverywhere(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2})
	for i, size := range []int{
		0, 1, manifest.MinPieceLength - 1, manifest.MinPieceLength, 3_000_000,
		manifest.MinPartLength, manifest.MinPartLength + 1, 2*manifest.MinPartLength + 123_456,
	} {
		key := fmt.Sprintf("size-%d.zip", size)
		b := content(byte(i), size)
		e := c.Publish(key, b)
		c.Holds(key, b)
		for _, d := range e.Destinations {
			if d.State != api.StateLanded || d.LandedBytes != int64(size) {
				t.Errorf("%s: %+v", key, d)
			}
		}
		r := c.Record(key)
		if len(r.Successful) != 2 || r.Status != ledger.Completed || r.CompletedAt.IsZero() || r.SHA256 == "" || r.Size != int64(size) {
			t.Errorf("%s: record %+v", key, r)
		}
	}
}

func TestWhatComesAlong(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	c.Put("build.zip", content(1, 100_000), map[string]string{"commit": "abc123"})
	e := c.Deploy("build.zip")
	c.Await(e.ExecutionID, "COMPLETED")
	_, o := c.Object(c.Bucket(0), "build.zip")
	if aws.ToString(o.ContentType) != "application/zip" || o.Metadata["commit"] != "abc123" {
		t.Errorf("content type %q, metadata %v", aws.ToString(o.ContentType), o.Metadata)
	}
	if o.Metadata["landfall-sha256"] != c.Record("build.zip").SHA256 || o.Metadata["landfall-execution"] != e.ExecutionID {
		t.Errorf("metadata %v", o.Metadata)
	}
}

func TestNewObjectsAreNoticed(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Before: func(c *Cluster) {
		c.Put("old.zip", content(1, 1000), nil)
	}})
	completed := func(key string) func() bool {
		return func() bool {
			r, err := c.Ledger.Get(t.Context(), ledger.Key{FileKey: key, SourceBucket: c.Global})
			return err == nil && r.Status == ledger.Completed
		}
	}
	c.Put("notes.txt", []byte("not a build"), nil)
	c.Put("dir/new ü+%.zip", content(2, 300_000), nil)
	c.Until("the new object has arrived", completed("dir/new ü+%.zip"))
	c.Holds("dir/new ü+%.zip", content(2, 300_000))

	// A changed object under the same key is a new execution.
	c.Put("dir/new ü+%.zip", content(3, 300_000), nil)
	c.Until("the changed object has arrived", func() bool {
		got, _ := c.Object(c.Bucket(1), "dir/new ü+%.zip")
		return bytes.Equal(got, content(3, 300_000))
	})
	c.Until("and is recorded", completed("dir/new ü+%.zip"))

	first := c.Record("dir/new ü+%.zip").ExecutionID
	c.Restart()
	c.Put("after.zip", content(4, 1000), nil)
	c.Until("an object after the restart has arrived", completed("after.zip"))
	if again := c.Record("dir/new ü+%.zip").ExecutionID; again != first {
		t.Error("what was distributed before the restart was sent again")
	}
	for _, key := range []string{"old.zip", "notes.txt"} {
		if _, err := c.Ledger.Get(t.Context(), ledger.Key{FileKey: key, SourceBucket: c.Global}); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%s was sent by itself: %v", key, err)
		}
		c.Await(c.Deploy(key).ExecutionID, "COMPLETED") // but explicitly it can be
	}
}

func TestPublishJoinsAndSupersedes(t *testing.T) {
	// Nobody serves the last region, so that executions stay open.
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1})
	c.Put("build.bin", content(1, 1000), nil)
	first := c.Deploy("build.bin")
	if joined := c.Deploy("build.bin"); !joined.Joined || joined.ExecutionID != first.ExecutionID {
		t.Errorf("same bytes, same destinations: %+v", joined)
	}
	// An object that changes while it is pulled is followed without a publish.
	c.Until("the first is pulled", func() bool {
		e, err := c.Seeder.Execution(t.Context(), first.ExecutionID)
		return err == nil && e.Phase == api.PhaseDistributing
	})
	c.Put("build.bin", content(2, 1000), nil)
	second := c.Deploy("build.bin", c.Bucket(0))
	if second.Superseded != first.ExecutionID || !slices.Contains(second.Inherited, c.Bucket(1)) {
		t.Errorf("a second publish: %+v", second)
	}
	if second.ExecutionID <= first.ExecutionID {
		t.Error("the newer execution has the lesser id")
	}
	_, err := c.Seeder.Execution(t.Context(), first.ExecutionID)
	var gone *api.StatusError
	if !errors.As(err, &gone) || gone.Code != 410 || gone.Body.Successor != second.ExecutionID {
		t.Errorf("the superseded id answers %v", err)
	}
	c.Until("the newer build landed in the served region", func() bool {
		got, _ := c.Object(c.Bucket(0), "build.bin")
		return bytes.Equal(got, content(2, 1000))
	})
	c.Until("the unserved region is named", func() bool {
		e, err := c.Seeder.Execution(t.Context(), second.ExecutionID)
		return err == nil && slices.ContainsFunc(e.Destinations, func(d api.Destination) bool {
			return d.Bucket == c.Bucket(1) && d.State == api.StateUnserved
		})
	})
	// The region that was down comes back.
	c.AddAgent(1, "late")
	c.Await(second.ExecutionID, "COMPLETED")
	c.Holds("build.bin", content(2, 1000))
}

func TestArrivalTimeOutAndLateArrival(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1, ArrivalTimeout: LandsWithin})
	c.Put("build.bin", content(1, 500_000), nil)
	e := c.Await(c.Deploy("build.bin").ExecutionID, "FAILED")
	r := c.Record("build.bin")
	if !slices.Equal(r.Failed, []string{c.Bucket(1)}) || !slices.Equal(r.Successful, []string{c.Bucket(0)}) {
		t.Fatalf("record %+v", r)
	}
	if reason := r.Results[c.Bucket(1)].Error; !strings.Contains(reason, "no living member") {
		t.Errorf("reason is %q", reason)
	}
	c.AddAgent(1, "late")
	c.Await(e.ExecutionID, "COMPLETED")
	c.Holds("build.bin", content(1, 500_000))
}

func TestRestartFinishesWhatWasUnderWay(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1})
	b := content(1, manifest.MinPartLength+5)
	c.Put("build.bin", b, nil)
	e := c.Deploy("build.bin")
	c.Restart()
	if r := c.Record("build.bin"); r.Status != ledger.InProgress {
		t.Fatalf("status is %s", r.Status)
	}
	c.AddAgent(1, "second-region")
	c.Await(e.ExecutionID, "COMPLETED")
	c.Holds("build.bin", b)
}

func TestPresentBuildIsRecordedWithoutMovingAByte(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2})
	b := content(1, 400_000)
	first := c.Publish("build.zip", b)
	_, before := c.Object(c.Bucket(0), "build.zip")
	again := c.Await(c.Deploy("build.zip").ExecutionID, "COMPLETED")
	if again.ExecutionID == first.ExecutionID {
		t.Fatal("no new execution")
	}
	_, after := c.Object(c.Bucket(0), "build.zip")
	if !before.LastModified.Equal(*after.LastModified) || after.Metadata["landfall-execution"] != first.ExecutionID {
		t.Error("the object was written again")
	}
}

func TestOneOfSeveralAgentsLands(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	c.AddAgent(0, "second")
	c.AddAgent(0, "third")
	c.Until("all see each other", func() bool {
		s, err := c.Agents[0].AgentStatus(t.Context())
		return err == nil && len(s.Members) == 4
	})
	var lander = map[string]int{}
	for i := range 6 {
		key := fmt.Sprintf("build-%d.zip", i)
		b := content(byte(i), 600_000)
		e := c.Publish(key, b)
		c.Holds(key, b)
		lander[e.Destinations[0].Agent]++
		// One is begun and removed by each agent at its start, to see what the store refuses.
		c.Until("no upload is left after "+key, func() bool { return c.uploads(c.Bucket(0)) == 0 })
	}
	t.Logf("landed by %v", lander)
}

func TestAnotherAgentTakesOver(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1, Unserved: 1})
	_, stopFirst := c.AddAgent(0, "first")
	c.AddAgent(0, "second")
	c.Publish("one.zip", content(1, 300_000))
	stopFirst()
	for i := range 4 { // rendezvous would have given some of these to the first
		c.Publish(fmt.Sprintf("more-%d.zip", i), content(byte(2+i), 300_000))
	}
	if got := c.Record("more-3.zip").Results[c.Bucket(0)].Agent; got != "second" {
		t.Errorf("landed by %s", got)
	}
}

func (c *Cluster) uploads(bucket string) int {
	c.t.Helper()
	out, err := c.cloud.S3.ListMultipartUploads(c.t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String(bucket)})
	if err != nil {
		c.t.Fatal(err)
	}
	return len(out.Uploads)
}

func TestCancelAndRetry(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1})
	c.Put("build.bin", content(1, 1000), nil)
	id := c.Deploy("build.bin").ExecutionID
	c.Until("the served region has it", func() bool { return len(c.Record("build.bin").Successful) == 1 })
	if _, err := c.Seeder.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	e := c.Await(id, "CANCELLED")
	i := slices.IndexFunc(e.Destinations, func(d api.Destination) bool { return d.Bucket == c.Bucket(1) })
	c.Until("the reason is shown", func() bool {
		e, err := c.Seeder.Execution(t.Context(), id)
		return err == nil && strings.Contains(e.Destinations[i].Error, "cancelled")
	})
	c.AddAgent(1, "late")
	if _, err := c.Seeder.Retry(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c.Await(id, "COMPLETED")
	if _, err := c.Seeder.Cancel(t.Context(), id); err == nil {
		t.Error("a completed execution was cancelled")
	}
}

func TestManyBuildsAtOnce(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 3})
	const builds = 40
	var ids []string
	for i := range builds {
		key := fmt.Sprintf("many-%d.bin", i)
		c.Put(key, content(byte(i), 50_000+i), nil)
		ids = append(ids, c.Deploy(key).ExecutionID)
	}
	for i, id := range ids {
		c.Await(id, "COMPLETED")
		c.Holds(fmt.Sprintf("many-%d.bin", i), content(byte(i), 50_000+i))
	}
}

// What is built of a commit is distributed while it is fetched, and is read from no bucket.
func TestBuildsByCommit(t *testing.T) {
	dir := t.TempDir()
	b := content(9, 2*part+1)
	if err := os.WriteFile(filepath.Join(dir, "abc123"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	stored := &reads{key: "abc123.zip"}
	c := Start(t, cloud, Options{Regions: 1, BuildSource: "file://" + dir, AWS: stored.config()})
	answer := post[api.BuildAnswer](t, c, "/builds", `{"commit":"abc123"}`, 202)
	if answer.FileName != "abc123.zip" || answer.FileSize != int64(len(b)) || answer.S3Location != "s3://"+c.Global+"/abc123.zip" {
		t.Errorf("answer %+v", answer)
	}
	c.Await(answer.ExecutionID, "COMPLETED")
	c.Holds("abc123.zip", b)
	if n := stored.n.Load(); n > 0 {
		t.Errorf("%d ranges were read of what had just passed", n)
	}
	post[api.Error](t, c, "/builds", `{"commit":"none"}`, 404)
	for _, commit := range []string{"", "../abc123", ".hidden", "a/b"} {
		post[api.Error](t, c, "/builds", fmt.Sprintf(`{"commit":%q}`, commit), 400)
	}
}
