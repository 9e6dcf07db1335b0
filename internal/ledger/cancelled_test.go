package ledger

import (
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
)

// Cancelled is a status of its own: an execution that failed somewhere else has failed.
func TestCancelledStatus(t *testing.T) {
	now := time.Now()
	cancel, fail := Result{Timestamp: now, Error: CancelledError}, Result{Timestamp: now, Error: "no progress"}
	for _, c := range []struct {
		name string
		a, b *Result // nil for landed
		want Status
	}{
		{"all cancelled", &cancel, &cancel, Cancelled},
		{"one landed", nil, &cancel, Cancelled},
		{"one failed", &fail, &cancel, Failed},
		{"all landed", nil, nil, Completed},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Record{Key: Key{"build.zip", "global"}, ExecutionID: ulid.Make().String(), StartTime: now, Destinations: []string{"region-a", "region-b"},
				Results: map[string]Result{}, Landings: map[string]Landing{}, SourceETag: "e", Version: 1}
			for bucket, result := range map[string]*Result{"region-a": c.a, "region-b": c.b} {
				var err error
				if result == nil {
					_, err = r.arrive(bucket, Result{Timestamp: now})
				} else {
					_, err = r.fail(bucket, *result)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			r.settle(now)
			if r.Status != c.want {
				t.Fatalf("status %s, want %s", r.Status, c.want)
			}
			// As it was written before there was this status.
			i := r.encode()
			if r.Status == Cancelled {
				i["status"] = text(string(Failed))
			}
			old, err := decode(i, now)
			if err != nil || old.Status != c.want {
				t.Errorf("read back: %v, %v", old, err)
			}
			if r.Status != Cancelled {
				return
			}
			if _, err := r.retry(); err != nil {
				t.Fatal(err)
			}
			if r.settle(now); r.Status != InProgress || !r.CompletedAt.IsZero() {
				t.Errorf("sent again: %s, completed at %s", r.Status, r.CompletedAt)
			}
		})
	}
}
