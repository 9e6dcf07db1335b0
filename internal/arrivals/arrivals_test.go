package arrivals

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/oklog/ulid/v2"

	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/executionid"
	"github.com/landfall-dist/landfall/internal/ledger"
)

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// site is the items and the rows of one test.
type site struct {
	items *ledger.Ledger
	table *Table
	key   ledger.Key
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{ledger.New(cloud.DynamoDB, cloud.Table(t)), New(cloud.DynamoDB, "arrivals-"+ulid.Make().String()), ledger.Key{FileKey: "build.zip", SourceBucket: "global-builds"}}
	if created, err := s.table.Create(t.Context()); err != nil || !created {
		t.Fatalf("created: %v, %v", created, err)
	}
	return s
}

// begin starts an execution to two destinations; another ETag supersedes.
func (s *site) begin(t testing.TB, etag string) *ledger.Record {
	t.Helper()
	b, err := s.items.Begin(t.Context(), ledger.Start{Key: s.key, SourceETag: etag, Size: 7, Destinations: []string{"aaa", "bbb"}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return b.Record
}

// clock is one that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.at }
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// of is the records of an agent of the bucket aaa, newly started.
func (s *site) of(agent string) (*Records, *clock) {
	c := &clock{at: noon}
	r := NewRecords(s.items, s.table, "aaa", agent, ulid.Make().String(), nil, nil)
	r.now = c.now
	return r, c
}

func take(t *testing.T, r *Records, e *ledger.Record, upload string) error {
	t.Helper()
	_, err := r.SetLanding(t.Context(), e.Key, e.ExecutionID, "aaa", ledger.Landing{Agent: "?", UploadID: upload, ExecutionID: e.ExecutionID})
	return err
}

// landing is that of an execution, as its records say.
func landing(t *testing.T, r *Records, e *ledger.Record) ledger.Landing {
	t.Helper()
	record, err := r.Get(t.Context(), e.Key)
	if err != nil {
		t.Fatal(err)
	}
	return record.Of(e.ExecutionID).Landings["aaa"]
}

func arrive(t *testing.T, r *Records, e *ledger.Record, sha string) (ledger.Result, error) {
	t.Helper()
	record, err := r.Arrive(t.Context(), e, "aaa", ledger.Result{Timestamp: noon, Bytes: 7, Agent: r.agent, SHA256: sha})
	if err != nil {
		return ledger.Result{}, err
	}
	return record.Results["aaa"], nil
}

// A landing has one holder. Another takes it when the holder's beat has stood still for 10 s,
// the same agent's next process at once; whoever was taken from finds out.
func TestOneLands(t *testing.T) {
	s := newSite(t)
	e := s.begin(t, "etag")
	a, _ := s.of("a")
	b, late := s.of("b")
	if err := take(t, a, e, "upload"); err != nil {
		t.Fatal(err)
	}
	still := func() bool {
		t.Helper()
		still, err := b.StandsStill(t.Context(), landing(t, b, e))
		if err != nil {
			t.Fatal(err)
		}
		return still
	}
	beats := func(lands ...string) {
		t.Helper()
		if err := a.beat(t.Context(), lands); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 { // it beats before the time is up
		if still() {
			t.Fatal("stands still, and has just said something")
		}
		late.pass(Patience - 1)
		if err := take(t, b, e, "other"); !errors.Is(err, ledger.ErrHeld) {
			t.Fatalf("taken from who is alive: %v", err)
		}
		beats("01K0000000000000000000000A", e.ExecutionID)
	}
	still()
	late.pass(Patience)
	if !still() {
		t.Fatal("has said nothing for 10 s, and does not stand still")
	}
	beats("01K0000000000000000000000A") // it is alive and does not land this one any more
	if still() {
		t.Fatal("stands still as soon as it says that it does not land")
	}
	late.pass(Patience)
	if !still() {
		t.Fatal("holds what it does not land")
	}
	if err := take(t, b, e, "upload"); err != nil {
		t.Fatal(err)
	}
	if l := landing(t, a, e); l.Agent != "b" || l.Holder != b.process || l.UploadID != "upload" {
		t.Errorf("the landing is %+v", l)
	}
	if err := take(t, a, e, "upload"); !errors.Is(err, ledger.ErrHeld) {
		t.Errorf("taken back at once: %v", err)
	}
	next, _ := s.of("b")
	if err := take(t, next, e, "upload"); err != nil || landing(t, next, e).Holder != next.process {
		t.Errorf("after a restart: %v", err)
	}
	if err := take(t, b, e, "upload"); err != nil { // two processes of one id: the last one has it
		t.Error(err)
	}
	if result, err := arrive(t, next, e, "sum"); err != nil || result.Agent != "b" {
		t.Errorf("arrived: %+v, %v", result, err)
	}
	if result, err := arrive(t, a, e, "sum"); err != nil || result.Agent != "b" {
		t.Errorf("a second arrival: %+v, %v", result, err)
	}
	if err := take(t, a, e, "again"); !errors.Is(err, ledger.ErrHeld) {
		t.Errorf("landed once more: %v", err)
	}
}

// Executions do not get in each other's way: one beside the key's lands as well, a newer
// one's arrival ends older ones.
func TestLandingsOfSeveralExecutions(t *testing.T) {
	s := newSite(t)
	old := s.begin(t, "etag")
	a, _ := s.of("a")
	if err := take(t, a, old, "old"); err != nil {
		t.Fatal(err)
	}
	id, beside, err := s.items.NewUpload(t.Context(), s.key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	up, err := s.items.BeginUpload(t.Context(), s.key, ledger.Upload{ExecutionID: id, UploadID: "u", Size: 7, Destinations: []string{"aaa"}, StartTime: noon}, beside)
	if err != nil {
		t.Fatal(err)
	}
	if err := take(t, a, up, "new"); err != nil {
		t.Fatal(err)
	}
	if l := landing(t, a, old); l.UploadID != "old" {
		t.Errorf("the key's is %+v", l)
	}
	if l := landing(t, a, up); l.UploadID != "new" {
		t.Errorf("the one beside it is %+v", l)
	}
	if _, err := arrive(t, a, up, "sum"); err != nil {
		t.Fatal(err)
	}
	if err := take(t, a, old, "late"); !errors.Is(err, ledger.ErrSuperseded) {
		t.Errorf("an older one lands: %v", err)
	}
	if _, err := arrive(t, a, old, "sum"); !errors.Is(err, ledger.ErrSuperseded) {
		t.Errorf("an older one arrives: %v", err)
	}
	for i := range 2 * maxLandings {
		e := *up
		e.ExecutionID = executionid.New(time.Now().Add(time.Duration(i)*time.Second), id)
		if err := take(t, a, &e, "upload"); err != nil {
			t.Fatal(err)
		}
	}
	if row, err := s.table.row(t.Context(), Place{s.key, "aaa"}); err != nil || len(row.landings) != maxLandings {
		t.Errorf("%d landings in the row, %v", len(row.landings), err)
	}
}

// A failure counts until somebody asks for a retry; a success always.
func TestFailureAndRetry(t *testing.T) {
	s := newSite(t)
	e := s.begin(t, "etag")
	a, _ := s.of("a")
	record, err := a.Fail(t.Context(), s.key, e.ExecutionID, "aaa", ledger.Result{Timestamp: noon, Error: strings.Repeat("x\xff", 2000), Final: true})
	if err != nil || !record.Hopeless("aaa") {
		t.Fatalf("%+v, %v", record, err)
	}
	get := func() *ledger.Record {
		t.Helper()
		r, err := a.Get(t.Context(), s.key)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := get(); !r.Hopeless("aaa") || len(r.Results["aaa"].Error) > 1<<10 {
		t.Errorf("%+v", r.Results)
	}
	if _, err := s.items.Fail(t.Context(), s.key, e.ExecutionID, "aaa", ledger.Result{Timestamp: noon, Error: ledger.CancelledError}); err != nil {
		t.Fatal(err)
	}
	if r := get(); !r.Cancelled("aaa") {
		t.Error("what the item says of a failure is overridden")
	}
	if _, err := s.items.Retry(t.Context(), s.key, e.ExecutionID); err != nil {
		t.Fatal(err)
	}
	if r := get(); len(r.Failed) > 0 || r.Retries != 1 {
		t.Errorf("failed after a retry: %v", r.Failed)
	}
	if _, err := arrive(t, a, get(), "sum"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Fail(t.Context(), s.key, e.ExecutionID, "aaa", ledger.Result{Timestamp: noon, Error: "late"}); err != nil {
		t.Fatal(err)
	}
	r := get()
	if len(r.Successful) != 1 || r.Status != ledger.InProgress {
		t.Errorf("a failure counts over a success: %+v", r)
	}
	// The other destination's row completes it, for who must know without a seeder.
	b := NewRecords(s.items, s.table, "bbb", "b", "p", nil, nil)
	if _, err := b.Arrive(t.Context(), e, "bbb", ledger.Result{Timestamp: noon, Bytes: 7}); err != nil {
		t.Fatal(err)
	}
	if r, err = a.Everywhere(t.Context(), r); err != nil || r.Status != ledger.Completed {
		t.Errorf("%+v, %v", r, err)
	}
	s.begin(t, "another")
	if _, err := a.Fail(t.Context(), s.key, e.ExecutionID, "aaa", ledger.Result{Timestamp: noon}); !errors.Is(err, ledger.ErrSuperseded) {
		t.Errorf("a failure of an execution that is over: %v", err)
	}
}

// Two writes a landing, one where nobody needs to know of its upload; a beat only while
// something is landed.
func TestWritesOfALanding(t *testing.T) {
	s := newSite(t)
	a, _ := s.of("a")
	writes := func() [3]int64 {
		c := &s.table.counts
		return [3]int64{c.landings.Load(), c.results.Load(), c.beat.Load()}
	}
	e := s.begin(t, "etag")
	if err := take(t, a, e, "upload"); err != nil {
		t.Fatal(err)
	}
	if err := take(t, a, e, "upload"); err != nil { // as after an error
		t.Fatal(err)
	}
	for range 2 {
		if _, err := arrive(t, a, e, "sum"); err != nil {
			t.Fatal(err)
		}
	}
	if got := writes(); got != [3]int64{1, 1, 0} {
		t.Errorf("%d writes", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	a.interval = time.Millisecond
	go func() { defer close(done); a.Beat(ctx, slog.New(slog.DiscardHandler)) }()
	release, releaseOther := a.Hold(e.ExecutionID), a.Hold("01K0000000000000000000000A")
	for writes()[2] < 2 {
		time.Sleep(time.Millisecond)
	}
	if got := a.lands(); len(got) != 2 {
		t.Errorf("lands %q", got)
	}
	release()
	releaseOther()
	cancel()
	<-done
	if got := a.lands(); len(got) != 0 {
		t.Errorf("lands %q still", got)
	}
}

// signer signs as if with a key.
type signer struct{}

func (signer) Sign(purpose string, message []byte) ([]byte, error) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s", purpose, message))
	return sum[:], nil
}

func (signer) Check(bucket, agent, purpose string, message, signature []byte) error {
	if want, _ := (signer{}).Sign(purpose, message); string(want) != string(signature) || bucket != "aaa" || agent != "a" {
		return errors.New("another's")
	}
	return nil
}

// What is signed is all that counts, and reads as it was written.
func TestSigned(t *testing.T) {
	s := newSite(t)
	s.key.FileKey = strings.Repeat("k", 1024) // as long as a key can be
	e := s.begin(t, "etag")
	a := NewRecords(s.items, s.table, "aaa", "a", "p", signer{}, nil)
	result := ledger.Result{Timestamp: time.Now(), Bytes: 7, Seconds: 1.23456, Agent: "a", Region: "r", SHA256: "s", ETag: `"e"`}
	if _, err := a.Arrive(t.Context(), e, "aaa", result); err != nil {
		t.Fatal(err)
	}
	p := Place{s.key, "aaa"}
	rows, err := s.table.Rows(t.Context(), []Place{p, p, {s.key, "bbb"}})
	if err != nil || len(rows) != 1 || rows[p].Arrival == nil {
		t.Fatalf("%+v, %v", rows, err)
	}
	row := rows[p]
	if err := row.Verify(signer{}); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Row){
		"size": func(r *Row) { r.Arrival.Bytes++ }, "digest": func(r *Row) { r.Arrival.SHA256 = "x" }, "execution": func(r *Row) { r.Arrival.ExecutionID = "x" },
		"bucket": func(r *Row) { r.Bucket = "bbb" }, "key": func(r *Row) { r.FileKey = "x" }, "none": func(r *Row) { r.Arrival.Signature = nil },
		"outcome": func(r *Row) { r.Arrival.Success = false },
	} {
		other, changed := *row.Arrival, row.clone()
		changed.Arrival = &other
		if change(changed); changed.Verify(signer{}) == nil {
			t.Errorf("%s: the signature holds", name)
		}
	}
}

// A row that says what is not so neither keeps a bucket from being landed in nor stands in
// the way of the arrival that is: where the bucket was looked at, where the signature does
// not hold, and where it is of an execution that nobody began.
func TestUntrueArrivalsGiveWay(t *testing.T) {
	for _, c := range []struct {
		name    string
		checker Checker
		signer  Signer
		// of is the execution that the false row names, found whether the bucket was looked at.
		of    func(e *ledger.Record) string
		found bool
	}{
		{name: "the bucket has it not", of: func(e *ledger.Record) string { return e.ExecutionID }, found: true},
		{name: "not signed", checker: signer{}, signer: signer{}, of: func(e *ledger.Record) string { return e.ExecutionID }},
		{name: "of an execution that nobody began", of: func(*ledger.Record) string { return ulid.Make().String() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			e := s.begin(t, "etag")
			lie := *e
			lie.ExecutionID = c.of(e)
			liar, _ := s.of("liar")
			if _, err := arrive(t, liar, &lie, "sum"); err != nil {
				t.Fatal(err)
			}
			a, _ := s.of("a")
			a.checker, a.signer = c.checker, c.signer
			get := func() *ledger.Record {
				t.Helper()
				r, err := a.Get(t.Context(), s.key)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			if r := get(); c.found {
				if len(r.Successful) != 1 {
					t.Fatalf("nobody has looked yet, and it does not count: %+v", r)
				}
				if err := take(t, a, e, "upload"); !errors.Is(err, ledger.ErrHeld) {
					t.Fatalf("the landing of what has arrived: %v", err)
				}
				a.Untrue(s.key, e.ExecutionID)
			}
			if r := get(); len(r.Successful) > 0 {
				t.Errorf("it counts: %+v", r)
			}
			if err := take(t, a, e, "upload"); err != nil {
				t.Errorf("taking the landing: %v", err)
			}
			if result, err := arrive(t, a, e, "sum"); err != nil || result.Agent != "a" {
				t.Errorf("%+v, %v", result, err)
			}
			if r := get(); len(r.Successful) != 1 || r.Results["aaa"].Agent != "a" {
				t.Errorf("the arrival is %+v", r.Results)
			}
			// It is looked at anew: what was found is of the row that was there then.
			b, _ := s.of("b")
			b.checker = c.checker
			if err := take(t, b, e, "upload"); !errors.Is(err, ledger.ErrHeld) {
				t.Errorf("what has arrived is landed again: %v", err)
			}
		})
	}
}

// Whatever somebody has written into a row, it is read as far as it can be, and written over.
func TestRowsAreReadLeniently(t *testing.T) {
	s := newSite(t)
	e := s.begin(t, "etag")
	p := Place{s.key, "aaa"}
	many := item{}
	for i := range 3 * maxLandings {
		many[executionid.New(time.Now().Add(time.Duration(i)*time.Second), e.ExecutionID)] = &types.AttributeValueMemberM{Value: item{"agent": text("x")}}
	}
	whole := item{"executionId": text(e.ExecutionID), "result": &types.AttributeValueMemberM{Value: item{"success": &types.AttributeValueMemberBOOL{Value: true}}}}
	for name, c := range map[string]struct {
		more    item
		arrived bool
	}{
		"nothing":           {item{}, false},
		"arrived":           {whole, true},
		"another build":     {item{"fileKey": text("other"), "executionId": whole["executionId"], "result": whole["result"]}, false},
		"not of this world": {item{"executionId": text("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"), "result": whole["result"]}, false},
		"no map":            {item{"executionId": whole["executionId"], "result": text("yes"), "landings": number(3), "version": text("x")}, false},
		"landings":          {item{"landings": &types.AttributeValueMemberM{Value: many}}, false},
		"huge":              {item{"executionId": whole["executionId"], "result": whole["result"], "signature": &types.AttributeValueMemberB{Value: make([]byte, maxSignature+1)}}, true},
		"numbers": {item{"executionId": whole["executionId"], "retries": number(-1), "version": &types.AttributeValueMemberN{Value: "1e300"},
			"result": &types.AttributeValueMemberM{Value: item{"success": text("true"), "bytes": text("7"), "seconds": number(-1)}}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			i := p.key()
			i["fileKey"], i["sourceBucket"] = text(s.key.FileKey), text(s.key.SourceBucket)
			for name, v := range c.more {
				i[name] = v
			}
			if _, err := s.table.client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &s.table.name, Item: i}); err != nil {
				t.Fatal(err)
			}
			a, _ := s.of("a")
			r, err := a.Get(t.Context(), s.key)
			if err != nil || (len(r.Successful) == 1) != c.arrived {
				t.Errorf("%+v, %v", r, err)
			}
			row, err := s.table.row(t.Context(), p)
			if err != nil || len(row.landings) > maxLandings || row.Arrival != nil && len(row.Arrival.Signature) > maxSignature {
				t.Errorf("%+v, %v", row, err)
			}
			if _, err := arrive(t, a, e, "sum"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A table that is missing, or another one, is said.
func TestCheck(t *testing.T) {
	if err := New(cloud.DynamoDB, "none-such").Check(t.Context()); !errors.Is(err, ledger.ErrNoTable) || !strings.Contains(err.Error(), "seeder init") {
		t.Error(err)
	}
	if err := New(cloud.DynamoDB, cloud.Table(t)).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "--arrivals-table") {
		t.Error(err)
	}
	s := newSite(t)
	if created, err := s.table.Create(t.Context()); created || err != nil {
		t.Errorf("made again: %v, %v", created, err)
	}
	places := make([]Place, 2*maxBatch+1)
	for i := range places {
		places[i] = Place{ledger.Key{FileKey: fmt.Sprint(i), SourceBucket: "global-builds"}, "aaa"}
	}
	if rows, err := s.table.Rows(t.Context(), places); err != nil || len(rows) != 0 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}

// BenchmarkLandings is what the embedded table bears of builds that land in 8 regions, in two
// writes each, with the reads of a landing.
func BenchmarkLandings(b *testing.B) {
	s := newSite(b)
	const regions = 8
	var agents []*Records
	for i := range regions {
		agents = append(agents, NewRecords(s.items, s.table, fmt.Sprintf("region-%d-builds", i), "a", "p", nil, nil))
	}
	at := time.Now()
	for n := 0; b.Loop(); n++ {
		key := ledger.Key{FileKey: fmt.Sprintf("build-%d.zip", n), SourceBucket: "global-builds"}
		e := ledger.Start{Key: key, SourceETag: "e", Size: 7, Now: at}
		for _, a := range agents {
			e.Destinations = append(e.Destinations, a.bucket)
		}
		begun, err := s.items.Begin(b.Context(), e)
		if err != nil {
			b.Fatal(err)
		}
		var all sync.WaitGroup
		for _, a := range agents {
			all.Go(func() {
				for range 2 {
					if _, err := a.Get(b.Context(), key); err != nil {
						b.Error(err)
					}
				}
				if _, err := a.SetLanding(b.Context(), key, begun.Record.ExecutionID, a.bucket, ledger.Landing{UploadID: "u"}); err != nil {
					b.Error(err)
				}
				if _, err := a.Arrive(b.Context(), begun.Record, a.bucket, ledger.Result{Timestamp: at, Bytes: 7}); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "builds/s")
	b.ReportMetric(float64(s.table.counts.landings.Load()+s.table.counts.results.Load())/float64(b.N*regions), "writes/landing")
}
