package seeder

import (
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/devcloud/cloudtest"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/owner"
)

var cloud *cloudtest.Cloud

func TestMain(m *testing.M) { cloudtest.VerifyTestMain(m, &cloud) }

// id returns the n-th executionId.
func id(n int) string {
	return "01ARZ3NDEKTSV4RRFFQ69G5F" + string(rune('A'+n/26)) + string(rune('A'+n%26))
}

func record(n int, key string, version int64) *ledger.Record {
	return &ledger.Record{
		Key: ledger.Key{FileKey: key, SourceBucket: "global"}, ExecutionID: id(n), Status: ledger.InProgress,
		Destinations: []string{"a-builds", "b-builds"}, Size: 100, Version: version, Results: map[string]ledger.Result{},
	}
}

func TestIndexKeepsTheNewest(t *testing.T) {
	x := newIndex()
	x.put(record(1, "k", 5))
	o := owner.New[event](nil)
	x.ask(id(1), asked{}, func(*ledger.Record, live) *owner.Owner[event] { return o })
	x.put(record(1, "k", 4)) // an answer that was overtaken
	if r, _ := x.get(id(1)); r.Version != 5 {
		t.Errorf("version %d", r.Version)
	}
	x.put(record(2, "k", 6))
	if heard := listen(t, o); !slices.Contains(heard, event(taken{id(2)})) {
		t.Errorf("whoever carries the old execution was told %v", heard)
	}
	if _, ok := x.get(id(1)); ok {
		t.Error("the superseded execution is still there")
	}
	x.put(record(3, "k", 7))
	if next, ok := x.successor(id(1)); !ok || next != id(3) {
		t.Errorf("successor of the first is %s", next)
	}
	x.put(record(1, "k", 9)) // the table can never go back
	if x.newest(ledger.Key{FileKey: "k", SourceBucket: "global"}).ExecutionID != id(3) {
		t.Error("an old execution came back")
	}
}

func TestIndexPages(t *testing.T) {
	x := newIndex()
	for _, n := range []int{3, 1, 4, 2, 0} {
		x.put(record(n, id(n), 1))
	}
	var got []string
	after := ""
	for {
		page, next := x.page(2, after, matching(nil))
		for _, e := range page {
			got = append(got, e.ExecutionID)
		}
		if after = next; next == "" {
			break
		}
	}
	if want := []string{id(4), id(3), id(2), id(1), id(0)}; !slices.Equal(got, want) {
		t.Errorf("pages give %v", got)
	}
	if page, _ := x.page(10, "", matching(url.Values{"key": {id(2)}})); len(page) != 1 || page[0].Key != id(2) {
		t.Errorf("by key %v", page)
	}
}

