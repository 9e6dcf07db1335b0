package ledger

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// A high execution stays one, whatever happens to it, and one that is joined with high
// priority becomes one; a normal item has no such attribute.
func TestPriority(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		high := func(etag string, to ...string) Start {
			s := start(etag, to...)
			s.High = true
			return s
		}
		kept := func(when string, want bool) {
			t.Helper()
			r, err := l.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := r.item["priority"]; r.High != want || ok != want || r.mended {
				t.Errorf("%s: high: %v, in the item: %v, mended: %v", when, r.High, ok, r.mended)
			}
		}
		normal := begin(t, l, start("xxx", "aaa", "bbb")).Record
		kept("normal", false)
		joined := begin(t, l, high("xxx", "aaa"))
		if !joined.Joined || !joined.Raised || joined.Record.ExecutionID != normal.ExecutionID || joined.Record.Version != normal.Version+1 {
			t.Errorf("joined with high priority: %+v", joined)
		}
		kept("raised", true)
		if again := begin(t, l, high("xxx", "aaa")); !again.Joined || again.Raised || again.Record.Version != joined.Record.Version {
			t.Errorf("joined once more: %+v", again)
		}
		if again := begin(t, l, start("xxx", "aaa")); !again.Joined || again.Raised || !again.Record.High {
			t.Errorf("joined with normal priority: %+v", again)
		}
		if _, err := l.Arrive(t.Context(), joined.Record, "aaa", Result{Timestamp: noon}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Fail(t.Context(), key, normal.ExecutionID, "bbb", Result{Timestamp: noon, Error: "late"}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Retry(t.Context(), key, normal.ExecutionID); err != nil {
			t.Fatal(err)
		}
		kept("sent again", true)
		if next := begin(t, l, start("yyy", "aaa")); next.Record.High {
			t.Error("another build of the key is high without being asked for")
		}
		kept("superseded", false)
	})
}

// What others have written as a priority is read as far as it can be.
func TestPriorityIsReadLeniently(t *testing.T) {
	for _, of := range []struct {
		value types.AttributeValue
		high  bool
		odd   bool
	}{
		{nil, false, false}, {text("high"), true, false}, {text("HIGH"), true, false}, {text("normal"), false, false}, {text(""), false, false},
		{null(), false, false}, {text("urgent"), false, true}, {digits("1"), false, true}, {list(), false, true},
	} {
		i := item{"executionId": text(someID), "status": text("IN_PROGRESS"), "destinationBuckets": texts([]string{"aaa"})}.of(key)
		i.set("priority", of.value)
		r, err := decode(i, time.Now())
		if err != nil || r.High != of.high || (r.Odd != "") != of.odd {
			t.Errorf("%+v: high: %v, odd: %q, %v", of.value, r.High, r.Odd, err)
		}
	}
}
