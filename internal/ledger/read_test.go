package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/landfall-dist/landfall/internal/executionid"
)

func list(v ...types.AttributeValue) types.AttributeValue {
	return &types.AttributeValueMemberL{Value: v}
}
func dict(i item) types.AttributeValue { return &types.AttributeValueMemberM{Value: i} }
func digits(n string) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: n}
}
func yes() types.AttributeValue  { return &types.AttributeValueMemberBOOL{Value: true} }
func null() types.AttributeValue { return &types.AttributeValueMemberNULL{Value: true} }

// ofOthers are items that the old system, a script of somebody's, or an accident left.
// Want is what an item is read as; empty where it is no execution.
var ofOthers = map[string]struct {
	item item
	want Record
}{
	"of the old system": {
		item{"status": text("COMPLETED"), "destinationBuckets": list(text("bbb"), text("aaa"), text("bbb")), "startTime": digits("1700000000"),
			"successfulCopies": digits("2"), "copyResults": list(dict(item{"bucket": text("aaa"), "success": yes(), "bytes": text("7")}))},
		Record{Foreign: true, Status: Completed, Destinations: []string{"aaa", "bbb"}, Successful: []string{"aaa", "bbb"}, StartTime: time.Unix(1700000000, 0)},
	},
	"with a uuid": {
		item{"executionId": text("0b3ab1e1-6a3c-4b7c-9f0e-1f2b4f6d8c11"), "status": text("failed"), "destinationBuckets": text("aaa, bbb"), "successfulBuckets": text("aaa"),
			"startTime": text("2026-01-02T03:04:05.678901")},
		Record{Foreign: true, Status: Failed, Destinations: []string{"aaa", "bbb"}, Successful: []string{"aaa"}, Failed: []string{"bbb"},
			StartTime: time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)},
	},
	"with results alone": {
		item{"status": text("COMPLETED"), "copyResults": dict(item{"aaa": dict(item{"success": yes(), "timestamp": digits("1700000000123")}), "bbb": text("xxx")})},
		Record{Foreign: true, Status: Completed, Destinations: []string{"aaa"}, Successful: []string{"aaa"}},
	},
	"lists and text": {
		item{"executionId": text(someID), "status": text("IN_PROGRESS"), "destinationBuckets": list(text("aaa"), text("bbb")), "size": text("42"), "version": text("3"),
			"successfulBuckets": list(text("aaa")), "failedBuckets": null(), "completedAt": null(), "startTime": text("1700000000.5"), "landings": list()},
		Record{ExecutionID: someID, Status: InProgress, Destinations: []string{"aaa", "bbb"}, Successful: []string{"aaa"}, Size: 42, Version: 3, StartTime: time.Unix(1700000000, 5e8)},
	},
	"without a status": {
		item{"executionId": text(someID), "destinationBuckets": list(text("aaa")), "successfulBuckets": list(text("aaa"))},
		Record{ExecutionID: someID, Status: Completed, Destinations: []string{"aaa"}, Successful: []string{"aaa"}},
	},
	"with a destination of no bucket": {
		item{"executionId": text(someID), "status": text("IN_PROGRESS"), "destinationBuckets": list(text("aaa"), text("s3://BUCKET"), text("x"))},
		Record{Foreign: true, ExecutionID: someID, Status: InProgress, Destinations: []string{"aaa", "s3://BUCKET", "x"}},
	},
	"without destinations": {
		item{"executionId": text(someID), "status": text("IN_PROGRESS"), "destinationBuckets": list()},
		Record{Foreign: true, ExecutionID: someID, Status: InProgress},
	},
	"of sets that contradict": {
		item{"executionId": text(someID), "status": text("IN_PROGRESS"), "destinationBuckets": list(text("aaa"), text("bbb")),
			"successfulBuckets": list(text("aaa"), text("elsewhere")), "failedBuckets": list(text("aaa"))},
		Record{ExecutionID: someID, Status: InProgress, Destinations: []string{"aaa", "bbb"}, Successful: []string{"aaa"}},
	},
	"with absurd values": {
		item{"executionId": text(someID), "status": text("IN_PROGRESS"), "size": digits("-1"), "version": digits("99999999999999999999999"), "startTime": digits("1e30"),
			"completedAt": text("noon"), "sourceEtag": dict(item{}), "sha256": list(), "infohash": text(strings.Repeat("f", 300_000)),
			"destinationBuckets": list(text("aaa"), text(""), text("\x1b[2J"), text(strings.Repeat("bbb", 5000)), digits("7"), null())},
		Record{ExecutionID: someID, Status: InProgress, Destinations: []string{"aaa"}, InfoHash: strings.Repeat("f", maxErrorLength)},
	},
	"with a time of the future": {
		item{"executionId": text(someID), "status": text("COMPLETED"), "destinationBuckets": list(text("aaa")), "startTime": text("9999-01-01T00:00:00Z"),
			"completedAt": digits("253402300799")},
		Record{ExecutionID: someID, Status: Completed, Destinations: []string{"aaa"}},
	},
	"bare":                            {item{}, Record{}},
	"a lease":                         {item{"holder": text("me"), "term": digits("3")}, Record{}},
	"of another status":               {item{"executionId": text(someID), "status": text("RUNNING"), "destinationBuckets": list(text("aaa"))}, Record{}},
	"of the future":                   {item{"executionId": text(executionid.New(time.Now().Add(executionid.MaxAhead+time.Hour), "")), "status": text("COMPLETED"), "destinationBuckets": list(text("aaa"))}, Record{}},
	"of the end of time":              {item{"executionId": text("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"), "status": text("IN_PROGRESS"), "destinationBuckets": list(text("aaa"))}, Record{}},
	"of ten thousand destinations":    {item{"executionId": text(someID), "status": text("COMPLETED"), "destinationBuckets": list(many()...)}, Record{}},
	"of results of ten thousand":      {item{"status": text("COMPLETED"), "copyResults": dict(results())}, Record{}},
	"with attributes of another type": {item{"executionId": list(), "status": list(), "destinationBuckets": digits("1"), "copyResults": yes(), "landings": digits("1")}, Record{}},
}