func TestDestinationViews(t *testing.T) {
	x := newIndex()
	r := record(1, "k", 1)
	x.put(r)
	state := func(bucket string) api.Destination {
		e, _ := x.one(id(1))
		return e.Destinations[slices.Index(r.Destinations, bucket)]
	}
	if s := state("a-builds"); s.State != api.StateQueued {
		t.Errorf("before it is announced: %+v", s)
	}
	x.publish(id(1), live{phase: api.PhaseDistributing})
	if s := state("a-builds"); s.State != api.StateUnserved || s.Error == "" {
		t.Errorf("with nobody there: %+v", s)
	}
	x.serve(map[string]bool{"a-builds": true}, nil, nil)
	o := owner.New[event](nil)
	x.ask(id(1), asked{}, func(*ledger.Record, live) *owner.Owner[event] { return o })
	listen(t, o)
	saysNews := func() bool {
		return slices.ContainsFunc(listen(t, o), func(e event) bool { r, ok := e.(reported); return ok && r.news })
	}
	now := time.Now()
	say := func(node string, b gossip.BuildProgress) {
		b.ExecutionID = id(1)
		x.heard(gossip.Progress{Node: node, Region: "a", Bucket: "a-builds"}, b, now)
	}
	say("one", gossip.BuildProgress{State: api.StateDownloading, Verified: 40})
	say("two", gossip.BuildProgress{State: api.StateDownloading, Verified: 30})
	if s := state("a-builds"); s.VerifiedBytes != 40 || s.Agent != "one" || s.Region != "a" {
		t.Errorf("of two agents the furthest: %+v", s)
	}
	x.heard(gossip.Progress{Node: "x", Bucket: "elsewhere"}, gossip.BuildProgress{ExecutionID: id(1)}, now)
	if saysNews() {
		t.Error("nobody said landed")
	}
	say("one", gossip.BuildProgress{State: api.StateLanded, Verified: 100, Landed: 100})
	if !saysNews() {
		t.Error("an agent said landed, and the owner is not told")
	}
	if s := state("a-builds"); s.State != api.StateLanding {
		t.Errorf("an agent's word is not the table's: %+v", s)
	}
	done := r.Clone()
	done.Version, done.Successful = 2, []string{"a-builds"}
	x.put(done)
	if s := state("a-builds"); s.State != api.StateLanded || s.LandedBytes != 100 {
		t.Errorf("landed: %+v", s)
	}
}

// listener hears what an owner was told.
type listener struct {
	owner *owner.Owner[event]
	heard []event
}

func (l *listener) Hear(_ time.Time, e event) { l.heard = append(l.heard, e) }
func (l *listener) Due() time.Time            { return time.Time{} }
func (l *listener) Wake(time.Time)            {}
func (l *listener) Over() bool                { return l.owner.Idle() }

// listen returns what the owner was told and has not heard yet.
func listen(t *testing.T, o *owner.Owner[event]) []event {
	t.Helper()
	l := &listener{owner: o}
	o.Run(t.Context(), l)
	return l.heard
}

func TestFailedDestinationThatMovesAgain(t *testing.T) {
	x := newIndex()
	failedAt := time.Now()
	r := record(1, "k", 1)
	r.Failed = []string{"a-builds"}
	r.Results["a-builds"] = ledger.Result{Timestamp: failedAt, Error: "no progress"}
	x.put(r)
	view := func() api.Destination { e, _ := x.one(id(1)); return e.Destinations[0] }
	if d := view(); d.State != api.StateFailed || d.Error != "no progress" {
		t.Errorf("%+v", d)
	}
	x.heard(gossip.Progress{Node: "n", Bucket: "a-builds"}, gossip.BuildProgress{ExecutionID: id(1), State: api.StateDownloading, Verified: 1}, failedAt.Add(time.Second))
	if d := view(); d.State != api.StateDownloading {
		t.Errorf("%+v", d)
	}
}

// However often agents say that they have landed what has ended, the table is looked at
// once in a while.
func TestLateWordsAreBounded(t *testing.T) {
	x := newIndex()
	r := record(1, "k", 1)
	r.Failed = []string{"a-builds"}
	x.put(r)
	looks, now := 0, time.Now()
	for i := range 100 {
		landed := gossip.BuildProgress{ExecutionID: id(1), State: api.StateLanded}
		if x.heard(gossip.Progress{Node: "n", Bucket: "a-builds"}, landed, now.Add(time.Duration(i)*lateInterval/50)) != nil {
			looks++
		}
	}
	if looks != 2 {
		t.Errorf("looked %d times in two intervals", looks)
	}
}

// Where an agent records arrivals in another table, the destination says so.
func TestRecordElsewhere(t *testing.T) {
	x := newIndex()
	x.put(record(1, "k", 1))
	if news := x.recordElsewhere(map[string]string{"a-builds": "another table"}); len(news) != 1 {
		t.Errorf("news %v", news)
	}
	if news := x.recordElsewhere(map[string]string{"a-builds": "another table"}); len(news) != 0 {
		t.Errorf("the same again is news: %v", news)
	}
	if e, _ := x.one(id(1)); e.Destinations[0].Bucket != "a-builds" || e.Destinations[0].Error != "another table" {
		t.Errorf("%+v", e.Destinations)
	}
	x.recordElsewhere(nil)
	if e, _ := x.one(id(1)); e.Destinations[0].Error != "" {
		t.Errorf("%+v", e.Destinations)
	}
}

