package seeder

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/landfall-dist/landfall/internal/api"
	"github.com/landfall-dist/landfall/internal/gossip"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/owner"
)

const (
	// maxSuperseded bounds the superseded ids whose successor is remembered.
	maxSuperseded = 10_000
	// progressAge is how old an agent's report may be and still be shown as
	// the present.
	progressAge = 10 * time.Second
	// lateInterval is how often the table is looked at for one execution that nobody
	// carries, whatever agents say.
	lateInterval = time.Second
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
	ended        []string
	supersededBy map[string]string    // superseded executionId → successor
	served       map[string]time.Time // since when
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
	live   live // as its owner has published it
	// owner carries it; nil while nobody does.
	owner *owner.Owner[event]
	// reports are the agents' newest words, by bucket and node.
	reports map[string]map[string]report
	// queued is when an agent of a bucket first said that it waits for its turn.
	queued map[string]time.Time
	// links are where the agents' bytes came from.
	links map[ends]link
	// late is when the table was looked at last because an agent says that it has landed.
	late time.Time
}

type report struct {
	gossip.BuildProgress
	region string
	at     time.Time
	// moved is when verified or landed bytes last grew, or it was queued.
	moved time.Time
	// verified and landed are the most it has said, setbacks how often it said less than
	// before.
	verified, landed int64
	setbacks         int
}

const (
	// maxQueued is how long a destination may be queued without the time for it to
	// arrive running: longer than any honest turn, and not for ever.
	maxQueued = 24 * time.Hour
	// maxSetbacks is how often an agent may begin anew, since it has lost its disk, and
	// have that count as progress: who says less and more in turn gets no time by it.
	maxSetbacks = 16
)

// progressed reports whether an agent's report says more than the one before, and
// completes it by what is remembered of those.
func (r *report) progressed(old *report) bool {
	r.verified, r.landed, r.setbacks = max(r.Verified, old.verified), max(r.Landed, old.landed), old.setbacks
	if r.Verified < old.Verified || r.Landed < old.Landed {
		r.setbacks++
	}
	if r.setbacks > maxSetbacks {
		return r.Verified > old.verified || r.Landed > old.landed
	}
	return r.Verified > old.Verified || r.Landed > old.Landed
}

// mayQueue reports whether it counts that an agent of a bucket waits for its turn.
func (e *execution) mayQueue(bucket string, now time.Time) bool {
	if e.queued == nil {
		e.queued = make(map[string]time.Time)
	}
	since, ok := e.queued[bucket]
	if !ok {
		since, e.queued[bucket] = now, now
	}
	return now.Sub(since) < maxQueued
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
		byKey:        make(map[ledger.Key]*execution),
		byID:         make(map[string]*execution),
		packed:       make(map[fingerprint]packed),
		names:        newNames(),
		counts:       make(map[ledger.Status]int),
		supersededBy: make(map[string]string),
		served:       make(map[string]time.Time),
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
	up := x.byID[r.ExecutionID]
	if up != nil && !up.record.Uploading {
		up = nil
	}
	if old != nil {
		if !old.record.Foreign && r.ExecutionID < old.record.ExecutionID ||
			r.ExecutionID == old.record.ExecutionID && r.Version < old.record.Version {
			return
		}
		if r.ExecutionID == old.record.ExecutionID {
			x.count(old.record, -1)
			x.count(r, 1)
			old.record = r
			old.tell(known{r})
			return
		}
		x.supersede(old.record.ExecutionID, r.ExecutionID)
		old.tell(taken{r.ExecutionID})
	}
	if up != nil {
		x.count(up.record, -1)
		x.count(r, 1)
		up.record = r
		x.byKey[r.Key] = up
		up.tell(known{r})
		return
	}
	x.byKey[r.Key] = x.add(r)
}

// add takes in an execution by its id. The caller holds mu.
func (x *index) add(r *ledger.Record) *execution {
	e := newExecution(r)
	x.byID[r.ExecutionID] = e
	i, _ := x.find(r.ExecutionID)
	x.order = slices.Insert(x.order, i, packed(r.ExecutionID))
	x.count(r, 1)
	return e
}

// putUpload takes in an execution whose build is going up, beside that of its key.
func (x *index) putUpload(r *ledger.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.add(r)
}

// dropUpload forgets such an execution, unless it has taken the key.
func (x *index) dropUpload(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.byID[id]; e != nil && e.record.Uploading {
		x.forget(id)
	}
}

func newExecution(r *ledger.Record) *execution {
	return &execution{record: r, live: newLive(r), reports: make(map[string]map[string]report)}
}

// tell leaves an event for whoever carries the execution.
func (e *execution) tell(of event) {
	if e.owner != nil {
		e.owner.Tell(of)
	}
}

