package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/seeder/client"
)

const part = manifest.MinPartLength

// going is an upload under way.
type going struct {
	c      *Cluster
	key    string
	body   *io.PipeWriter
	cancel context.CancelFunc
	done   chan error
	answer *api.UploadAnswer
}

// upload begins to upload size bytes, of which nothing is sent yet.
func (c *Cluster) upload(key string, size int, to ...string) *going {
	return c.uploadFor(client.DeployRequest{SourceKey: key, DestinationBuckets: to}, size)
}

// uploadFor is upload for what a request says.
func (c *Cluster) uploadFor(request client.DeployRequest, size int) *going {
	ctx, cancel := context.WithCancel(c.t.Context())
	r, w := io.Pipe()
	g := &going{c: c, key: request.SourceKey, body: w, cancel: cancel, done: make(chan error, 1)}
	go func() {
		var err error
		g.answer, err = c.Seeder.UploadFor(ctx, request, r, int64(size), "application/zip")
		r.CloseWithError(errors.New("the upload has ended"))
		g.done <- err
	}()
	c.t.Cleanup(cancel)
	return g
}

func (g *going) send(b []byte) {
	g.c.t.Helper()
	if _, err := g.body.Write(b); err != nil {
		g.c.t.Fatal(err)
	}
}

// ends waits for the answer.
func (g *going) ends() error {
	g.c.t.Helper()
	select {
	case err := <-g.done:
		return err
	case <-time.After(Timeout):
		g.c.t.Fatalf("the upload of %s has not ended in %s", g.key, Timeout)
		return nil
	}
}

// execution is the newest one of the key.
func (g *going) execution() *api.Execution {
	e, err := g.c.Seeder.ByKey(g.c.t.Context(), g.key)
	if err != nil {
		return &api.Execution{}
	}
	return e
}

// landed waits until every destination has that many bytes in its upload.
func (g *going) landed(bytes int64) *api.Execution {
	g.c.t.Helper()
	var e *api.Execution
	g.c.Until(fmt.Sprintf("%d bytes of %s are in the uploads of every region", bytes, g.key), func() bool {
		e = g.execution()
		return len(e.Destinations) > 0 && !slices.ContainsFunc(e.Destinations, func(d api.Destination) bool { return d.LandedBytes < bytes })
	})
	return e
}

// openUploads names the uploads that are not finished, in all buckets.
func (c *Cluster) openUploads() (names []string) {
	c.t.Helper()
	for _, b := range append([]string{c.Global}, c.buckets()...) {
		out, err := c.cloud.S3.ListMultipartUploads(c.t.Context(), &s3.ListMultipartUploadsInput{Bucket: &b})
		if err != nil {
			c.t.Fatal(err)
		}
		for _, u := range out.Uploads {
			if key := aws.ToString(u.Key); !strings.HasPrefix(key, ".landfall/") {
				names = append(names, b+"/"+key)
			}
		}
	}
	return names
}

func (c *Cluster) buckets() (names []string) {
	for i := range c.Regions {
		names = append(names, c.Bucket(i))
	}
	return names
}

// reads counts how often a key's bytes are read from a bucket.
type reads struct {
	key string
	n   atomic.Int64
	// refuse answers in the store's place; nil, and nil from it, let the request pass.
	refuse atomic.Pointer[func(r *http.Request) error]
}

func (c *reads) config() *aws.Config {
	cfg := cloud.AWS.Copy()
	next := cfg.HTTPClient.(*http.Client).Transport
	cfg.HTTPClient = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/"+c.key) && !slices.Contains([]string{"", "bytes=0-0"}, r.Header.Get("Range")) { // that is the probe's
			c.n.Add(1)
		}
		if f := c.refuse.Load(); f != nil {
			if err := (*f)(r); err != nil {
				return nil, err
			}
		}
		return next.RoundTrip(r)
	})}
	return &cfg
}

