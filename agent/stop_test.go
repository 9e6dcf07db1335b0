package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/oklog/ulid/v2"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/landfall-dist/landfall/internal/announce"
	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/cache"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest"
	"github.com/landfall-dist/landfall/internal/signing"
	"github.com/landfall-dist/landfall/internal/source"
	"github.com/landfall-dist/landfall/internal/survive"
	"github.com/landfall-dist/landfall/internal/tracing"
	"github.com/landfall-dist/landfall/internal/turns"
)

const testBucket, testSource = "region-a-builds", "global-builds"

// stores answer as an S3 and a DynamoDB that a test makes slow or wrong.
type stores struct {
	// get answers GetObject, item GetItem; nil for a bad request.
	get, item http.HandlerFunc
}

func (s *stores) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("X-Amz-Target") == "DynamoDB_20120810.GetItem" && s.item != nil:
		s.item(w, r)
	case r.Method == http.MethodHead && strings.Count(r.URL.Path, "/") == 1: // a bucket
	case r.Method == http.MethodHead:
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Content-Length", "1000")
	case r.Method == http.MethodGet && s.get != nil:
		s.get(w, r)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

// testAgent is an agent without peers that runs until the test ends.
type testAgent struct {
	*Agent
	t   *testing.T
	key signing.Ed25519
}

