package landing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
	"github.com/landfall-dist/landfall/internal/turns"
)

// cloud serves all tests of the process.
var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

var _ Ledger = (*ledger.Ledger)(nil)

// wire counts the requests to S3 and lets a test come between.
type wire struct {
	next http.RoundTripper
	// before may answer in S3's place; nil and no error let the request pass.
	before func(r *http.Request) (*http.Response, error)

	mu    sync.Mutex
	calls []string // "PUT", "PUT part 0", "POST complete", …
	// now and most are the parts under way.
	now, most int
}

func call(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case q.Has("partNumber"):
		n, _ := strconv.Atoi(q.Get("partNumber"))
		return fmt.Sprintf("PUT part %d", n-1)
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "POST complete"
	case r.Method == http.MethodPost:
		return "POST create"
	}
	return r.Method
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	name := call(r)
	part := strings.HasPrefix(name, "PUT part")
	w.mu.Lock()
	w.calls = append(w.calls, name)
	if part {
		w.now++
		w.most = max(w.most, w.now)
	}
	w.mu.Unlock()
	defer func() {
		if part {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.now--
		}
	}()
	if w.before != nil {
		if response, err := w.before(r); response != nil || err != nil {
			return response, err
		}
	}
	return w.next.RoundTrip(r)
}

