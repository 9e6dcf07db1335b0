package swarm

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"
)

func TestIsBabble(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("main read loop: %w", io.EOF):           false,
		fmt.Errorf("decoding: %w", io.ErrUnexpectedEOF):    false,
		fmt.Errorf("decoding: %w", errors.New("too long")): true,
	} {
		if got := isBabble(err); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
}

// A link is a stream of what comes in each tick, in bytes; a chunk is complete when
// so many have come.
func TestPatience(t *testing.T) {
	p := defaultPatience()
	const second = 2 // ticks
	for name, c := range map[string]struct {
		rate     func(tick int) int64 // bytes in a tick
		chunk    int64
		stalled  time.Duration // 0: never
		late     time.Duration
		sharing  float64
		duration time.Duration
	}{
		"silent":                   {func(int) int64 { return 0 }, maxChunk, 5 * time.Second, 2 * time.Second, 1, time.Minute},
		"silent after a hello":     {func(i int) int64 { return max(0, int64(1-i)) * 78 }, maxChunk, 5500 * time.Millisecond, 2 * time.Second, 1, time.Minute},
		"announces, sends nothing": {func(int) int64 { return 50 }, maxChunk, 20 * time.Second, 2 * time.Second, 1, time.Minute},
		"dribble":                  {func(int) int64 { return 500 }, maxChunk, 20 * time.Second, 2 * time.Second, 1, time.Minute},
		"a sixteenth of 1 Mbit/s":  {func(int) int64 { return 7800 / second }, maxChunk, 0, 0, 1, 10 * time.Minute},
		"the same, in bursts of 10 s": {func(i int) int64 {
			if i%(10*second) == 3 {
				return 78000
			}
			return 0
		}, maxChunk, 0, 34 * time.Second, 1, 10 * time.Minute},
		"a sixteenth of 20 Mbit/s":  {func(int) int64 { return 156000 / second }, maxChunk, 0, 0, 1, time.Minute},
		"a 64th of 1 Mbit/s":        {func(int) int64 { return 1950 / second }, maxChunk, 0, 0, 16. / 64, 10 * time.Minute},
		"an answer after 4 seconds": {func(i int) int64 { return int64(min(1, i/(4*second))) * 50000 }, maxChunk, 0, 2 * time.Second, 1, time.Minute},
		"stops in the middle":       {func(i int) int64 { return max(0, int64(8-i)) * 10000 }, maxChunk, 19 * time.Second, 0, 1, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			var w wait
			var got int64
			var late, stalled time.Duration
			for i := 0; time.Duration(i)*p.tick < c.duration && stalled == 0; i++ {
				bytes := c.rate(i)
				chunks := 0
				for got += bytes; got >= c.chunk; got -= c.chunk {
					chunks++
				}
				isLate, isStalled := w.judge(p, p.tick, bytes, chunks, p.leastRate*c.sharing)
				now := time.Duration(i+1) * p.tick
				if isLate && late == 0 {
					late = now
				}
				if isStalled {
					stalled = now
				}
			}
			if stalled != c.stalled {
				t.Errorf("stalled after %s, not %s", stalled, c.stalled)
			}
			if c.late != 0 && late != c.late || c.late == 0 && c.stalled == 0 && late != 0 {
				t.Errorf("late after %s, not %s", late, c.late)
			}
		})
	}
}
