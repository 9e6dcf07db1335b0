package seeder

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/notify"
	"github.com/landfall-dist/landfall/internal/owner"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/survive"
)

// TestFailureIsToldOnce fails destinations that the index, the table, or both
// know more of than the caller.
func TestFailureIsToldOnce(t *testing.T) {
	told := make(chan string, 10)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var n notify.Notice
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
			t.Error(err)
		}
		told <- n.Bucket
	}))
	defer hook.Close()
	u, err := notify.ParseWebhook(hook.URL)
	if err != nil {
		t.Fatal(err)
	}
	notifier, err := notify.New(notify.Config{Webhook: u, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	table := ledger.New(cloud.DynamoDB, cloud.Table(t))
	key := ledger.Key{FileKey: "build.zip", SourceBucket: "global"}
	begun, err := table.Begin(t.Context(), ledger.Start{
		Key: key, SourceETag: "etag", Destinations: []string{"fails", "cancelled", "arrived", "failed-before", "hopeless"}, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	id := begun.Record.ExecutionID
	s := &Seeder{cfg: Config{Ledger: table, Notify: notifier, Logger: slog.New(slog.DiscardHandler)}, index: newIndex(), metrics: newMetrics(nil)}
	s.index.put(begun.Record)
	fail := func(bucket, reason string) *ledger.Record {
		t.Helper()
		r, err := table.Fail(t.Context(), key, id, bucket, ledger.Result{Timestamp: time.Now(), Error: reason})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	s.index.put(fail("cancelled", ledger.CancelledError))
	fail("failed-before", "no progress") // an answer that was lost
	if _, err := table.Arrive(t.Context(), begun.Record, "arrived", ledger.Result{Timestamp: time.Now()}); err != nil {
		t.Fatal(err)
	}
	r, _ := s.index.get(id)
	c := s.newCarrier(r)
	s.index.ask(id, asked{why: asOver}, func(*ledger.Record, live) *owner.Owner[event] { return c.owner })
	for _, bucket := range []string{"fails", "fails", "cancelled", "arrived", "failed-before"} {
		if err := c.failThem(t.Context(), []failure{{bucket: bucket, reason: "no progress"}}); err != nil {
			t.Errorf("%s: %v", bucket, err)
		}
	}
	c.owner.Run(t.Context(), c)
	news := func() {
		c.machine.actions = nil
		c.machine.news(time.Now())
		c.perform(c.machine.actions)
	}
	news()
	// What an agent has recorded is told of as well, once.
	hopeless, err := table.Fail(t.Context(), key, id, "hopeless", ledger.Result{Timestamp: time.Now(), Error: "too large", Final: true})
	if err != nil {
		t.Fatal(err)
	}
	c.machine.record = hopeless
	news()
	news()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what waits is sent all the same
	if err := notifier.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(told) != 3 || <-told != "failed-before" || <-told != "fails" || <-told != "hopeless" {
		t.Errorf("not told of three failures: %d more", len(told))
	}
	r, err = table.Get(t.Context(), key)
	if err != nil || r.Results["cancelled"].Error != ledger.CancelledError || !slices.Contains(r.Successful, "arrived") {
		t.Errorf("record %+v, %v", r, err)
	}
}

// After a fault in its own machine an execution is carried anew, by another owner.
func TestFaultInAMachine(t *testing.T) {
	group, ctx := errgroup.WithContext(t.Context())
	ctx, cancel := context.WithCancel(ctx)
	s := &Seeder{
		cfg:   Config{Logger: slog.New(slog.DiscardHandler), ArrivalTimeout: time.Hour},
		index: newIndex(), metrics: newMetrics(nil), running: ctx, group: group,
	}
	r := record(1, "k", 1)
	s.index.put(r)
	c := s.newCarrier(r)
	c.machine.working = nil // the first worker is a fault
	s.index.ask(r.ExecutionID, asked{asAccepted, ctx}, func(*ledger.Record, live) *owner.Owner[event] { return c.owner })
	group.Go(func() error { c.run(ctx); return nil })
	carriedBy := func() (*owner.Owner[event], error) {
		s.index.mu.Lock()
		defer s.index.mu.Unlock()
		e := s.index.byID[r.ExecutionID]
		return e.owner, e.live.err
	}
	deadline := time.After(time.Minute)
	for {
		o, err := carriedBy()
		var fault *survive.Panic
		if o != nil && o != c.owner && errors.As(err, &fault) { // the second has no source to read
			break
		}
		select {
		case <-deadline:
			t.Fatalf("not carried anew, and shown with %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// awaySigner is a key that is kept elsewhere, and has not answered before it fails.
type awaySigner struct {
	signing.Ed25519
	asked, fails chan struct{}
}

func (a awaySigner) Sign(context.Context, []byte) ([]byte, error) {
	close(a.asked)
	<-a.fails
	return nil, errors.New("the key does not answer")
}

// While the notice of its end is signed, which may take long, an execution hears still.
func TestHearsWhileSigning(t *testing.T) {
	public, secret, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer := awaySigner{signing.Ed25519(secret), make(chan struct{}), make(chan struct{})}
	group, ctx := errgroup.WithContext(t.Context())
	ctx, cancel := context.WithCancel(ctx)
	var log bytes.Buffer
	s := &Seeder{
		cfg:   Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), ArrivalTimeout: time.Hour, Signer: signer},
		index: newIndex(), metrics: newMetrics(nil), running: ctx, group: group,
		book: announce.NewBook(signing.TrustIn(signing.Ed25519Key(public)), nil),
	}
	r := record(1, "k", 1)
	r.Status = ledger.Cancelled
	s.index.put(r)
	s.start(ctx, r, asOver)
	<-signer.asked
	shown := func(change func(e *execution)) int64 {
		s.index.mu.Lock()
		defer s.index.mu.Unlock()
		e := s.index.byID[r.ExecutionID]
		if e == nil {
			return 0
		}
		change(e)
		return e.live.pulled
	}
	shown(func(e *execution) { e.tell(pulled{7}) })
	for deadline := time.After(time.Minute); shown(func(*execution) {}) != 7; {
		select {
		case <-deadline:
			t.Fatal("nothing is heard while the end notice is signed")
		case <-time.After(10 * time.Millisecond):
		}
	}
	close(signer.fails)
	owned := func() (is bool) {
		shown(func(e *execution) { is = e.owner != nil })
		return is
	}
	for deadline := time.After(time.Minute); owned(); {
		select {
		case <-deadline:
			t.Fatal("its owner stays")
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if text := log.String(); !strings.Contains(text, "end notice not sent") {
		t.Errorf("the log says\n%s", text)
	}
}

// hangingAt answers as next, but for requests of a path that ends so: these hang.
type hangingAt struct {
	end   string
	asked chan struct{}
	next  s3.HTTPClient
}

func (h hangingAt) Do(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, h.end) {
		return h.next.Do(r)
	}
	close(h.asked)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// The end of the process is no failure of what is under way, and what was pulled stays
// for the next start; the end of an execution leaves nothing of it.
func TestEndOfProcessAndOfExecution(t *testing.T) {
	dir := t.TempDir()
	disk, err := cache.Open(dir, 1<<30, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	r := record(1, "k", 1)
	pull, err := disk.Pull(r.ExecutionID, 0, "etag", 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := pull.Leave(); err != nil {
		t.Fatal(err)
	}
	left := func() int {
		files, err := filepath.Glob(filepath.Join(dir, "*", r.ExecutionID+"*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	config, asked1 := cloud.AWS.Copy(), make(chan struct{})
	config.HTTPClient = hangingAt{"/k", asked1, config.HTTPClient}
	global, err := bucket.Open(t.Context(), config, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.SourceBucket = global.Name()
	group, ctx := errgroup.WithContext(t.Context())
	ctx, cancel := context.WithCancel(ctx)
	var log bytes.Buffer
	s := &Seeder{
		cfg:   Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), ArrivalTimeout: time.Hour, Cache: disk, Bucket: global},
		index: newIndex(), metrics: newMetrics(nil), running: ctx, group: group,
		puller: source.NewPuller(disk, slog.New(slog.DiscardHandler)), sources: source.NewBuckets(config, global),
	}
	s.index.put(r)
	s.start(ctx, r, asAccepted)
	<-asked1
	cancel()
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if text := log.String(); strings.Contains(text, "WARN") || !strings.Contains(text, "the next start goes on with it") || left() == 0 {
		t.Errorf("%d files are left, and the log says\n%s", left(), text)
	}
	s.newCarrier(r).leave(r, nil)
	if left() > 0 {
		t.Errorf("%d files of an execution that is over are left", left())
	}
}