// A build is in the regions' uploads, but for its end, before the last byte of it has come;
// nothing is to be read of it anywhere before. Then it lands, and was read from no bucket.
func TestUploadInStep(t *testing.T) {
	source := &reads{key: "build.zip"}
	c := Start(t, cloud, Options{Regions: 2, AWS: source.config()})
	want := content(1, 6*part+1)
	g := c.upload("build.zip", len(want))
	g.send(want[:5*part+1])
	e := g.landed(5 * part)
	if e.Phase != api.PhaseUploading || e.Status != "IN_PROGRESS" || e.PulledBytes < 5*part || e.SourceETag != "" {
		t.Errorf("while it goes up: %+v", e)
	}
	for _, b := range append(c.buckets(), c.Global) {
		if got, _ := c.Object(b, "build.zip"); got != nil {
			t.Errorf("%d bytes are to be read in %s", len(got), b)
		}
	}
	if r := c.Record("build.zip"); r.ExecutionID != "" || r.Upload == nil || r.Upload.ExecutionID != e.ExecutionID {
		t.Errorf("the table has %+v", r)
	}
	g.send(want[5*part+1:])
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	if g.answer.ExecutionID != e.ExecutionID || g.answer.Size != int64(len(want)) || g.answer.ETag == "" {
		t.Errorf("answer %+v, its execution is %s", g.answer, e.ExecutionID)
	}
	// Who uploads publishes next.
	if d := c.Deploy("build.zip"); d.ExecutionID != e.ExecutionID || d.Joined || d.SourceETag != g.answer.ETag {
		t.Errorf("published as %+v", d)
	}
	e = c.Await(e.ExecutionID, "COMPLETED")
	c.Holds("build.zip", want)
	if _, o := c.Object(c.Global, "build.zip"); o == nil || o.Metadata["landfall-execution"] != e.ExecutionID || aws.ToString(o.ETag) != e.SourceETag {
		t.Errorf("in the global bucket: %+v", o)
	}
	if r := c.Record("build.zip"); r.Upload != nil || r.SHA256 == "" || r.InfoHash == "" || r.SourceModified.IsZero() {
		t.Errorf("recorded %+v", r)
	}
	if n := source.n.Load(); n > 0 {
		t.Errorf("%d ranges were read", n)
	}
	if left := c.openUploads(); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
	// It is found in the bucket, and nothing new.
	if again := c.Deploy("build.zip"); again.ExecutionID == e.ExecutionID || again.Superseded != e.ExecutionID {
		t.Errorf("published again, when half a minute or a publish has passed: %+v", again)
	}
}

// whatIs is what a broken upload must leave as it was: the item but for its version, the
// executions, the objects, and the uploads.
func (c *Cluster) whatIs(key string) map[string]any {
	c.t.Helper()
	is := make(map[string]any)
	r, err := c.Ledger.Get(c.t.Context(), ledger.Key{FileKey: key, SourceBucket: c.Global})
	if err == nil {
		is["item"] = []any{r.ExecutionID, r.Status, r.Destinations, r.Successful, r.Failed, r.Upload == nil, r.SourceETag, r.Landings}
	} else if !errors.Is(err, ledger.ErrNotFound) {
		c.t.Fatal(err)
	}
	page, err := c.Seeder.Executions(c.t.Context(), 0, "")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range page.Executions {
		is[e.ExecutionID] = []string{e.Key, e.Status, e.Phase}
	}
	for _, b := range append(c.buckets(), c.Global) {
		if _, o := c.Object(b, key); o != nil {
			is[b] = aws.ToString(o.ETag)
		}
	}
	is["uploads"] = c.openUploads()
	return is
}

