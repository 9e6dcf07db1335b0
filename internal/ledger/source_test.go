package ledger

import (
	"errors"
	"maps"
	"testing"
	"time"
)

func TestSourceIsRemembered(t *testing.T) {
	everywhere(t, func(t *testing.T, l *Ledger) {
		ctx := t.Context()
		s := start("etag", "aaa")
		s.Headers = map[string]string{"content-type": "a/b", "x-amz-meta-empty": ""}
		s.SourceModified = noon
		id := begin(t, l, s).Record.ExecutionID
		r, err := l.Get(ctx, key)
		if err != nil || !maps.Equal(r.Headers, s.Headers) || !r.SourceModified.Equal(noon) {
			t.Fatalf("stored as %+v, %v", r, err)
		}
		arrived, err := l.Arrive(ctx, r, "aaa", Result{Timestamp: noon})
		if err != nil || !maps.Equal(arrived.Headers, s.Headers) {
			t.Fatalf("after an arrival %+v, %v", arrived, err)
		}
		later := noon.Add(time.Hour)
		r, err = l.SetSourceModified(ctx, key, id, later)
		if err != nil || !r.SourceModified.Equal(later) || r.Version != arrived.Version+1 || !r.CompletedAt.Equal(arrived.CompletedAt) || r.Status != Completed {
			t.Fatalf("written again: %+v, %v; it was %+v", r, err, arrived)
		}
		if _, err := l.SetSourceModified(ctx, key, "another", later); !errors.Is(err, ErrSuperseded) {
			t.Errorf("for another execution: %v", err)
		}
		if second := begin(t, l, start("etag-2", "aaa")).Record; second.Headers != nil || !second.SourceModified.IsZero() {
			t.Errorf("the next execution has them from the last: %+v", second)
		}
	})
}

// A running execution is joined only by a publish of the same bytes with the same
// headers.
func TestJoinComparesHeaders(t *testing.T) {
	for name, c := range map[string]struct {
		running, asked map[string]string
		joined         bool
	}{
		"the same":            {map[string]string{"content-type": "a/b"}, map[string]string{"content-type": "a/b"}, true},
		"corrected":           {map[string]string{"content-type": "a/b"}, map[string]string{"content-type": "a/c"}, false},
		"none any more":       {map[string]string{"cache-control": "xxx"}, map[string]string{}, false},
		"of an older version": {nil, map[string]string{"content-type": "a/b"}, true},
	} {
		l := New(cloud.DynamoDB, cloud.Table(t))
		s := start("etag", "aaa")
		s.Headers = c.running
		first := begin(t, l, s)
		s.Headers = c.asked
		second := begin(t, l, s)
		if second.Joined != c.joined || (second.Superseded == first.Record.ExecutionID) == c.joined {
			t.Errorf("%s: %+v", name, second)
		}
	}
}