// count is the number of requests so far whose name begins so.
func (w *wire) count(prefix string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, c := range w.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

// refuse answers as S3 does, taking the body first as it does.
func refuse(r *http.Request, status int, code string) (*http.Response, error) {
	if r.Body != nil {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
		r.Body.Close()
	}
	body := fmt.Sprintf("<Error><Code>%s</Code><Message>no</Message></Error>", code)
	return &http.Response{
		StatusCode: status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/xml"}},
		Body:          io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       r,
	}, nil
}

// site is a build, the bucket it is to land in and the table.
type site struct {
	wire    *wire
	bucket  *bucket.Bucket
	ledger  *ledger.Ledger
	key     ledger.Key
	content []byte
	m       *manifest.Build
	slots   *turns.Slots
	// sealedLate says that the seal comes after the upload has begun.
	sealedLate bool
}

// announced are the source object's headers; it was itself landed before.
var announced = bucket.Headers{
	ContentType: "application/zip",
	Metadata: map[string]string{
		"commit": "abc 123", digestMetadata: "of an earlier landing", ExecutionMetadata: "of an earlier landing", sourceMetadata: "of an earlier landing",
	},
}

const parallel = 3

func newSite(t *testing.T, size int) *site {
	t.Helper()
	w := &wire{next: cloud.AWS.HTTPClient.(*http.Client).Transport}
	cfg := cloud.AWS.Copy()
	cfg.HTTPClient = &http.Client{Transport: w}
	b, err := bucket.Open(t.Context(), cfg, cloud.Bucket(t), bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		wire:    w,
		bucket:  b,
		ledger:  ledger.New(cloud.DynamoDB, cloud.Table(t)),
		key:     ledger.Key{FileKey: "builds/build 1+2.zip", SourceBucket: "global-builds"},
		content: randomBytes(size),
		slots:   turns.NewSlots(parallel),
	}
	s.m = manifesttest.Build(t, s.content)
	return s
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	// Seeded: the same build in every run.
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// begin starts an execution; another ETag than before supersedes.
func (s *site) begin(t *testing.T, etag string) string {
	t.Helper()
	begun, err := s.ledger.Begin(t.Context(), ledger.Start{
		Key: s.key, SourceETag: etag, Size: s.m.Size, Destinations: []string{s.bucket.Name()}, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return begun.Record.ExecutionID
}

// build is an execution with what the seal says, not read from the table.
func (s *site) build(execution string) *ledger.Record {
	return &ledger.Record{Key: s.key, ExecutionID: execution, SHA256: s.m.SHA256Hex(), Size: s.m.Size}
}

// job is a landing whose pieces are all there, or none.
func (s *site) job(execution string, verified bool) *Job {
	j := &Job{
		Bucket:      s.bucket,
		Ledger:      s.ledger,
		Key:         s.key,
		ExecutionID: execution,
		Build:       s.m,
		Headers:     announced.Map(),
		Agent:       "agent-1",
		Region:      "region-a",
		Slots:       s.slots,
		Started:     time.Now().Add(-time.Minute),
	}
	if s.m.Size > 0 {
		j.Content, j.Tracker = bytes.NewReader(s.content), NewTracker(s.m.Shape)
	}
	if verified {
		for p := range s.m.NumPieces() {
			j.Tracker.Verified(p)
		}
	}
	return j
}

// assertLanded checks object, uploads and item.
func (s *site) assertLanded(t *testing.T, execution string, got ledger.Result) {
	t.Helper()
	ctx, key := t.Context(), s.key.FileKey
	object, err := cloud.S3.GetObject(ctx, &s3.GetObjectInput{Bucket: new(s.bucket.Name()), Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		t.Fatal(err)
	}
	defer object.Body.Close()
	if body, err := io.ReadAll(object.Body); err != nil || !bytes.Equal(body, s.content) {
		t.Errorf("%d bytes are in the bucket, %v; want the build's %d", len(body), err, len(s.content))
	}
	if s.m.Size > 0 {
		want := s.m.Composite()
		if sum := aws.ToString(object.ChecksumSHA256); sum != want {
			t.Errorf("composite SHA-256 %q, want %q", sum, want)
		}
	}
	if ct := aws.ToString(object.ContentType); ct != "application/zip" {
		t.Errorf("content type %q", ct)
	}
	record, err := s.ledger.Get(ctx, s.key)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"commit": "abc 123", "landfall-execution": execution, "landfall-source-etag": record.SourceETag}
	if !s.sealedLate {
		want["landfall-sha256"] = s.m.SHA256Hex()
	}
	if fmt.Sprint(object.Metadata) != fmt.Sprint(want) {
		t.Errorf("metadata %v, want %v", object.Metadata, want)
	}
	s.assertUploads(t)
	s.assertRecorded(t, got)
	if got.ETag != aws.ToString(object.ETag) {
		t.Errorf("ETag %q, want %q", got.ETag, aws.ToString(object.ETag))
	}
}

func (s *site) assertRecorded(t *testing.T, got ledger.Result) {
	t.Helper()
	record, err := s.ledger.Get(t.Context(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	recorded := record.Results[s.bucket.Name()]
	if record.Status != ledger.Completed || !slices.Equal(record.Successful, []string{s.bucket.Name()}) || !recorded.Timestamp.Equal(got.Timestamp) {
		t.Errorf("recorded %+v, returned %+v", record, got)
	}
	if !got.Success || got.Bytes != s.m.Size || got.SHA256 != s.m.SHA256Hex() || got.Region != "region-a" || got.Agent == "" || got.Seconds < 60 || got.Error != "" {
		t.Errorf("result %+v", got)
	}
}

// assertUploads checks which uploads of the key are unfinished.
func (s *site) assertUploads(t *testing.T, want ...string) {
	t.Helper()
	if ids, err := s.bucket.Uploads(t.Context(), s.key.FileKey); err != nil || !slices.Equal(ids, want) {
		t.Errorf("uploads %q, %v; want %q", ids, err, want)
	}
}

func (s *site) assertNoObject(t *testing.T) {
	t.Helper()
	if o, err := s.bucket.Head(t.Context(), s.key.FileKey); !errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("object %+v, %v", o, err)
	}
}

// put stores something else at the key.
func (s *site) put(t *testing.T, body string, metadata map[string]string) *bucket.Object {
	t.Helper()
	o, err := s.bucket.Upload(t.Context(), s.key.FileKey, strings.NewReader(body), int64(len(body)), bucket.Headers{Metadata: metadata})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// begunUpload is the upload that the table names.
func (s *site) begunUpload(t *testing.T) string {
	t.Helper()
	record, err := s.ledger.Get(t.Context(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	return record.Landings[s.bucket.Name()].UploadID
}

// meeting is a ledger whose first readers wait for each other.
type meeting struct {
	Ledger
	once *sync.WaitGroup
	left *sync.Once
}

func (m meeting) Get(ctx context.Context, k ledger.Key) (*ledger.Record, error) {
	record, err := m.Ledger.Get(ctx, k)
	m.left.Do(func() { m.once.Done(); m.once.Wait() })
	return record, err
}
