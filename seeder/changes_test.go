package seeder

import (
	"fmt"
	"testing"
	"time"

	"github.com/landfall-dist/landfall/internal/ledger"
)

// An object that has another ETag at each look begins fewer and fewer executions; one
// that changes now and then is not held back.
func TestChangesBackOff(t *testing.T) {
	var c changes
	key := ledger.Key{FileKey: "build.zip", SourceBucket: "global-builds"}
	now := time.Unix(1_000_000, 0)
	executions, news := 0, 0
	for end := now.Add(24 * time.Hour); now.Before(end); now = now.Add(time.Second) {
		wait, first := c.due(key, now)
		if first {
			news++
		}
		if wait == 0 {
			executions++
			c.began(key, now)
		}
	}
	if executions > 24*6+15 || news != 1 {
		t.Errorf("%d executions in a day, said %d times", executions, news)
	}
	now = now.Add(calmAfter*maxChangeWait + 1)
	for range 10 { // each change after a minute
		if wait, _ := c.due(key, now); wait != 0 {
			t.Fatalf("held back for %s", wait)
		}
		c.began(key, now)
		now = now.Add(time.Minute)
	}
}

func TestChangesAreBounded(t *testing.T) {
	var c changes
	now := time.Unix(1_000_000, 0)
	for i := range 2 * maxChanging {
		c.began(ledger.Key{FileKey: fmt.Sprint(i)}, now)
	}
	if n := len(c.keys); n > maxChanging {
		t.Errorf("%d keys are remembered, at most %d may be", n, maxChanging)
	}
}
