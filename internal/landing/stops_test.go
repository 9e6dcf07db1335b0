package landing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/landfall-dist/landfall/internal/arrivals"
	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/manifest/manifesttest"
)

// stopped is a process's way to S3 and DynamoDB, which stands still at one of its calls: before
// it is sent, or when it was answered.
type stopped struct {
	next     http.RoundTripper
	at       int
	answered bool
	there    chan struct{} // closed when it stands still
	goOn     chan struct{}

	mu    sync.Mutex
	armed bool // its calls count
	calls int
}

func (s *stopped) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	here := s.armed && s.calls == s.at
	if s.armed {
		s.calls++
	}
	s.mu.Unlock()
	if !here {
		return s.next.RoundTrip(r)
	}
	if !s.answered {
		close(s.there)
		<-s.goOn
		return s.next.RoundTrip(r)
	}
	response, err := s.next.RoundTrip(r)
	close(s.there)
	<-s.goOn
	return response, err
}

// process is one that lands builds of a site. All are of one agent, so that the next one takes
// the landing at once, as it may when the other's beat stands still.
type process struct {
	*site
	records *arrivals.Records
}

const agent = "agent-1"

func (s *site) process(t *testing.T, name string, table *arrivals.Table, way http.RoundTripper) *process {
	t.Helper()
	cfg := cloud.AWS.Copy()
	if way != nil {
		cfg.HTTPClient = &http.Client{Transport: way}
	}
	b, err := bucket.Open(t.Context(), cloud.AWS, s.bucket.Name(), bucket.Options{})
	if way != nil {
		b, err = bucket.Open(t.Context(), cfg, s.bucket.Name(), bucket.Options{Region: "us-east-1"})
	}
	if err != nil {
		t.Fatal(err)
	}
	of := *s
	of.bucket = b
	client := dynamodb.NewFromConfig(cfg)
	return &process{&of, arrivals.NewRecords(ledger.New(client, s.ledger.Table()), arrivals.New(client, table.Name()), b.Name(), agent, name, nil, nil)}
}

func (p *process) land(ctx context.Context, execution string) (ledger.Result, error) {
	j := p.job(execution, true)
	j.Ledger, j.Agent, j.Holder = p.records, agent, p.records.Holder()
	return j.Run(ctx)
}

// TestStops has a process stand still at each of its calls, before it is sent and when it was
// answered, and go on when another has done what it was about to: its successor's upload, and
// what a newer execution has in the bucket, or is bringing there, are as they were.
func TestStops(t *testing.T) {
	for _, size := range []int{0, 1, partLength + 1} {
		for _, then := range []string{"its successor lands", "its successor is landing", "a newer execution has the object of before", "a newer execution is landing"} {
			t.Run(fmt.Sprintf("%d bytes, %s", size, then), func(t *testing.T) {
				for at, over := 0, false; !over; at++ {
					for _, answered := range []bool{false, true} {
						over = stops(t, size, then, at, answered)
						if t.Failed() {
							t.Fatalf("when it stands still at call %d, answered: %v", at, answered)
						}
					}
				}
			})
		}
	}
}

// stops is one of these; over when the process has ended before that call.
func stops(t *testing.T, size int, then string, at int, answered bool) (over bool) {
	s := newSite(t, size)
	table := arrivals.New(cloud.DynamoDB, s.ledger.Table()+"-arrivals")
	if _, err := table.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := s.process(t, "b", table, s.wire)
	must := func(_ ledger.Result, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	other := *s
	other.content = bytes.Repeat([]byte("other"), size+1)[:max(size, 1)]
	other.m = manifesttest.Build(t, other.content)
	as := func(of *site, p *process) *process {
		is := *of
		is.bucket = p.bucket
		return &process{&is, p.records}
	}
	if then == "a newer execution has the object of before" {
		must(as(&other, b).land(t.Context(), s.begin(t, "other")))
	}
	execution := s.begin(t, "etag")
	way := &stopped{next: s.wire.next, at: at, answered: answered, there: make(chan struct{}), goOn: make(chan struct{})}
	a := s.process(t, "a", table, way)
	way.armed = true
	ended := make(chan error, 1)
	go func() { _, err := a.land(context.WithoutCancel(t.Context()), execution); ended <- err }()
	select {
	case <-way.there:
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
		return true
	}
	release := sync.OnceFunc(func() { close(way.goOn) })
	t.Cleanup(release)
	goOn := func(want ...error) {
		t.Helper()
		release()
		err := <-ended
		for _, w := range append(want, nil) {
			if errors.Is(err, w) {
				return
			}
		}
		t.Errorf("it went on and ended with %v", err)
	}
	s.wire.mu.Lock()
	s.wire.calls = nil
	s.wire.mu.Unlock()
	// inPart has a stand still until part n is there, in b's upload, and then go on.
	inPart := func(want ...error) {
		var once sync.Once
		s.wire.before = func(r *http.Request) (*http.Response, error) {
			if call(r) == "POST complete" {
				once.Do(func() { goOn(want...) })
			}
			return nil, nil
		}
	}
	winner, of := s, execution
	switch then {
	case "its successor lands":
		must(b.land(t.Context(), execution))
		goOn(ErrHeld)
	case "its successor is landing":
		inPart(ErrHeld)
		must(b.land(t.Context(), execution))
		if s.wire.count("POST complete") == 0 { // it was landed already
			goOn(ErrHeld)
		}
	case "a newer execution has the object of before":
		winner = &other
		of = other.begin(t, "other")
		must(as(&other, b).land(t.Context(), of))
		goOn(ErrSuperseded)
	case "a newer execution is landing":
		winner = &other
		of = other.begin(t, "other")
		inPart(ErrSuperseded)
		must(as(&other, b).land(t.Context(), of))
		if n := s.wire.count("PUT part"); n != other.m.NumParts() {
			t.Errorf("the newer execution has sent %d parts, of %d", n, other.m.NumParts())
		}
	}
	object, err := s.bucket.Head(t.Context(), s.key.FileKey)
	if err != nil || object.Size != winner.m.Size || winner.m.Size > 0 && object.Composite != winner.m.Composite() {
		t.Errorf("the object is %+v, %v", object, err)
	}
	record, err := b.records.Get(t.Context(), s.key)
	if err != nil || record.ExecutionID != of || record.Status != ledger.Completed || record.Results[s.bucket.Name()].SHA256 != winner.m.SHA256Hex() {
		t.Errorf("the record is %+v, %v", record, err)
	}
	s.assertUploads(t)
	return false
}