// openStores reaches what answers as S3 and DynamoDB, each call tried once.
func openStores(t *testing.T, answers http.Handler) (aws.Config, *bucket.Bucket) {
	t.Helper()
	server := httptest.NewServer(answers)
	t.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	cfg := aws.Config{Region: "us-east-1", BaseEndpoint: &server.URL, HTTPClient: client, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("a", "b", "")}
	b, err := bucket.Open(t.Context(), cfg, testBucket, bucket.Options{Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return cfg, b
}

func startAgent(t *testing.T, s http.Handler, fallbackAfter time.Duration) *testAgent {
	t.Helper()
	cfg, b := openStores(t, s)
	c, err := cache.Open(t.TempDir(), 1<<30, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{
		Region: "region-a", Bucket: b, Ledger: ledger.New(dynamodb.NewFromConfig(cfg), "T"), Cache: c,
		Peers: listenAnywhere(t), HTTP: listenAnywhere(t), Gossip: gossip.Config{Meta: gossip.Meta{ID: "a"}, Listen: "127.0.0.1:0"},
		Trust: signing.TrustIn(signing.Ed25519Key(public)), Sources: source.NewBuckets(cfg), FallbackAfter: fallbackAfter,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	answer, err := cfg.HTTPClient.(*http.Client).Get("http://" + a.cfg.HTTP.Addr().String() + "/healthz") // answered once Run has begun
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return &testAgent{a, t, signing.Ed25519(key)}
}

func listenAnywhere(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// announce has a build begin, or announces it again, and returns it.
func (a *testAgent) announce(id string) *build {
	a.t.Helper()
	now := time.Now()
	shape, sum := manifest.ShapeOf(1000), sha256.Sum256([]byte(id))
	ann := &announce.Announcement{ExecutionID: id, ETag: `"x"`, Key: "k-" + id, SourceBucket: testSource, Destinations: []string{testBucket},
		Size: shape.Size, Scheme: manifest.Ramp, PieceLength: shape.PieceLength, PartLength: shape.PartLength,
		InfoHashes: announce.InfoHashes(nil).Append(sha1.Sum([]byte(id))), SHA256: hex.EncodeToString(sum[:]), Issued: now, Expires: now.Add(time.Hour)}
	wire, err := announce.Sign(a.t.Context(), a.key, ann)
	if err != nil {
		a.t.Fatal(err)
	}
	a.announced(announce.Added{Announcement: ann, Wire: wire})
	return a.build(id)
}

func (a *testAgent) build(id string) *build {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.builds[id]
}

// eventually returns when something is so; else the test's deadline ends it.
func eventually(so func() bool) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !so() {
		<-ticker.C
	}
}

// ended reports whether a build has said that it is over.
func (b *build) ended() bool {
	s := b.seen.Load()
	return s != nil && (s.state == api.StateFailed || s.state == api.StateLanded)
}

// A build that ends while it reads itself whole from the source leaves the others
// alone, however it ends.
func TestStopWhileReadingTheSource(t *testing.T) {
	reading := make(chan string)
	a := startAgent(t, &stores{get: func(_ http.ResponseWriter, r *http.Request) {
		reading <- r.URL.Path
		<-r.Context().Done() // a slow source: the pull is under way
	}}, time.Millisecond)
	ends := map[string]func(b *build){
		"failed":     func(b *build) { a.ended(&announce.End{ExecutionID: b.id, Reason: announce.Failed}) },
		"completed":  func(b *build) { a.ended(&announce.End{ExecutionID: b.id, Reason: announce.Completed}) },
		"superseded": func(b *build) { b.owner.Tell(ended{errSuperseded}) },
		"cancelled":  func(b *build) { b.owner.Tell(ended{errCancelled}) },
	}
	for _, end := range ends {
		for range 10 { // what goes wrong depends on which goroutine comes first
			b := a.announce(ulid.Make().String())
			<-reading
			end(b)
			eventually(b.ended)
		}
	}
	a.announce(ulid.Make().String())
	<-reading // which startAgent's cleanup is
}

// A fault in a build is that build's failure, and tried again.
func TestFaultInABuild(t *testing.T) {
	complaint := make(chan string, 10)
	logger := slog.New(slog.NewTextHandler(lines(func(line string) {
		if strings.Contains(line, "not landed yet") && strings.Contains(line, "internal fault") {
			complaint <- line
		}
	}), nil))
	// An agent without a swarm.
	cfg := startAgent(t, &stores{}, time.Hour).cfg
	cfg.Logger = logger
	b := newBuild(&Agent{cfg: cfg, store: newStore(), active: turns.NewSlots(1), metrics: newMetrics()}, "id", ledger.Key{})
	b.owner.Tell(announced{ann: &announce.Announcement{ExecutionID: "id", Size: 1}})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { b.run(ctx); close(over) }()
	for range 2 {
		<-complaint
	}
	eventually(func() bool { // it is shown, after it is said
		v := b.seen.Load().view(nil)
		return strings.Contains(v.Error, "internal fault") && v.RetryAt != nil
	})
	b.owner.Tell(ended{errSuperseded})
	eventually(b.ended)
	if state := b.seen.Load().state; state != api.StateFailed {
		t.Errorf("state %s", state)
	}
	cancel()
	<-over
}

// lines is a writer of a log.
type lines func(line string)

func (f lines) Write(line []byte) (int, error) { f(string(line)); return len(line), nil }

// A build that is announced again while it comes to its end goes on: the table called
// it cancelled, then somebody asked for a retry.
func TestAnnouncedAgainWhileItEnds(t *testing.T) {
	id := ulid.Make().String()
	asked, answer := make(chan int, 10), make(chan bool)
	var mu sync.Mutex
	n := 0
	a := startAgent(t, &stores{item: func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // it is small
		mu.Lock()
		n++
		first := n == 1
		asked <- n
		mu.Unlock()
		if first {
			<-answer
		}
		item := map[string]any{
			"fileKey": map[string]any{"S": "k-" + id}, "sourceBucket": map[string]any{"S": testSource},
			"executionId": map[string]any{"S": id}, "status": map[string]any{"S": "IN_PROGRESS"},
			"destinationBuckets": map[string]any{"SS": []string{testBucket}},
		}
		if first {
			item["failedBuckets"] = map[string]any{"SS": []string{testBucket}}
			item["copyResults"] = map[string]any{"M": map[string]any{testBucket: map[string]any{
				"M": map[string]any{"error": map[string]any{"S": ledger.CancelledError}}}}}
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		json.NewEncoder(w).Encode(map[string]any{"Item": item}) //nolint:errcheck // the client hung up
	}}, time.Hour)
	first := a.announce(id)
	<-asked
	if again := a.announce(id); again != first {
		t.Fatal("a build at work was begun a second time")
	}
	close(answer)
	<-asked // what is the case since then
	eventually(func() bool { return first.seen.Load().state == api.StateDownloading })
	// What was announced before an end is not begun again after it.
	a.announce(id)
	a.ended(&announce.End{ExecutionID: id, Reason: announce.Failed})
	isOver := func() bool { a.mu.Lock(); defer a.mu.Unlock(); return first.over }
	eventually(isOver)
	if a.build(id) != first || !first.ended() {
		t.Errorf("begun again after its end: %+v", a.build(id).seen.Load().view(nil))
	}
	// What is announced after it is.
	if again := a.announce(id); again == first {
		t.Error("the announcement is lost")
	}
}

// After a fault in a build's machine its turn is given back, and the build is begun anew.
func TestFaultInAMachine(t *testing.T) {
	a := startAgent(t, &stores{}, time.Hour)
	id := ulid.Make().String()
	ann := &announce.Announcement{ExecutionID: id, ETag: "e", Key: "k", SourceBucket: testSource, Destinations: []string{testBucket}, Size: 1,
		Issued: time.Now(), Expires: time.Now().Add(time.Hour)}
	tell := func(e event) *build {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.tell(id, ledger.Key{FileKey: "k", SourceBucket: testSource}, e)
		return a.builds[id]
	}
	first := tell(announced{ann: ann})
	var second *build
	for range 3 {
		tell(finished{work: giveUp}) // a fault: nobody has given it up
		second = tell(announced{ann: ann})
	}
	deadline := time.After(time.Minute)
	for {
		a.mu.Lock()
		now := a.builds[id]
		begunAnew := now != first && !now.over && a.active.Taken() <= 1
		a.mu.Unlock()
		var fault *survive.Panic
		if s := first.seen.Load(); begunAnew && s != nil && errors.As(s.err, &fault) {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("%d turns are taken; the build after the fault: %+v, and before: %+v", a.active.Taken(), second.seen.Load(), first.seen.Load())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A build's span ends with the process, also while it has arrived and its download goes
// on for the others' sake.
func TestSpanAtEndOfProcess(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tracer := tracing.New(sdk.NewTracerProvider(sdk.WithSyncer(spans)))
	cfg := startAgent(t, &stores{}, time.Hour).cfg
	cfg.Logger = slog.New(slog.DiscardHandler)
	a := &Agent{cfg: cfg, store: newStore(), active: turns.NewSlots(16), metrics: newMetrics(), builds: map[string]*build{}}
	for _, arrived := range []bool{false, true} {
		spans.Reset()
		b := newBuild(a, "id", ledger.Key{})
		b.machine.announced(announced{ann: &announce.Announcement{ExecutionID: "id", Size: 1}})
		_, b.span = tracer.Root(t.Context(), "build")
		b.machine.arrived, b.machine.serves = arrived, arrived
		b.machine.ending = false
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b.run(ctx)
		if n := len(spans.GetSpans()); n != 1 {
			t.Errorf("arrived %v: %d spans", arrived, n)
		}
	}
}
