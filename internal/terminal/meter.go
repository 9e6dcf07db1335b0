package terminal

import (
	"fmt"
	"math"
	"time"
)

const (
	// smoothing is how far back a rate looks: long enough that pieces that come
	// in bursts do not make it jump, short enough to follow a link that changes.
	smoothing = 5 * time.Second
	// stalled is after how long without progress the time that is left is
	// unknown.
	stalled = 10 * time.Second
	// farAway is the longest time left that is shown; what is longer is a guess.
	farAway = 100 * time.Hour
)

// meter smooths a count of bytes that is read now and then into a rate. The zero
// value is ready.
type meter struct {
	at, moved time.Time
	bytes     int64
	rate      float64 // bytes/s; 0 for unknown
}

// add takes in how many bytes there are now. Fewer than before begin it anew.
func (m *meter) add(now time.Time, bytes int64) {
	past := now.Sub(m.at).Seconds()
	switch {
	case m.at.IsZero() || bytes < m.bytes:
		*m = meter{at: now, moved: now, bytes: bytes}
		return
	case past <= 0:
		return
	}
	latest := float64(bytes-m.bytes) / past
	if m.rate == 0 {
		m.rate = latest
	} else {
		m.rate += (latest - m.rate) * (1 - math.Exp(-past/smoothing.Seconds()))
	}
	if bytes > m.bytes {
		m.moved = now
	}
	m.at, m.bytes = now, bytes
}

// left is how long the rest takes at this rate, 0 for unknown.
func (m *meter) left(rest int64) time.Duration {
	if m.rate <= 0 || rest <= 0 || m.at.Sub(m.moved) >= stalled {
		return 0
	}
	seconds := float64(rest) / m.rate
	if seconds >= farAway.Seconds() {
		return 0
	}
	// What should have come by now and has not is no second away.
	if waited := m.at.Sub(m.moved); waited > time.Second && waited.Seconds() > seconds {
		return 0
	}
	return max(time.Duration(seconds*float64(time.Second)), time.Second)
}

// formatTime writes a time for people, in at most two units: 42s, 1m20s, 3h05m.
func formatTime(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
}

// formatElapsed is formatTime, with tenths for what took less than a minute.
func formatElapsed(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return formatTime(d)
}
