package seeder

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// maxSuperseded bounds the superseded ids whose successor is remembered.
	maxSuperseded = 10_000
	// progressAge is how old an agent's report may be and still be shown as
	// the present.
	progressAge = 10 * time.Second
	// maxReporters bounds the agents of one bucket whose reports are kept.
	maxReporters = 16
	// maxLinks bounds the links kept, of one execution and of all: 64 agents have
	// 4,032. What is heard of no more goes first.
	maxLinks, maxAllLinks = 8192, 100_000
)

// index is what the table says, in memory, with the live progress beside it. The
// table is read whole once, at the start; after that every change passes here. What has
// ended and is not of the last is packed (archive.go), since a table only grows.
type index struct {
	mu    sync.Mutex
	byKey map[ledger.Key]*execution
	byID  map[string]*execution
	// order has all executions by id, so that the newest is last: the ids of those in
	// byID, and the others packed, which packed has by their keys.
	order  []packed
	packed map[fingerprint]packed
	names  *names
	// counts are how many executions have which status, other systems' left out.
	counts map[ledger.Status]int
	// ended are executions in byID that are over, in the order in which they ended.
	ended  []string
	gone   map[string]string    // superseded executionId → successor
	served map[string]time.Time // since when
	// distrust says, of buckets that are not served, which agent does not take this
	// seeder's word.
	distrust map[string]string
	// elsewhere says of buckets that an agent there records arrivals in another table.
	elsewhere map[string]string
	// members are the ids of all there are now.
	members map[string]bool
	linked  []*execution // that have links, the one heard of last at the end
	links   int          // of all of them
}

// execution is one entry. Its fields are guarded by the index's mutex.
type execution struct {
	record *ledger.Record
	live   live
	// claimed while a distribution carries it.
	claimed bool
	// look asks the distribution to read the table: an agent says it landed.
	look bool
	// request is what came last of what a distribution is begun for while one carries
	// the execution; it goes on with that, or begins again where that comes too late.
	// Nil for nothing.
	request *request
	// reports are the agents' newest words, by bucket and node.
	reports map[string]map[string]report
	// links are where the agents' bytes came from.
	links map[ends]link
	// changed is closed and replaced whenever the entry changes.
	changed chan struct{}
}

// live is what only this process knows of an execution.
type live struct {
	phase  string
	pulled int64
	sent   func() int64 // nil until it is seeded
	err    error
	// retryAt is when what failed is tried again; past when it is not waited for.
	retryAt time.Time
	// began, whole and announced are when, since takenUp, the pull began, when it was
	// whole, and the last announcement that begins the destinations' time; zero for
	// what has not been.
	began, whole, announced time.Time
	// takenUp is when this process began, or began again, to carry it.
	takenUp time.Time
	// retried is when somebody last asked for a retry: time before does not count
	// against a destination.
	retried time.Time
	// gone is set when the source has the object no more: only a person's retry
	// can change that.
	gone bool
}

// request is a reason to carry an execution.
type request struct {
	why string
	// trace has the span that the work continues; it ends with Run.
	trace context.Context
}

type report struct {
	gossip.BuildProgress
	region string
	at     time.Time
	// moved is when verified or landed bytes last grew, or it was queued.
	moved time.Time
}

// ends are the members at the ends of a link, by id.
type ends struct{ from, to string }

// link is what an agent said last of one sender.
type link struct {
	bytes, rate int64
	at          time.Time
}

func newIndex() *index {
	return &index{
		byKey:  make(map[ledger.Key]*execution),
		byID:   make(map[string]*execution),
		packed: make(map[fingerprint]packed),
		names:  newNames(),
		counts: make(map[ledger.Status]int),
		gone:   make(map[string]string),
		served: make(map[string]time.Time),
	}
}

// put takes in a record. A record older than the one known is ignored; a new
// executionId for a key supersedes the old one.
func (x *index) put(r *ledger.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.at(r.ExecutionID); e != nil && e.record.Key != r.Key {
		return // a copy of another's item
	}
	old := x.whole(r.Key)
	if old != nil {
		if !old.record.Foreign && r.ExecutionID < old.record.ExecutionID ||
			r.ExecutionID == old.record.ExecutionID && r.Version < old.record.Version {
			return
		}
		if r.ExecutionID == old.record.ExecutionID {
			x.count(old.record, -1)
			x.count(r, 1)
			old.record = r
			old.wake()
			return
		}
		x.supersede(old.record.ExecutionID, r.ExecutionID)
		old.wake()
	}
	e := newExecution(r)
	x.byKey[r.Key], x.byID[r.ExecutionID] = e, e
	i, _ := x.find(r.ExecutionID)
	x.order = slices.Insert(x.order, i, packed(r.ExecutionID))
	x.count(r, 1)
}

