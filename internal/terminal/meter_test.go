package terminal

import (
	"math"
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }

	var m meter
	if m.add(start, 0); m.rate != 0 || m.left(100) != 0 {
		t.Errorf("after one look: %v bytes/s, %s left, want unknown", m.rate, m.left(100))
	}
	for i := range 40 {
		m.add(at(float64(i+1)/2), int64(i+1)*500)
	}
	if math.Abs(m.rate-1000) > 1 || m.left(80_000) != 80*time.Second {
		t.Errorf("at a steady 1000 bytes/s: %v bytes/s, %s left for 80000", m.rate, m.left(80_000))
	}
	before := m.rate
	m.add(at(20.5), m.bytes+5000) // a burst of ten times as much
	if m.rate < before || m.rate > 2*before {
		t.Errorf("after a burst: %v bytes/s, from %v", m.rate, before)
	}
	m.add(at(22), m.bytes)
	if m.left(80_000) == 0 {
		t.Error("unknown after a moment without progress")
	}
	m.add(at(31), m.bytes)
	if left := m.left(80_000); left != 0 {
		t.Errorf("%s left after ten seconds without progress, want unknown", left)
	}
	m.add(at(32), 0)
	if m.rate != 0 || m.left(80_000) != 0 {
		t.Errorf("begun anew: %v bytes/s", m.rate)
	}
	m.add(at(33), 1)
	if left := m.left(1 << 40); left != 0 {
		t.Errorf("%s left, which is a guess", left)
	}
	if left := m.left(0); left != 0 {
		t.Errorf("%s left of nothing", left)
	}
}

func TestFormatTime(t *testing.T) {
	for d, want := range map[time.Duration]string{
		900 * time.Millisecond:                              "1s",
		42 * time.Second:                                    "42s",
		59*time.Second + 600*time.Millisecond:               "1m00s",
		80 * time.Second:                                    "1m20s",
		3*time.Hour + 5*time.Minute:                         "3h05m",
		99*time.Hour + 59*time.Minute:                       "99h59m",
		time.Hour - 400*time.Millisecond:                    "1h00m",
		12*time.Minute + 3*time.Second + 1*time.Millisecond: "12m03s",
	} {
		if got := formatTime(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
	if got := formatElapsed(3240 * time.Millisecond); got != "3.2s" {
		t.Errorf("elapsed: %s", got)
	}
}

// The last bytes that do not come are not "1s left" for long.
func TestNothingIsASecondAwayForLong(t *testing.T) {
	var m meter
	at := time.Unix(0, 0)
	for i := range int64(5) {
		m.add(at.Add(time.Duration(i)*time.Second), i*100)
	}
	last := at.Add(4 * time.Second)
	if m.left(50) == 0 {
		t.Error("unknown while it moves")
	}
	m.add(last.Add(2*time.Second), 400)
	if left := m.left(50); left != 0 {
		t.Errorf("%s left of what should have come", left)
	}
}
