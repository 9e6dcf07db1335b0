package seeder

import (
	"cmp"
	"slices"
	"strings"

	"github.com/landfall-dist/landfall/internal/ledger"
)

const (
	// maxEndedWhole bounds the executions that are kept whole after their end, with what
	// this process saw of them. A page of the list has no more.
	maxEndedWhole = 1000
	// maxLooked is how many executions a search looks at before it lets others have the
	// index: some milliseconds.
	maxLooked = 4096
)

// over reports whether nothing is under way for a record.
func over(r *ledger.Record) bool { return r.Status != ledger.InProgress || r.Foreign }

// archive are packed records on their way into an index.
type archive struct {
	order  []packed
	byKey  map[fingerprint]packed
	names  *names
	counts map[ledger.Status]int
	odd    []*ledger.Record // that cannot be packed
	// chunk is what the next records are copied into, so that not each is an object of
	// its own for the garbage collector.
	chunk strings.Builder
}

// chunkLength is an archive's chunk in bytes. One is kept as long as a record in it is
// packed.
const chunkLength = 256 << 10

func newArchive() *archive {
	return &archive{byKey: make(map[fingerprint]packed), names: newNames(), counts: make(map[ledger.Status]int)}
}

// add packs a record. A table has one item of each key, so there is no older one.
func (a *archive) add(r *ledger.Record) {
	p, ok := pack(r, a.names)
	if !ok {
		a.odd = append(a.odd, r)
		return
	}
	p = a.copy(p)
	a.order = append(a.order, p)
	a.byKey[fingerprintOf(r.FileKey, r.SourceBucket)] = p
	if !r.Foreign {
		a.counts[r.Status]++
	}
}

func (a *archive) copy(p packed) packed {
	if a.chunk.Len()+len(p) > a.chunk.Cap() {
		a.chunk = strings.Builder{}
		a.chunk.Grow(max(chunkLength, len(p)))
	}
	start := a.chunk.Len()
	a.chunk.WriteString(string(p))
	return packed(a.chunk.String()[start:])
}

func byID(a, b packed) int { return cmp.Compare(a.id(), b.id()) }

// takeIn adds what the table says of executions that have ended. What was accepted
// since is newer.
func (x *index) takeIn(a *archive) {
	slices.SortFunc(a.order, byID) // once, and nobody waits for it
	var again []*ledger.Record
	x.mu.Lock()
	// What is packed here already is of what this process has seen; there are few.
	for _, p := range x.packed {
		again = append(again, p.unpack(x.names))
	}
	again = append(again, a.odd...)
	drop := make(map[packed]bool)
	for k := range x.byKey {
		of := fingerprintOf(k.FileKey, k.SourceBucket)
		if p, ok := a.byKey[of]; ok {
			again = append(again, p.unpack(a.names))
			drop[p] = true
			delete(a.byKey, of)
			a.count(p, -1)
		}
	}
	old := make([]packed, 0, len(x.byID)+len(a.order))
	for id := range x.byID {
		old = append(old, packed(id))
	}
	slices.SortFunc(old, byID)
	merged := make([]packed, 0, len(old)+len(a.order))
	for _, p := range a.order {
		for len(old) > 0 && byID(old[0], p) < 0 {
			merged, old = append(merged, old[0]), old[1:]
		}
		if !drop[p] {
			merged = append(merged, p)
		}
	}
	x.order = append(merged, old...)
	x.packed, x.names = a.byKey, a.names
	for _, e := range x.byID {
		a.countRecord(e.record)
	}
	x.counts = a.counts
	x.mu.Unlock()
	for _, r := range again {
		x.put(r)
	}
}

func (a *archive) count(p packed, n int) {
	if !p.foreign() {
		a.counts[p.status()] += n
	}
}

func (a *archive) countRecord(r *ledger.Record) {
	if !r.Foreign {
		a.counts[r.Status]++
	}
}

// count adds n executions like r. The caller holds mu, here and below.
func (x *index) count(r *ledger.Record, n int) {
	if !r.Foreign {
		x.counts[r.Status] += n
	}
}

// find returns where an id is in the order, or would be.
func (x *index) find(id string) (i int, ok bool) {
	return slices.BinarySearchFunc(x.order, id, func(p packed, id string) int { return cmp.Compare(p.id(), id) })
}

// at returns an execution to look at; nil when there is none. A packed one is unpacked
// for this once.
func (x *index) at(id string) *execution {
	if e := x.byID[id]; e != nil {
		return e
	}
	i, ok := x.find(id)
	if !ok {
		return nil
	}
	return newExecution(x.order[i].unpack(x.names))
}

// wholeByID is at, to change something.
func (x *index) wholeByID(id string) *execution {
	if e := x.byID[id]; e != nil {
		return e
	}
	i, ok := x.find(id)
	if !ok {
		return nil
	}
	e := newExecution(x.order[i].unpack(x.names))
	k := e.record.Key
	delete(x.packed, fingerprintOf(k.FileKey, k.SourceBucket))
	x.byKey[k], x.byID[id], x.order[i] = e, e, packed(id)
	x.ended = append(x.ended, id)
	return e
}

// whole is wholeByID by key.
func (x *index) whole(k ledger.Key) *execution {
	if e := x.byKey[k]; e != nil {
		return e
	}
	if p, ok := x.packed[fingerprintOf(k.FileKey, k.SourceBucket)]; ok {
		return x.wholeByID(p.id())
	}
	return nil
}

// packOld notes that an execution is not carried any more, and packs those that are not
// for the longest time.
func (x *index) packOld(id string) {
	if x.ended = append(x.ended, id); len(x.ended) <= maxEndedWhole {
		return
	}
	oldest := x.ended[0]
	x.ended = x.ended[1:]
	e := x.byID[oldest]
	// One that is carried again comes again at its end; of one whose source has no
	// object, only this process knows.
	if e == nil || e.owner != nil || e.live.sourceMissing || !over(e.record) || slices.Contains(x.ended, oldest) {
		return
	}
	p, ok := pack(e.record, x.names)
	i, found := x.find(oldest)
	if !ok || !found {
		return
	}
	if e.links != nil {
		x.linked = slices.DeleteFunc(x.linked, func(other *execution) bool { return other == e })
		x.links -= len(e.links)
	}
	delete(x.byKey, e.record.Key)
	delete(x.byID, oldest)
	x.order[i] = p
	x.packed[fingerprintOf(e.record.FileKey, e.record.SourceBucket)] = p
}

// backwards calls f with what the order has, the newest first, from before an id on, or
// from the end for none, until f returns false. It holds mu while f runs, but not all the
// time: who wants the index meanwhile gets it.
func (x *index) backwards(before string, f func(packed) bool) {
	for more := true; more; {
		before, more = x.someBackwards(before, f)
	}
}

func (x *index) someBackwards(before string, f func(packed) bool) (last string, more bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	end := len(x.order)
	if before != "" {
		end, _ = x.find(before)
	}
	for i := end - 1; i >= 0; i-- {
		if end-i > maxLooked {
			return x.order[i+1].id(), true
		}
		if !f(x.order[i]) {
			return "", false
		}
	}
	return "", false
}