const someID = "01KBMR5F00ABCDEFGHJKMNPQRS"

func many() (out []types.AttributeValue) {
	for n := range 10_000 {
		out = append(out, text(fmt.Sprint("bucket-", n)))
	}
	return out
}

func results() item {
	out := item{}
	for n := range 10_000 {
		out[fmt.Sprint("bucket-", n)] = dict(item{"success": yes()})
	}
	return out
}

func (i item) of(k Key) item {
	out := maps.Clone(i)
	maps.Copy(out, k.item())
	return out
}

func TestItemsOfOthersAreReadAsFarAsTheyCanBe(t *testing.T) {
	for name, c := range ofOthers {
		got, err := decode(c.item.of(key), time.Now())
		var unreadable *Unreadable
		switch want := c.want; {
		case want.Status == "":
			if !errors.As(err, &unreadable) || unreadable.Key != key || unreadable.Cause == "" || !strings.Contains(err.Error(), "build ü") {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case got.Foreign != want.Foreign || want.ExecutionID != "" && got.ExecutionID != want.ExecutionID || got.Status != want.Status || got.Size != want.Size ||
			got.Version != want.Version || got.InfoHash != want.InfoHash || !slices.Equal(got.Destinations, want.Destinations) ||
			!slices.Equal(got.Successful, want.Successful) || !slices.Equal(got.Failed, want.Failed):
			t.Errorf("%s: %+v\nwant %+v", name, got, want)
		case !want.StartTime.IsZero() && !got.StartTime.Equal(want.StartTime):
			t.Errorf("%s: began %s, want %s", name, got.StartTime, want.StartTime)
		case got.StartTime.After(time.Now().Add(executionid.MaxAhead)) || executionid.Check(got.ExecutionID, time.Now()) != nil:
			t.Errorf("%s: %s began %s", name, got.ExecutionID, got.StartTime)
		case !got.mended:
			t.Errorf("%s is taken for one of ours", name)
		}
	}
	for name, spoil := range map[string]func(item){
		"no key":             func(i item) { delete(i, "fileKey") },
		"a key of 2,000":     func(i item) { i["fileKey"] = text(strings.Repeat("k", 2000)) },
		"a key not in UTF-8": func(i item) { i["fileKey"] = text("\xff") },
		"a number for a key": func(i item) { i["fileKey"] = digits("1") },
		"no bucket":          func(i item) { delete(i, "sourceBucket") },
	} {
		i := (&Record{Key: key, ExecutionID: someID, StartTime: noon, Status: InProgress, Destinations: []string{"aaa"}}).encode()
		spoil(i)
		var unreadable *Unreadable
		if r, err := decode(i, noon); !errors.As(err, &unreadable) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// Whatever is in the table, a scan reaches the end of it, and a key can be published.
func TestItemsOfOthersStopNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		l = l.As(key.SourceBucket)
		put := func(i item) {
			t.Helper()
			if _, err := l.client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &l.table, Item: i}); err != nil {
				t.Fatal(err)
			}
		}
		for name, c := range ofOthers {
			i := c.item.of(Key{name, key.SourceBucket})
			i["note"] = text("theirs")
			put(i)
		}
		put(item{"n": digits("1")}.of(Key{"baseline", NotePrefix + "xxx"}))
		read, skipped := map[string]bool{}, map[string]bool{}
		err := l.Scan(t.Context(), Scan{Record: func(r *Record) { read[r.FileKey] = true }, Unreadable: func(u *Unreadable) { skipped[u.FileKey] = true }})
		if err != nil || len(read)+len(skipped) != len(ofOthers) {
			t.Fatalf("read %v, skipped %v: %v", read, skipped, err)
		}
		for name, c := range ofOthers {
			if read[name] != (c.want.Status != "") {
				t.Errorf("%s: read %v", name, read[name])
			}
			k := Key{name, key.SourceBucket}
			b, err := l.Begin(t.Context(), Start{Key: k, SourceETag: "new", Size: 1, Destinations: []string{"xxx", "yyy"}, Now: time.Now()})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if (b.Replaced != nil) != skipped[name] || b.Joined || executionid.Check(b.Record.ExecutionID, time.Now()) != nil {
				t.Errorf("%s: begun %+v", name, b)
			}
			for _, bucket := range b.Record.Destinations {
				if _, err := l.SetLanding(t.Context(), k, b.Record.ExecutionID, bucket, Landing{Agent: "agent", UploadID: "upload", ExecutionID: b.Record.ExecutionID}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if _, err := l.Arrive(t.Context(), b.Record, bucket, Result{Timestamp: time.Now()}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			r, err := l.Get(t.Context(), k)
			if err != nil || r.Status != Completed || r.mended || r.Owner != key.SourceBucket || (&reader{item: r.item}).text("note") != "theirs" {
				t.Errorf("%s: the table has %+v, %v", name, r, err)
			}
		}
	})
}

// An execution whose item somebody has edited goes on.
func TestEditedItemsGoOn(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		for name, edit := range map[string]func(item){
			"lists for sets": func(i item) {
				i["destinationBuckets"] = list(text("aaa"), text("bbb"))
				i["successfulBuckets"] = list()
			},
			"text for numbers": func(i item) { i["version"], i["successfulCopies"], i["size"] = text("1"), text("0"), text("42") },
			"no maps":          func(i item) { delete(i, "copyResults"); i["landings"] = null() },
			"no counts":        func(i item) { delete(i, "version"); delete(i, "successfulCopies"); delete(i, "failedCopies") },
		} {
			k := Key{name, key.SourceBucket}
			begun, err := l.Begin(t.Context(), Start{Key: k, SourceETag: "e", Size: 42, Destinations: []string{"aaa", "bbb"}, Now: time.Now()})
			if err != nil {
				t.Fatal(err)
			}
			i := begun.Record.encode()
			edit(i)
			if _, err := l.client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &l.table, Item: i}); err != nil {
				t.Fatal(err)
			}
			id := begun.Record.ExecutionID
			if _, err := l.SetLanding(t.Context(), k, id, "aaa", Landing{Agent: "agent", UploadID: "upload", ExecutionID: id}); err != nil {
				t.Errorf("%s: landing: %v", name, err)
			}
			for _, b := range []string{"aaa", "bbb"} {
				if _, err := l.Arrive(t.Context(), &Record{Key: k, ExecutionID: id}, b, Result{Timestamp: noon}); err != nil {
					t.Errorf("%s: %s arrives: %v", name, b, err)
				}
			}
			if r, err := l.Get(t.Context(), k); err != nil || r.Status != Completed || r.ExecutionID != id || r.mended {
				t.Errorf("%s: the table has %+v, %v", name, r, err)
			}
		}
	})
}

