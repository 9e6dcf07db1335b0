package seeder

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/signing"
)

// watched is a bucket and a table, with seeders that start and poll on them.
type watched struct {
	*testing.T
	bucket string
	table  *ledger.Ledger
}

func newWatched(t *testing.T) *watched {
	return &watched{t, cloud.Bucket(t), ledger.New(cloud.DynamoDB, cloud.Table(t))}
}

func (w *watched) put(key, content string) {
	w.Helper()
	_, err := cloud.S3.PutObject(w.Context(), &s3.PutObjectInput{Bucket: &w.bucket, Key: &key, Body: strings.NewReader(content)})
	if err != nil {
		w.Fatal(err)
	}
}

func (w *watched) remove(key string) {
	w.Helper()
	if _, err := cloud.S3.DeleteObject(w.Context(), &s3.DeleteObjectInput{Bucket: &w.bucket, Key: &key}); err != nil {
		w.Fatal(err)
	}
}

// prune takes the item of an execution away, as a TTL does.
func (w *watched) prune(key string) {
	w.Helper()
	_, err := cloud.DynamoDB.DeleteItem(w.Context(), &dynamodb.DeleteItemInput{TableName: aws.String(w.table.Table()), Key: map[string]types.AttributeValue{
		"fileKey": &types.AttributeValueMemberS{Value: key}, "sourceBucket": &types.AttributeValueMemberS{Value: w.bucket},
	}})
	if err != nil {
		w.Fatal(err)
	}
}

// start makes a seeder that has read the table, without a data directory unless
// change gives it one, and with the suffix .zip.
func (w *watched) start(change func(*Config)) *watcher {
	w.Helper()
	b, err := bucket.Open(w.Context(), cloud.AWS, w.bucket, bucket.Options{})
	if err != nil {
		w.Fatal(err)
	}
	store, err := cache.Open(filepath.Join(w.TempDir(), "cache"), 1<<30, slog.New(slog.DiscardHandler))
	if err != nil {
		w.Fatal(err)
	}
	cfg := Config{
		Bucket: b, AWS: cloud.AWS, Ledger: w.table, Cache: store, Peers: loopback(w.T), HTTP: loopback(w.T),
		Gossip:       gossip.Config{Meta: gossip.Meta{ID: "seeder"}, Listen: "127.0.0.1:0"},
		Signer:       signing.Ed25519(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))),
		Destinations: []string{"somewhere"}, Suffix: DefaultSuffix,
		BaselineFile: filepath.Join(w.TempDir(), "baseline"),
		Logger:       slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := s.Close(); err != nil {
			w.Error(err)
		}
		if err := store.Close(); err != nil {
			w.Error(err)
		}
	})
	if err := s.load(w.Context()); err != nil {
		w.Fatal(err)
	}
	return &watcher{
		Seeder: s, named: make(map[string]bool), unread: make(unread),
		rewritten: rewritten{since: time.Now(), done: make(map[string]looked)},
	}
}

func loopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sends polls and returns the keys whose execution that began.
func (w *watched) sends(by *watcher) []string {
	w.Helper()
	before := w.executions()
	if err := by.poll(w.Context()); err != nil {
		w.Fatal(err)
	}
	var keys []string
	for key, id := range w.executions() {
		if before[key] != id {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// executions are the ids in the table, by key.
func (w *watched) executions() map[string]string {
	w.Helper()
	out := make(map[string]string)
	err := w.table.Scan(w.Context(), ledger.Scan{Record: func(r *ledger.Record) {
		if r.SourceBucket == w.bucket {
			out[r.FileKey] = r.ExecutionID
		}
	}})
	if err != nil {
		w.Fatal(err)
	}
	return out
}

func (w *watched) expect(what string, got []string, want ...string) {
	w.Helper()
	if !slices.Equal(got, want) {
		w.Errorf("%s: sent %q, want %q", what, got, want)
	}
}

// A seeder whose data directory is gone knows from the table what is new.
func TestBaselineOutlivesTheDataDirectory(t *testing.T) {
	w := newWatched(t)
	w.put("old.zip", "before the first start")
	w.expect("first start", w.sends(w.start(nil)))
	w.put("new.zip", "while the seeder is away")
	w.expect("second start", w.sends(w.start(nil)), "new.zip")
	w.expect("third start", w.sends(w.start(nil)))
	w.put("old.zip", "another build under the old key")
	w.expect("replaced", w.sends(w.start(nil)), "old.zip")
}

// What was sent once and whose item is gone from the table is not sent again; another
// version of it is, an earlier one too.
func TestPrunedItemsAreNotSentAgain(t *testing.T) {
	w := newWatched(t)
	first := w.start(nil)
	w.expect("empty bucket", w.sends(first))
	w.put("a.zip", "1")
	w.expect("new", w.sends(first), "a.zip")
	w.expect("noted", w.sends(first))
	w.prune("a.zip")
	w.expect("pruned", w.sends(w.start(nil)))
	w.put("a.zip", "2")
	second := w.start(nil)
	w.expect("another version", w.sends(second), "a.zip")
	w.expect("noted", w.sends(second))
	w.prune("a.zip")
	w.remove("a.zip")
	w.expect("deleted", w.sends(w.start(nil)))
	w.put("a.zip", "2")
	w.expect("back again", w.sends(w.start(nil)))
	w.put("a.zip", "1")
	third := w.start(nil)
	w.expect("the earlier version", w.sends(third), "a.zip")
	w.expect("noted", w.sends(third))
	w.prune("a.zip")
	w.expect("pruned, too", w.sends(w.start(func(c *Config) { c.Backfill = true })))
}

// More versions than one item takes are kept in several, in order.
func TestSentVersionsFillManyItems(t *testing.T) {
	w := newWatched(t)
	if err := w.table.Extend(t.Context(), ledger.NewBaseline(w.bucket), ledger.Scope{Suffix: DefaultSuffix}, nil); err != nil {
		t.Fatal(err)
	}
	const many = 5000
	at := w.start(nil)
	if err := at.readBaseline(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		at.unsaved = append(at.unsaved, versionOf(bucket.Object{Key: fmt.Sprint(i % (many / 2)), ETag: fmt.Sprint(i)}))
		if i%1999 == 0 {
			at.saveSent(t.Context())
		}
	}
	at.saveSent(t.Context())
	if len(at.unsaved) != 0 {
		t.Fatalf("%d versions are not saved", len(at.unsaved))
	}
	again := w.start(nil)
	if err := again.readBaseline(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		v := versionOf(bucket.Object{Key: fmt.Sprint(i % (many / 2)), ETag: fmt.Sprint(i)})
		if newest := i >= many/2; again.seen.has(v) != newest {
			t.Fatalf("version %d is seen: %v, want %v", i, !newest, newest)
		}
	}
}

// The baseline of another prefix or suffix is that of its own first start, and what
// came under one known before is new.
func TestBaselineOfAnotherScope(t *testing.T) {
	w := newWatched(t)
	w.put("a/old.zip", "x")
	w.put("b/old.zip", "x")
	inA := func(c *Config) { c.Prefix = "a/" }
	w.expect("first start with a/", w.sends(w.start(inA)))
	w.put("b/later.zip", "x")
	w.put("b/later.txt", "x")
	w.put("a/later.zip", "while the seeder is away")
	w.expect("first start with everything", w.sends(w.start(func(c *Config) { c.Suffix = "" })), "a/later.zip")
	w.put("a/last.zip", "x")
	w.put("c.txt", "x")
	w.expect("back at a/", w.sends(w.start(inA)), "a/last.zip")
	w.expect("back at everything", w.sends(w.start(func(c *Config) { c.Suffix = "" })), "c.txt")
}

func TestBackfill(t *testing.T) {
	backfill := func(c *Config) { c.Backfill = true }
	t.Run("later", func(t *testing.T) {
		w := newWatched(t)
		w.put("old.zip", "x")
		w.expect("first start", w.sends(w.start(nil)))
		w.expect("backfill", w.sends(w.start(backfill)), "old.zip")
		w.expect("without it", w.sends(w.start(nil)))
	})
	t.Run("first", func(t *testing.T) {
		w := newWatched(t)
		w.put("old.zip", "x")
		at := w.start(backfill)
		if err := at.readBaseline(t.Context()); err != nil {
			t.Fatal(err)
		}
		// It ends before it has sent anything: what it began with goes on.
		w.expect("without it", w.sends(w.start(nil)), "old.zip")
	})
}

// Two seeders of different buckets share a table, and two of one bucket do no harm.
func TestBaselinesInOneTable(t *testing.T) {
	w := newWatched(t)
	other := &watched{t, cloud.Bucket(t), w.table}
	w.put("a.zip", "x")
	w.expect("one", w.sends(w.start(nil)))
	other.put("a.zip", "x")
	other.expect("the other", other.sends(other.start(nil)))
	other.put("b.zip", "x")
	other.expect("the other, later", other.sends(other.start(nil)), "b.zip")

	w.put("b.zip", "x")
	first, second := w.start(nil), w.start(nil)
	for _, seeder := range []*watcher{first, second} {
		if err := seeder.readBaseline(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.expect("first of two", w.sends(first), "b.zip")
	w.expect("noted", w.sends(first))
	w.put("c.zip", "x")
	w.expect("second of two, whose baseline has changed", w.sends(second), "c.zip")
	w.expect("second of two", w.sends(second))
	w.expect("second of two, read again", w.sends(second))
	w.prune("c.zip")
	w.expect("after both", w.sends(w.start(nil)))
}

// What is put into the bucket while the first listing is under way is new, though the
// listing may hold it.
func TestUploadDuringTheFirstListing(t *testing.T) {
	w := newWatched(t)
	w.put("a.zip", "x")
	modified := func(key string) time.Time {
		out, err := cloud.S3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &w.bucket, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		return *out.LastModified
	}
	began := modified("a.zip")
	backend, err := url.Parse(cloud.URL)
	if err != nil {
		t.Fatal(err)
	}
	upload := sync.OnceFunc(func() {
		for w.put("b.zip", "x"); !modified("b.zip").After(began.Add(time.Second)); {
			w.put("b.zip", "x") // the clock of the embedded S3 cannot be set
		}
	})
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	slow := httptest.NewServer(&httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) { // the host stays, as it is signed
			r.Out.URL.Scheme, r.Out.URL.Host = backend.Scheme, backend.Host
			if r.In.URL.Query().Has("list-type") {
				upload()
			}
		},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("Date", began.UTC().Format(http.TimeFormat))
			return nil
		},
	})
	defer slow.Close()
	at := w.start(func(c *Config) {
		behind := cloud.AWS.Copy()
		behind.BaseEndpoint = &slow.URL
		if c.Bucket, err = bucket.Open(t.Context(), behind, w.bucket, bucket.Options{}); err != nil {
			t.Fatal(err)
		}
	})
	w.expect("first start", w.sends(at), "b.zip")
}

// An earlier version's file is taken over into the table.
func TestBaselineFileIsTakenOver(t *testing.T) {
	w := newWatched(t)
	w.put("old.zip", "x")
	w.put("replaced.zip", "x")
	file := filepath.Join(t.TempDir(), "baseline")
	var content []byte
	if err := w.start(nil).cfg.Bucket.List(t.Context(), "", func(o bucket.Object) error {
		sum := sha256.Sum256([]byte(o.Key + "\x00" + o.ETag))
		content = append(content, sum[:16]...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	w.put("replaced.zip", "y")
	w.put("new.zip", "x")
	w.expect("with the file", w.sends(w.start(func(c *Config) { c.BaselineFile = file })), "new.zip", "replaced.zip")
	w.put("newer.zip", "x")
	w.expect("without it", w.sends(w.start(nil)), "newer.zip")

	if err := os.WriteFile(file, content[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := newWatched(t)
	if err := damaged.start(func(c *Config) { c.BaselineFile = file }).poll(t.Context()); err == nil {
		t.Error("a damaged file counts as nothing")
	}
}

// An item of another system, without an ETag, does not make an old object new.
func TestOtherSystemsItemsStartNothing(t *testing.T) {
	w := newWatched(t)
	w.put("old.zip", "x")
	_, err := cloud.DynamoDB.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String(w.table.Table()), Item: map[string]types.AttributeValue{
		"fileKey": &types.AttributeValueMemberS{Value: "old.zip"}, "sourceBucket": &types.AttributeValueMemberS{Value: w.bucket},
		"executionId": &types.AttributeValueMemberS{Value: "9f1c"}, "status": &types.AttributeValueMemberS{Value: "COMPLETED"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.expect("first start", w.sends(w.start(nil)))
	w.expect("second start", w.sends(w.start(nil)))
}