func newExecution(r *ledger.Record) *execution {
	e := &execution{record: r, reports: make(map[string]map[string]report), changed: make(chan struct{})}
	e.live.phase = api.PhaseQueued
	if over(r) {
		e.live.phase = api.PhaseEnded
	}
	return e
}

func (x *index) supersede(old, successor string) {
	if e := x.byID[old]; e != nil && e.links != nil {
		x.linked = slices.DeleteFunc(x.linked, func(other *execution) bool { return other == e })
		x.links -= len(e.links)
	}
	if e := x.byID[old]; e != nil {
		x.count(e.record, -1)
	}
	delete(x.byID, old)
	if i, ok := x.find(old); ok {
		x.order = slices.Delete(x.order, i, i+1)
	}
	if len(x.gone) >= maxSuperseded {
		oldest := slices.Sorted(maps.Keys(x.gone))
		for _, id := range oldest[:maxSuperseded/10] {
			delete(x.gone, id)
		}
	}
	x.gone[old] = successor
}

func (e *execution) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// get returns the record and a channel closed at its next change, nil where nobody
// carries it; ok is false for an id that is unknown or superseded.
func (x *index) get(id string) (r *ledger.Record, changed <-chan struct{}, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.at(id)
	if e == nil {
		return nil, nil, false
	}
	return e.record, e.changed, true
}

// successor follows a superseded id to the execution of today.
func (x *index) successor(id string) (string, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	next, ok := x.gone[id]
	for range maxSuperseded {
		further, more := x.gone[next]
		if !more {
			break
		}
		next = further
	}
	return next, ok
}

// newest returns the record of a key, nil when there is none.
func (x *index) newest(k ledger.Key) *ledger.Record {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.byKey[k]; e != nil {
		return e.record
	}
	if p, ok := x.packed[fingerprintOf(k.FileKey, k.SourceBucket)]; ok {
		return p.unpack(x.names)
	}
	return nil
}

// unfinished returns the records with destinations that have not arrived,
// oldest first, those of other systems left out.
func (x *index) unfinished() []*ledger.Record {
	var out []*ledger.Record
	x.backwards("", func(p packed) bool {
		if p.isPacked() {
			if p.status() != ledger.Completed && !p.foreign() {
				out = append(out, p.unpack(x.names))
			}
		} else if r := x.byID[string(p)].record; r.Status != ledger.Completed && !r.Foreign {
			out = append(out, r)
		}
		return true
	})
	slices.Reverse(out)
	return out
}

// running returns the records of what is under way.
func (x *index) running() []*ledger.Record {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []*ledger.Record
	for _, e := range x.byID {
		if !over(e.record) {
			out = append(out, e.record)
		}
	}
	return out
}

// isGone reports whether the source was found not to have an execution's object.
func (x *index) isGone(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[id]
	return e != nil && e.live.gone
}

// claim makes the caller the one that carries an execution; false when somebody
// does already, to whom the request is left. A nil request is not left.
func (x *index) claim(id string, r *request) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.wholeByID(id)
	switch {
	case e == nil:
		return false
	case e.claimed && r != nil:
		if e.request == nil || e.request.why != asRetried { // which asks for most
			e.request = r
		}
		e.wake()
		return false
	case e.claimed:
		return false
	}
	e.claimed = true
	return true
}

// unclaim ends a claim; unless there is a request that came too late for whoever had
// the claim and destinations are left to be reached: then the claim stays, for what
// the request asks.
func (x *index) unclaim(id string) (r *ledger.Record, late *request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[id]
	if e == nil {
		return nil, nil
	}
	late, e.request = e.request, nil
	if late == nil || !wanted(e.record) {
		e.claimed = false
		x.packOld(id)
		return nil, nil
	}
	return e.record, late
}

// update changes what only this process knows.
func (x *index) update(id string, f func(*live)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.byID[id]; e != nil {
		f(&e.live)
	}
}