func TestOwners(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		prod, staging := l.As("prod"), l.As("staging")
		of := func(source string, now time.Time) Start {
			return Start{Key: Key{"build.zip", source}, SourceETag: source + now.String(), Size: 1, Destinations: []string{"aaa"}, Now: now}
		}
		var ids []string
		for _, c := range []struct {
			l      *Ledger
			source string
		}{{prod, "prod"}, {prod, "vendor"}, {staging, "staging"}, {l, "older"}} {
			b, err := c.l.Begin(t.Context(), of(c.source, noon))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, b.Record.ExecutionID)
		}
		var seen []string
		var items int64
		err := staging.Scan(t.Context(), Scan{
			Record: func(r *Record) { seen = append(seen, r.SourceBucket+" of "+r.Owner) },
			Page:   func(n int64) { items = n },
		})
		if slices.Sort(seen); err != nil || !slices.Equal(seen, []string{"older of ", "staging of staging"}) || items != 4 {
			t.Errorf("the second of two seeders sees %q of %d, %v", seen, items, err)
		}
		for _, source := range []string{"prod", "vendor"} {
			if _, err := staging.Begin(t.Context(), of(source, noon)); !errors.Is(err, ErrOwned) || !strings.Contains(err.Error(), "seeder of prod") {
				t.Errorf("taking over %s: %v", source, err)
			}
		}
		// What another seeder sends from this one's bucket is left to it, until it is over.
		if _, err := l.As("vendor").Begin(t.Context(), of("vendor", noon.Add(1))); !errors.Is(err, ErrOwned) {
			t.Errorf("while it runs: %v", err)
		}
		if _, err := prod.Fail(t.Context(), Key{"build.zip", "vendor"}, ids[1], "aaa", Result{Timestamp: noon, Error: "xxx"}); err != nil {
			t.Fatal(err)
		}
		if b, err := l.As("vendor").Begin(t.Context(), of("vendor", noon.Add(1))); err != nil || b.Record.Owner != "vendor" {
			t.Errorf("when it is over: %+v, %v", b, err)
		}
		// An agent names no owner, and takes none away.
		if r, err := l.Arrive(t.Context(), &Record{Key: Key{"build.zip", "prod"}, ExecutionID: ids[0]}, "aaa", Result{Timestamp: noon}); err != nil || r.Owner != "prod" {
			t.Errorf("after an arrival: %+v, %v", r, err)
		}
		// What an older version began gets an owner with the first write.
		if r, err := prod.SetContent(t.Context(), Key{"build.zip", "older"}, ids[3], "i", "s"); err != nil || r.Owner != "prod" {
			t.Errorf("of an older version: %+v, %v", r, err)
		}
	})
}