// forget takes an execution out. The caller holds mu.
func (x *index) forget(id string) {
	if e := x.byID[id]; e != nil && e.links != nil {
		x.linked = slices.DeleteFunc(x.linked, func(other *execution) bool { return other == e })
		x.links -= len(e.links)
	}
	if e := x.byID[id]; e != nil {
		x.count(e.record, -1)
	}
	delete(x.byID, id)
	if i, ok := x.find(id); ok {
		x.order = slices.Delete(x.order, i, i+1)
	}
}

func (x *index) supersede(old, successor string) {
	x.forget(old)
	if len(x.supersededBy) >= maxSuperseded {
		oldest := slices.Sorted(maps.Keys(x.supersededBy))
		for _, id := range oldest[:maxSuperseded/10] {
			delete(x.supersededBy, id)
		}
	}
	x.supersededBy[old] = successor
}

// get returns the record; ok is false for an id that is unknown or superseded.
func (x *index) get(id string) (r *ledger.Record, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.at(id)
	if e == nil {
		return nil, false
	}
	return e.record, true
}

// successor follows a superseded id to the execution of today.
func (x *index) successor(id string) (string, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	next, ok := x.supersededBy[id]
	for range maxSuperseded {
		further, more := x.supersededBy[next]
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

// running returns the records of what is under way, but for builds that are going up: for
// those whoever uploads them is waited for.
func (x *index) running() []*ledger.Record {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []*ledger.Record
	for _, e := range x.byID {
		if !over(e.record) && !e.record.Uploading {
			out = append(out, e.record)
		}
	}
	return out
}

// sourceMissing reports whether the source was found not to have an execution's object.
func (x *index) sourceMissing(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[id]
	return e != nil && e.live.sourceMissing
}

// ask tells whoever carries an execution what it is asked for. Where nobody does, begin
// returns the owner that does from now on.
func (x *index) ask(id string, a asked, begin func(*ledger.Record, live) *owner.Owner[event]) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.wholeByID(id)
	if e == nil {
		return
	}
	if e.owner == nil {
		e.owner = begin(e.record, e.live)
		e.tell(served{x.served, x.distrust})
	}
	e.tell(a)
}

// leave ends an owner that has nothing to do; false when it was told something since.
func (x *index) leave(id string, o *owner.Owner[event]) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !o.Idle() {
		return false
	}
	if e := x.byID[id]; e != nil {
		e.owner = nil
		x.packOld(id)
	}
	return true
}

// abandon has an execution without an owner after a fault, and returns its record; nil
// when it was superseded.
func (x *index) abandon(id string) *ledger.Record {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[id]
	if e == nil {
		return nil
	}
	e.owner = nil
	return e.record
}

// publish takes in what the owner of an execution shows of it.
func (x *index) publish(id string, l live) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.byID[id]; e != nil {
		e.live = l
	}
}

// retrying takes note that somebody asks for a retry, which is about to be written.
func (x *index) retrying(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.byID[id]; e != nil {
		e.live.sourceMissing = false
		e.tell(retrying{})
	}
}

// serve takes in which buckets are served, why others that have agents are not, and the
// ids of all members.
func (x *index) serve(by map[string]bool, distrust map[string]string, members map[string]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	since := make(map[string]time.Time, len(by))
	for bucket := range by {
		at, known := x.served[bucket]
		if !known {
			at = time.Now()
		}
		since[bucket] = at
	}
	x.served, x.distrust, x.members = since, distrust, members
	for _, e := range x.byID {
		e.tell(served{since, distrust})
	}
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
// record does not have that yet, whoever carries the execution reads the table; where
// nobody does and it has landed after all, the record is returned, for that to be looked
// at.
func (x *index) heard(p gossip.Progress, b gossip.BuildProgress, now time.Time) (late *ledger.Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.byID[b.ExecutionID]
	if e == nil || !slices.Contains(e.record.Destinations, p.Bucket) {
		return nil
	}
	nodes := e.reports[p.Bucket]
	if nodes == nil {
		nodes = make(map[string]report)
		e.reports[p.Bucket] = nodes
	}
	old, known := nodes[p.Node]
	if !known && len(nodes) >= maxReporters {
		return nil
	}
	r := report{BuildProgress: b, region: p.Region, at: now, moved: old.moved}
	moved := r.progressed(&old) || !known || b.State == api.StateQueued && e.mayQueue(p.Bucket, now)
	if moved {
		r.moved = now // a queued build waits for its turn, or for disk
	}
	nodes[p.Node] = r
	landed := b.State == api.StateLanded && !slices.Contains(e.record.Successful, p.Bucket)
	failed := b.State == api.StateFailed && !slices.Contains(e.record.Failed, p.Bucket)
	e.tell(reported{bucket: p.Bucket, node: p.Node, complaint: b.Error, moved: moved, news: landed || failed})
	if landed && e.owner == nil && now.Sub(e.late) >= lateInterval {
		e.late = now
		return e.record
	}
	return nil
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
