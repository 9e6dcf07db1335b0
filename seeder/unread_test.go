package seeder

import (
	"fmt"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/bucket"
	"github.com/landfall-dist/landfall/internal/ledger"
)

func TestUnreadBacksOff(t *testing.T) {
	u := make(unread)
	o := bucket.Object{Key: "a.zip", ETag: "1", LastModified: time.Unix(1, 0)}
	now := time.Unix(1_000_000, 0)
	if u.waits(o, now) {
		t.Error("waits before it was tried")
	}
	tries, end := 0, now.Add(24*time.Hour)
	for ; now.Before(end); now = now.Add(time.Second) {
		if u.waits(o, now) {
			continue
		}
		tries++
		if news := u.failed(o, now, maxUnread); news != (tries == 1) {
			t.Errorf("news at try %d: %v", tries, news)
		}
		u.listed()
	}
	// 12 times longer than maxUnread at the most, and the doubling before.
	if most := int(24*time.Hour/maxUnread)*2 + 12; tries < 24 || tries > most {
		t.Errorf("%d tries in a day, want at most %d", tries, most)
	}
	if again := o; u.waits(bucket.Object{Key: again.Key, ETag: "2", LastModified: o.LastModified}, now) {
		t.Error("another object of the key waits")
	}
	u.failed(o, now, maxUnread)
	u.listed()
	u.listed()
	if len(u) != 0 {
		t.Error("one that is not listed any more is remembered")
	}
}

func TestUnreadIsBounded(t *testing.T) {
	u := make(unread)
	for i := range maxNamed + 10 {
		u.failed(bucket.Object{Key: fmt.Sprint(i)}, time.Unix(1, 0), maxUnread)
	}
	if len(u) != maxNamed {
		t.Errorf("%d are remembered", len(u))
	}
	beyond := bucket.Object{Key: fmt.Sprint(maxNamed + 5)}
	if u.failed(beyond, time.Unix(1, 0), maxUnread) || u.waits(beyond, time.Unix(1, 0)) {
		t.Error("one beyond the bound is remembered all the same")
	}
}

func TestSuspected(t *testing.T) {
	now := time.Now()
	w := rewritten{since: now.Add(-time.Hour), done: make(map[string]looked)}
	at := now.Add(-2 * time.Hour).Truncate(time.Second)
	recent := now.Add(-time.Minute).Truncate(time.Second)
	record := func(started, modified time.Time) *ledger.Record {
		return &ledger.Record{Key: ledger.Key{FileKey: "a.zip"}, ExecutionID: "1", StartTime: started, SourceModified: modified}
	}
	for name, c := range map[string]struct {
		r    *ledger.Record
		o    time.Time
		want bool
	}{
		"as it was, before this process":        {record(at, at), at, false},
		"a listing tells the time finer":        {record(at, at), at.Add(300 * time.Millisecond), false},
		"written again":                         {record(at, at), at.Add(time.Second), true},
		"an older one is back":                  {record(at, at), at.Add(-time.Hour), true},
		"accepted just now":                     {record(now, at), at, false},
		"perhaps written twice in one second":   {record(recent, recent), recent, true},
		"perhaps written three times":           {record(at, recent), recent, true},
		"of a version that did not note a time": {record(now, time.Time{}), at, false},
	} {
		if got := w.suspected(c.r, bucket.Object{Key: "a.zip", LastModified: c.o}, now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	r := record(recent, recent)
	o := bucket.Object{Key: "a.zip", LastModified: recent}
	w.looked(r)
	if w.suspected(r, o, now) {
		t.Error("looked at again and again")
	}
	next := record(recent, recent)
	next.ExecutionID = "2"
	if !w.suspected(next, o, now) {
		t.Error("the next execution is not looked at")
	}
	for i := range maxNamed + 1 {
		r := record(recent, recent)
		r.FileKey = fmt.Sprint(i)
		w.looked(r)
	}
	if len(w.done) > maxNamed || w.suspected(r, o, now) {
		t.Errorf("%d are remembered, or what was forgotten is looked at again", len(w.done))
	}
}