// An upload that is broken off, however, leaves everything as it was: the execution that
// the key has goes on, or there is none.
func TestUploadBrokenOff(t *testing.T) {
	store := &reads{key: "build.zip"}
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1, AWS: store.config()})
	old, want := content(1, 3*part), content(2, 6*part)
	for name, brk := range map[string]func(g *going) (code int){
		"by the client": func(g *going) int {
			g.cancel()
			g.body.CloseWithError(context.Canceled) // the client waits until nobody reads from it
			return 0
		},
		"by a person": func(g *going) int {
			e, err := c.Seeder.Cancel(t.Context(), g.execution().ExecutionID)
			if err != nil || e.Status != "CANCELLED" || e.Destinations[0].State != api.StateCancelled {
				t.Errorf("cancelled: %+v, %v", e, err)
			}
			return http.StatusConflict
		},
		"by the store": func(g *going) int {
			refuse := func(r *http.Request) error {
				if strings.HasPrefix(r.URL.Path, "/"+c.Global+"/") && r.URL.Query().Has("partNumber") {
					return errors.New("connection reset")
				}
				return nil
			}
			store.refuse.Store(&refuse)
			g.send(want[5*part : 6*part])
			return http.StatusInternalServerError
		},
		"by a body that is too short": func(g *going) int {
			g.body.CloseWithError(io.ErrUnexpectedEOF)
			return 0
		},
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, with another execution of the key: %v", name, running), func(t *testing.T) {
				key := fmt.Sprintf("%d/build.zip", contents.Add(1))
				if running {
					c.Put(key, old, nil)
					id := c.Deploy(key).ExecutionID
					c.Until("the region that is served has the one before", func() bool { return slices.Contains(c.Record(key).Successful, c.Bucket(0)) })
					c.Until("it is distributed", func() bool {
						e, err := c.Seeder.Execution(t.Context(), id)
						return err == nil && e.Phase == api.PhaseDistributing
					})
				}
				before := c.whatIs(key)
				g := c.upload(key, len(want), c.Bucket(0))
				g.send(want[:4*part+1])
				up := g.landed(3 * part)
				code := brk(g)
				err := g.ends()
				store.refuse.Store(nil)
				var status *client.StatusError
				if err == nil || code != 0 && (!errors.As(err, &status) || status.Code != code) {
					t.Errorf("answered %v, want %d", err, code)
				}
				var after map[string]any
				c.Until("everything is as it was", func() bool {
					after = c.whatIs(key)
					return reflect.DeepEqual(before, after)
				})
				if _, err := c.Seeder.Execution(t.Context(), up.ExecutionID); !client.NotFound(err) {
					t.Errorf("its execution is %v", err)
				}
				c.Until("the agent has ended it", func() bool {
					s, err := c.Agents[0].AgentStatus(t.Context())
					return err == nil && slices.ContainsFunc(s.Builds, func(b api.Build) bool {
						return b.ExecutionID == up.ExecutionID && b.State == api.StateFailed
					})
				})
				// The key is free, and another build of it lands.
				if running {
					return
				}
				again := c.upload(key, len(want), c.Bucket(0))
				again.send(want)
				if err := again.ends(); err != nil {
					t.Fatal(err)
				}
				c.Await(again.answer.ExecutionID, "COMPLETED")
			})
		}
	}
}

// At its end, and not before, an upload takes the place of its key's execution, with the
// destinations that this has not reached.
func TestUploadSupersedesAtItsEnd(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2, Unserved: 1})
	c.Put("build.zip", content(1, 3*part), nil)
	old := c.Deploy("build.zip").ExecutionID
	want := content(2, 3*part)
	g := c.upload("build.zip", len(want), c.Bucket(0))
	g.send(want[:2*part+1])
	up := g.landed(2 * part)
	// What the key has goes on, while the other one stands beside it.
	c.Until("the one before lands", func() bool { return slices.Contains(c.Record("build.zip").Successful, c.Bucket(0)) })
	if e, err := c.Seeder.Execution(t.Context(), old); err != nil || e.Status != "IN_PROGRESS" {
		t.Errorf("%+v, %v", e, err)
	}
	if got, _ := c.Object(c.Bucket(0), "build.zip"); !bytes.Equal(got, content(1, 3*part)) {
		t.Errorf("%d bytes in the region are not those of the one before", len(got))
	}
	g.send(want[2*part+1:])
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	d := c.Deploy("build.zip", c.Bucket(0))
	if d.ExecutionID != up.ExecutionID || d.Superseded != old || !slices.Equal(d.Inherited, []string{c.Bucket(1)}) {
		t.Errorf("%+v", d)
	}
	c.Until("it has landed where somebody is", func() bool { return slices.Contains(c.Record("build.zip").Successful, c.Bucket(0)) })
	if got, _ := c.Object(c.Bucket(0), "build.zip"); !bytes.Equal(got, want) {
		t.Errorf("%d bytes in the region are not the new ones", len(got))
	}
	if r := c.Record("build.zip"); r.ExecutionID != up.ExecutionID || !slices.Equal(r.Destinations, c.buckets()) {
		t.Errorf("%+v", r)
	}
	var gone *client.StatusError
	if _, err := c.Seeder.Execution(t.Context(), old); !errors.As(err, &gone) || gone.Code != http.StatusGone || gone.Body.Successor != up.ExecutionID {
		t.Errorf("the one before: %v", err)
	}
}

