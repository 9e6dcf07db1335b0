package seeder

import (
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
	"github.com/landfall-dist/landfall/internal/ledger/ledgertest"
	"github.com/landfall-dist/landfall/internal/owner"
)

// filled has something in every field that a seeder looks at, a different one in each.
func filled(n int) *ledger.Record {
	r := &ledger.Record{}
	at := time.Date(2026, 3, 1, 0, 0, n, 123456789, time.UTC)
	fill(reflect.ValueOf(r).Elem(), &n, at)
	r.ExecutionID, r.Status, r.Odd, r.Uploading, r.Landings = id(n%26), ledger.Failed, "", false, map[string]ledger.Landing{}
	r.Destinations = []string{"a", "b", "c", "d"}
	r.Successful, r.Failed = []string{"a"}, []string{"b", "c"}
	one := ledger.Result{}
	fill(reflect.ValueOf(&one).Elem(), &n, at)
	r.Results = map[string]ledger.Result{"a": one, "b": {Error: "no progress"}, "c": {SHA256: r.SHA256, Timestamp: at, Seconds: 0.001}}
	return r
}

// fill sets every exported field.
func fill(v reflect.Value, n *int, at time.Time) {
	for i := range v.NumField() {
		f := v.Field(i)
		if *n++; !f.CanSet() {
			continue
		}
		switch f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(at.Add(time.Duration(*n) * time.Second)))
			continue
		case map[string]string:
			f.Set(reflect.ValueOf(map[string]string{"content-type": "a/b", "x-amz-meta-empty": ""}))
			continue
		}
		switch f.Kind() {
		case reflect.String:
			f.SetString(fmt.Sprint("text ", *n))
		case reflect.Int64:
			f.SetInt(int64(*n) * 1_000_003)
		case reflect.Float64:
			f.SetFloat(float64(*n) + 0.125)
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Struct:
			fill(f, n, at)
		}
	}
}

// A packed record says the same as the whole one. Where this fails for a field that is
// new, pack and unpack have to learn it.
func TestPack(t *testing.T) {
	n := newNames()
	records := []*ledger.Record{filled(1), filled(2), {Key: ledger.Key{FileKey: "k", SourceBucket: "b"}, ExecutionID: id(3), Status: ledger.Completed}}
	for _, etag := range []string{
		"", `""`, `"`, "x", `"d41d8cd98f00b204e9800998ecf8427e"`, `"D41D8CD98F00B204E9800998ECF8427E"`, `"d41d8cd98f00b204e9800998ecf8427e-10000"`,
		`"d41d8cd98f00b204e9800998ecf8427e-010"`, `"abc"`, `"ab-cd"`, `"ab-"`, "abcd", `"-1"`,
	} {
		r := filled(4)
		r.High = etag == "x"
		r.SourceETag, r.Foreign, r.Headers, r.SourceModified, r.CompletedAt = etag, etag == "", nil, time.Time{}, time.Time{}
		records = append(records, r)
	}
	for i, want := range records {
		p, ok := pack(want, n)
		if !ok {
			t.Fatalf("%+v is not packed", want)
		}
		got := p.unpack(n)
		want = want.Clone()
		if want.Results == nil {
			want.Results, want.Landings = map[string]ledger.Result{}, map[string]ledger.Landing{}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d:\n%+v\nwant\n%+v", i, got, want)
		}
		if p.id() != want.ExecutionID || p.key() != want.FileKey || p.status() != want.Status || p.foreign() != want.Foreign || !p.isPacked() {
			t.Errorf("%d: %s, %s, %s, %v", i, p.id(), p.key(), p.status(), p.foreign())
		}
	}
	for name, r := range map[string]*ledger.Record{
		"another status": {ExecutionID: id(1), Status: "OTHER"}, "another id": {ExecutionID: "1", Status: ledger.Completed},
	} {
		if p, ok := pack(r, n); ok {
			t.Errorf("%s is packed as %q", name, p)
		}
	}
}

func ended(n int, status ledger.Status) *ledger.Record {
	r := record(n, fmt.Sprint("key-", n), 1)
	if r.Status = status; status == ledger.Completed {
		r.Successful = r.Destinations
	} else {
		r.Failed = r.Destinations
	}
	return r
}