func TestReservations(t *testing.T) {
	r := newReservations()
	if r.held("k") || !r.take("k") || !r.held("k") || r.take("k") {
		t.Error("a key under upload must be held, once")
	}
	r.release("k")
	if !r.held("k") {
		t.Error("released while its upload runs")
	}
	r.uploaded("k", nil)
	if !r.held("k") || !r.take("k") {
		t.Error("an uploaded key waits for its publish, and can be uploaded again")
	}
	r.uploaded("k", nil)
	r.keys["k"] = reservation{until: time.Now().Add(-time.Second)}
	if r.held("k") {
		t.Error("held for ever")
	}
}

// Links are kept of members alone, and of the executions heard of last.
func TestLinksAreBounded(t *testing.T) {
	x := newIndex()
	var many []string
	everybody := map[string]bool{"a": true, "b": true, "c": true}
	for n := range maxLinks + 10 {
		many = append(many, strconv.Itoa(n))
		everybody[many[n]] = true
	}
	hear := func(n int, node string, from ...string) {
		var links []gossip.Link
		for _, f := range from {
			links = append(links, gossip.Link{ID: f, Bytes: 7, Rate: 3})
		}
		x.heardLinks(gossip.Links{Node: node, ExecutionID: id(n), From: links}, time.Now())
	}
	x.put(record(0, "none", 1))
	x.serve(nil, nil, everybody)
	hear(0, "a", "a", "stranger")
	hear(0, "stranger", "a")
	if got := x.linksOf(id(0)); len(got) != 1 || got[0].From != "a" || got[0].To != "a" {
		t.Errorf("with strangers: %+v", got)
	}
	executions := maxAllLinks/maxLinks + 2
	for n := 1; n <= executions; n++ {
		x.put(record(n, id(n), 1))
		hear(n, "a", many...)
		hear(1, "b", "c") // is heard of again and again
	}
	for n, want := range map[int]int{0: 0, 1: maxLinks, 2: 0, executions: maxLinks} {
		if got := len(x.linksOf(id(n))); got != want {
			t.Errorf("execution %d has %d links, want %d", n, got, want)
		}
	}
	x.put(record(executions+1, id(executions), 2)) // supersedes one
	kept := 0
	for _, e := range x.linked {
		kept += len(e.links)
	}
	if kept != x.links || kept > maxAllLinks {
		t.Errorf("%d links are kept, %d counted", kept, x.links)
	}
	x.heardLinks(gossip.Links{Node: "a", ExecutionID: id(1), From: []gossip.Link{{ID: "0", Bytes: 9, Rate: 5}}}, time.Now().Add(-progressAge-time.Second))
	if l := x.linksOf(id(1))[0]; l.From != "0" || l.Bytes != 9 || l.Rate != 0 {
		t.Errorf("an old word is %+v, want its bytes and no rate", l)
	}
}

func TestStrongestLinks(t *testing.T) {
	links := []api.Link{{From: "a", To: "b", Bytes: 1}, {From: "a", To: "c", Bytes: 9}, {From: "b", To: "a", Bytes: 5}, {From: "c", To: "a", Bytes: 5}}
	got := strongest(links, 2)
	if len(got) != 2 || got[0].To != "c" || got[1].From != "b" {
		t.Errorf("%+v", got)
	}
	sums := traffic(links)
	if len(sums) != 3 || sums[0].Sent != 10 || sums[0].Received != 10 || sums[1].Sent != 5 || sums[2].Received != 9 {
		t.Errorf("%+v", sums)
	}
}