// serve takes in which buckets are served, and the ids of all members.
func (x *index) serve(served, members map[string]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	since := make(map[string]time.Time, len(served))
	for bucket := range served {
		at, known := x.served[bucket]
		if !known {
			at = time.Now()
		}
		since[bucket] = at
	}
	x.served, x.members = since, members
}

// recordElsewhere takes in, by bucket, why an agent's arrivals are not seen here, and
// returns what is news.
func (x *index) recordElsewhere(why map[string]string) (news map[string]string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	news = maps.Clone(why)
	maps.DeleteFunc(news, func(bucket, text string) bool { return x.elsewhere[bucket] == text })
	x.elsewhere = why
	return news
}

// heard takes in an agent's report. When it says that the build landed or failed and the
// record does not have that yet, whoever follows the execution is woken to read
// the table.
func (x *index) heard(p gossip.Progress, b gossip.BuildProgress, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[b.ExecutionID]
	if e == nil || !slices.Contains(e.record.Destinations, p.Bucket) {
		return
	}
	nodes := e.reports[p.Bucket]
	if nodes == nil {
		nodes = make(map[string]report)
		e.reports[p.Bucket] = nodes
	}
	old, known := nodes[p.Node]
	if !known && len(nodes) >= maxReporters {
		return
	}
	r := report{BuildProgress: b, region: p.Region, at: now, moved: old.moved}
	if b.Verified > old.Verified || b.Landed > old.Landed || b.State == api.StateQueued || !known {
		r.moved = now // a queued build waits for its turn, or for disk
	}
	nodes[p.Node] = r
	landed := b.State == api.StateLanded && !slices.Contains(e.record.Successful, p.Bucket)
	failed := b.State == api.StateFailed && !slices.Contains(e.record.Failed, p.Bucket)
	if landed || failed {
		e.look = true
		e.wake()
	}
}

// heardLinks takes in where an agent's bytes came from, as far as members sent it.
func (x *index) heardLinks(l gossip.Links, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[l.ExecutionID]
	if e == nil || !x.members[l.Node] {
		return
	}
	if e.links == nil {
		e.links = make(map[ends]link)
	} else {
		x.linked = slices.DeleteFunc(x.linked, func(other *execution) bool { return other == e })
	}
	x.linked = append(x.linked, e)
	for _, f := range l.From {
		key := ends{f.ID, l.Node}
		_, known := e.links[key]
		if !known && (len(e.links) >= maxLinks || !x.members[f.ID]) {
			continue
		}
		if !known {
			x.links++
		}
		e.links[key] = link{f.Bytes, f.Rate, now}
	}
	for x.links > maxAllLinks {
		oldest := x.linked[0]
		x.links -= len(oldest.links)
		oldest.links, x.linked = nil, x.linked[1:]
	}
}

// linksOf returns who has sent what to whom, in order of the names.
func (x *index) linksOf(id string) []api.Link {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := []api.Link{}
	e := x.byID[id]
	if e == nil {
		return out
	}
	for of, l := range e.links {
		v := api.Link{From: of.from, To: of.to, Bytes: l.bytes, Rate: l.rate}
		if time.Since(l.at) > progressAge {
			v.Rate = 0
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b api.Link) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	return out
}

// asked returns, once, what was asked of whoever follows the execution: to read the
// table, and to announce it once more, for a retry.
func (x *index) asked(id string) (look, again bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.byID[id]; e != nil {
		look, again = e.look, e.request != nil && e.request.why == asRetried
		e.look, e.request = false, nil // what is under way is followed anyway
	}
	return look, again
}

// take returns the record to an attempt that begins, which does what was asked before.
func (x *index) take(id string) (*ledger.Record, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[id]
	if e == nil {
		return nil, false
	}
	e.request = nil
	return e.record, true
}

// servedSince is when the first of a bucket's living agents came; zero when there is
// none.
func (x *index) servedSince(bucket string) time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.served[bucket]
}

// idle returns, for a destination, when its agents last made progress or a retry was
// asked for, and what they complained of; zero for never.
func (x *index) idle(id, bucket string) (moved time.Time, complaint string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[id]
	if e == nil {
		return time.Time{}, ""
	}
	moved = e.live.retried
	for _, r := range e.reports[bucket] {
		if r.moved.After(moved) {
			moved = r.moved
		}
		if r.Error != "" {
			complaint = r.Error
		}
	}
	return moved, complaint
}