// What is packed is listed, found, counted and changed as what is whole.
func TestPackedExecutionsAreAsWholeOnes(t *testing.T) {
	x := newIndex()
	x.put(record(30, "key-3", 1)) // accepted while the table was read, in place of the third
	x.put(record(31, "other", 1))
	a := newArchive()
	for n := range 20 {
		a.add(ended(n, []ledger.Status{ledger.Completed, ledger.Failed}[n%2]))
	}
	strange := ended(20, ledger.Completed)
	strange.Status, strange.Key.FileKey = "OTHER", "strange"
	a.add(strange)
	x.takeIn(a)
	if len(x.byID) != 3 || len(x.packed) != 19 || len(x.order) != 22 {
		t.Fatalf("%d whole, %d packed, %d in order", len(x.byID), len(x.packed), len(x.order))
	}
	list := func() (ids []string) {
		for after, page := "", 7; ; {
			es, next := x.page(page, after, matching(nil))
			for _, e := range es {
				ids = append(ids, e.ExecutionID)
			}
			if after = next; next == "" {
				return ids
			}
		}
	}
	ids := list()
	if len(ids) != 22 || ids[0] != id(31) || !slices.IsSortedFunc(ids, func(a, b string) int { return -compare(a, b) }) {
		t.Errorf("the list is %q", ids)
	}
	counts := x.countByStatus()
	if counts[ledger.InProgress] != 2 || counts[ledger.Completed] != 10 || counts[ledger.Failed] != 9 {
		t.Errorf("counted %v", counts)
	}
	if u := x.unfinished(); len(u) != 12 || u[0].ExecutionID != id(1) || len(x.running()) != 2 { // with the strange one
		t.Errorf("%d unfinished", len(u))
	}
	if es, _ := x.page(9, "", matching(url.Values{"q": {"KEY-1"}})); len(es) != 11-2 || es[0].Key != "key-19" {
		t.Errorf("found %d", len(es))
	}
	if r := x.newest(ledger.Key{FileKey: "key-4", SourceBucket: "global"}); r == nil || r.ExecutionID != id(4) {
		t.Errorf("by key: %+v", r)
	}
	if e, ok := x.one(id(5)); !ok || e.Status != "FAILED" || len(e.Destinations) != 2 || len(x.byID) != 3 {
		t.Errorf("%+v, %v", e, ok)
	}
	owners := 0
	begin := func(*ledger.Record, live) *owner.Owner[event] { owners++; return owner.New[event](nil) }
	for _, asking := range []string{id(5), id(5), "nothing"} {
		x.ask(asking, asked{why: asRetried}, begin)
	}
	if owners != 1 {
		t.Errorf("a packed execution has %d owners, expected one", owners)
	}
	newer := ended(5, ledger.Completed)
	newer.Failed, newer.Version = nil, 2
	x.put(newer)
	if c := x.countByStatus(); c[ledger.Completed] != 11 || c[ledger.Failed] != 8 {
		t.Errorf("counted %v", c)
	}
	next := ended(25, ledger.Completed)
	next.FileKey = "key-6" // in place of a packed one
	x.put(next)
	if _, ok := x.get(id(6)); ok || len(list()) != 22 {
		t.Error("a packed execution was not superseded")
	}
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

// Of those that end here only the last are kept whole.
func TestEndedExecutionsArePacked(t *testing.T) {
	x := newIndex()
	n := 0
	for range maxEndedWhole + 26 {
		r := ended(0, ledger.Completed)
		r.ExecutionID = fmt.Sprintf("01ARZ3NDEKTSV4RRFFQ%07d", n)
		r.FileKey = r.ExecutionID
		n++
		x.put(r)
		o := owner.New[event](nil)
		x.ask(r.ExecutionID, asked{why: asOver}, func(*ledger.Record, live) *owner.Owner[event] { return o })
		if x.leave(r.ExecutionID, o) {
			t.Fatal("an owner left that had not heard what it was asked for")
		}
		listen(t, o)
		if !x.leave(r.ExecutionID, o) {
			t.Fatal("an owner with nothing to do did not leave")
		}
	}
	if len(x.byID) != maxEndedWhole || len(x.packed) != 26 || len(x.ended) != maxEndedWhole || x.countByStatus()[ledger.Completed] != n {
		t.Errorf("%d whole, %d packed, %d in turn", len(x.byID), len(x.packed), len(x.ended))
	}
	if e, ok := x.one("01ARZ3NDEKTSV4RRFFQ0000000"); !ok || e.Status != "COMPLETED" {
		t.Errorf("%+v, %v", e, ok)
	}
}

// reading is a seeder that does nothing but read its table.
func reading(tb testing.TB, items int) *Seeder {
	tb.Helper()
	global, err := bucket.Open(tb.Context(), cloud.AWS, cloud.Bucket(tb), bucket.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	table := ledgertest.Table{Items: items, Source: global.Name(), Owner: global.Name()}
	return &Seeder{
		cfg:   Config{Bucket: global, Ledger: ledger.New(table.Client(), "t").As(global.Name()), Logger: slog.New(slog.DiscardHandler)},
		index: newIndex(), metrics: newMetrics(nil),
	}
}

func (s *Seeder) mustRead(tb testing.TB, items int) {
	tb.Helper()
	if _, err := s.readTable(tb.Context(), func(string) bool { return false }); err != nil {
		tb.Fatal(err)
	}
	if page, total := s.index.listed(1); total != items || len(page) != 1 || page[0].Landed != 2 || s.items.own.Load() != int64(items) {
		tb.Fatalf("%d of %d executions: %+v", total, items, page)
	}
}

// heap is the memory in use, in bytes, when what nobody uses is gone.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The table only grows: 400,000 executions have to fit beside everything else.
func TestMemoryOfATable(t *testing.T) {
	const items, most = 20_000, 450 // bytes an execution; twice that until the next collection
	s := reading(t, items)
	before := heap()
	s.mustRead(t, items)
	each := (heap() - before) / items
	t.Logf("%d bytes an execution", each)
	if each > most {
		t.Errorf("an execution that has ended takes %d bytes, at most %d", each, most)
	}
	runtime.KeepAlive(s)
}

// BenchmarkReadTable is the start of a seeder whose table answers at once.
func BenchmarkReadTable(b *testing.B) {
	for _, items := range []int{100_000, 400_000} {
		b.Run(fmt.Sprint(items), func(b *testing.B) {
			var each int64
			for b.Loop() {
				s := reading(b, items)
				before := heap()
				s.mustRead(b, items)
				each = (heap() - before) / int64(items)
				runtime.KeepAlive(s)
			}
			b.ReportMetric(float64(each), "B/execution")
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/start")
		})
	}
}