// attributeOf takes DynamoDB's JSON apart; nil for what is none.
func attributeOf(v any) types.AttributeValue {
	m, ok := v.(map[string]any)
	if !ok || len(m) != 1 {
		return nil
	}
	for name, v := range m {
		switch v := v.(type) {
		case string:
			if name == "N" {
				return digits(v)
			}
			return text(v)
		case bool:
			if name == "NULL" {
				return null()
			}
			return &types.AttributeValueMemberBOOL{Value: v}
		case []any:
			var l []types.AttributeValue
			set := &types.AttributeValueMemberSS{}
			for _, e := range v {
				if s, ok := e.(string); ok {
					set.Value = append(set.Value, s)
				} else if a := attributeOf(e); a != nil {
					l = append(l, a)
				}
			}
			if name == "SS" {
				return set
			}
			return list(l...)
		case map[string]any:
			i := item{}
			for name, e := range v {
				if a := attributeOf(e); a != nil {
					i[name] = a
				}
			}
			return dict(i)
		}
	}
	return nil
}

func FuzzDecode(f *testing.F) {
	add := func(i item) {
		b, err := json.Marshal(plain(dict(i)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, c := range ofOthers {
		if len(c.item) < 20 {
			add(c.item.of(key))
		}
	}
	add((&Record{Key: key, ExecutionID: someID, StartTime: noon, Status: InProgress, Destinations: []string{"aaa", "bbb"}, Successful: []string{"aaa"},
		Results: map[string]Result{"aaa": {Success: true, Timestamp: noon}}, Landings: map[string]Landing{"bbb": {Agent: "xxx", UploadID: "yyy", ExecutionID: "z"}}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var v any
		if json.Unmarshal(b, &v) != nil {
			return
		}
		d, ok := attributeOf(v).(*types.AttributeValueMemberM)
		if !ok {
			return
		}
		now := time.Now()
		r, err := decode(d.Value, now)
		if err != nil {
			return
		}
		if executionid.Check(r.ExecutionID, now) != nil || len(r.Destinations) > maxDestinations || r.Size < 0 || r.Size > maxSize ||
			r.Version < 0 || len(without(r.Successful, r.Destinations)) > 0 || len(without(r.Failed, r.Destinations)) > 0 || !slices.Contains(statuses, r.Status) {
			t.Fatalf("%+v", r)
		}
		for _, at := range []time.Time{r.StartTime, r.CompletedAt} {
			if _, err := json.Marshal(at); err != nil {
				t.Fatal(err)
			}
		}
		if r.Foreign {
			return
		}
		again, err := decode(r.encode(), now)
		if err != nil || again.mended || again.Odd != "" || again.Status != r.Status || !slices.Equal(again.Destinations, r.Destinations) || again.Results == nil {
			t.Fatalf("%+v\nwritten again is %+v, %v", r, again, err)
		}
	})
}

// A number is a time in seconds up to nanoseconds; a longer one is none.
func TestNumbersOfTime(t *testing.T) {
	for number, want := range map[string]time.Time{
		"1700000000":               time.Unix(1700000000, 0),
		"1700000000000":            time.Unix(1700000000, 0),
		"1700000000000000000":      time.Unix(1700000000, 0),
		"99999999999999999999":     time.Unix(99999999999, 0), // of the future
		"1e20":                     {},
		"170000000000000000000000": {},
		"1e400":                    {},
	} {
		d := &reader{item: item{"startTime": digits(number)}, now: noon}
		if want.After(noon.Add(executionid.MaxAhead)) {
			want = time.Time{}
		}
		if got := d.instant("startTime"); !got.Equal(want) {
			t.Errorf("%s is %s, want %s", number, got, want)
		}
	}
}