// A seeder that is killed in the middle of an upload ends it when it is back; one that was
// killed when its object was complete goes on with its execution, and reads nothing again.
func TestUploadAndRestart(t *testing.T) {
	for _, complete := range []bool{false, true} {
		t.Run(fmt.Sprintf("complete %v", complete), func(t *testing.T) {
			store := &reads{key: "build.zip"}
			c := Start(t, cloud, Options{Regions: 2, AWS: store.config()})
			want := content(1, 4*part)
			before := c.whatIs("build.zip")
			g := c.upload("build.zip", len(want))
			g.send(want[:3*part+1])
			id := g.landed(3 * part).ExecutionID
			if complete {
				away := func(r *http.Request) error {
					if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".PutItem") {
						return errors.New("connection reset")
					}
					return nil
				}
				store.refuse.Store(&away)
				g.send(want[3*part+1:])
				c.Until("its object is complete", func() bool { _, o := c.Object(c.Global, "build.zip"); return o != nil })
			}
			c.Stop()
			if err := g.ends(); err == nil {
				t.Error("the upload has succeeded")
			}
			store.refuse.Store(nil)
			if r := c.Record("build.zip"); r.Upload == nil || r.Upload.ExecutionID != id {
				t.Fatalf("after its end the table has %+v", r)
			}
			c.start()
			if complete {
				c.Await(id, "COMPLETED")
				c.Holds("build.zip", want)
				if left := c.openUploads(); len(left) > 0 || store.n.Load() > 0 {
					t.Errorf("uploads left: %v; %d ranges were read", left, store.n.Load())
				}
				return
			}
			c.Until("everything is as it was", func() bool { return reflect.DeepEqual(before, c.whatIs("build.zip")) })
		})
	}
}

// Whoever finds an object that names the execution of its upload, while that stands beside
// the key's item, goes on with that one.
func TestUploadIsAdopted(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 2})
	k := ledger.Key{FileKey: "build.zip", SourceBucket: c.Global}
	table := c.Ledger.As(c.Global)
	id, beside, err := table.NewUpload(t.Context(), k, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	u := ledger.Upload{ExecutionID: id, UploadID: "another seeder's", Size: part, Destinations: []string{c.Bucket(1)}, StartTime: time.Now()}
	if _, err := table.BeginUpload(t.Context(), k, u, beside); err != nil {
		t.Fatal(err)
	}
	want := content(1, part)
	c.Put("build.zip", want, map[string]string{"landfall-execution": id})
	c.Await(id, "COMPLETED")
	if r := c.Record("build.zip"); !slices.Equal(r.Destinations, []string{c.Bucket(1)}) {
		t.Errorf("it goes to %v", r.Destinations)
	}
}

// A body whose length nobody knows, and one for which the disk has no room, goes into the
// bucket first, and is distributed then.
func TestUploadWithoutALength(t *testing.T) {
	c := Start(t, cloud, Options{Regions: 1})
	want := content(1, 3*part)
	g := c.upload("build.bin", -1) // no key that starts by itself
	g.send(want[:2*part])
	if e := g.execution(); e.ExecutionID != "" {
		t.Errorf("it has an execution: %+v", e)
	}
	g.send(want[2*part:])
	g.body.Close()
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(g.answer.ExecutionID, "COMPLETED")
	c.Holds("build.bin", want)
	if d := c.Deploy("build.bin"); d.ExecutionID != g.answer.ExecutionID {
		t.Errorf("published as %s, it is %s", d.ExecutionID, g.answer.ExecutionID)
	}
	// Only stored.
	res, err := c.Seeder.HTTP.Do(must(http.NewRequestWithContext(t.Context(), http.MethodPut, c.Seeder.URL+"/uploads/other.bin?distribute=false", bytes.NewReader(want))))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if _, err := c.Seeder.ByKey(t.Context(), "other.bin"); !errors.Is(err, client.ErrNoExecution) || res.StatusCode != http.StatusOK {
		t.Errorf("%s: %v", res.Status, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A body that stops for longer than an arrival may take fails nothing and holds up nobody.
func TestUploadThatIsSlow(t *testing.T) {
	const timeout = 2 * time.Second
	log := &lines{}
	c := Start(t, cloud, Options{Regions: 1, ArrivalTimeout: LandsWithin, FallbackAfter: timeout, Log: log})
	slow, quick := content(1, 3*part), content(2, 2*part)
	g := c.upload("slow.zip", len(slow))
	g.send(slow[:part+1])
	e := g.landed(part)
	begun := time.Now()
	c.Publish("quick.zip", quick)
	c.Until("more than an arrival's time has passed", func() bool { return time.Since(begun) > LandsWithin+timeout })
	g.send(slow[part+1:])
	if err := g.ends(); err != nil {
		t.Fatal(err)
	}
	c.Await(e.ExecutionID, "COMPLETED")
	c.Holds("slow.zip", slow)
	for _, message := range []string{
		"destination failed", "execution is stuck, trying again", "nothing comes from the peers, connecting to them anew", "build not landed yet",
		"no peer has what is missing, reading it from the source bucket", "no peer has the build, reading it from the source bucket",
	} {
		if said := log.of(message); len(said) > 0 {
			t.Errorf("said: %v", said)
		}
	}
}
